"""The tasks. A task is one file: a `Config` dataclass and a class of `base.Task`."""

from typing import Any

from lm.tasks import causal_lm, masked_lm, span_corruption
from lm.tasks.base import Task
from lm.text.tokenizers import Tokenizer

# name -> (config dataclass, task class). A new task adds its row here.
TASKS: dict[str, tuple[type, Any]] = {
    "causal_lm": (causal_lm.Config, causal_lm.CausalLM),
    "masked_lm": (masked_lm.Config, masked_lm.MaskedLM),
    "span_corruption": (span_corruption.Config, span_corruption.SpanCorruption),
}


def build_task(config: Any, tokenizer: Tokenizer) -> Task:
    """Returns the task of a task's config."""
    return TASKS[config.name][1](config, tokenizer)
