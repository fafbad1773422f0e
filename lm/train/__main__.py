"""Trains a model.

    python -m lm.train --config=configs/gpt_tiny.py --workdir=runs/gpt \\
        --config.optim.learning_rate=3e-4

Run the same command again to go on from the last checkpoint. SIGTERM and Ctrl-C
save one before they end the run.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli, xla_flags
from lm import config as config_lib
from lm.memory import keep_freed
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--config", required=True, help="a config file; --config.KEY=VALUE overrides"
)
parser.add_argument("--workdir", required=True, help="the folder of the run")
parser.add_argument(
    "--profile",
    default="",
    metavar="A:B",
    help="trace steps A to B into the workdir; xprof opens it",
)
parser.add_argument(
    "--distributed", action="store_true", help="one of several hosts (TPU pods, Slurm)"
)


def main(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """Checks what was given before anything slow is imported, then trains."""
    values = config_lib.load(args.config, overrides)
    profile = _steps(args.profile)
    if not args.workdir:
        raise UserError("--workdir is empty; name a folder")
    if "://" in args.workdir:
        raise UserError(
            f"--workdir={args.workdir} is no folder; mount what all hosts share, and "
            "name a folder there"
        )
    xla_flags.apply()
    if args.distributed:
        import jax

        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())
            raise UserError(
                f"--distributed: {line}; leave it out on a single host"
            ) from error
    from lm.train.config import Config
    from lm.train.loop import train

    result = train(Config.of(values), Path(args.workdir), profile)
    if number := result.get("signal"):
        print(f"stopped at step {result['step']}; the same command goes on from there")
        raise cli.Ended(result, 128 + number)
    return result


def _steps(text: str) -> range:
    """Parses `A:B`.

    >>> _steps("5:8")
    range(5, 8)
    """
    if not text:
        return range(0)
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UserError(f"--profile must be A:B with A < B, not {text!r}")
    return range(int(first), int(last))


if __name__ == "__main__":
    keep_freed()
    cli.run(main, parser, extra_prefix="--config.")
