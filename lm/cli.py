"""What every command shares: flags, one-line errors, exit codes, `--json`."""

import argparse
import contextlib
import difflib
import errno
import gc
import io
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.progress import (
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    track,
)

from lm.types import UserError

# Before TensorFlow or XLA load: their INFO and WARNING lines are not for users.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow only reads data here, and announces oneDNN whatever the log level.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

T = TypeVar("T")

_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")


class Ended(Exception):  # noqa: N818
    """A command was asked to end before its work was done.

    Attributes:
        result: What `--json` prints.
        status: The exit status.
    """

    def __init__(self, result: dict[str, Any], status: int):
        """Takes both."""
        super().__init__(status)
        self.result, self.status = result, status


class Signalled(KeyboardInterrupt):
    """A signal ends the command.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int):
        """Takes it."""
        super().__init__(number)
        self.number = number


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with a suggestion."""

    def error(self, message: str) -> NoReturn:
        """Prints one line and exits with status 2."""
        self.exit(2, f"error: {message}; see --help\n")


def make_parser(doc: str | None) -> Parser:
    """Returns a parser with `--json`; `doc` is the module's docstring."""
    spec = sys.modules["__main__"].__spec__
    parser = Parser(
        prog=spec and f"python -m {spec.name.removesuffix('.__main__')}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on standard output, all else on standard error",
    )
    return parser


def parse(
    parser: Parser, argv: Sequence[str], extra_prefix: str | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parses `argv`; returns the flags and those that start with `extra_prefix`.

    Any other unknown flag ends the program with a suggestion and status 2.
    """
    args, rest = parser.parse_known_args(argv)
    extra = [a for a in rest if extra_prefix and a.startswith(extra_prefix)]
    for word in rest:
        if word not in extra:
            known = [o for a in parser._actions for o in a.option_strings]
            parser.error(
                f"unknown argument {word!r}{suggest(word.split('=')[0], known)}"
            )
    return args, extra


def suggest(word: str, known: Sequence[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the nearest known word, or the choices.

    >>> suggest("lerning_rate", ["learning_rate", "b1"])
    "; did you mean 'learning_rate'?"
    >>> suggest("zzz", ["a", "b"])
    '; choose from: a, b'
    """
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose from: {', '.join(known)}" if known else ""


def typed_lines() -> Iterator[str]:
    """Asks for lines on the terminal until the input ends (Ctrl-D)."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def progress(items: Iterable[T], total: int) -> Iterator[T]:
    """Yields the items with a progress bar on standard error, if it is a terminal."""
    yield from track(
        items,
        "",
        total,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


class Status:
    """How far long work is: a line that changes in a terminal, or one now and then."""

    every_seconds = 10.0

    def __init__(self, line: str):
        """Takes the first line."""
        self._said = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not self._is_terminal,
        )
        self._task = self._bar.add_task(line, total=None)

    def __enter__(self) -> "Status":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, line: str) -> None:
        """Replaces the line."""
        self._bar.update(self._task, description=line)
        now = time.monotonic()
        if not self._is_terminal and now - self._said > self.every_seconds:
            self._said = now
            say(f"{line} …")


def json_line(value: Any) -> str:
    """Returns JSON in one line; arrays are lists, half a character is U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, default=lambda array: array.tolist())
    return valid(text)


def valid(text: str) -> str:
    """Returns the text with U+FFFD for every surrogate that lacks its other half."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def without_nan(value: Any) -> Any:
    """Returns a JSON value with None for the numbers that JSON does not have.

    >>> without_nan({"f1": [0.5, float("nan")]})
    {'f1': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(line: str) -> None:
    """Prints a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def run(
    main: Callable[..., dict[str, Any] | None], parser: Parser, **parse_options
) -> NoReturn:
    """Runs a command and exits: 0 on success, 1 on a `UserError`, 2 on bad flags.

    Args:
        main: Takes the parsed flags (and, with `extra_prefix`, the list of extra
            flags); returns what `--json` prints.
        parser: From `make_parser`.
        **parse_options: For `parse`.
    """
    # Closed by whoever started us (`>&-`); Python has None there.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # ASCII may be all that it takes
            stream.reconfigure(errors="backslashreplace")
    args, extra = parse(parser, sys.argv[1:], **parse_options)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A script's background job ignores Ctrl-C, and so shall this.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    stdout = sys.stdout
    hidden = (
        contextlib.redirect_stdout(sys.stderr)
        if args.json
        else contextlib.nullcontext()
    )
    try:
        with hidden:
            result = main(args, extra) if parse_options else main(args)
        if args.json:
            print(json.dumps(without_nan(result or {})), file=stdout, flush=True)
        sys.stdout.flush()
    except UserError as error:
        sys.exit(_fail(error, 1))
    except Ended as end:
        if args.json:
            print(json.dumps(without_nan(end.result)), file=stdout, flush=True)
        sys.exit(end.status)
    except Signalled as error:
        word = "interrupted" if error.number == signal.SIGINT else "terminated"
        status = _fail(word, 128 + error.number)
        with contextlib.suppress(OSError):
            stdout.flush()
        os._exit(status)  # Python's own end crashes while XLA's threads compile
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); say nothing more to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(
            _fail(f"no space left to write {error.filename or 'a file'}; free some", 1)
        )
    except (MemoryError, RuntimeError) as error:
        # XLA's errors are RuntimeErrors; JAX need not be loaded to know them.
        if not (isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))):
            raise
        line = " ".join(str(error).split())[:120]
        sys.exit(_fail(f"out of memory: {line}; ask for less at a time", 1))
    sys.exit(0)


def _end(number: int, frame: FrameType | None) -> None:
    """Ends what runs, but not before what is open is closed."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame:
        if frame.f_code in callbacks:  # it would drop an exception: try again soon
            signal.signal(signal.SIGALRM, lambda _, frame: _end(number, frame))
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        frame = frame.f_back
    raise Signalled(number)


def _fail(message: object, status: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
