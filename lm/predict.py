"""Predicts with a fine-tuned model.

    python -m lm.predict --workdir=runs/bbc --text="The match ended in a draw."
    python -m lm.predict --workdir=runs/bbc --input=new.jsonl --output=predicted.jsonl

A text makes one JSON object: its fields and what is predicted. A field that has the
name of what is predicted, such as `label`, becomes `gold_label`. Without --text and
--input every line of standard input is a text, and on a terminal lines are asked for.
An input is what `lm.train` reads: .jsonl, .csv, .txt, tfds:NAME, …

The checkpoint is the best one of a run that has `eval.patience`, else the latest.
"""

import contextlib
import functools
import itertools
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm import cli
from lm.atomic import replacing
from lm.types import UserError

Example = Mapping[str, Any]

# Examples that are in memory at once.
CHUNK = 1024

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", required=True, help="the folder of a run of lm.train")
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument("--text", action="append", default=[], help="may be repeated")
parser.add_argument("--input", default="", help="a source of texts")
parser.add_argument("--split", default="all", help="of --input")
parser.add_argument(
    "--bad-rows", choices=["stop", "skip"], default="stop", help="of --input"
)
parser.add_argument("--output", default="", help="a .jsonl to write; default: stdout")
parser.add_argument("--batch-size", type=int, default=32, help="rows at a time")
parser.add_argument(
    "--field",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="another field of every --text, for example the question about it",
)


def main(args: Namespace) -> dict[str, Any]:
    """Predicts chunk by chunk, so that memory does not grow with the input."""
    if args.batch_size < 1:
        raise UserError("--batch-size must be at least 1")
    fields = dict(_pair(word) for word in args.field)
    if args.input and (args.text or fields):
        raise UserError("--input has all fields; leave out --text and --field")
    if args.output and Path(args.output).suffix != ".jsonl":
        raise UserError(f"--output={args.output} must end in .jsonl")
    if args.output and Path(args.output).resolve() == Path(args.input).resolve():
        raise UserError("--output is the --input; name another file")
    is_typed = not (args.text or args.input) and sys.stdin and sys.stdin.isatty()

    from lm import sharding
    from lm.completion import Writer
    from lm.data.sources import open_source
    from lm.tasks import Generative, Predictive
    from lm.tasks.labels import MissingFieldError
    from lm.train import workdir
    from lm.train.evaluation import Predictor

    loaded = workdir.load(Path(args.workdir), args.step)
    if args.input:
        source = open_source(args.input, loaded.config.data.data_dir, args.bad_rows)
        examples = source.examples(args.split, keep_blank=True)
    elif args.text:
        examples = ({"text": text, **fields} for text in args.text)
    elif is_typed:
        examples = ({"text": line, **fields} for line in cli.typed_lines())
    else:
        lines = (line.rstrip("\r\n") for line in sys.stdin or [])
        examples = ({"text": line, **fields} for line in lines)
    task, model = loaded.task, loaded.model
    if isinstance(task, Predictive):
        mesh = sharding.build_mesh(sharding.MeshConfig())
        predict = Predictor(task, model, mesh, args.batch_size)
    elif isinstance(task, Generative):
        predict = Writer(task, model, loaded.tokenizer, args.batch_size)
    else:
        raise UserError(
            f"{args.workdir} has the task {loaded.config.task.name}, which predicts "
            f"nothing; {task.instead}"
        )
    count, kept = 0, []
    with _writer(args.output) as write:
        for chunk in _chunks(examples, 1 if is_typed else CHUNK):
            try:
                predictions = predict(loaded.params, chunk)
            except MissingFieldError as error:
                if args.input:
                    raise
                cure = "or give it with --field=NAME=VALUE"
                raise UserError(f"{error}, {cure}") from error
            for example, prediction in zip(chunk, predictions):
                write(_line(example, prediction))
            kept += predictions if args.json and not args.output else []
            count += len(chunk)
    if not count:
        raise UserError("there is no text to predict; give --text or --input")
    return {"step": loaded.step, "count": count, "predictions": kept}


def _line(example: Example, prediction: Example) -> str:
    given = {f"gold_{k}" if k in prediction else k: v for k, v in example.items()}
    return cli.json_line({**given, **prediction})


def _pair(word: str) -> tuple[str, str]:
    """Splits NAME=VALUE."""
    name, equals, value = word.partition("=")
    if not (name and equals):
        raise UserError(f"--field={word} is not NAME=VALUE")
    return name, value


def _chunks(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Yields lists of up to `size` examples."""
    iterator = iter(examples)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


@contextlib.contextmanager
def _writer(output: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that writes a line; a file appears when it is complete."""
    if not output:
        yield functools.partial(print, flush=True)
        return
    path = Path(output)
    count = 0
    with (
        replacing(path) as temporary,
        temporary.open("w") as file,
        cli.Status("predicting") as status,
    ):

        def write(line: str) -> None:
            nonlocal count
            file.write(line + "\n")
            count += 1
            status.update(f"predicted {count:,}")

        yield write
    cli.say(f"wrote {count:,} predictions to {path}")


if __name__ == "__main__":
    cli.run(main, parser)
