"""Predict a word's neighbours, or a word from them: the tasks of Word2Vec.

Mikolov et al. (2013a), https://arxiv.org/abs/1301.3781, and (2013b),
https://arxiv.org/abs/1310.4546. What chance decides (which frequent words are left
out, how far a window reaches, which words are noise) is drawn where rows are made: new
in every epoch of training and the same in every evaluation.
Axes: B batch, T time, D emb_dim, V vocab, K noise words, J inner nodes of a path, and
those of `lm.nn.bands`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lm.config import check_choice, check_range
from lm.data.cooccurrence import kept_share
from lm.data.huffman import Paths, huffman_paths
from lm.data.packing import ConcatRows, Rows, join
from lm.data.pipeline import Pieces
from lm.metrics import Mean, Metrics
from lm.nn import bands
from lm.nn.bands import log_sigmoid_loss
from lm.tasks.base import TO_USE_VECTORS, Task, apply
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

KINDS = ("skip_gram", "cbow")
OUTPUTS = ("negative_sampling", "hierarchical_softmax")
# A row of text is so much shorter than what fills a row on average, so that few keep
# more words than it holds.
MARGIN = 0.95


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        kind: `skip_gram`, a word predicts each of its neighbours, or `cbow`, their mean
            predicts the word (2013a, section 3).
        output: `negative_sampling` (2013b, equation 4) or `hierarchical_softmax`
            (2013b, equation 3), over a Huffman tree.
        length: T, words of a row, of those that are not left out.
        window: W, the most words on one side that are neighbours; how many are is drawn
            for each word, from 1 on (2013a, section 3.2).
        negatives: Noise words to a neighbour, k of (2013b), equation 4.
        shared_negatives: K, noise words that are drawn for a row and are those of all
            its words, each with a weight of `negatives` / K.
        noise_power: Noise words are drawn in proportion to their count to this power.
        subsample: Words whose share of the text exceeds this are left out the more
            often the more frequent they are; 0 keeps all.
    """

    name: str = "word2vec"
    kind: str = "skip_gram"
    output: str = "negative_sampling"
    length: int = 512
    window: int = 5
    negatives: int = 5
    shared_negatives: int = 32
    noise_power: float = 0.75
    subsample: float = 1e-3

    def __post_init__(self):
        check_choice("task.kind", self.kind, KINDS)
        check_choice("task.output", self.output, OUTPUTS)
        check_range("task.length", self.length, 2)
        check_range("task.window", self.window, 1, self.length)
        for name in ("negatives", "shared_negatives"):
            check_range(f"task.{name}", getattr(self, name), 1)
        for name in ("noise_power", "subsample"):
            check_range(f"task.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class Word2Vec(Task):
    """The task. Words that the vocabulary lacks are left out of the texts."""

    config: Config
    tokenizer: Tokenizer
    overlap = 0
    models = ("word2vec",)
    instead = TO_USE_VECTORS

    def __post_init__(self):
        if self.tokenizer.counts is None:
            raise UserError(
                "word2vec needs the counts of words, which this tokenizer has not; "
                "train one with tools.train_tokenizer --kind=words"
            )
        if (self._counts > 0).sum() < 2:
            raise UserError(
                "word2vec needs two words at least, which this tokenizer has not; "
                "train it on more text"
            )

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        return "known words"

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """Encodes each text; one of fewer than two known words is dropped."""
        texts = self.tokenizer.encode_batch([example["text"] for example in examples])
        known = (ids[self._counts[ids] > 0] for ids in texts)
        return [{"tokens": ids} if len(ids) > 1 else {} for ids in known]

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays texts end to end, so many words to a row that those kept fill it."""
        kept = (self._counts * self.kept_share).sum() / self._counts.sum()
        length = self.config.length
        if kept < 1:
            length = max(length, int(MARGIN * length / kept))
        return ConcatRows(lengths["tokens"], length, seed if train else -1)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row; what it keeps beyond T words is cut.

        `windows` [T] is how far each word's reaches, 0 of padding; `negatives` [K] are
        noise words.
        """
        config, left = self.config, self.config.length
        tokens = []
        for _, columns in pieces:
            ids = columns["tokens"]
            ids = ids[rng.random(len(ids)) < self.kept_share[ids]][:left]
            left -= len(ids)
            tokens.append(ids)
        inputs, segment_ids, _ = join(
            tokens, config.length, max(self.tokenizer.pad_id, 0)
        )
        reach = rng.integers(1, config.window + 1, config.length, np.int32)
        row = {
            "inputs": inputs,
            "segment_ids": segment_ids,
            "windows": np.where(segment_ids > 0, reach, 0),
        }
        if config.output == "negative_sampling":
            noise = np.searchsorted(
                self._noise, rng.random(config.shared_negatives), side="right"
            )
            row["negatives"] = noise.astype(np.int32)
        return row

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the loss, summed over all that is predicted, and metrics.

        Padded rows have no words, and so predict nothing.
        """
        config, tables = self.config, cast(Any, model).config
        inputs, reach = batch["inputs"], config.window
        if tables.ngram_buckets:
            batch = {**batch, "ngrams": tables.ngrams(self.tokenizer)}
        near = bands.neighbours(batch["windows"], batch["segment_ids"], reach)
        number = bands.counts(near, inputs.shape[1])
        words = apply(model, params, batch, rng, method="hidden")
        if config.kind == "cbow":
            words = bands.means(words, near, reach)
            number = jnp.minimum(number, 1)

        def contexts(ids: Array) -> Array:
            return model.apply({"params": params}, ids, method="contexts")

        if config.output == "negative_sampling":
            others = contexts(inputs), contexts(batch["negatives"])
            total = self._negative_sampling(words, near, number, *others)
        else:
            nodes, signs = (jnp.asarray(part)[inputs] for part in self._paths)
            total = self._hierarchical_softmax(words, near, contexts(nodes), signs)
        return total, {"loss": Mean(total, number.sum())}

    def _negative_sampling(
        self, words: Array, near: Array, number: Array, others: Array, noise: Array
    ) -> Array:
        """Returns the sum of (2013b), equation 4, negated, over all predictions.

        Args:
            words: What predicts, v [B, T, D].
            near: Which words are neighbours [B, N, P, Q].
            number: Predictions of each word [B, T].
            others: Vectors v' of the words [B, T, D].
            noise: Vectors v' of noise words [B, K, D].
        """
        config = self.config
        if config.kind == "skip_gram":
            scores = bands.pair_scores(words, others, config.window)
            right = jnp.where(near, log_sigmoid_loss(scores), 0)
        else:
            right = number * log_sigmoid_loss((words * others).sum(axis=-1))
        scores = jnp.einsum("BTD,BKD->BTK", words, noise)
        weights = number * (config.negatives / config.shared_negatives)
        wrong = weights[..., None] * log_sigmoid_loss(-scores)
        return right.sum() + wrong.sum()

    def _hierarchical_softmax(
        self, words: Array, near: Array, steps: Array, signs: Array
    ) -> Array:
        """Returns the sum of -log of (2013b), equation 3, over all predictions.

        Args:
            words: What predicts, v [B, T, D].
            near: Which words are neighbours [B, N, P, Q].
            steps: Vectors v' of the nodes on the way to each word [B, T, J, D].
            signs: Of the ways, 0 after their ends [B, T, J].
        """
        reach = self.config.window
        if self.config.kind == "skip_gram":
            signs = bands.around(signs, reach)[:, :, None]
            steps = bands.around(steps, reach)
            scores = jnp.einsum("BNPD,BNQJD->BNPQJ", bands.blocks(words), steps)
            counts = near[..., None] & (signs != 0)
        else:
            scores = jnp.einsum("BTD,BTJD->BTJ", words, steps)
            counts = near.any(axis=-1)
            counts = counts.reshape(len(words), -1)[:, : words.shape[1], None]
            counts &= signs != 0
        return jnp.where(counts, log_sigmoid_loss(signs * scores), 0).sum()

    @functools.cached_property
    def _paths(self) -> Paths:
        """The way to each word in the Huffman tree."""
        return huffman_paths(self._counts)

    @functools.cached_property
    def _noise(self) -> np.ndarray:
        """How likely a noise word is this one or one before it, float64 [V]."""
        power = self.config.noise_power
        weights = np.where(self._counts > 0, self._counts**power, 0).cumsum()
        return weights / weights[-1]

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """How often each word is in the texts, 0 of the unknown [V]."""
        counts = self.tokenizer.counts
        assert counts is not None
        return np.where(self.tokenizer.is_special, 0, counts)

    @functools.cached_property
    def kept_share(self) -> np.ndarray:
        """How likely each word is kept, float64 [V]; see `cooccurrence.kept_share`."""
        return kept_share(self._counts, self.config.subsample)
