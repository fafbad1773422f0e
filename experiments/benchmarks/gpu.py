"""Model FLOPs utilisation (MFU) of training on one GPU, on real text.

    python -m tools.fetch_data wiki minilm
    python -m tools.train_tokenizer --source=tfds:wiki --kind=byte_bpe \\
        --vocab-size=16384 --output=data/tokenizers/gpt2
    python -m experiments.benchmarks.gpu --source=tfds:wiki \\
        --bert-tokenizer=data/minilm

For each row a config of `configs/` is trained for some steps as `lm.train` does it:
packed rows of real text, dropout, AdamW, the guard against bad steps; and for as many
while a checkpoint is being written. FLOPs are those of `lm.train.perf.step_flops`,
without recomputation; the peak is the data sheet's, of dense bfloat16. First of all
cuDNN's attention is compared with XLA's in float32, outputs and gradients.
"""

import contextlib
import itertools
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from lm import cli, sharding, tree, xla_flags
from lm import config as config_lib
from lm import metrics as metrics_lib
from lm.data.ahead import read_ahead
from lm.nn.attention import Mask, dot_product_attention
from lm.train import loop, perf, workdir
from lm.train.checkpoint import Checkpoints
from lm.train.config import Config
from lm.types import Array, UserError

# Configs, and what of them is set for a single device. cuDNN's attention drops nothing
# out, so BERT is trained without that, as by Portes et al. (2023),
# https://arxiv.org/abs/2312.17482. Layers side by side take a minute more to compile,
# and nothing is copied into and out of a scan.
ROWS = {
    "bert_base": {
        "batch_size": 128,
        "model.attention_dropout_rate": 0.0,
        "model.scan_unroll": 12,
    },
    "gpt2_124m": {"batch_size": 32, "model.scan_unroll": 12},
    "gpt_1_3b": {
        "batch_size": 24,
        "grad_accum_steps": 1,
        "model.scan_unroll": 24,
        "model.remat": "dots_attention",
    },
}
WARMUP = 3

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--source", required=True, help="texts, as lm.data.sources has them"
)
parser.add_argument("--gpt-tokenizer", default="data/tokenizers/gpt2")
parser.add_argument("--bert-tokenizer", default="data/tokenizers/bert")
parser.add_argument("--only", default="", help="rows whose name contains this")
parser.add_argument("--steps", type=int, default=20, help="that are timed")


def main(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    config_lib.check_range("--steps", args.steps, 2)
    wanted = [name for name in ROWS if args.only in name]
    if not wanted:
        raise UserError(f"--only={args.only} is part of no row's name")
    xla_flags.apply()
    if jax.default_backend() != "gpu":
        raise UserError("there is no GPU here that JAX sees; install jax[cuda13]")
    for name, error in attention_errors().items():
        cli.say(
            f"attention, {name}: cuDNN differs from XLA by {error:.4f} of the scale"
        )
    rows = []
    for name in wanted:
        rows.append(measure(name, args, overrides))
        cli.say(str(rows[-1]))
    table = Table(
        *("", "tokens/s", "step, ms", "while writing", "MFU"),
        *("peak GB", "first step, s"),
    )
    for row in rows:
        table.add_row(
            row["row"],
            f"{row['tokens_per_sec']:,.0f}",
            f"{1000 * row['step_sec']:.1f}",
            f"{1000 * row['step_sec_while_writing']:.1f}",
            f"{row['mfu']:.1%}",
            f"{row['peak_gb']:.1f}",
            f"{row['first_step_sec']:.1f}",
        )
    Console().print(table)
    return {"device": jax.devices()[0].device_kind, "rows": rows}


def attention_errors(B: int = 2, T: int = 512, N: int = 4, H: int = 64) -> dict:
    """Returns, for each kind of mask, how far cuDNN's bfloat16 is from XLA's float32.

    The largest difference of outputs and gradients, relative to the largest value.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, (B, T, N, H)) for key in keys[:3]]
    cotangent = jax.random.normal(keys[3], (B, T, N, H))
    segments = jnp.sort(jax.random.randint(keys[0], (B, T), 0, 4), axis=1)[:, ::-1]
    masks = {
        "causal": Mask(causal=True),
        "causal, packed": Mask(segments, segments, causal=True),
        "packed": Mask(segments, segments),
        "padded": Mask(jnp.ones_like(segments[:, :1]), jnp.minimum(segments, 1)),
        "window": Mask(segments, segments, causal=True, window=100),
    }

    def run(dtype: Any, implementation: str, mask: Mask) -> list[np.ndarray]:
        def attend(query: Array, key: Array, value: Array) -> Array:
            query, key, value = (x.astype(dtype) for x in (query, key, value))
            out = dot_product_attention(
                query, key, value, mask, implementation=implementation
            )
            real = segments[:, :, None, None] > 0
            return jnp.where(real, out.astype(jnp.float32), 0)

        out, pull = jax.vjp(jax.jit(attend), *inputs)
        return [np.asarray(x) for x in (out, *pull(cotangent))]

    found = {}
    for name, mask in masks.items():
        with jax.default_matmul_precision("highest"):
            expected = run(jnp.float32, "xla", mask)
        pairs = zip(run(jnp.bfloat16, "cudnn", mask), expected)
        found[name] = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
    return found


def measure(name: str, args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """Trains a row's config for some steps; returns what it took."""
    values = config_lib.load(f"configs/{name}.py", overrides)
    kind = "bert" if name.startswith("bert") else "gpt"
    settings = {
        **ROWS[name],
        "data.sources": (args.source,),
        "data.tokenizer": getattr(args, f"{kind}_tokenizer"),
    }
    given = {word.partition("=")[0].removeprefix("--config.") for word in overrides}
    for key, value in settings.items():
        if key not in given:
            values.update_from_flattened_dict({key: value})
    with tempfile.TemporaryDirectory() as folder:
        run = loop.build(*workdir.prepare(Path(folder, "run"), Config.of(values)))
        with sharding.use(run.mesh, run.config.mesh):
            return {"row": name} | _time(run, Path(folder, "checkpoints"), args.steps)


def _time(run: loop.Run, folder: Path, steps: int) -> dict[str, Any]:
    pipeline = loop.build_batches(run)
    # Batches are made by a thread: `tf.data` is not needed to be faster than a step.
    numbers = itertools.count()
    batches = read_ahead(map(pipeline.batch, numbers), run.config.data.prefetch)
    checkpoints = Checkpoints(folder, run.config.checkpoint)

    def take(state: Any, count: int) -> tuple[Any, Any, float]:
        """Takes steps, reading each one's metrics after dispatching the next."""
        began, found = time.perf_counter(), None
        for _ in range(count):
            before = found
            state, found = run.train_step(state, loop.put(run.mesh, next(batches)))
            jax.device_get(before)
        loss = metrics_lib.compute(jax.device_get(found))["loss"]
        return state, loss, (time.perf_counter() - began) / count

    with contextlib.closing(batches), contextlib.closing(checkpoints):
        began = time.perf_counter()
        state, first_loss, _ = take(run.init(), 1)
        first = time.perf_counter() - began
        state, _, _ = take(state, WARMUP)
        state, _, seconds = take(state, steps)
        began = time.perf_counter()
        position = {"row": 0, "data": pipeline.fingerprint}
        checkpoints.save(int(state.step), state, position, {})
        pause = time.perf_counter() - began
        state, last_loss, while_writing = take(state, steps)
        checkpoints.wait()
        written = time.perf_counter() - began
        shapes = {name: value.shape for name, value in next(batches).items()}
    flops = perf.step_flops(run.config.model, state.params, shapes)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "parameters": tree.count(state.params),
        "tokens_per_sec": int(np.prod(shapes["inputs"])) / seconds,
        "step_sec": seconds,
        "mfu": flops / seconds / perf.peak_flops(),
        "step_sec_while_writing": while_writing,
        "peak_gb": stats.get("peak_bytes_in_use", 0) / 1e9,
        "first_step_sec": first,
        "checkpoint_pause_sec": pause,
        "checkpoint_written_sec": written,
        "first_loss": first_loss,
        "last_loss": last_loss,
    }


if __name__ == "__main__":
    cli.run(main, parser, extra_prefix="--config.")
