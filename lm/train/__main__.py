"""Trains a model.

    python -m lm.train --config=configs/gpt_tiny.py --workdir=runs/gpt \\
        --config.optim.learning_rate=3e-4

Run the same command again to go on from the last checkpoint. SIGTERM and Ctrl-C
save one before they end the run.

On several hosts each runs the same command, but for the last flag, with a workdir that
all of them share:

    python -m lm.train --config=… --workdir=/shared/gpt \\
        --coordinator=10.0.0.1:8476 --num-processes=2 --process-id=0

Under srun, mpirun and on a Cloud TPU slice none of these flags is needed. A signal to
one host makes all save the same step; if one dies, all end with a line that names it,
and the same commands, on as many hosts as there are, go on from the last checkpoint.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli, distributed, rendezvous, xla_flags
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
rendezvous.add_flags(parser)


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
    with distributed.joined(args):
        from lm.train.config import Config
        from lm.train.loop import train

        result = train(Config.of(values), Path(args.workdir), profile)
        if number := result.get("signal"):
            step = result["step"]
            print(f"stopped at step {step}; the same command goes on from there")
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
