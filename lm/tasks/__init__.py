"""The tasks. A task is one file: a `Config` dataclass and a class of `base.Task`."""

from typing import Any

from lm.tasks import (
    answer,
    causal_lm,
    chat,
    classify,
    glove,
    masked_lm,
    pair,
    rank,
    relation,
    span_corruption,
    tag,
    text_to_text,
    word2vec,
)
from lm.tasks.base import Predictive as Predictive
from lm.tasks.base import Task as Task
from lm.tasks.generative import Generative as Generative
from lm.text.tokenizers import Tokenizer

# name -> (config dataclass, task class). A new task adds its row here.
TASKS: dict[str, tuple[type, Any]] = {
    "answer": (answer.Config, answer.Answer),
    "causal_lm": (causal_lm.Config, causal_lm.CausalLM),
    "chat": (chat.Config, chat.Chat),
    "classify": (classify.Config, classify.Classify),
    "glove": (glove.Config, glove.GloVe),
    "masked_lm": (masked_lm.Config, masked_lm.MaskedLM),
    "pair": (pair.Config, pair.Pair),
    "rank": (rank.Config, rank.Rank),
    "relation": (relation.Config, relation.Relation),
    "span_corruption": (span_corruption.Config, span_corruption.SpanCorruption),
    "tag": (tag.Config, tag.Tag),
    "text_to_text": (text_to_text.Config, text_to_text.TextToText),
    "word2vec": (word2vec.Config, word2vec.Word2Vec),
}


def build_task(config: Any, tokenizer: Tokenizer) -> Task:
    """Returns the task of a task's config."""
    return TASKS[config.name][1](config, tokenizer)
