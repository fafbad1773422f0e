import json

import numpy as np
import pytest

from lm.data.pipeline import DataConfig
from lm.models import bert, birnn, gated_cnn, gpt, rnn, seq2seq, t5, textcnn
from lm.nn.base import replace_known
from lm.tasks import causal_lm, masked_lm, span_corruption
from lm.text import tokenizers
from lm.train.config import Config
from lm.train.optim import OptimConfig

SMALL = {"vocab_size": 280, "emb_dim": 16, "num_layers": 2, "num_heads": 2}
SMALL |= {"max_len": 32, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}
RECURRENT = {"vocab_size": 280, "emb_dim": 16, "max_len": 32, "dropout_rate": 0.1}
RECURRENT |= {"recurrent_dropout_rate": 0.1, "num_layers": 2}

KINDS = {
    "gpt": (gpt.Config(**SMALL), causal_lm.Config(length=32)),
    "bert": (bert.Config(**SMALL), masked_lm.Config(length=32)),
    "t5": (
        t5.Config(**SMALL),
        span_corruption.Config(length=32, targets_length=16),
    ),
    "textcnn": (
        replace_known(textcnn.Config(num_filters=8), **SMALL),
        masked_lm.Config(length=32),
    ),
    "gated_cnn": (
        replace_known(gated_cnn.Config(width=3), **(SMALL | {"num_layers": 3})),
        causal_lm.Config(length=32),
    ),
    "rnn": (rnn.Config(**RECURRENT), causal_lm.Config(length=32)),
    "birnn": (birnn.Config(**RECURRENT), masked_lm.Config(length=32)),
    "seq2seq": (
        seq2seq.Config(**RECURRENT),
        span_corruption.Config(length=32, targets_length=16),
    ),
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with texts and two tokenizers."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = [
        "in",
        "the",
        "beginning",
        "was",
        "word",
        "and",
        "light",
        "made",
        "day",
        "night",
        "earth",
        "void",
    ]
    for split, number in (("train", 200), ("validation", 23)):
        lines = (
            " ".join(rng.choice(words, rng.integers(2, 15))) for _ in range(number)
        )
        text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)
    tokenizers.train("bytes", []).save(folder / "bytes")
    tokenizers.train("bytes", [], num_sentinels=10).save(folder / "sentinels")
    return folder


@pytest.fixture(scope="session")
def make_config(corpus):
    """Makes the config of a run that takes seconds."""

    def make(kind="gpt", **changes):
        model, task = KINDS[kind]
        tokenizer = corpus / ("sentinels" if kind in ("t5", "seq2seq") else "bytes")
        values = {
            "model": model,
            "task": task,
            "data": DataConfig(
                sources=(str(corpus / "{split}.jsonl"),),
                tokenizer=str(tokenizer),
                data_dir=str(corpus),
            ),
            "optim": OptimConfig(learning_rate=1e-2),
            "batch_size": 8,
            "num_train_steps": 6,
            "warmup_steps": 2,
            "log_every_steps": 1,
            "checkpoint_every_steps": 1000,
        }
        return Config(**values | changes)

    return make
