"""Turn a text into another: translate it, summarise it, answer it.

Raffel et al. (2020), https://arxiv.org/abs/1910.10683: an encoder-decoder (section
3.1.1), or a decoder that sees the source in both directions (section 3.2.1, "prefix
LM"). Axes: S encoder time, T decoder time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from lm.config import check_choice, check_range
from lm.data.packing import FitRows, Rows, join
from lm.data.pipeline import Pieces
from lm.metrics import Metrics
from lm.tasks import fields, labels, text_scores
from lm.tasks.base import marked, token_loss
from lm.tasks.generative import Generative, next_token_row
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

ARCHITECTURES = ("encoder_decoder", "prefix_lm")
KINDS = ("translation", "summary", "text")


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        architecture: `encoder_decoder` for a model such as t5, `prefix_lm` for a
            decoder such as gpt.
        length: Tokens of a source with its marks; what is too much is cut off.
        targets_length: Tokens of a target with its end mark, likewise. A row has room
            for as many of both, or for the sum if there is no encoder; pairs that fit
            together share it. As many tokens a prediction may have.
        prefix: What is put before every source, for example "translate English to
            French: ".
        target: The field of an example that has its target.
        kind: What is scored: a `translation`, a `summary`, or any `text`; see
            `lm.tasks.text_scores.generation`.
        beam_size: Of predictions; 0 takes the likeliest token each time.
        length_penalty: As in `lm.decoding.Config`, with beams.
        long_texts: `cut`, or `refuse` (see `data.bad_rows`).
        z_loss: Weight of log² Z.
    """

    name: str = "text_to_text"
    architecture: str = "encoder_decoder"
    length: int = 128
    targets_length: int = 128
    prefix: str = ""
    target: str = "target"
    kind: str = "translation"
    beam_size: int = 0
    length_penalty: float = 0.6
    long_texts: str = "cut"
    z_loss: float = 0.0

    def __post_init__(self):
        check_choice("task.architecture", self.architecture, ARCHITECTURES)
        check_choice("task.kind", self.kind, KINDS)
        check_choice("task.long_texts", self.long_texts, ("cut", "refuse"))
        check_range("task.length", self.length, 3)
        check_range("task.targets_length", self.targets_length, 1)
        check_range("task.beam_size", self.beam_size, 0)
        check_range("task.length_penalty", self.length_penalty, 0)

    @property
    def prefix_lm(self) -> bool:
        """Whether a decoder sees the source in both directions."""
        return self.architecture == "prefix_lm"


class TextToText(Generative):
    """The task. A pair is never cut in two."""

    overlap = 0
    architectures = ("decoder", "encoder_decoder")

    def __init__(self, config: Config, tokenizer: Tokenizer):
        """Keeps both.

        Raises:
            UserError: If the tokenizer has no mark of a text's end.
        """
        if tokenizer.eos_id < 0:
            raise UserError(
                "task text_to_text needs a tokenizer with a mark of a text's end, such "
                "as </s>; train one with python -m tools.train_tokenizer"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.prefix_lm = config.prefix_lm

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        config = self.config
        lengths = (config.length, config.targets_length, config.long_texts)
        made_of = (config.architecture, config.prefix, config.target, *lengths)
        return f"source target {made_of}"

    @property
    def decoding(self) -> Mapping[str, Any]:
        """See `Generative`."""
        return {
            "max_new_tokens": self.config.targets_length,
            "temperature": 0.0,
            "beam_size": self.config.beam_size,
            "length_penalty": self.config.length_penalty,
        }

    def build_model(self, config: Any) -> nn.Module:
        """See `Task`.

        Raises:
            UserError: If the model has another architecture, or too few positions.
        """
        model: Any = super().build_model(config)
        fits = "decoder" if self.prefix_lm else "encoder_decoder"
        if model.architecture != fits:
            raise UserError(
                f"task.architecture={self.config.architecture} is not for a "
                f"{config.name} model; set it to encoder_decoder for t5, to prefix_lm "
                "for gpt"
            )
        longest = self.config.length + self.config.targets_length
        if self.prefix_lm and longest > config.max_len:
            raise UserError(
                f"task.length and task.targets_length make rows of {longest} tokens, "
                f"more than model.max_len {config.max_len}; lower them or raise it"
            )
        return model

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Encodes each `source` and `target`; a target that is cut has no end mark."""
        config, documents = self.config, []
        for example, source in zip(examples, self._sources(examples)):
            try:
                ids = self.tokenizer.encode(self.target_of(example))
                target = np.append(ids, self.tokenizer.eos_id)
                if config.long_texts == "refuse":
                    _check_size(example, "length", len(source), config.length)
                    size = config.targets_length
                    _check_size(example, "targets_length", len(target), size)
                documents.append(
                    {
                        "source": self._cut(source),
                        "target": target[: config.targets_length],
                    }
                )
            except UserError as error:
                documents.append(error)
        return documents

    def _sources(self, examples: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """Encodes sources with their marks; a decoder's begin with one, too."""
        prefix, tokenizer = self.config.prefix, self.tokenizer
        sources = tokenizer.encode_batch([prefix + e["text"] for e in examples])
        if self.prefix_lm:
            return [marked(tokenizer, ids) for ids in sources]
        return [np.append(ids, tokenizer.eos_id) for ids in sources]

    def _cut(self, source: np.ndarray) -> np.ndarray:
        """Shortens a source to `length`, and leaves it its end mark."""
        if len(source) <= self.config.length:
            return source
        return np.append(source[: self.config.length - 1], source[-1])

    def prompt(self, example: Mapping[str, Any]) -> np.ndarray:
        """See `Generative`."""
        (source,) = self._sources([example])
        return self._cut(source)

    def text_of(self, example: Mapping[str, Any]) -> str:
        """See `Generative`."""
        return example["text"]

    def target_of(self, example: Mapping[str, Any]) -> str:
        """See `Generative`."""
        return fields.text(example, self.config.target)

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Packs pairs; both sides of each must fit."""
        source, target = lengths["source"], lengths["target"]
        capacities = (self.config.length, self.config.targets_length)
        sizes = np.stack([source, target], axis=1)
        if self.prefix_lm:
            sizes, capacities = source + target - 1, (sum(capacities),)
        return FitRows(sizes, capacities, seed if train else -1)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row of a decoder, or of an encoder and a decoder."""
        pairs = [(columns["source"], columns["target"]) for _, columns in pieces]
        pad_id = max(self.tokenizer.pad_id, 0)
        if self.prefix_lm:
            (length,) = capacity
            return decoder_row(pairs, length, pad_id)
        length, targets_length = capacity
        return encoder_decoder_row(pairs, length, targets_length, pad_id)

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed cross-entropy of the targets, and metrics."""
        return token_loss(model, params, batch, rng, self.config.z_loss)

    def score(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """See `Generative`; `lm.tasks.text_scores` has the details."""
        gold = [self.target_of(example) for example in examples]
        found = [prediction["prediction"] for prediction in predictions]
        return text_scores.generation(gold, found, self.config.kind)


def decoder_row(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], length: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Makes a row in which each source is seen in both directions.

    Args:
        pairs: Tokens of sources and targets, none empty.
        length: Tokens of the row, at least one less than those of each pair make.
        pad_id: What fills the rest of it.

    >>> row = decoder_row([(np.array([5, 6]), np.array([7, 8]))], 4, pad_id=0)
    >>> row["inputs"].tolist(), row["targets"].tolist(), row["loss_mask"].tolist()
    ([5, 6, 7, 0], [6, 7, 8, 0], [0.0, 1.0, 1.0, 0.0])
    >>> row["prefix_mask"].tolist()
    [True, True, False, False]
    """
    row = next_token_row([np.concatenate(pair) for pair in pairs], length, pad_id)
    segment_ids, positions = row["segment_ids"], row["positions"]
    size_of = np.array([0, *(len(source) for source, _ in pairs)])
    prefix_mask = (segment_ids > 0) & (positions < size_of[segment_ids])
    # The last token of a source has the target's first as its own.
    loss_mask = (segment_ids > 0) & (positions >= size_of[segment_ids] - 1)
    return row | {
        "loss_mask": loss_mask.astype(np.float32),
        "prefix_mask": prefix_mask,
    }


def encoder_decoder_row(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    length: int,
    targets_length: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Makes a row of an encoder and a decoder, which reads `pad_id` first.

    Args:
        pairs: Tokens of sources and targets, none empty.
        length: Tokens of the encoder's row.
        targets_length: Tokens of the decoder's row.
        pad_id: What begins a target, and fills the rest of a row.

    >>> row = encoder_decoder_row([(np.array([5, 6]), np.array([7, 8]))], 3, 3, 0)
    >>> row["encoder_inputs"].tolist(), row["inputs"].tolist(), row["targets"].tolist()
    ([5, 6, 0], [0, 7, 0], [7, 8, 0])
    """
    encoder_inputs, encoder_segment_ids, encoder_positions = join(
        [source for source, _ in pairs], length, pad_id
    )
    targets, segment_ids, positions = join(
        [target for _, target in pairs], targets_length, pad_id
    )
    inputs, _, _ = join(
        [np.concatenate([[pad_id], target[:-1]]) for _, target in pairs],
        targets_length,
        pad_id,
    )
    return {
        "encoder_inputs": encoder_inputs,
        "encoder_segment_ids": encoder_segment_ids,
        "encoder_positions": encoder_positions,
        "inputs": inputs,
        "targets": targets,
        "segment_ids": segment_ids,
        "positions": positions,
        "loss_mask": (segment_ids > 0).astype(np.float32),
    }


def _check_size(example: Mapping[str, Any], name: str, size: int, longest: int) -> None:
    if size > longest:
        raise UserError(
            f"{labels.where(example)} has {size} tokens, more than task.{name} "
            f"{longest}; raise it, or set task.long_texts=cut"
        )
