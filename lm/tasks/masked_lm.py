"""Predict masked tokens: BERT's pretraining objective.

Devlin et al. (2019), https://arxiv.org/abs/1810.04805, section 3.1. The noise is new
in every epoch of training and the same in every evaluation. Axes: B batch, T time,
M masked positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from lm.config import check_choice
from lm.data.corrupt import mask_tokens
from lm.data.packing import Rows, WindowRows, join
from lm.data.pipeline import Pieces
from lm.metrics import Metrics
from lm.tasks.base import (
    PACKINGS,
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
        packing: How documents fill training rows; as in `lm.tasks.base.PACKINGS`.
        mask_rate: Share of the tokens to predict.
        mask_fraction: Share of these that become the mask token.
        random_fraction: Share of these that become a random token.
        whole_words: Whether all tokens of a word are masked together.
    """

    name: str = "masked_lm"
    length: int = 256
    packing: str = "concat"
    mask_rate: float = 0.15
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    whole_words: bool = False

    def __post_init__(self):
        check_choice("task.packing", self.packing, PACKINGS)
        if self.length < 3:
            raise UserError("task.length must be at least 3")
        if not 0 < self.mask_rate < 1:
            raise UserError("task.mask_rate must be between 0 and 1")
        shares = self.mask_fraction, self.random_fraction
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(
                "task.mask_fraction and task.random_fraction must be at least 0 and "
                "together at most 1"
            )


@dataclass(frozen=True)
class MaskedLM(Task):
    """The task. A row predicts up to M = `mask_rate` · T of its tokens."""

    config: Config
    tokenizer: Tokenizer
    overlap = 0
    architectures = ("encoder",)

    def __post_init__(self):
        if self.tokenizer.mask_id < 0:
            raise UserError(
                "the tokenizer has no mask token; train one with tools.train_tokenizer"
            )

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
        """Lays out the documents' tokens."""
        config, sizes = self.config, lengths["tokens"]
        if not train:
            return WindowRows(sizes, config.length, config.length)
        return training_rows(sizes, config.length, config.packing, seed)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row; `targets` and `loss_mask` [M] are of `masked_positions`."""
        (length,) = capacity
        config, tokenizer = self.config, self.tokenizer
        tokens = [columns["tokens"] for _, columns in pieces]
        pad_id = max(tokenizer.pad_id, 0)
        row, segment_ids, positions = join(tokens, length, pad_id)
        used = sum(map(len, tokens))
        masked = mask_tokens(
            row[:used],
            rng,
            mask_id=tokenizer.mask_id,
            maskable=~tokenizer.is_special,
            starts_word=tokenizer.starts_word if config.whole_words else None,
            rate=config.mask_rate,
            mask_fraction=config.mask_fraction,
            random_fraction=config.random_fraction,
        )
        row[:used] = masked.inputs
        places = np.flatnonzero(masked.loss_mask)
        room = max(1, round(config.mask_rate * length))
        # One whole word may be longer than the room; its last tokens carry no loss.
        places = places[:room].astype(np.int32)
        spare = room - len(places)
        return {
            "inputs": row,
            "segment_ids": segment_ids,
            "positions": positions,
            "masked_positions": np.pad(places, (0, spare)),
            "targets": np.pad(masked.targets[places], (0, spare)),
            "loss_mask": np.pad(np.ones(len(places), np.float32), (0, spare)),
        }

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed cross-entropy of the masked tokens, and metrics."""
        return token_loss(model, params, batch, rng)
