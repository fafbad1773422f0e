"""Tries meshes, remat policies and rows, each compiled, and ranks them.

What cannot divide or fit is thrown out by rule before anything is compiled; what is
left is tried in an order that begins with what should be fastest.
"""

import itertools
import json
import math
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm import cli, scorecard, sharding
from lm.atomic import make_folder, write_json, write_text
from lm.page import Chart, escaped, figures, number, table
from lm.train.config import Config
from lm.types import UserError
from tools.plan.chips import GIB
from tools.plan.measure import Target

# Bytes kept of each token, layer and unit of D for the backward pass, by remat policy:
# Korthikanti et al. (2022), https://arxiv.org/abs/2205.05198, section 4.1, whose 34 are
# those without attention's scores; of `full` the layer's input alone is kept, of
# `dots` the outputs of its matmuls, of `attention` what that returns.
KEPT = {
    "full": 2,
    "attention": 4,
    "dots_no_batch": 18,
    "dots": 18,
    "dots_attention": 20,
    "none": 34,
}
REMATS = ("none", "dots_attention", "dots_no_batch", "attention", "full")
ROWS = (1, 2, 4, 8, 16, 32)
TENSORS = (1, 2, 4, 8, 16)

# What each does to the time: matmuls that are done again, and matmuls that are cut.
_RECOMPUTED = {
    "none": 3.0,
    "dots_attention": 3.05,
    "dots": 3.1,
    "dots_no_batch": 3.1,
    "attention": 3.9,
    "full": 4.0,
}


@dataclass(frozen=True)
class Candidate:
    """What is tried.

    Attributes:
        fsdp: Of the mesh.
        tensor: Of the mesh; `data` takes the devices left.
        remat: The policy.
        rows: Of each part of a batch, all at once.
    """

    fsdp: int
    tensor: int
    remat: str
    rows: int

    def flags(self, target: Target) -> list[str]:
        """Returns the overrides that set it."""
        data = target.size // (self.fsdp * self.tensor)
        return [
            f"--config.mesh.data={data}",
            f"--config.mesh.fsdp={self.fsdp}",
            f"--config.mesh.tensor={self.tensor}",
            f"--config.model.remat={self.remat}",
            f"--config.batch_size={self.rows * self.fsdp * data}",
            "--config.grad_accum_steps=1",
        ]


def candidates(config: Config, target: Target, parameters: int) -> list[Candidate]:
    """Returns what divides and may fit, what should be fastest first.

    Args:
        config: Of the run.
        target: What is compiled for.
        parameters: Of the model.
    """

    def order(one: Candidate) -> tuple:
        data = target.size // (one.fsdp * one.tensor)
        # Few rows leave little to hide the gathering of parameters behind.
        waits = 2 * (one.tensor - 1) + 2 / one.rows * (one.fsdp > 1)
        return _RECOMPUTED[one.remat] + waits, data == 1, -one.rows, one.fsdp

    fitting = (
        one
        for one in _dividing(config, target)
        if estimated_bytes(config, one, parameters) < target.chip.usable
    )
    return sorted(fitting, key=order)


def _dividing(config: Config, target: Target) -> Iterator[Candidate]:
    model = config.model
    heads = getattr(model, "num_heads", 1)
    kv_heads = getattr(model, "kv_heads", heads)
    for fsdp, tensor in itertools.product(sharding.divisors(target.size), TENSORS):
        data = target.size // (fsdp * tensor)
        is_whole = data * fsdp * tensor == target.size
        if not is_whole or data % target.num_slices or model.emb_dim % fsdp:
            continue
        sizes = (heads, kv_heads, model.vocab_size, getattr(model, "mlp_size", tensor))
        if any(size % tensor for size in sizes):
            continue
        for remat, rows in itertools.product(REMATS, ROWS):
            yield Candidate(fsdp, tensor, remat, rows)


def estimated_bytes(config: Config, one: Candidate, parameters: int) -> float:
    """Returns about what a device holds: state, gradients, and what backward needs."""
    model = config.model
    state = 16 * parameters / (one.fsdp * one.tensor)
    layers = getattr(model, "num_layers", 1)
    states = one.rows * config.task.length * model.emb_dim
    # Sublayers' own results are cut by `tensor`, their inputs are not.
    kept = KEPT["full"] + (KEPT[one.remat] - KEPT["full"]) / one.tensor
    head = 6.0 * model.vocab_size * model.emb_dim / one.tensor
    return state + states * (layers * kept + KEPT["none"] / one.tensor) + head


def run(
    args: Namespace, overrides: Sequence[str], config: Config, target: Target
) -> dict[str, Any]:
    """Tries candidates one after the other, ranks them and writes what came of them.

    Raises:
        UserError: If none fits by rule, or none fitted when compiled.
    """
    from lm import tree
    from lm.models import build_model
    from lm.train.state import abstract_params

    if not hasattr(config.model, "remat"):
        raise UserError(
            f"--search varies remat, which a {config.model.name} model has not; leave "
            "it out"
        )
    name = f"{Path(args.config).stem}-{target.part.name.replace(':', '-')}"
    folder = Path(args.output or Path("plans") / name)
    make_folder(folder)
    abstract = abstract_params(build_model(config.model))
    parameters = tree.count(sharding.unbox(abstract))
    chosen = candidates(config, target, parameters)
    if not chosen:
        raise UserError(
            f"{parameters:,} parameters fit no mesh of {target.size} chips of "
            f"{target.chip.name} by rule; take a larger slice"
        )
    trials = []
    with cli.Status("planning") as status:
        for i, one in enumerate(chosen[: args.trials]):
            status.update(f"trial {i + 1} of {min(len(chosen), args.trials)}")
            trials.append(_try(args, overrides, one, target))
            trials.sort(key=_rank)
            write_json(folder / "plan.json", {"trials": trials})
    result = {
        "topology": target.part.name,
        "num_slices": target.num_slices,
        "candidates": len(chosen),
        "trials": trials,
        "output": str(folder),
    }
    write_json(folder / "plan.json", result)
    write_text(folder / "index.html", render(name, result))
    show(result)
    if "plan" not in trials[0]:
        raise UserError(f"none of the trials fits: {trials[0]['error']}")
    return result


def _rank(trial: dict[str, Any]) -> tuple:
    if "plan" not in trial:
        return math.inf, 0.0
    train = trial["plan"]["train"]
    return -train["mfu_bound"], -train["mfu_bound_in_turn"]


def _try(
    args: Namespace, overrides: Sequence[str], one: Candidate, target: Target
) -> dict[str, Any]:
    """Plans one in a process of its own, whose memory is then free again."""
    flags = [*overrides, *one.flags(target)]
    command = [
        *(sys.executable, "-m", "tools.plan", "--json", "--decode-rows=0"),
        *(f"--config={args.config}", f"--topology={args.topology}"),
        *(f"--num-slices={args.num_slices}", *flags),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    trial: dict[str, Any] = {"flags": one.flags(target)}
    if done.returncode == 0:
        return trial | {"plan": json.loads(done.stdout)}
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.returncode != 1 or not said:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return trial | {"error": f"failed: {last[:300]}"}
    return trial | {"error": said[-1].removeprefix("error: ")}


HEAD = ("mesh", "remat", "rows a device", "GiB", "MFU bound", "not hidden", "GB moved")


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Returns a row of text for each trial, the best first."""
    found = []
    for place, trial in enumerate(result["trials"], 1):
        if "plan" not in trial:
            short = (flag.removeprefix("--config.") for flag in trial["flags"])
            found.append([str(place), " ".join(short), *[""] * 5, trial["error"]])
            continue
        plan = trial["plan"]
        train = plan["train"]
        mesh = " x ".join(f"{a}={n}" for a, n in plan["mesh"].items())
        moved = sum(kind["bytes"] for kind in train["collectives"].values())
        found.append(
            [
                *(str(place), mesh, plan["remat"], f"{train['rows_per_device']:g}"),
                number(train["memory"]["total"] / GIB),
                f"{train['mfu_bound']:.1%}",
                f"{train['mfu_bound_in_turn']:.1%}",
                number(moved / 1e9),
            ]
        )
    return found


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    rows = [("", *HEAD), *rows_of(result)]
    widths = [max(len(r[i]) for r in rows if r[3] or i == 0) for i in range(8)]
    for row in rows:
        if row[3]:
            print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
        else:
            print(f"{row[0]}  {row[1]}: {row[-1]}")
    print(f"the first: {' '.join(result['trials'][0]['flags'])}")
    print(
        "MFU: compiler estimate, upper bound, with all collectives hidden and with "
        f"none; of {result['candidates']} that may fit, {len(result['trials'])} were "
        f"compiled; see {result['output']}/index.html"
    )


def render(name: str, result: dict[str, Any]) -> str:
    """Returns the page of a search."""
    cells = [[escaped(cell) for cell in row] for row in rows_of(result)]
    sections = {
        "Trials": f"<div class=wide>{table('scores', ('', *HEAD), cells)}</div>"
    }
    fitting = [trial["plan"] for trial in result["trials"] if "plan" in trial]
    if fitting:
        trains = [plan["train"] for plan in fitting]
        memory = [train["memory"]["total"] / GIB for train in trains]
        bounds = [100 * train["mfu_bound"] for train in trains]
        turns = [100 * train["mfu_bound_in_turn"] for train in trains]
        limit = trains[0]["limit"] / GIB
        chart = Chart(
            (0, limit), (0, max(bounds)), "GiB of a chip", "MFU, upper bound, %"
        )
        chart.rule(limit, "all that a chip has")
        chart.dots(zip(memory, turns), "s1")
        chart.dots(zip(memory, bounds), "s0")
        caption = "blue: collectives hidden; orange: none hidden"
        sections = {"Bound and memory": figures([(caption, chart)])} | sections
    facts = {
        "topology": escaped(result["topology"]),
        "slices": str(result["num_slices"]),
        "compiled": f"{len(result['trials'])} of {result['candidates']} that may fit",
        "the first": escaped(" ".join(result["trials"][0]["flags"])),
        "varied": "mesh.data, fsdp, tensor, remat and the rows of a batch",
        "numbers": "compiler estimates, upper bounds; nothing was run",
    }
    return scorecard.page(f"{name}: plans", facts, sections)
