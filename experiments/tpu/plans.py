"""Plans the configs that are shipped for the slices that they are meant for.

    python -m experiments.tpu.plans                   # all, some minutes
    python -m experiments.tpu.plans --only=llama3     # these again

Each row is `python -m tools.plan --config=configs/NAME.py --topology=…` with the
overrides beside it. The table is `plans.md` here, and `plans.json` has all that the
planner said. Rows that are not asked for stay as they are. Some of v5p need jax from
0.12 on, and so Python 3.12.
"""

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm.atomic import write_text
from lm.types import UserError
from tools.plan.chips import GIB

HERE = Path(__file__).parent

# Config, topology, slices, and what is set for them.
ROWS = (
    ("gpt2_124m", "v5e:2x2", 1, ("grad_accum_steps=15",)),
    (
        "bert_base",
        "v5e:2x2",
        1,
        ("grad_accum_steps=4", "model.attention_dropout_rate=0.0"),
    ),
    ("gpt_1_3b", "v5e:4x4", 1, ("mesh.data=1", "mesh.fsdp=16")),
    ("gpt_1_3b", "v5e:4x4", 2, ("mesh.data=2", "mesh.fsdp=16", "grad_accum_steps=16")),
    ("llama3_8b", "v6e:8x8", 1, ()),
    ("llama3_8b", "v5p:4x4x4", 1, ()),
    ("t5_11b", "v5p:4x4x4", 1, ()),
    ("turing_nlg_17b", "v5e:8x8", 1, ()),
    ("turing_nlg_17b", "v5p:4x4x4", 1, ("grad_accum_steps=2",)),
    ("gpt3_175b", "v5p:8x8x8", 1, ()),
    ("gpt3_175b", "v5p:16x16x16", 1, ("grad_accum_steps=1",)),
)

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--only", default="", help="rows whose config and topology contain this"
)


def main(args: Namespace) -> dict[str, Any]:
    """Plans the rows that are wanted, and writes both files.

    Raises:
        UserError: If some have no plan, when the others have.
    """
    wanted = [row for row in ROWS if args.only in name_of(row)]
    if not wanted:
        raise UserError(f"--only={args.only} is part of no row's name")
    file = HERE / "plans.json"
    plans = json.loads(file.read_text()) if file.exists() else {}
    failed = []
    for row in cli.progress(wanted, len(wanted)):
        try:
            plans[name_of(row)] = plan(row)
        except UserError as error:
            failed.append(str(error))
            continue
        kept = {name: plans[name] for name in map(name_of, ROWS) if name in plans}
        write_text(file, json.dumps(kept, indent=1) + "\n")
        write_text(HERE / "plans.md", table(kept))
        cli.say(line(name_of(row), plans[name_of(row)]))
    if failed:
        raise UserError("; ".join(failed))
    return {"rows": [name_of(row) for row in wanted]}


def name_of(row: tuple) -> str:
    config, topology, slices, _ = row
    return f"{config} {topology}" + (f" x {slices}" if slices > 1 else "")


def plan(row: tuple) -> dict[str, Any]:
    """Returns what `tools.plan` says of a row, and the seconds that it took."""
    config, topology, slices, overrides = row
    flags = [f"--config=configs/{config}.py", f"--topology={topology}"]
    flags += [f"--num-slices={slices}"] if slices > 1 else []
    flags += [f"--config.{override}" for override in overrides]
    began = time.monotonic()
    command = [sys.executable, "-m", "tools.plan", "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name_of(row)}: {done.stderr.strip().splitlines()[-1]}")
    found = {"command": " ".join(["python", *command[1:3], *flags])}
    return found | {"seconds": time.monotonic() - began} | json.loads(done.stdout)


def line(name: str, plan: dict[str, Any]) -> str:
    """Returns a row of the table."""
    step = plan["train"]
    memory, seconds = step["memory"], step["seconds"]
    config, _, rest = name.partition(" ")
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan["mesh"].items())
    state = (memory["parameters"] + memory["optimizer"]) / GIB
    sent = sum(moved["wire"] for moved in step["collectives"].values()) / 1e9
    cells = (
        f"[`{config}`](../../configs/{config}.py)",
        f"`{rest}`",
        mesh,
        f"{step['rows']:,} ({step['rows_per_device']:g})",
        plan["remat"],
        step["attention"],
        f"{state:.2f} + {memory['temporary'] / GIB:.2f}",
        f"{memory['total'] / GIB:.2f} of {step['limit'] / GIB:.2f}, {step['free']:.0%}",
        f"{(step['compiled_flops'] + step['kernel_flops']) / step['model_flops']:.2f}",
        f"{seconds['compute']:.3g}",
        f"{seconds['communication']:.3g} ({sent:.3g})",
        f"{step['mfu_bound']:.0%}, {step['mfu_bound_in_turn']:.0%}",
        f"{plan['seconds']:.0f}, {step['host_gib']:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


HEADS = (
    *("config", "slice", "mesh", "rows of a step (a device)", "remat", "attention"),
    *("state + temporary, GiB", "of the chip, left", "FLOPs / model's"),
    *("compute, s", "communication, s (GB sent)", "MFU bound: hidden, in turn"),
    "planned in s, host GiB",
)


def table(plans: dict[str, Any]) -> str:
    """Returns the page."""
    head = f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|\n"
    rows = "\n".join(line(name, plan) for name, plan in plans.items())
    commands = "\n".join(plan["command"] for plan in plans.values())
    versions = " and ".join(sorted({plan["jax"] for plan in plans.values()}))
    return f"""# Plans

Made by `python -m experiments.tpu.plans` with jax {versions}; `plans.json` has all.
Nothing was run: these are the compiler's estimates for one device and one optimizer
step. The MFU bound is an upper bound, with all collectives hidden behind computation
and with none; it leaves out the input, launches and the network between slices. A real
run is slower.

{head}{rows}

```
{commands}
```
"""


if __name__ == "__main__":
    cli.run(main, parser)
