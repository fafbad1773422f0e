"""Compiles the same model for the same TPU slice here and in MaxText, side by side.

    make .venv-maxtext/.installed
    python -m experiments.benchmarks.versus_maxtext

MaxText 0.2.5 (`train_compile`) has an environment of its own, on Python 3.12 with jax
0.11.1; both sides compile with the same release of libtpu, from shapes alone, and both
texts of optimised HLO are walked by `tools.plan.hlo`. Rows, lengths, vocabulary,
layers, recomputation (`full`), AdamW in float32, FSDP and XLA's flags are the same;
Splash is the attention of both. Two compiled programs are compared. Nothing is run, on
either side.

Cycles are the compiler's estimates of all but kernels and collectives; of these it
estimates nothing. Bytes are of whole arrays that collectives gather, sum or send.
"""

import json
import os
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmarks.processes import last_line, run
from lm import cli
from lm.types import UserError
from tools.plan import hlo, topology
from tools.plan.chips import GIB, Slice


@dataclass(frozen=True)
class Case:
    """One model on one slice.

    Attributes:
        topology: As `tools.plan` has it.
        ours: Flags of `tools.plan`.
        theirs: Flags of MaxText.
    """

    topology: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


CASES = {
    "1.3B": Case(
        "v5e:4x4",
        (
            *("--config=configs/gpt_1_3b.py", "--config.model.remat=full"),
            *("--config.batch_size=64", "--config.grad_accum_steps=1"),
            *("--config.mesh.data=1", "--config.mesh.fsdp=16"),
        ),
        (
            *("compile_topology=v5e-16", "per_device_batch_size=4"),
            *("base_emb_dim=2048", "base_num_query_heads=16", "base_num_kv_heads=16"),
            *("base_mlp_dim=8192", "base_num_decoder_layers=24", "head_dim=128"),
            *("max_target_length=2048", "vocab_size=50304", "mlp_activations=[gelu]"),
            "logits_via_embedding=true",
        ),
    ),
    "8B": Case(
        "v6e:8x8",
        (
            *("--config=configs/llama3_8b.py", "--config.model.remat=full"),
            *("--config.batch_size=128", "--config.grad_accum_steps=1"),
            *("--config.mesh.data=1", "--config.mesh.fsdp=64"),
        ),
        (
            *("compile_topology=v6e-64", "per_device_batch_size=2"),
            *("model_name=llama3-8b", "max_target_length=8192"),
        ),
    ),
}
SHARED = (
    *("run_name=plan", "compile_topology_num_slices=1", "enable_checkpointing=false"),
    *("dataset_type=synthetic", "remat_policy=full", "ici_fsdp_parallelism=-1"),
)

parser = cli.make_parser(__doc__)
parser.add_argument("--only", default="", help="cases whose name contains this")
parser.add_argument(
    "--maxtext-python",
    default=".venv-maxtext/bin/python",
    help="a Python that has MaxText",
)
parser.add_argument("--keep", default="", help="a folder for MaxText's HLO")


def main(args: Namespace) -> dict[str, Any]:
    if not Path(args.maxtext_python).exists():
        raise UserError(
            f"no {args.maxtext_python}; run make .venv-maxtext/.installed, which "
            "installs it"
        )
    wanted = [name for name in CASES if args.only in name]
    if not wanted:
        raise UserError(f"--only={args.only} is part of no case's name")
    rows = []
    for name in wanted:
        case = CASES[name]
        ours = compile_ours(case)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(args.keep, name) if args.keep else Path(temporary)
            theirs = compile_theirs(case, folder, args.maxtext_python)
        rows.append({"case": name, "topology": case.topology, **_pair(ours, theirs)})
        _show(rows[-1])
    return {"rows": rows}


def compile_ours(case: Case) -> dict[str, Any]:
    """Returns what our training step takes, by `tools.plan`."""
    words = ("-m", "tools.plan", "--json", "--decode-rows=0")
    flags = (f"--topology={case.topology}", *case.ours)
    step = last_line([sys.executable, *words, *flags])["train"]
    return {name: step["memory"][name] for name in ("arguments", "temporary")} | {
        name: step[name]
        for name in ("compile_seconds", "cycles", "collectives", "kernels")
    }


def compile_theirs(case: Case, folder: Path, python: str) -> dict[str, Any]:
    """Returns what MaxText's training step takes; leaves its HLO in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    program = str(Path(__file__).with_name("maxtext_compile.py"))
    environ = {**os.environ, "PYTHONPATH": "", "DECOUPLE_GCLOUD": "TRUE"}
    topology.prepare(Slice.of(case.topology), environ=environ)
    command = [python, program, str(folder.resolve()), *SHARED, *case.theirs]
    run(command, environ)
    cost = hlo.as_dict(hlo.cost((folder / "step.txt").read_text()))
    memory = json.loads((folder / "memory.json").read_text())
    return memory | {name: cost[name] for name in ("cycles", "collectives", "kernels")}


def _pair(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Returns both sides, and ours as a share of theirs."""

    def bytes_of(side: dict[str, Any], name: str) -> float:
        return sum(moved[name] for moved in side["collectives"].values())

    for side in (ours, theirs):
        side["collective_bytes"] = bytes_of(side, "bytes")
        side["collective_wire"] = bytes_of(side, "wire")
    numbers = ("arguments", "temporary", "cycles", "collective_bytes")
    ratios = {name: ours[name] / theirs[name] for name in (*numbers, "collective_wire")}
    return {"ours": ours, "maxtext": theirs, "ratio": ratios}


def _show(row: dict[str, Any]) -> None:
    ours, theirs = row["ours"], row["maxtext"]
    title = f"{row['case']} on {row['topology']}, a step of each device"
    table = Table("", "lm", "MaxText 0.2.5", "ratio", title=title)
    for label, name, unit in (
        ("parameters and optimizer, GiB", "arguments", GIB),
        ("temporary memory, GiB", "temporary", GIB),
        ("cycles without kernels, 1e6", "cycles", 1e6),
        ("collectives: whole arrays, GB", "collective_bytes", 1e9),
        ("collectives: least sent, GB", "collective_wire", 1e9),
    ):
        pair = (f"{side[name] / unit:,.2f}" for side in (ours, theirs))
        table.add_row(label, *pair, f"{row['ratio'][name]:.2f}")
    for kind in sorted({*ours["collectives"], *theirs["collectives"]}):
        moved = (side["collectives"].get(kind) for side in (ours, theirs))
        cells = (
            f"{m['bytes'] / 1e9:.2f} in {m['calls']:,.0f}" if m else "0" for m in moved
        )
        table.add_row(f"  {kind}, GB in calls", *cells, "")
    for side, name in ((ours, "lm"), (theirs, "MaxText")):
        calls = ", ".join(f"{k} x {n:.0f}" for k, n in side["kernels"].items())
        table.add_row(f"kernels of {name}", calls or "none", "", "")
    pair = (f"{side['compile_seconds']:.0f}" for side in (ours, theirs))
    table.add_row("compiled in, s", *pair, "")
    Console(width=110).print(table)


if __name__ == "__main__":
    cli.run(main, parser)
