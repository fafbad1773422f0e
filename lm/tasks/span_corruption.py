"""Predict what spans of a text were: T5's pretraining objective.

Raffel et al. (2020), https://arxiv.org/abs/1910.10683, section 3.1.4. Axes: S encoder
time, T decoder time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from lm.data import corrupt
from lm.data.packing import FitRows, Rows, cut, join
from lm.data.pipeline import Pieces
from lm.metrics import Metrics
from lm.tasks.base import TO_GENERATE, Task, token_loss
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        length: S, tokens of the corrupted text.
        targets_length: T, tokens of what is missing from it.
        noise_density: Share of the tokens to corrupt.
        mean_span_length: Tokens of a corrupted span, on average.
        z_loss: Weight of log² Z.
    """

    name: str = "span_corruption"
    length: int = 512
    targets_length: int = 114
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    z_loss: float = 0.0

    def __post_init__(self):
        if not 0 < self.noise_density < 1:
            raise UserError("task.noise_density must be between 0 and 1")
        if self.mean_span_length < 1:
            raise UserError("task.mean_span_length must be at least 1")


class SpanCorruption(Task):
    """The task. Documents are cut to what fits a row once corrupted, and packed."""

    overlap = 0
    architectures = ("encoder_decoder",)
    instead = TO_GENERATE

    def __init__(self, config: Config, tokenizer: Tokenizer):
        """Finds the longest text that fits.

        Raises:
            UserError: If none fits, or the tokenizer has too few sentinels.
        """
        self.config = config
        self.tokenizer = tokenizer
        self._noise = {
            "noise_density": config.noise_density,
            "mean_span_length": config.mean_span_length,
        }
        self._has_eos = tokenizer.eos_id >= 0
        self._max_tokens = corrupt.max_tokens(
            config.length, config.targets_length, has_eos=self._has_eos, **self._noise
        )
        self._corrupt(np.zeros(self._max_tokens, np.int32), np.random.default_rng(0))

    def _corrupt(self, tokens: np.ndarray, rng: np.random.Generator):
        return corrupt.span_corruption(
            tokens,
            rng,
            sentinel_ids=self.tokenizer.sentinel_ids,
            eos_id=self.tokenizer.eos_id,
            **self._noise,
        )

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        return "tokens"

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """Encodes each text; its end is marked once it is corrupted."""
        texts = self.tokenizer.encode_batch([example["text"] for example in examples])
        return [{"tokens": ids} if len(ids) else {} for ids in texts]

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Packs the documents' pieces; both sides of each must fit."""
        pieces = cut(lengths["tokens"], self._max_tokens)
        sizes = corrupt.span_lengths(
            pieces[:, 2] - pieces[:, 1], has_eos=self._has_eos, **self._noise
        )
        capacities = (self.config.length, self.config.targets_length)
        return FitRows(sizes, capacities, seed if train else -1, pieces)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row; the decoder reads its targets one place to the right."""
        length, targets_length = capacity
        pad_id = max(self.tokenizer.pad_id, 0)
        sides = [self._corrupt(columns["tokens"], rng) for _, columns in pieces]
        encoder_inputs, encoder_segment_ids, encoder_positions = join(
            [side.encoder_inputs for side in sides], length, pad_id
        )
        targets, segment_ids, positions = join(
            [side.targets for side in sides], targets_length, pad_id
        )
        inputs, _, _ = join(
            [np.concatenate([[pad_id], side.targets[:-1]]) for side in sides],
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

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed cross-entropy of the targets, and metrics."""
        return token_loss(model, params, batch, rng, self.config.z_loss)
