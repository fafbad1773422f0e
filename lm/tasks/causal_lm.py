"""Predict the next token; optionally with a prefix that is seen both ways.

Axes: B batch, T time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from lm.config import check_choice
from lm.data.packing import BucketRows, ConcatRows, FitRows, Rows, WindowRows
from lm.metrics import Metrics
from lm.nn.losses import cross_entropy
from lm.tasks.base import Pieces, apply, token_metrics, token_weights
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        length: T, tokens of a row.
        packing: How documents fill training rows: `concat` (end to end, cut at the
            row's end), `fit` (whole, several to a row) or `bucket` (one to a row,
            padded to a power of two).
        stride: New tokens of each evaluation window; the `length - stride` before
            them are context. 0 means `length`, windows without overlap.
        prefix_lm: Whether a random prefix of each document is visible in both
            directions and carries no loss (Raffel et al. 2020, section 3.2.1).
        z_loss: Weight of log² Z.
    """

    name: str = "causal_lm"
    length: int = 256
    packing: str = "concat"
    stride: int = 0
    prefix_lm: bool = False
    z_loss: float = 0.0

    def __post_init__(self):
        check_choice("task.packing", self.packing, ("concat", "fit", "bucket"))
        if self.length < 2:
            raise UserError("task.length must be at least 2")
        if not 0 <= self.stride <= self.length:
            raise UserError(f"task.stride must be from 0 to task.length {self.length}")


@dataclass(frozen=True)
class CausalLM:
    """The task. A document of n tokens, marks included, has n - 1 targets."""

    config: Config
    tokenizer: Tokenizer
    overlap = 1
    encoding = "bos tokens eos"

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """Encodes each text between the marks of its beginning and end."""
        tokenizer = self.tokenizer
        bos = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
        eos = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
        texts = tokenizer.encode_batch([example["text"] for example in examples])
        return [
            {"tokens": np.concatenate([bos, ids, eos]).astype(np.int32)}
            if len(ids)
            else {}
            for ids in texts
        ]

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays out the documents' targets."""
        config = self.config
        sizes = lengths["tokens"] - 1
        if not train:
            return WindowRows(sizes, config.length, config.stride or config.length)
        if config.packing == "fit":
            return FitRows(sizes[:, None], (config.length,), seed)
        if config.packing == "bucket":
            sides = [n for n in (2**i for i in range(4, 31)) if n < config.length]
            return BucketRows(sizes, (*sides, config.length))
        return ConcatRows(sizes, config.length, seed)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row; `targets` are `inputs` shifted by one."""
        (length,) = capacity
        row = {
            name: np.zeros(length, np.int32)
            for name in ("inputs", "targets", "segment_ids", "positions")
        }
        row["inputs"] += max(self.tokenizer.pad_id, 0)
        row["loss_mask"] = np.zeros(length, np.float32)
        if self.config.prefix_lm:
            row["prefix_mask"] = np.zeros(length, bool)
        at = 0
        for number, (piece, columns) in enumerate(pieces, 1):
            tokens = columns["tokens"]
            size = len(tokens) - 1
            span = slice(at, at + size)
            row["inputs"][span] = tokens[:-1]
            row["targets"][span] = tokens[1:]
            row["segment_ids"][span] = number
            row["positions"][span] = np.arange(size)
            row["loss_mask"][at + piece.score_from - piece.start : at + size] = 1
            if self.config.prefix_lm:
                prefix = int(rng.integers(0, size))
                row["prefix_mask"][at : at + prefix] = True
                # A token of the prefix sees its own target, but the last does not.
                row["loss_mask"][at : at + max(prefix - 1, 0)] = 0
            at += size
        if self.tokenizer.lossless:
            scored = row["targets"][row["loss_mask"] > 0]
            row["num_bytes"] = self.tokenizer.num_bytes[scored].sum(dtype=np.int32)
            row["num_chars"] = self.tokenizer.num_chars[scored].sum(dtype=np.int32)
        return row

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed cross-entropy of the targets, and metrics."""
        weights = token_weights(batch)
        logits = apply(model, params, batch, rng).logits
        loss = cross_entropy(logits, batch["targets"], weights, self.config.z_loss)
        return loss.objective, token_metrics(loss, weights, batch)
