"""A training step of `lm`, as `lm.train` compiles it; driven by `train_step`.

For each line `n` on standard input it takes n steps and prints the seconds they took.
"""

import json
import resource
import sys
import time

BEGAN = time.perf_counter()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from lm import metrics, sharding  # noqa: E402
from lm.data.pipeline import DataConfig  # noqa: E402
from lm.models import bert, gpt  # noqa: E402
from lm.tasks import causal_lm, masked_lm  # noqa: E402
from lm.text import tokenizers  # noqa: E402
from lm.train.config import Config  # noqa: E402
from lm.train.evaluation import put  # noqa: E402
from lm.train.loop import build  # noqa: E402


def make_config(kind, vocab_size, layers, width, heads, length, batch_size, bfloat16):
    """Returns the config of the very model that the peer has."""
    options = {
        "vocab_size": vocab_size,
        "emb_dim": width,
        "num_layers": layers,
        "num_heads": heads,
        "max_len": length,
        "position_encoding": "learned",
        "norm": "layer",
        "use_bias": True,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "dtype": "bfloat16" if bfloat16 else "float32",
    }
    if kind == "gpt":
        model, task = gpt.Config(**options), causal_lm.Config(length=length)
    else:
        model, task = bert.Config(**options), masked_lm.Config(length=length)
    data = DataConfig(sources=("none",), tokenizer="none")
    return Config(model=model, task=task, data=data, batch_size=batch_size)


def make_batch(config):
    """Returns random tokens, laid out as the task lays out texts."""
    rng = np.random.default_rng(0)
    rows, length = config.batch_size, config.task.length
    tokens = rng.integers(5, config.model.vocab_size, (rows, length + 1), np.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_mask": np.ones((rows, length), np.float32),
        "example_mask": np.ones(rows, np.float32),
        "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
    }
    if config.task.name == "masked_lm":
        masked = round(config.task.mask_rate * length)
        chosen = rng.permuted(batch["positions"], axis=1)[:, :masked]
        batch["masked_positions"] = np.sort(chosen, axis=1)
        for name in ("targets", "loss_mask"):
            batch[name] = batch[name][:, :masked]
    return batch


def main():
    config = make_config(**json.loads(sys.argv[1]))
    run = build(config, tokenizers.train("bytes", []))
    batch = make_batch(config)
    with sharding.use(run.mesh, config.mesh):
        state = run.init()

        def step(state):
            state, found = run.train_step(state, put(run.mesh, batch))
            return state, found

        def read(found):
            return metrics.compute(jax.device_get(found))["loss"]

        state, found = step(state)
        read(found)
        first = time.perf_counter() - BEGAN
        print(json.dumps({"first_step": first}), flush=True)
        for line in sys.stdin:
            began = time.perf_counter()
            for _ in range(int(line)):
                state, found = step(state)
                read(found)
            seconds = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
