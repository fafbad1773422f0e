"""Says whether a run fits a TPU slice, and what bounds it, without owning one.

    python -m tools.plan --config=configs/gpt_1_3b.py --topology=v5e:4x4 \\
        --config.mesh.fsdp=16 --config.mesh.data=1

libtpu compiles the real training step and the decode step from shapes alone, on a CPU,
in about a minute, with the flags of `lm.xla_flags`: no parameters, no texts, no
tokenizer. Nothing is run, so every number is the compiler's estimate. The bound of the
MFU counts

- the compiler's cycles of each fusion, as often as its loop runs,
- attention kernels (Splash) at the peak of the chip, where none is: the compiler says
  nothing of them,
- and collectives at the full bandwidth of all links, hidden behind the computation, or
  instead of it where they take longer.

Launching, waiting for one another, the input and DCN between slices are not in it, so
a real run is slower. `--search` tries meshes, remat policies and rows, and ranks them.
"""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm import config as config_lib
from lm.config import check_range
from lm.types import UserError
from tools.plan.chips import GIB, Slice
from tools.plan.topology import prepare

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--config", required=True, help="a config file; --config.KEY=VALUE overrides"
)
parser.add_argument("--topology", required=True, help="a slice, such as v5e:4x4")
parser.add_argument(
    "--num-slices", type=int, default=1, help="slices, over which mesh.data is split"
)
parser.add_argument(
    "--decode-rows",
    type=int,
    help="rows of the decode step; default: 1 for each part of a batch; 0: none",
)
parser.add_argument("--search", action="store_true", help="try what the run may vary")
parser.add_argument(
    "--trials", type=int, default=12, help="of --search, each a compilation"
)
parser.add_argument(
    "--output", default="", help="of --search: the folder; default: plans/CONFIG-SLICE"
)


def main(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """Checks what was given, then plans, or searches."""
    part = Slice.of(args.topology)
    check_range("--num-slices", args.num_slices, 1)
    check_range("--trials", args.trials, 1)
    if args.decode_rows is not None:
        check_range("--decode-rows", args.decode_rows, 0)
    values = config_lib.load(args.config, overrides)
    prepare(part, args.num_slices)
    from lm.train.config import Config
    from tools.plan.measure import Target, take_source

    config, target = take_source(Config.of(values)), Target(part, args.num_slices)
    if args.search:
        from tools.plan import search

        return search.run(args, overrides, config, target)
    with cli.Status(f"compiling for {part.name}"):
        result = plan(Path(args.config).stem, config, target, args.decode_rows)
    show(result)
    return result


def plan(
    name: str, config: Any, target: Any, decode_rows: int | None
) -> dict[str, Any]:
    """Returns what the training step takes, and the decode step of what writes."""
    import jax

    from lm import sharding
    from tools.plan import advice, measure

    run = measure.build_run(config, target)
    shards = sharding.batch_shards(run.mesh, config.mesh)
    state = sum(measure.state_bytes(run).values())
    result: dict[str, Any] = {
        "config": name,
        "topology": target.part.name,
        "num_slices": target.num_slices,
        "chips": target.size,
        "mesh": {axis: n for axis, n in run.mesh.shape.items() if n > 1},
        "batch_size": config.batch_size,
        "grad_accum_steps": config.grad_accum_steps,
        "remat": getattr(config.model, "remat", ""),
        "jax": jax.__version__,
        "xla_flags": os.environ.get("LIBTPU_INIT_ARGS", ""),
        "estimate": "of the compiler, an upper bound; nothing was run",
    }
    try:
        result["train"] = measure.train_step(run, target)
        if hasattr(type(run.model), "prefill") and decode_rows != 0:
            rows = decode_rows or shards
            result["decode"] = measure.decode_step(
                run, target, rows, config.model.max_len
            )
    except measure.NoRoomError as error:
        line = advice.no_room(name, config, target, error, state, shards)
        raise UserError(line) from error
    result["fits"] = all(step["free"] >= 0 for step in _steps(result))
    return result


def _steps(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [result[name] for name in ("train", "decode") if name in result]


def show(result: dict[str, Any]) -> None:
    """Prints a plan."""
    mesh = " x ".join(f"{axis}={n}" for axis, n in result["mesh"].items()) or "1"
    slices = f" x {result['num_slices']} slices" if result["num_slices"] > 1 else ""
    train = result["train"]
    print(
        f"{result['config']} on {result['topology']}{slices}, {result['chips']} chips, "
        f"mesh {mesh}, {train['rows']} rows ({train['rows_per_device']:g} a device, "
        f"grad_accum_steps {result['grad_accum_steps']}), remat "
        f"{result['remat'] or 'none'}"
    )
    print(f"fits: {'yes' if result['fits'] else 'no'}")
    _show_step("training step", train)
    peak = train["model_flops"]
    print(f"  model FLOPs a device      {peak:.3e}  (6 N tokens + attention)")
    compiled = train["compiled_flops"] + train["kernel_flops"]
    share = f"{compiled / peak:.2f} of the model's; " if peak else ""
    print(
        f"  compiled FLOPs a device   {compiled:.3e}  ({share}"
        f"{train['kernel_flops']:.2e} of them in kernels)"
    )
    print(f"  attention                 {train['attention']}")
    _show_time(train)
    if peak:
        print(
            f"  MFU, compiler estimate, upper bound: {train['mfu_bound']:.1%} with all "
            f"collectives hidden, {train['mfu_bound_in_turn']:.1%} with none hidden; "
            "not a measurement"
        )
    if decode := result.get("decode"):
        _show_step(f"decode step, {decode['rows']} rows of {decode['length']}", decode)
        _show_time(decode)
        print(
            "  tokens a second, compiler estimate, upper bound: "
            f"{decode['tokens_per_second_bound']:,.0f}"
        )


def _show_step(name: str, step: dict[str, Any]) -> None:
    memory = step["memory"]
    parts = ", ".join(
        f"{part} {memory[part] / GIB:.2f}"
        for part in ("parameters", "optimizer", "temporary", "program")
        if part in memory
    )
    print(f"{name}:")
    print(
        f"  GiB a device              {memory['total'] / GIB:.2f} of "
        f"{step['limit'] / GIB:.2f}, {step['free']:.0%} left: {parts}"
    )
    print(
        f"  compiled in               {step['compile_seconds']:.0f} s, host memory "
        f"{step['host_gib']:.2f} GiB"
    )


def _show_time(step: dict[str, Any]) -> None:
    seconds = step["seconds"]
    kernels = ", ".join(f"{name} x {n:.0f}" for name, n in step["kernels"].items())
    print(f"  kernels                   {kernels or 'none'}")
    print(
        f"  cycles                    {step['cycles']:.3e}; at least "
        f"{seconds['compute'] * 1e3:.4g} ms, kernels at peak included"
    )
    print(
        f"  collectives               at least {seconds['communication'] * 1e3:.4g} ms "
        "at full bandwidth"
    )
    for kind, moved in step["collectives"].items():
        print(
            f"    {kind:<24}{moved['bytes'] / 1e9:.3g} GB in {moved['calls']:.0f} calls"
        )
    for slow in step["slowest"][:4]:
        share = slow["cycles"] / step["cycles"]
        print(f"    {share:4.0%} of the cycles       {_shortened(slow['source'])}")
    if step["endless_loops"]:
        print(f"  {step['endless_loops']} loops of unknown length are counted once")


def _shortened(source: str, width: int = 60) -> str:
    """Leaves out the beginning of the name of an operation, which many share."""
    return source if len(source) <= width else "…" + source[1 - width :]


if __name__ == "__main__":
    cli.run(main, parser, extra_prefix="--config.")
