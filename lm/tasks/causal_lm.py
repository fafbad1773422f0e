"""Predict the next token; optionally with a prefix that is seen both ways.

Axes: B batch, T time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from lm.config import check_choice
from lm.data.packing import Rows, WindowRows, join
from lm.data.pipeline import Pieces
from lm.metrics import Metrics
from lm.tasks.base import (
    PACKINGS,
    TO_GENERATE,
    Task,
    encode_marked,
    token_loss,
    training_rows,
)
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        length: T, tokens of a row.
        packing: How documents fill training rows: `concat`, `fit` or `bucket`; see
            `lm.tasks.base.PACKINGS`.
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
        check_choice("task.packing", self.packing, PACKINGS)
        if self.length < 2:
            raise UserError("task.length must be at least 2")
        if not 0 <= self.stride <= self.length:
            raise UserError(f"task.stride must be from 0 to task.length {self.length}")


@dataclass(frozen=True)
class CausalLM(Task):
    """The task. A document of n tokens, marks included, has n - 1 targets."""

    config: Config
    tokenizer: Tokenizer
    overlap = 1
    architectures = ("decoder",)
    instead = TO_GENERATE

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        return "bos tokens eos"

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """Encodes each text between its marks."""
        return encode_marked(self.tokenizer, examples)

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays out the documents' targets."""
        config = self.config
        sizes = lengths["tokens"] - 1
        if not train:
            return WindowRows(sizes, config.length, config.stride or config.length)
        return training_rows(sizes, config.length, config.packing, seed)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row; `targets` are `inputs` shifted by one."""
        (length,) = capacity
        tokens = [columns["tokens"] for _, columns in pieces]
        pad_id = max(self.tokenizer.pad_id, 0)
        inputs, segment_ids, positions = join([t[:-1] for t in tokens], length, pad_id)
        targets, _, _ = join([t[1:] for t in tokens], length, pad_id)
        loss_mask = (segment_ids > 0).astype(np.float32)
        prefix_mask = np.zeros(length, bool)
        begin = 0
        for piece, _ in pieces:
            loss_mask[begin : begin + piece.score_from - piece.start] = 0
            size = piece.stop - piece.start
            if self.config.prefix_lm:
                prefix = int(rng.integers(0, size))
                prefix_mask[begin : begin + prefix] = True
                # All tokens of the prefix but its last see their own target.
                loss_mask[begin : begin + max(prefix - 1, 0)] = 0
            begin += size
        row = {
            "inputs": inputs,
            "targets": targets,
            "segment_ids": segment_ids,
            "positions": positions,
            "loss_mask": loss_mask,
        }
        if self.config.prefix_lm:
            row["prefix_mask"] = prefix_mask
        if self.tokenizer.lossless:
            scored = targets[loss_mask > 0]
            row["num_bytes"] = self.tokenizer.num_bytes[scored].sum(dtype=np.int32)
            row["num_chars"] = self.tokenizer.num_chars[scored].sum(dtype=np.int32)
        return row

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed cross-entropy of the targets, and metrics."""
        return token_loss(model, params, batch, rng, self.config.z_loss)
