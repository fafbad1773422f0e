"""Turns the model of a workdir into one that runs without JAX, and proves it equal.

    python -m tools.export --workdir=runs/bbc --quantize=int8
    python -m tools.export --workdir=runs/gpt --format=litertlm --quantize=int8
    python -m tools.export --workdir=runs/bbc --format=saved_model

The folder runs/bbc/export/tflite-int8 then has the model, its tokenizer, `client.py`
and `runtime/`, which run both without JAX or `lm`, `signature.json` and a `README.md`.
Before it appears, the model is run in a fresh process on examples of a split that was
not trained on, and compared with the one in JAX.

| --format | what it is | --quantize |
|---|---|---|
| tflite | a TF Lite file, for phones | float16, int8, int8_weights, int8_static, int4 |
| litertlm | a decoder with its tokenizer and chat template | all but int8_static |
| saved_model | a SavedModel, text in, for TensorFlow Serving | |
| onnx | files for ONNX Runtime | int8 |
| stablehlo | functions of `jax.export`, for JAX alone | |

`int8` is what phones are fastest with: a quarter of the size. Several lengths
(--max-len=32,128) are several signatures which share their weights: a short text then
takes less time.
"""

import dataclasses
import importlib
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli, scorecard
from lm.atomic import new_folder
from lm.config import check_choice, check_range
from lm.types import UserError

FORMATS = ("tflite", "litertlm", "saved_model", "onnx", "stablehlo")

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", required=True, help="the folder of a run of lm.train")
parser.add_argument("--format", default="tflite", help=", ".join(FORMATS))
parser.add_argument("--quantize", default="none", help="see above; default: none")
parser.add_argument(
    "--calibration", default="", help="a source for int8_static; default: the run's"
)
parser.add_argument(
    "--converter", default="direct", help="of tflite: direct, or tensorflow"
)
parser.add_argument(
    "--max-len", default="", help="tokens of a row, or several; default: the task's"
)
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument("--output", default="", help="default: in the workdir")
parser.add_argument("--overwrite", action="store_true", help="replace an export")
parser.add_argument(
    "--source", action="append", default=[], help="of the proof; default: the run's"
)
parser.add_argument("--split", default="", help="of the proof; default: eval_split")
parser.add_argument(
    "--examples", type=int, default=256, help="of the proof, of each source; 0: all"
)
parser.add_argument(
    "--tolerance",
    type=float,
    default=0.005,
    help="how much of the score may be lost; default: 0.005, half a point",
)


def main(args: Namespace) -> dict[str, Any]:
    """Checks what was asked for, exports, proves, and prints how it compares."""
    check_choice("--format", args.format, FORMATS)
    format = _open(args.format)
    choices = tuple(format.QUANTIZATIONS)
    check_choice(f"--quantize of {args.format}", args.quantize, choices)
    check_choice("--converter", args.converter, ("direct", "tensorflow"))
    if args.converter != "direct" and args.format != "tflite":
        raise UserError("--converter is for --format=tflite")
    if args.calibration and args.quantize != "int8_static":
        raise UserError("--calibration is for --quantize=int8_static")
    check_range("--examples", args.examples, 0)
    check_range("--tolerance", args.tolerance, 0)
    lengths = _lengths(args.max_len)

    from lm.train import workdir
    from lm.train.evaluation import read_examples
    from tools.export import artefact, graph
    from tools.export.proof import prove

    home = Path(args.workdir)
    loaded = workdir.load(home, args.step)
    data = loaded.config.data
    if args.source:
        data = dataclasses.replace(data, sources=tuple(args.source), weights=())
    name = f"{args.format}-{args.quantize}".removesuffix("-none")
    output = Path(args.output or home / "export" / name)
    split = args.split or data.eval_split
    read_examples(loaded.task, data, split, 1)  # a mistake is told at once
    with new_folder(output, args.overwrite, "signature.json", "--output") as folder:
        made = graph.build(loaded, lengths)
        about = artefact.describe(loaded, made) | {
            "name": home.resolve().name,
            "format": args.format,
            "quantization": format.QUANTIZATIONS[args.quantize],
        }
        artefact.write(folder, about, loaded.tokenizer)
        size = artefact.size(folder)
        cli.say(f"converting to {args.format}")
        format.write(folder, made, loaded, args)
        size = artefact.size(folder) - size - artefact.size(folder / "proof")
        proof = {"size_mb": size / 1e6} | prove(
            folder, home, loaded, made, data, split, args.examples, format.BLOCKED
        )
        shutil.rmtree(folder / "proof", ignore_errors=True)
        artefact.write_json(folder / "proof.json", proof)
        artefact.write_card(folder, about, proof, format)
        _show(proof)
        if not proof["after"] >= proof["before"] - args.tolerance:
            what, cure = "", "raise --max-len"
            if args.quantize != "none":
                cure = "choose another --quantize"
            if hasattr(format, "cause"):
                what = format.cause(folder, made, loaded, args)
            raise UserError(
                f"{proof['score']} falls from {proof['before']:.4f} to "
                f"{proof['after']:.4f}, more than --tolerance {args.tolerance}"
                f"{what and f', most of it from {what}'}; {cure}, or prove it on more "
                "--examples"
            )
    for page in scorecard.refresh(home):
        print(f"report: {page}")
    print(f"wrote {output}")
    return {"output": str(output), **proof}


def _open(format: str) -> Any:
    """Returns the module of a format.

    Raises:
        UserError: If what it needs is not installed.
    """
    try:
        return importlib.import_module(f"tools.export.{format}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format={format} needs {error.name}; install the extra `export` of "
            "pyproject.toml, as `make install` does"
        ) from error


def _lengths(text: str) -> list[int]:
    """Parses `32,128`.

    >>> _lengths("128,32,32")
    [32, 128]
    """
    try:
        return sorted({int(word) for word in text.split(",") if word})
    except ValueError:
        raise UserError(f"--max-len {text} is not numbers such as 32,128") from None


def _show(proof: dict[str, Any]) -> None:
    """Prints one number a line."""
    for name, value in proof.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else value
        print(f"  {name:<16} {shown}")


if __name__ == "__main__":
    cli.run(main, parser)
