"""Cleans raw text into a TFDS data set.

    python -m tools.prepare_data --source='raw/*.html' --html --name=my_corpus
    python -m lm.train --config=… --config.data.sources='("tfds:my_corpus",)'

Texts are repaired and normalised, filtered by length, language and quality, and freed
of exact and near duplicates; the first of several is kept. A hash of its text says
which split a document is in. The data set appears when it is complete, and with it
report.html and report.json, which tell what was dropped and why.

Memory does not grow with the corpus, except for 2.2 kB that each document leaves to
find near duplicates (0.1 kB with --near-duplicates=0).
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

from lm import cli
from lm.config import check_range
from lm.data import files
from lm.data.files import Fields
from lm.data.sources import open_source
from lm.data.write import DatasetWriter, check_free, write_dataset
from lm.text.cleaning import CleanConfig, Cleaned, clean
from lm.text.dedup import Deduplicator, Fingerprint, fingerprint
from lm.types import UserError
from tools.prepare_report import Report, render

VERSION = "1.0.0"

# What a process cleans at once ends at either.
CHUNK_DOCS = 1 << 8
CHUNK_CHARS = 1 << 20

# More wait for the process that writes.
MAX_WORKERS = 8

# A raw document, what became of its text, and its fingerprint if it was not dropped.
Result = tuple[Fields, Cleaned, Fingerprint | None]
Results = Generator[list[Result], None, None]

CURES = {
    "empty": "check ?text= of --source, and --html",
    "too short": "lower --min-chars",
    "too long": "raise --max-chars",
    "other language": "change --language",
    "unclear language": "lower --min-confidence",
}

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--source",
    action="append",
    required=True,
    help="files or a data set, see lm.data.sources, or HTML files; may be repeated",
)
parser.add_argument("--name", required=True, help="of the data set: a-z, 0-9 and _")
parser.add_argument("--data-dir", default="data", help="default: data")
parser.add_argument(
    "--keep",
    action="append",
    default=[],
    metavar="FIELD",
    help="keep this field beside the text, for example label",
)
parser.add_argument(
    "--html",
    nargs="?",
    const="main",
    metavar="plain",
    help="texts are HTML pages: keep their main content, or with =plain all their text",
)
parser.add_argument(
    "--language",
    dest="languages",
    type=lambda text: tuple(text.split(",")),
    metavar="en[,de…]",
    help="drop texts in other languages",
)
parser.add_argument(
    "--min-confidence", type=float, help="of the language, 0 to 1; default: 0.5"
)
parser.add_argument("--min-chars", type=int, help="of a clean text; default: 1")
parser.add_argument("--max-chars", type=int, help="of a clean text; 0: any number")
parser.add_argument(
    "--quality", action="store_true", help="drop what is hardly prose (Gopher's rules)"
)
parser.add_argument(
    "--near-duplicates",
    type=float,
    default=0.8,
    metavar="SIMILARITY",
    help="drop texts whose 3-word runs are this similar (Jaccard); 0 turns it off",
)
parser.add_argument("--lower-case", action="store_true")
parser.add_argument(
    "--remove-stop-words", action="store_true", help="English, for classic models"
)
parser.add_argument("--remove-punctuation", action="store_true")
parser.set_defaults(**dataclasses.asdict(CleanConfig()))
parser.add_argument(
    "--splits",
    default="train:0.9,validation:0.05,test:0.05",
    metavar="NAME:SHARE,…",
    help="default: train:0.9,validation:0.05,test:0.05",
)
parser.add_argument("--max-docs", type=int, default=0, help="read no more; 0: all")
parser.add_argument(
    "--workers",
    type=int,
    default=min(os.cpu_count() or 1, MAX_WORKERS),
    help=f"processes that clean; default: one a CPU, up to {MAX_WORKERS}",
)
parser.add_argument(
    "--overwrite", action="store_true", help="replace a data set of that name"
)


def main(args: Namespace) -> dict[str, Any]:
    """Writes the data set and prints what was dropped."""
    shares = parse_splits(args.splits)
    check_range("--workers", args.workers, 1)
    check_range("--max-docs", args.max_docs, 0)
    values = vars(args)
    fields = dataclasses.fields(CleanConfig)
    config = CleanConfig(**{field.name: values[field.name] for field in fields})
    seen = Deduplicator(args.near_duplicates)
    data_dir = Path(args.data_dir)
    check_free(data_dir, args.name, VERSION, args.overwrite)
    rows, features = _with_features(_read(args), args.keep)
    report = Report(args.name, values, list(shares))
    work = functools.partial(_clean_chunk, config=config, near=args.near_duplicates > 0)
    with (
        write_dataset(
            data_dir,
            args.name,
            features,
            version=VERSION,
            overwrite=args.overwrite,
            description=f"Prepared from {', '.join(args.source)}; see report.json.",
        ) as dataset,
        contextlib.closing(_results(_chunks(rows), work, args.workers)) as results,
        contextlib.closing(_shown(results, report)) as documents,
    ):
        for row, cleaned, mark in documents:
            _sort_in(row, cleaned, mark, seen, shares, dataset, report)
        if not report.kept.documents:
            raise _nothing_left(report)
        dataset.close()
        result = report.finish(functools.partial(_read_back, dataset.folder))
        (dataset.folder / "report.json").write_text(json.dumps(result, indent=2))
        (dataset.folder / "report.html").write_text(render(result), encoding="utf-8")
    folder = data_dir / args.name / VERSION
    print(f"{report.table()}\nwrote {folder} and {folder / 'report.html'}")
    return {"folder": str(folder), **result}


def parse_splits(text: str) -> dict[str, float]:
    """Parses the names and shares of splits.

    >>> parse_splits("train:0.9,test:0.1")
    {'train': 0.9, 'test': 0.1}
    """
    shares = {}
    for part in text.split(","):
        name, _, share = part.partition(":")
        try:
            shares[name] = float(share)
        except ValueError:
            shares[name] = 0.0
        if not (name.isidentifier() and shares[name] > 0) or name == "all":
            raise UserError(f"--splits: {part!r} is not NAME:SHARE, such as train:0.9")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"--splits: the shares in {text} add up to another sum than 1")
    return shares


def choose_split(digest: bytes, shares: dict[str, float]) -> str:
    """Returns the split of a document; it depends on the document alone.

    >>> choose_split(bytes(8), {"train": 0.9, "test": 0.1})
    'train'
    >>> choose_split(b"\\xff" * 8, {"train": 0.9, "test": 0.1})
    'test'
    """
    place = int.from_bytes(digest[:8], "big") / 2**64
    for name, end in zip(shares, itertools.accumulate(shares.values())):
        if place < end:
            return name
    return list(shares)[-1]


def _read(args: Namespace) -> Iterator[Fields]:
    """Yields the raw documents of all sources; those it cannot open it says at once."""
    parts = []
    for spec in args.source:
        if not Path(spec).suffix.startswith(".htm"):
            parts.append(open_source(spec, args.data_dir).examples("all"))
        elif args.html:
            parts.append(_pages(spec))
        else:
            raise UserError(f"{spec} are HTML pages; set --html")
    return itertools.islice(itertools.chain(*parts), args.max_docs or None)


def _pages(pattern: str) -> Iterator[Fields]:
    """Yields HTML files as documents, decoded as they say themselves, or else look."""
    paths = files.find(pattern)
    if not paths:
        raise UserError(f"there is no file {pattern}; check --source")
    for path in paths:
        with files.open_file(path) as file:
            data = file.read()
        encoding = detect_encoding(data, from_html_meta=True) or "utf-8"
        yield {"text": bytes_to_str(data, encoding), "path": path}


def _with_features(
    rows: Iterator[Fields], keep: Sequence[str]
) -> tuple[Iterator[Fields], dict[str, Any]]:
    """Takes the types of the fields to keep from the first row.

    Returns:
        The rows, with these fields alone, and their TFDS features.

    Raises:
        UserError: If there is no row, or one lacks a field or has it of another type.
    """
    first = next(rows, None)
    if first is None:
        raise UserError("the sources have no text; check --source")
    kinds = {"text": str}
    for field in keep:
        if field not in first:
            near = cli.suggest(field, list(first))
            raise UserError(f"--keep: there is no field {field!r}{near}")
        kinds[field] = type(first[field])
        if kinds[field] not in (str, int, float, bool):
            raise UserError(
                f"--keep: {field!r} is {first[field]!r:.50}, not text or a number"
            )

    def checked() -> Iterator[Fields]:
        for number, row in enumerate(itertools.chain([first], rows), 1):
            kept = {field: row.get(field) for field in kinds}
            for field, kind in kinds.items():
                value = kept[field]
                if type(value) is not kind and (kind, type(value)) != (float, int):
                    raise UserError(
                        f"--keep: {field!r} of document {number} is "
                        f"{value!r:.50}, not {kind.__name__} as in the first; "
                        "mend it or leave it out"
                    )
                if isinstance(value, str):
                    # Halves of surrogate pairs cannot be written.
                    kept[field] = value.encode(errors="replace").decode()
            yield kept

    import tensorflow_datasets as tfds

    known = {
        str: tfds.features.Text(),
        int: np.int64,
        float: np.float64,
        bool: np.bool_,
    }
    return checked(), {field: known[kind] for field, kind in kinds.items()}


def _chunks(rows: Iterable[Fields]) -> Iterator[list[Fields]]:
    """Groups rows, so that a process gets enough to do and memory is bounded."""
    chunk, chars = [], 0
    for row in rows:
        chunk.append(row)
        chars += len(row["text"])
        if len(chunk) >= CHUNK_DOCS or chars >= CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _clean_chunk(
    texts: list[str], config: CleanConfig, near: bool
) -> list[tuple[Cleaned, Fingerprint | None]]:
    """Cleans texts; those that are not dropped also get a fingerprint."""
    cleaned = [clean(text, config) for text in texts]
    return [(c, None if c.reason else fingerprint(c.text, near)) for c in cleaned]


def _results(
    chunks: Iterator[list[Fields]],
    work: Callable[[list[str]], list[tuple[Cleaned, Fingerprint | None]]],
    workers: int,
) -> Results:
    """Cleans chunks, yields them in order and has a few ahead."""
    if workers == 1:
        for chunk in chunks:
            results = work([row["text"] for row in chunk])
            yield [(row, *result) for row, result in zip(chunk, results)]
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    waiting = deque()

    def oldest() -> list[Result]:
        chunk, future = waiting.popleft()
        return [(row, *result) for row, result in zip(chunk, future.result())]

    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(work, [row["text"] for row in chunk])))
            if len(waiting) > 2 * workers:
                yield oldest()
        while waiting:
            yield oldest()
    except BrokenProcessPool as error:
        raise UserError(
            "a cleaning process was killed, perhaps for want of memory; lower --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Lets the main process alone answer Ctrl-C, and ends when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow():
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _shown(results: Results, report: Report) -> Generator[Result, None, None]:
    """Yields documents and shows how far they are."""
    with cli.Status("reading") as status:
        for chunk in results:
            yield from chunk
            status.update(report.line())


def _sort_in(
    row: Fields,
    cleaned: Cleaned,
    mark: Fingerprint | None,
    seen: Deduplicator,
    shares: dict[str, float],
    dataset: DatasetWriter,
    report: Report,
) -> None:
    """Writes a document, or says why not."""
    report.add_read(row["text"], cleaned.language)
    if mark is None:
        report.add_dropped(cleaned.reason, cleaned.text or row["text"])
    elif duplicate := seen.add(mark):
        report.add_duplicate(duplicate, cleaned.text)
    else:
        split = choose_split(mark.digest, shares)
        dataset.add(split, {**row, "text": cleaned.text})
        report.add_kept(split, cleaned.text)


def _read_back(folder: Path, split: str, place: int) -> str:
    """Returns a text of a data set."""
    import tensorflow_datasets as tfds

    part = f"{split}[{place}:{place + 1}]"
    dataset = tfds.builder_from_directory(folder).as_dataset(split=part)  # pyright: ignore
    return next(iter(tfds.as_numpy(dataset)))["text"].decode()


def _nothing_left(report: Report) -> UserError:
    """Returns an error that names the commonest reason."""
    reason, tally = max(report.dropped.items(), key=lambda item: item[1].documents)
    return UserError(
        f"no document is left: of {report.read.documents:,}, {tally.documents:,} were "
        f"dropped as {reason!r}; {CURES.get(reason, 'leave out --quality')}"
    )


if __name__ == "__main__":
    # So that a data set that is half written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cli.run(main, parser)
