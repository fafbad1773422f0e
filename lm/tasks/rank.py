"""Find the text that a query is about.

A `dual` encoder makes a vector of every query and of every text, alone, so that the
texts nearest to a query are found among many: Karpukhin et al. (2020),
https://arxiv.org/abs/2004.04906. A `cross` encoder reads a query and a text together
and judges that pair: Nogueira & Cho (2019), https://arxiv.org/abs/1901.04085.

Both learn to tell a query's own text from others of its batch. So a larger batch makes
a harder task, and `grad_accum_steps` an easier one: only the rows of one part meet.

Axes: B batch, T time of texts, Q of queries, D emb_dim, K texts that one query is
shown.
"""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config import check_choice, check_range
from lm.data.packing import BucketRows, Rows
from lm.data.pipeline import Pieces
from lm.metrics import Mean, Metrics
from lm.nn import heads, ranking
from lm.nn.heads import PooledHead
from lm.nn.ranking import Encoder, choose, may_meet
from lm.nn.rows import close_up, cloze, drop_tokens
from lm.tasks import fields, labels, scores
from lm.tasks.base import Predictive, apply, marked, padded, sides
from lm.tasks.pair import encode_checked
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

KINDS = ("dual", "cross")

# Texts that a cross-encoder ranks in an evaluation: the query's own and others.
CANDIDATES = 20

# Queries whose cosines are in memory at once.
CHUNK = 1024

# Examples that a report shows.
WORST = 20


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        length: T of the longest text of `dual`, of the longest pair of `cross`; the
            rest of a longer text is cut off.
        query: The field of an example that has the query.
        query_length: Q of the longest query; the rest of a longer one is cut off.
        kind: `dual` or `cross`.
        pooling: As in `lm.nn.heads.pool`; of `dual` also `attention`, a weighted mean.
        temperature: Of `dual`: what cosines are divided by to be logits.
        num_negatives: Of `cross`: K - 1 of training.
        dropout_rate: Of the pooled states.
        token_dropout_rate: The share of tokens that training leaves out, all but the
            first of a row (Iyyer et al. 2015, https://doi.org/10.3115/v1/P15-1162).
        cloze_rate: Of `dual`: the share of examples whose query is, in training, a
            span of the text (Lee et al. 2019, https://arxiv.org/abs/1906.00300).
    """

    name: str = "rank"
    length: int = 128
    query: str = "query"
    query_length: int = 32
    kind: str = "dual"
    pooling: str = "mean"
    temperature: float = 0.05
    num_negatives: int = 7
    dropout_rate: float = 0.0
    token_dropout_rate: float = 0.0
    cloze_rate: float = 0.0

    def __post_init__(self):
        check_choice("task.kind", self.kind, KINDS)
        poolings = ranking.POOLINGS if self.kind == "dual" else heads.POOLINGS
        check_choice("task.pooling", self.pooling, poolings)
        check_range("task.query_length", self.query_length, 3)
        check_range("task.temperature", self.temperature, 1e-3)
        check_range("task.num_negatives", self.num_negatives, 1)
        check_range("task.dropout_rate", self.dropout_rate, 0, 1)
        check_range("task.token_dropout_rate", self.token_dropout_rate, 0, 1)
        check_range("task.cloze_rate", self.cloze_rate, 0, 1.001)
        if self.kind == "cross" and self.cloze_rate:
            raise UserError("task.cloze_rate is for task.kind=dual")
        if self.text_length < 2 or self.query_length > self.length:
            raise UserError(
                f"task.length {self.length} is too small for task.query_length "
                f"{self.query_length}; lower the one or raise the other"
            )

    @property
    def text_length(self) -> int:
        """T of the longest text, with its marks."""
        return self.length - (self.query_length if self.kind == "cross" else 0)


@dataclass(frozen=True)
class Rank(Predictive):
    """The task. A row is a text and its query, each padded on its own."""

    config: Config
    tokenizer: Tokenizer
    overlap = 0

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        config = self.config
        made_of = (config.kind, config.length, config.query, config.query_length)
        return f"text, query, ids of both {made_of}"

    def build_model(self, config: Any) -> nn.Module:
        """See `Task`."""
        backbone = super().build_model(config)
        pooling, rate = self.config.pooling, self.config.dropout_rate
        if self.config.kind == "cross":
            return PooledHead(backbone, 1, pooling, rate)
        return Encoder(backbone, pooling, rate)

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Encodes texts and queries; a UserError stands for a query that is missing.

        Equal `ids` mean that a model sees the same text, or query.
        """
        return encode_checked(examples, self._check, self._with_ids)

    def _check(self, example: Mapping[str, Any]) -> None:
        name = self.config.query
        if not fields.text(example, name).strip():
            raise UserError(
                f"{labels.where(example)} has a blank {name!r}; mend it, or leave such "
                "rows out with data.bad_rows=skip"
            )

    def _with_ids(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        documents = self.encode_inputs(examples)
        for document in documents:
            columns = document["query"], document["tokens"]
            ids = [zlib.crc32(column.tobytes()) for column in columns]
            document["ids"] = np.array(ids, np.uint32).view(np.int32)
        return documents

    def encode_inputs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """See `Predictive`; of `dual` an example may lack the query.

        Raises:
            UserError: If a query is no text, or is missing where it may not.
        """
        config, encode_batch = self.config, self.tokenizer.encode_batch
        queries = [self._query(example) for example in examples]
        query_ids = encode_batch([query or "" for query in queries])
        text_ids = encode_batch([example["text"] for example in examples])
        num_bos = int(self.tokenizer.bos_id >= 0)
        documents = []
        for query, ids, text in zip(queries, query_ids, text_ids):
            ids = marked(self.tokenizer, ids[: config.query_length - 2])
            tokens = marked(self.tokenizer, text[: config.text_length - 2])
            if config.kind == "cross":  # [CLS] query [SEP] text [SEP]
                tokens = tokens[num_bos:]
            documents.append(
                {"tokens": tokens, "query": ids[:0] if query is None else ids}
            )
        return documents

    def _query(self, example: Mapping[str, Any]) -> str | None:
        name = self.config.query
        if self.config.kind == "dual" and example.get(name) is None:
            return None
        return fields.text(example, name)

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays out one example a row.

        Rows that meet others all have one size, so that any may meet; those to be
        predicted are padded to powers of two, and to no query if they have none.
        """
        config = self.config
        texts, queries = lengths["tokens"], lengths["query"]
        ids = lengths.get("ids", np.zeros_like(texts))
        sizes = np.stack([texts, queries, ids], axis=1)
        whole = (config.text_length, config.query_length, 2)
        parts = sides(config.text_length), (0, config.query_length), (0,)
        boundaries = [whole] if ids.any() else [*itertools.product(*parts), whole]
        docs = np.arange(len(texts))
        pieces = np.stack([docs, np.zeros_like(docs), texts], axis=1)
        return BucketRows(sizes, boundaries, pieces)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row: `inputs` and `segment_ids` [T], and `query_…` [Q] as well.

        `ids` are those of query and text, [2], or [0] of what is to be predicted.
        """
        length, query_length, num_ids = capacity
        ids = np.zeros(num_ids, np.int32)
        text, query = {}, {}
        for _, columns in pieces:
            text, query = columns, {"tokens": columns["query"]}
            ids[:] = columns.get("ids", 0)
        query = padded(query, query_length, self.tokenizer)
        return {
            **padded(text, length, self.tokenizer),
            **{f"query_{name}": values for name, values in query.items()},
            "ids": ids,
        }

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed loss of the queries, and metrics.

        A query's is the cross-entropy of its own text among those that it is shown; of
        `dual`, the mean of that and of a text's own query among all queries (Radford
        et al. 2021, https://arxiv.org/abs/2103.00020, figure 3). `accuracy` is the
        share of queries to which their own text is the best.
        """
        if rng is not None:
            batch = self._noise(batch, jax.random.fold_in(rng, 0))
        mask = batch["example_mask"]
        if self.config.kind == "dual":
            texts = self._vectors(model, params, batch, rng)
            rng = None if rng is None else jax.random.fold_in(rng, 1)
            queries = self._vectors(model, params, batch, rng, "query_")
            logits = queries @ texts.T / self.config.temperature
            own = jnp.arange(len(mask))
            losses, right = choose(logits, may_meet(batch), own)
            losses = (losses + choose(logits.T, may_meet(batch), own)[0]) / 2
        else:
            number = 1 + self.config.num_negatives
            logits, shown = self._judge(model, params, batch, rng, number)
            own = jnp.zeros(len(mask), int)
            losses, right = choose(logits, may_meet(batch)[shown], own)
        total = (mask * losses).sum()
        return total, {
            "loss": Mean(total, mask.sum()),
            "accuracy": Mean((mask * right).sum(), mask.sum()),
        }

    def _noise(self, batch: Batch, rng: Array) -> Batch:
        """Makes some queries of their texts, and leaves out tokens."""
        config = self.config
        text = batch["inputs"], batch["segment_ids"]
        query = batch["query_inputs"], batch["query_segment_ids"]
        rngs = jax.random.split(rng, 4)
        if config.cloze_rate:
            is_cloze = jax.random.bernoulli(
                rngs[0], config.cloze_rate, (len(text[0]), 1)
            )
            text, query = jax.tree.map(
                lambda new, old: jnp.where(is_cloze, new, old),
                cloze(*text, rngs[1], config.query_length),
                (text, query),
            )
        if config.token_dropout_rate:
            rate = config.token_dropout_rate
            text = drop_tokens(text[0], text[1], rngs[2], rate)
            query = drop_tokens(query[0], query[1], rngs[3], rate)
        names = "inputs", "segment_ids", "query_inputs", "query_segment_ids"
        return {**batch, **dict(zip(names, (*text, *query)))}

    def _vectors(
        self,
        model: nn.Module,
        params: Params,
        batch: Batch,
        rng: Array | None,
        prefix: str = "",
    ) -> Array:
        """Returns the vectors [B, D] of the texts, or of what has the prefix."""
        names = "inputs", "segment_ids"
        rows = {name: batch[prefix + name] for name in names}
        return apply(model, params, rows, rng)

    def _judge(
        self,
        model: nn.Module,
        params: Params,
        batch: Batch,
        rng: Array | None,
        number: int,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Shows every query its own text and those of the rows that follow.

        Args:
            model: The task's.
            params: Its parameters.
            batch: The task's.
            rng: Of dropout.
            number: K, if the batch has as many.

        Returns:
            Logits [B, K], its own text's first, and the rows of the queries [B, 1]
            and of the texts [B, K].
        """
        B = len(batch["inputs"])
        K = min(number, B)
        rows = jnp.arange(B)[:, None]
        others = (rows + jnp.arange(K)[None]) % B

        def pairs(query: Array, text: Array) -> Array:
            query = jnp.broadcast_to(query[:, None], (B, K, query.shape[1]))
            both = jnp.concatenate([query, text[others]], axis=-1)
            return both.reshape(B * K, both.shape[-1])

        inputs, parts = close_up(
            pairs(batch["query_inputs"], batch["inputs"]),
            pairs(batch["query_segment_ids"], 2 * batch["segment_ids"]),
        )
        read = {
            "inputs": inputs,
            "segment_ids": jnp.minimum(parts, 1),
            "type_ids": jnp.maximum(parts - 1, 0),
        }
        return apply(model, params, read, rng).reshape(B, K), (rows, others)

    def predict(self, model: nn.Module, params: Params, batch: Batch) -> Batch:
        """Returns vectors or scores.

        Of `dual`: `text_vector` and, of queries that are not missing, `query_vector`,
        [B, D] each. Of `cross`: `score` [B] of each pair and, in an evaluation,
        `before` [B], how many of the other texts that a query is shown are not worse.
        """
        if self.config.kind == "dual":
            prefixes = {"text_vector": ""}
            if batch["query_inputs"].shape[1]:
                prefixes["query_vector"] = "query_"
            return {
                name: self._vectors(model, params, batch, None, prefix)
                for name, prefix in prefixes.items()
            }
        if not batch["ids"].shape[1]:
            logits, _ = self._judge(model, params, batch, None, 1)
            return {"score": logits[:, 0]}
        logits, shown = self._judge(model, params, batch, None, CANDIDATES)
        is_before = may_meet(batch)[shown] & ~(logits < logits[:, :1])
        return {"score": logits[:, 0], "before": is_before[:, 1:].sum(axis=1)}

    def decode(
        self, example: Mapping[str, Any], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """Returns vectors as lists, or a `score`, and where there is one a `rank`."""
        (output,) = outputs
        values = {name: value.tolist() for name, value in output.items()}
        if "before" in values:
            values["rank"] = 1 + values.pop("before")
        return values

    def together(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """Returns the predictions of a whole split, of `dual` with their ranks.

        `rank` is the place of a query's own text among all different texts of the
        split by their cosines, the last one of those that are equal; `nearest` is the
        text at the first place.
        """
        if self.config.kind == "cross" or any("rank" in p for p in predictions):
            return [dict(prediction) for prediction in predictions]
        places: dict[str, int] = {}
        vectors = []
        for example, prediction in zip(examples, predictions):
            if example["text"] not in places:
                places[example["text"]] = len(places)
                vectors.append(prediction["text_vector"])
        names, texts = list(places), np.array(vectors, np.float32)
        ranked = []
        for start in range(0, len(examples), CHUNK):
            here = predictions[start : start + CHUNK]
            own = [places[e["text"]] for e in examples[start : start + CHUNK]]
            queries = np.array([p["query_vector"] for p in here], np.float32)
            cosines = queries @ texts.T
            worse = cosines < np.take_along_axis(cosines, np.array(own)[:, None], 1)
            ranks = (len(texts) - worse.sum(axis=1)).tolist()
            for prediction, rank, best in zip(here, ranks, cosines.argmax(axis=1)):
                ranked.append({**prediction, "rank": rank, "nearest": names[best]})
        return ranked

    def score(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """See `Predictive`; `lm.tasks.scores` has the details.

        Of `dual` all texts of the split are ranked, of `cross` the up to `CANDIDATES`
        that a query was shown.
        """
        ranked = self.together(examples, predictions)
        return scores.ranking(np.array([prediction["rank"] for prediction in ranked]))

    def details(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Returns the queries whose own text came last, and what came first."""
        pairs = list(zip(examples, self.together(examples, predictions)))
        pairs.sort(key=lambda pair: pair[1]["rank"], reverse=True)
        worst = []
        for example, prediction in pairs[:WORST]:
            row = {"text": example[self.config.query], "gold": example["text"]}
            if "nearest" in prediction:
                row["predicted"] = prediction["nearest"]
            worst.append(row)
        return {"worst": worst}
