"""Continues texts with a trained model.

    python -m lm.generate --workdir=runs/gpt --prompt="In the beginning"

A decoder continues the prompt; an encoder-decoder answers it, and reads <extra_id_0>
in it as a sentinel. What was trained on the task chat or text_to_text answers it as it
has learned to. Without a prompt every line of standard input is one, and on a terminal
lines are asked for. The text of a single prompt appears as it is written.

A text depends on the seed, its prompt and the options, and (but for rounding) not on
the prompts beside it.
"""

import dataclasses
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm import cli, decoding
from lm.completion import Completer, Completion
from lm.types import UserError

# More tokens than any model reads.
_ANY_LENGTH = 2**30

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", required=True, help="the folder of a run of lm.train")
parser.add_argument("--step", default="latest", help="latest, best, or a step's number")
parser.add_argument("--prompt", action="append", default=[], help="may be repeated")
parser.add_argument("--prompts-file", default="", help="a file with a prompt a line")
parser.add_argument("--max-new-tokens", type=int, default=128)
parser.add_argument(
    "--temperature", type=float, default=1.0, help="0: always the likeliest token"
)
parser.add_argument("--top-k", type=int, default=0, help="0: off")
parser.add_argument("--top-p", type=float, default=1.0, help="1: off")
parser.add_argument("--min-p", type=float, default=0.0, help="0: off")
parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1: off")
parser.add_argument("--beam", type=int, default=0, help="number of beams; 0: off")
parser.add_argument("--length-penalty", type=float, default=0.6, help="of --beam")
parser.add_argument(
    "--stop", action="append", default=[], help="ends a text; may be repeated"
)
parser.add_argument("--num-samples", type=int, default=1, help="texts of each prompt")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--batch-size", type=int, default=16, help="prompts at a time")
parser.add_argument(
    "--no-stream", action="store_true", help="print a text once it is complete"
)


def main(args: Namespace) -> dict[str, Any]:
    """Checks what was given before the model is loaded, then writes the texts."""
    config = decoding.Config(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        beam_size=args.beam,
        length_penalty=args.length_penalty,
    )
    _check(args)
    prompts = _read_prompts(args)

    from lm.tasks import Generative, Predictive, build_task
    from lm.train import workdir

    loaded = workdir.load(Path(args.workdir), args.step)
    task = loaded.task
    if isinstance(task, Predictive):
        raise UserError(
            f"{args.workdir} has the task {task.config.name}, which writes no text; "
            "give it texts with lm.predict"
        )
    if isinstance(task, Generative):
        # Nothing of a prompt is cut off unasked: what is too long is an error.
        whole = dataclasses.replace(task.config, length=_ANY_LENGTH)
        task = build_task(whole, loaded.tokenizer)
    completer = Completer(
        loaded.model,
        loaded.params,
        loaded.tokenizer,
        config,
        args.stop,
        args.seed,
        getattr(loaded.config.task, "prefix_lm", False),
        (lambda text: task.prompt({"text": text}))
        if isinstance(task, Generative)
        else None,
    )
    one_by_one = prompts is None or len(prompts) == 1
    streams = one_by_one and args.num_samples == 1 and not (args.beam or args.no_stream)
    completions, seconds = [], 0.0
    for batch in _batches(prompts, args.batch_size):
        began = time.perf_counter()
        if streams:
            found = _stream(completer, batch[0])
        else:
            found = completer(batch, args.num_samples)
        seconds += time.perf_counter() - began
        completions += found
        if one_by_one and not streams:
            _print(completer, found)
    if not one_by_one:
        _print(completer, completions)
    tokens = sum(completion.tokens for completion in completions)
    rate = tokens / seconds if seconds else 0.0
    print(
        f"{tokens} tokens in {seconds:.1f} s, {rate:.0f} a second with compilation",
        file=sys.stderr,
    )
    return {
        "step": loaded.step,
        "tokens_per_sec": rate,
        "generations": [dataclasses.asdict(completion) for completion in completions],
    }


def _check(args: Namespace) -> None:
    """Raises a UserError unless the command's own flags are valid."""
    for valid, message in (
        (args.num_samples >= 1, "--num-samples must be at least 1"),
        (
            args.num_samples <= (args.beam or math.inf),
            f"--num-samples must be at most --beam={args.beam}",
        ),
        (
            args.num_samples == 1 or args.beam or args.temperature,
            "--temperature=0 writes one text a prompt; leave out --num-samples",
        ),
        (args.batch_size >= 1, "--batch-size must be at least 1"),
        (0 <= args.seed < 2**32, "--seed must be from 0 to 4294967295"),
        (all(args.stop), "--stop must not be empty"),
    ):
        if not valid:
            raise UserError(message)


def _read_prompts(args: Namespace) -> list[str] | None:
    """Returns the prompts given, or None where they are to be typed.

    Raises:
        UserError: If there is none, or they cannot be read.
    """
    prompts = [_text(os.fsencode(prompt), "--prompt") for prompt in args.prompt]
    if args.prompts_file:
        try:
            content = Path(args.prompts_file).read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read --prompts-file={args.prompts_file}: {error.strerror}"
            ) from error
        prompts += _lines(_text(content, f"--prompts-file={args.prompts_file}"))
    elif not prompts:
        if sys.stdin is None:
            raise UserError("standard input is closed; give --prompt")
        if sys.stdin.isatty():
            return None
        prompts += _lines(_text(sys.stdin.buffer.read(), "standard input"))
    if not prompts:
        raise UserError("no prompt; give --prompt, --prompts-file or standard input")
    return prompts


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error}") from error


def _lines(text: str) -> list[str]:
    """Returns the lines that are not blank.

    >>> _lines("one\\r\\n\\n two\\n")
    ['one', ' two']
    """
    lines = text.replace("\r\n", "\n").split("\n")
    return [line for line in lines if line.strip()]


def _batches(prompts: list[str] | None, size: int) -> Iterator[list[str]]:
    """Yields the prompts, or one that is typed after the other."""
    if prompts is None:
        return ([line] for line in cli.typed_lines())
    if len(prompts) == 1:
        return iter([prompts])
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    return cli.progress(batches, len(batches))


def _stream(completer: Completer, prompt: str) -> list[Completion]:
    """Prints a text while it is written."""

    def show(piece: str) -> None:
        print(piece, end="", flush=True)

    before = prompt if completer.continues else ""

    def show_first(piece: str) -> None:
        nonlocal before
        show(before + piece)
        before = ""

    found = completer([prompt], show=show_first)
    show(f"{before}\n")
    return found


def _print(completer: Completer, completions: Sequence[Completion]) -> None:
    """Prints texts, a decoder's behind their prompts, with blank lines between."""
    print(
        *(c.prompt + c.text if completer.continues else c.text for c in completions),
        sep="\n\n",
    )


if __name__ == "__main__":
    cli.run(main, parser)
