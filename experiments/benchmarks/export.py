"""Times an exported model beside JAX, ONNX Runtime and transformers on PyTorch.

    python -m experiments.benchmarks.export --workdir=runs/bbc
    python -m experiments.benchmarks.export --workdir=runs/gpt --max-len=256
    python -m experiments.benchmarks.export --base

Of an encoder: one row of the longest length, with 2 threads. The peer in transformers,
which `make bench` installs, is a BERT of the same sizes. Of a decoder, what one token
takes: the whole text read again, as without a cache; its keys and values alone, which
`prefill` makes; and with the cache, kept by the runtime or handed over in NumPy. All
take turns on the same machine; a number is the median of its turns' medians.

--base measures what the conversion of a BERT of 110M parameters takes.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from lm import cli
from lm.train import workdir
from lm.types import Batch, Params, UserError
from tools.export import graph as graphs
from tools.export.graph import Signature

THREADS = 2

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", default="", help="of a classifier or a decoder")
parser.add_argument("--max-len", type=int, default=0, help="default: the task's")
parser.add_argument("--base", action="store_true", help="convert a BERT of 110M")
parser.add_argument("--turns", type=int, default=7, help="turns of each")
parser.add_argument("--runs", type=int, default=20, help="runs of a turn")
parser.add_argument(
    "--peer-python",
    default=".venv-bench/bin/python",
    help="a Python that has torch and transformers; skipped if there is none",
)

Run = Callable[[], Any]


def main(args: Namespace) -> dict[str, Any]:
    if args.base:
        return _base()
    if not args.workdir:
        raise UserError("--workdir is missing: a run of a classifier or a decoder")
    loaded = workdir.load(Path(args.workdir))
    made = graphs.build(loaded, [args.max_len] if args.max_len else ())
    if made.architecture == "encoder":
        return _encoder(args, loaded, made)
    if made.architecture == "decoder":
        return _decoder(args, loaded, made)
    raise UserError(f"{args.workdir} is neither a classifier nor a decoder")


def _encoder(args: Namespace, loaded: Any, graph: Any) -> dict[str, Any]:
    signature = graph.signatures[-1]
    rng = np.random.default_rng(0)
    inputs = {name: np.ones(s.shape, s.dtype) for name, s in signature.inputs.items()}
    shape = inputs["inputs"].shape
    inputs["inputs"] = rng.integers(5, loaded.tokenizer.vocab_size, shape, np.int32)
    params, step = jax.device_put(graph.params), jax.jit(signature.function)
    runs: dict[str, Run] = {"jax.jit": lambda: jax.device_get(step(params, inputs))}
    sizes = {"jax.jit": sum(x.nbytes for x in jax.tree.leaves(graph.params))}
    with tempfile.TemporaryDirectory() as temporary:
        for format, how in (
            ("tflite", "none"),
            ("tflite", "int8"),
            ("onnx", "none"),
            ("onnx", "int8"),
        ):
            name = f"{format} {'float32' if how == 'none' else how}"
            folder = Path(temporary, name)
            backend, sizes[name] = _exported(folder, graph, loaded, format, how)
            runs[name] = lambda b=backend: b.run(signature.name, inputs)
        peer = _peer(args, loaded.config.model, signature.length)
        found = _turns(args, runs, peer)
    return _show(args, found, sizes)


def _exported(
    folder: Path, graph: Any, loaded: Any, format: str, how: str
) -> tuple[Any, int]:
    """Exports to a folder; returns what runs it, and its bytes."""
    import importlib

    from tools.export import artefact
    from tools.export.runtime.backends import open_model

    folder.mkdir()
    options = Namespace(quantize=how, converter="direct", calibration="")
    module: Any = importlib.import_module(f"tools.export.{format}")
    module.write(folder, graph, loaded, options)
    return open_model(folder, THREADS), artefact.size(folder)


def _decoder(args: Namespace, loaded: Any, graph: Any) -> dict[str, Any]:
    decode = graph.signatures[-1]
    row = jax.ShapeDtypeStruct((1, decode.length), np.int32)

    def forward(params: Params, inputs: Batch) -> Batch:
        output = graph.model.apply({"params": params}, {"inputs": inputs["tokens"]})
        return {"logits": output.logits.dense()}

    outputs = jax.eval_shape(forward, graph.params, {"tokens": row})
    whole = Signature("whole", decode.length, forward, {"tokens": row}, outputs)
    graph = dataclasses.replace(graph, signatures=(whole, *graph.signatures))
    runs: dict[str, Run] = {}
    sizes = {}
    with tempfile.TemporaryDirectory() as temporary:
        for how in ("none", "int8"):
            name = "float32" if how == "none" else how
            folder = Path(temporary, how)
            backend, size = _exported(folder, graph, loaded, "tflite", how)
            kept = _Kept(folder / "model.tflite")
            last = _last(decode)
            of_this: dict[str, Run] = {
                "whole text": lambda k=kept: k.run("whole"),
                "prefill": lambda k=kept: k.run(graph.signatures[-2].name),
                "cache": lambda k=kept: k.run("decode"),
                "cache, NumPy": lambda b=backend, i=last: b.run("decode", i),
            }
            runs |= {f"{name}, {what}": run for what, run in of_this.items()}
            sizes |= {f"{name}, {what}": size for what in of_this}
        found = _turns(args, runs, None)
    return _show(args, found, sizes)


class _Kept:
    """Runs signatures on what the runtime's memory holds, as a phone does.

    LiteRT's Interpreter copies every input and output, a cache too. Its successor,
    which this is, has buffers, but tells of every accelerator that it looks for.
    """

    def __init__(self, path: Path):
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.options import Options

        options = Options.create()
        options.cpu_options.num_threads = THREADS
        self._model = CompiledModel.from_file(str(path), options=options)
        self._buffers: dict[str, Any] = {}

    def run(self, name: str) -> Any:
        model = self._model
        if name not in self._buffers:
            index = model.get_signature_index(name)
            buffers = model.create_input_buffers(index)
            for buffer, each in zip(
                buffers, model.get_input_tensor_details(name).values(), strict=True
            ):
                buffer.write(np.ones(each["shape"], each["dtype"]))
            logits = model.get_output_tensor_details(name).get("logits")
            size = int(np.prod(logits["shape"])) if logits else 0
            outputs = model.create_output_buffers(index)
            self._buffers[name] = index, buffers, outputs, size
        index, inputs, outputs, size = self._buffers[name]
        model.run_by_index(index, inputs, outputs)
        # Logits come last.
        return outputs[-1].read(size, np.float32) if size else None


def _last(signature: Signature) -> dict[str, np.ndarray]:
    """Returns inputs of the last place of a full cache."""
    inputs = {name: np.ones(s.shape, s.dtype) for name, s in signature.inputs.items()}
    return inputs | {"input_pos": np.array([signature.length - 1], np.int32)}


class _Peer:
    """The process of `transformers_infer`."""

    def __init__(self, python: str, shape: dict[str, Any]):
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("transformers_infer.py"))]
            + [json.dumps(shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError("the peer in transformers failed; run make bench")
        return json.loads(line)

    def turn(self, runs: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{runs}\n")
        self._process.stdin.flush()
        return self._read()["seconds"]

    def close(self) -> None:
        self._process.communicate()


def _peer(args: Namespace, config: Any, length: int) -> _Peer | None:
    if not Path(args.peer_python).exists():
        cli.say(f"no {args.peer_python}; make bench installs transformers beside us")
        return None
    return _Peer(
        args.peer_python,
        {
            "threads": THREADS,
            "vocab_size": config.vocab_size,
            "hidden_size": config.emb_dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.mlp_size,
            "max_position_embeddings": length,
        },
    )


def _turns(
    args: Namespace, runs: dict[str, Run], peer: _Peer | None
) -> dict[str, list[float]]:
    """Returns the seconds of each turn of each."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in cli.progress(range(args.turns), args.turns):
        for name, run in runs.items():
            seconds = []
            for _ in range(args.runs):
                began = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - began)
            found[name].append(statistics.median(seconds))
        if peer:
            found.setdefault("transformers", []).append(peer.turn(args.runs))
    if peer:
        peer.close()
    return found


def _show(
    args: Namespace, found: dict[str, list[float]], sizes: dict[str, int]
) -> dict[str, Any]:
    """Prints a row for each; ratios are to the first."""
    first = next(iter(found.values()))
    table = Table(
        *("", "ms", "times as fast (min-max)", "MB"),
        title=f"{args.workdir}, {platform.machine()}, {os.cpu_count()} cores",
    )
    rows = []
    for name, seconds in found.items():
        ratios = [a / b for a, b in zip(first, seconds)]
        row = {
            "row": name,
            "ms": 1e3 * statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "mb": sizes.get(name, 0) / 1e6,
        }
        rows.append(row)
        table.add_row(
            name,
            f"{row['ms']:.2f}",
            f"{row['ratio']:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{row['mb']:.2f}" if row["mb"] else "",
        )
    Console().print(table)
    return {"rows": rows}


# Converts a BERT of 110M in a process of its own.
_BASE = """
import json, resource, time
import flax.linen as nn, jax, numpy as np
from types import SimpleNamespace
from lm.models import bert
from lm.tasks import build_task, classify
from lm.text import tokenizers
from lm.train.workdir import Loaded
from tools.export import graph, tflite
config = bert.Config(vocab_size=30522, emb_dim=768, num_layers=12, num_heads=12,
                     max_len=512)
options = classify.Config(length=128, labels=("no", "yes"))
tokenizer = tokenizers.train("bytes", [])
task = build_task(options, tokenizer)
model = task.build_model(config)
row = {"inputs": np.ones((1, 8), np.int32)}
params = jax.jit(lambda key: nn.unbox(model.init(key, row)))(jax.random.key(0))
params = params["params"]
number = sum(x.size for x in jax.tree.leaves(params))
loaded = Loaded(SimpleNamespace(model=config, task=options), tokenizer, task, model,
                params, 0)
began = time.perf_counter()
made = graph.build(loaded)
size = len(tflite.convert(made))
print(json.dumps({
    "parameters": number, "seconds": time.perf_counter() - began, "mb": size / 1e6,
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
}))
"""


def _base() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _BASE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"it failed: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    for name, value in found.items():
        print(f"  {name:<12} {value:,.1f}")
    return found


if __name__ == "__main__":
    cli.run(main, parser)
