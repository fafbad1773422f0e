"""Turns the model of a workdir into a TF Lite file for a phone, and proves it equal.

    python -m tools.export --workdir=runs/bbc --quantize=int8

The folder runs/bbc/export/tflite-int8 then has the model, its tokenizer, `client.py`
which runs both without JAX or `lm`, `signature.json` and a `README.md`. Before it
appears, the model is run in a fresh process on examples of a split that was not trained
on, and compared with the one in JAX.

`int8` is what phones are fastest with: a quarter of the size. Several lengths
(--max-len=32,128) are several signatures which share their weights: a short text then
takes less time. Tasks: classify and pair.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm.config import check_choice, check_range
from lm.types import UserError

FORMATS = ("tflite",)

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", required=True, help="the folder of a run of lm.train")
parser.add_argument("--format", default="tflite", help=", ".join(FORMATS))
parser.add_argument(
    "--quantize", default="none", help="none, float16, int8, int8_weights, int4"
)
parser.add_argument(
    "--max-len", default="", help="tokens of a row, or several; default: task.length"
)
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument("--output", default="", help="default: in the workdir")
parser.add_argument("--overwrite", action="store_true", help="replace an export")
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
    from tools.export import artefact, graph, tflite
    from tools.export.proof import prove

    check_choice("--format", args.format, FORMATS)
    check_choice("--quantize", args.quantize, tuple(tflite.QUANTIZATIONS))
    check_range("--examples", args.examples, 0)
    check_range("--tolerance", args.tolerance, 0)
    lengths = _lengths(args.max_len)

    from lm.train import workdir

    loaded = workdir.load(Path(args.workdir), args.step)
    config = loaded.config
    name = f"{args.format}-{args.quantize}".removesuffix("-none")
    output = Path(args.output or Path(args.workdir, "export", name))
    split = args.split or config.data.eval_split
    with artefact.new_folder(output, args.overwrite) as folder:
        signatures = list(graph.signatures(loaded, lengths or [config.task.length]))
        cli.say(f"converting to {args.format}")
        model = tflite.quantize(tflite.convert(signatures), args.quantize)
        made = {
            "name": Path(args.workdir).name,
            "format": args.format,
            "quantization": tflite.QUANTIZATIONS[args.quantize],
        }
        about = artefact.describe(loaded, signatures, made)
        artefact.write(folder, model, about, loaded)
        cli.say(f"comparing it with JAX on {split}")
        proof = {"size_mb": len(model) / 1e6} | prove(
            folder, loaded, signatures, config.data, split, args.examples
        )
        artefact.write_json(folder / "proof.json", proof)
        artefact.write_card(folder, about, proof)
        _show(proof)
        if not proof["after"] >= proof["before"] - args.tolerance:
            raise UserError(
                f"{proof['score']} falls from {proof['before']:.4f} to "
                f"{proof['after']:.4f}, more than --tolerance {args.tolerance}; choose "
                "another --quantize, or a longer --max-len"
            )
    print(f"wrote {output}")
    return {"output": str(output), **proof}


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
