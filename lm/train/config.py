"""The root of a run's config, and what it builds."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lm.adapt.lora import FROZEN, LoraConfig
from lm.config import CHOICES, check_range, from_config_dict
from lm.data.pipeline import DataConfig
from lm.models import MODELS
from lm.nn.base import ModelConfig
from lm.sharding import MeshConfig
from lm.tasks import TASKS
from lm.train.checkpoint import CheckpointConfig
from lm.train.optim import Numbers, OptimConfig
from lm.types import UserError

CHOICES.update(
    model={name: row[0] for name, row in MODELS.items()},
    task={name: row[0] for name, row in TASKS.items()},
)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation while training.

    Attributes:
        batch_size: Rows of an evaluation batch, over all hosts; 0 means the training
            batch's.
        max_batches: Where to stop; 0 means the whole split.
        patience: End the run after this many evaluations in a row without a better
            `checkpoint.best_metric`; 0 turns this off.
    """

    batch_size: int = 0
    max_batches: int = 0
    patience: int = 0

    def __post_init__(self):
        check_range("eval.batch_size", self.batch_size, 0)
        check_range("eval.max_batches", self.max_batches, 0)
        check_range("eval.patience", self.patience, 0)


@dataclass(frozen=True)
class GuardConfig:
    """When an update is skipped, and when the run stops.

    A step whose loss, gradient or update is not finite is always skipped.

    Attributes:
        spike_ratio: Also skip a step whose loss exceeds this many times its running
            mean; 0 turns this off.
        spike_warmup: Steps before the running mean is trusted.
        max_skipped: Stop after this many skipped steps in a row.
    """

    spike_ratio: float = 3.0
    spike_warmup: int = 50
    max_skipped: int = 20

    def __post_init__(self):
        check_range("guard.spike_ratio", self.spike_ratio, 0)
        check_range("guard.spike_warmup", self.spike_warmup, 0)
        check_range("guard.max_skipped", self.max_skipped, 1)


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        model: A model's config; its `name` chooses the class.
        task: A task's config, likewise.
        data: Texts, tokenizer and splits.
        optim: Optimizer and learning rate.
        mesh: How devices share the work.
        eval: Evaluation while training.
        checkpoint: What is kept.
        guard: What is done about a NaN or a spike.
        lora: Adapters that are trained in the place of the model.
        init_from: A workdir to begin from. Architecture and tokenizer are then its,
            and all parameters that it has; what it lacks, such as a head, is new.
        seed: Of parameters, data order and dropout.
        batch_size: Rows of an optimizer step, over all hosts.
        grad_accum_steps: Parts that a batch is computed in, one after the other.
        num_train_steps: Optimizer steps of the run.
        warmup_steps: Steps over which the learning rate rises.
        log_every_steps: Between two lines of metrics.
        eval_every_steps: Between two evaluations; 0 means at the end only.
        checkpoint_every_steps: Between two checkpoints; the last step has one.
    """

    model: ModelConfig
    task: Any
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    init_from: str = ""
    seed: int = 0
    batch_size: int = 32
    grad_accum_steps: int = 1
    num_train_steps: int = 1000
    warmup_steps: int = 100
    log_every_steps: int = 10
    eval_every_steps: int = 0
    checkpoint_every_steps: int = 500

    def __post_init__(self):
        for name in (
            "batch_size",
            "grad_accum_steps",
            "num_train_steps",
            "log_every_steps",
            "checkpoint_every_steps",
        ):
            check_range(name, getattr(self, name), 1)
        check_range("warmup_steps", self.warmup_steps, 0)
        check_range("eval_every_steps", self.eval_every_steps, 0)
        check_range("seed", self.seed, 0, 2**31)
        if self.batch_size % self.grad_accum_steps:
            raise UserError(
                f"batch_size {self.batch_size} does not divide by grad_accum_steps "
                f"{self.grad_accum_steps}"
            )
        longest = max(self.task.length, getattr(self.task, "targets_length", 0))
        if longest > self.model.max_len:
            raise UserError(
                f"task.length {longest} exceeds model.max_len {self.model.max_len}; "
                "lower one or raise the other"
            )
        if self.lora.rank and not self.init_from:
            raise UserError(
                "lora.rank adapts a trained model; set init_from to its workdir"
            )
        if self.init_from and self.model.embedding_from:
            raise UserError(
                "init_from has an embedding of its own; leave it or "
                "model.embedding_from out"
            )
        if self.eval.patience and not (
            self.eval_every_steps and self.checkpoint.keep_best
        ):
            raise UserError(
                "eval.patience needs evaluations (eval_every_steps) and the best "
                "checkpoint (checkpoint.keep_best)"
            )
        if self.warmup_steps > self.num_train_steps:
            raise UserError(
                f"warmup_steps {self.warmup_steps} exceeds num_train_steps "
                f"{self.num_train_steps}; lower it"
            )

    @property
    def optimizer(self) -> OptimConfig:
        """`optim`, which leaves the base of an adapted model as it is."""
        if not self.lora.rank:
            return self.optim
        return dataclasses.replace(self.optim, freeze=(*self.optim.freeze, FROZEN))

    @property
    def numbers(self) -> Numbers:
        """What its compiled step takes as an argument."""
        steps = (self.num_train_steps, self.warmup_steps)
        return Numbers.of(self.optim, *steps, self.seed)

    def without_numbers(self) -> "Config":
        """Returns what runs have in common that differ in `numbers` alone."""
        optim = dataclasses.replace(
            self.optim, learning_rate=0.0, weight_decay=0.0, final_fraction=0.0
        )
        return dataclasses.replace(
            self, optim=optim, num_train_steps=1, warmup_steps=0, seed=0
        )

    @classmethod
    def of(cls, values: Any) -> "Config":
        """Returns the dataclass of a ConfigDict or of a `config.json`."""
        return from_config_dict(cls, values, CHOICES)
