"""Where texts come from: TFDS data sets and files.

    tfds:NAME[/CONFIG][:VERSION][?text=FEATURE]
    PATH.{jsonl,json,txt,csv,tsv}[.gz][?KEY=VALUE&…]
    PATH.parquet[?text=COLUMN]

A path may be a glob, and local or at `gs://`. If it has `{split}` in it, that stands
for the name of a split, whatever the splits are called. The texts of other files are
divided by a hash: 90% are `train`, 5% `validation`, 5% `test`; equal texts are in the
same split. `all` is every text. The keys, where `%09` is a tab as in a URL:

    text       the column of the text, by default `text`
    unit       of .txt, what a document is: a `line` (the default), a `paragraph` (up to
               a blank line), a `file`
    delimiter  of .csv and .tsv, between columns: by default a comma, a tab
    quote      of .csv and .tsv, around fields: by default `"`, none
"""

import contextlib
import difflib
import functools
import glob
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np

from lm.cli import suggest
from lm.data import files
from lm.data.files import READ_ROWS, READERS, Row
from lm.types import UserError

SPLITS = ("train", "validation", "test")
UNITS = ("line", "paragraph", "file")


class Source(Protocol):
    """Texts, in splits."""

    def fingerprint(self, split: str) -> str:
        """Returns what changes when the split's files do; reads none of them."""
        ...

    def examples(self, split: str) -> Iterator[Row]:
        """Yields the documents, always in the same order.

        `text` is a str and not blank; the other fields of a row are as they are. What
        is held in memory does not grow with the number of documents.

        Raises:
            UserError: If there is no such split, or a file is broken.
        """
        ...


def open_source(spec: str, data_dir: str) -> Source:
    """Opens texts.

    Args:
        spec: Which and how; see above.
        data_dir: Where TFDS data sets are.

    Raises:
        UserError: If there is no such data set, kind of file or key.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "two.csv")
    >>> _ = path.write_text('id,review\\n1,"Good, good."\\n2,Bad.\\n')
    >>> list(open_source(f"{path}?text=review", "data").examples("all"))
    [{'id': '1', 'text': 'Good, good.'}, {'id': '2', 'text': 'Bad.'}]
    """
    path, options = _options(spec)
    if path.startswith("tfds:"):
        _check_options(spec, options, ["text"])
        folder = _dataset_folder(path.removeprefix("tfds:"), data_dir)
        return _Dataset(spec, folder, options.get("text", "text"))
    if not files.is_remote(path):
        path = str(Path(path).expanduser())
        if Path(path).is_dir():
            raise UserError(f"{path} is a folder; name its files, as in {path}/*.jsonl")
    suffix = Path(path.removesuffix(".gz")).suffix
    if suffix not in READERS or path.endswith(".parquet.gz"):
        raise UserError(
            f"{spec} is no known kind of text{suggest(suffix, list(READERS))}, "
            "or tfds:NAME"
        )
    reader = READERS[suffix]
    _check_options(
        spec, options, ["text", *list(inspect.signature(reader).parameters)[2:]]
    )
    column = options.pop("text", "text")
    return _Files(path, column, functools.partial(reader, **options))


def split_of(text: str, validation: int = 5, test: int = 5) -> str:
    """Returns the split of a text by its MD5; the shares are in percent.

    >>> splits = [split_of(str(number)) for number in range(10_000)]
    >>> [splits.count(split) for split in SPLITS]
    [9037, 506, 457]
    """
    digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
    percent = int.from_bytes(digest) % 100
    if percent < validation:
        return "validation"
    return "test" if percent < validation + test else "train"


@dataclass(frozen=True)
class _Files:
    """Texts in files of one kind.

    Attributes:
        pattern: Of their paths.
        column: Of the text.
        read: A reader.
    """

    pattern: str
    column: str
    read: Callable[[Any, str], files.Rows]

    def fingerprint(self, split: str) -> str:
        """See `Source`."""
        return files.fingerprint(self._paths(split))

    def examples(self, split: str) -> Iterator[Row]:
        """See `Source`."""
        is_whole = split == "all" or "{split}" in self.pattern
        for path in self._paths(split):
            with files.open_file(path) as file:
                for number, row in self.read(file, path):
                    example = _example(row, self.column, f"{path}:{number}")
                    if example and (is_whole or split_of(example["text"]) == split):
                        yield example

    def _paths(self, split: str) -> list[str]:
        if "{split}" not in self.pattern and split not in (*SPLITS, "all"):
            raise UserError(
                f"{self.pattern} has no split {split!r}{suggest(split, SPLITS)}, all, "
                "or put {split} into the path"
            )
        name = "*" if split == "all" else split
        pattern = self.pattern.replace("{split}", name)
        paths = files.find(pattern)
        if not paths:
            siblings = [path.name for path in Path(pattern).parent.glob("*")]
            near = _near(Path(pattern).name, siblings)
            raise UserError(f"there is no file {pattern}{near}; check the path")
        for path in paths:
            if not files.stat(path)[0]:
                raise UserError(f"{path} is empty; remove it")
        return paths


def _example(row: Row, column: str, where: str) -> Row | None:
    """Checks a row and names its text `text`; a blank or null one makes None."""
    if column not in row:
        raise UserError(
            f"{where} has no column {column!r}{suggest(column, list(row))}; set "
            "?text=COLUMN"
        )
    text = row.pop(column)
    if text is None:
        return None
    if not isinstance(text, str):
        raise UserError(
            f"{where}: {column!r} is {text!r:.40}, not a text; set ?text=COLUMN"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {column!r} has {text[error.start]!r}, half of a character, at "
            f"character {error.start}; remove it"
        ) from error
    return {**row, "text": text} if text.strip() else None


@dataclass(frozen=True)
class _Dataset:
    """A TFDS data set on disk.

    Attributes:
        spec: Its name in messages.
        folder: Where its version is.
        column: The feature with the text.
    """

    spec: str
    folder: str
    column: str

    def fingerprint(self, split: str) -> str:
        """See `Source`; it is that of all splits."""
        del split
        return files.fingerprint(files.find(f"{glob.escape(self.folder)}/*"))

    def examples(self, split: str) -> Iterator[Row]:
        """See `Source`; a split may be a slice or a sum: `train[:90%]+test`."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        # JAX computes: TensorFlow must not claim a GPU's memory.
        tf.config.set_visible_devices([], "GPU")
        builder: Any = tfds.builder_from_directory(self.folder)
        try:
            dataset = builder.as_dataset(split=split)
        except ValueError as error:
            raise UserError(
                f"{self.spec} has no split {split!r}; it has "
                f"{', '.join(builder.info.splits)} and slices such as train[:90%]"
            ) from error
        try:
            for number, row in enumerate(_rows(dataset), 1):
                where = f"{self.spec} {split}:{number}"
                if example := _example(row, self.column, where):
                    yield example
        except tf.errors.OpError as error:
            raise UserError(
                f"{self.folder} cannot be read: {error.message}; delete it and fetch "
                "it again"
            ) from error


def _rows(dataset: Any) -> Iterator[Row]:
    """Yields Python values from what TFDS reads; arrays of numbers stay arrays."""
    import tensorflow_datasets as tfds

    specs = dataset.element_spec.values()
    # One by one, TensorFlow takes twice as long.
    if all(getattr(spec, "shape", None) == () for spec in specs):
        for batch in tfds.as_numpy(dataset.batch(READ_ROWS)):
            columns = [map(_plain, values) for values in batch.values()]
            for values in zip(*columns):
                yield dict(zip(batch, values))
    else:
        yield from map(_plain, tfds.as_numpy(dataset))


def _plain(value: Any) -> Any:
    """Turns a value of NumPy's into one of Python's.

    >>> _plain({"text": b"caf\\xc3\\xa9", "label": np.int64(1)})
    {'text': 'café', 'label': 1}
    """
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_plain(item) for item in value]
    return value


def _dataset_folder(name: str, data_dir: str) -> str:
    """Finds `data_dir/NAME[/CONFIG]/VERSION`, by default the newest version."""
    path, _, version = name.partition(":")
    if not path:
        raise UserError("tfds: names no data set; write tfds:NAME")
    data_dir = data_dir.rstrip("/")
    root = glob.escape(f"{data_dir}/{path}")
    if versions := _folders(f"{root}/[0-9]*"):
        newest = max(versions, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
        if version and version not in versions:
            raise UserError(f"tfds:{path} has no version {version}; it has {newest}")
        return f"{data_dir}/{path}/{version or newest}"
    if configs := _folders(f"{root}/*/[0-9]*", 3):
        names = ", ".join(f"tfds:{path}/{config}" for config in configs)
        raise UserError(f"tfds:{name} has configs; choose from: {names}")
    import tensorflow_datasets as tfds

    catalogue = tfds.list_builders(with_community_datasets=False)
    missing = f"tfds:{name} is not in {data_dir}"
    if path.partition("/")[0] in catalogue:
        raise UserError(f"{missing}; run: tfds build {name} --data_dir={data_dir}")
    here = _folders(f"{glob.escape(data_dir)}/*/[0-9]*", 3)
    near = _near(path, here) or _near(path, catalogue, 0.8)
    raise UserError(
        f"{missing}{near}; run: python -m tools.fetch_data {path} --data-dir={data_dir}"
    )


def _folders(pattern: str, level: int = 2) -> list[str]:
    """Names the folders of data sets: their last part (2), or the one above (3)."""
    infos = files.find(f"{pattern}/dataset_info.json")
    return sorted({info.split("/")[-level] for info in infos})


def _options(spec: str) -> tuple[str, dict[str, str]]:
    """Splits off what follows the last `?`; without a `=` that is part of a glob.

    >>> _options("a?.csv?text=review&delimiter=%3B")
    ('a?.csv', {'text': 'review', 'delimiter': ';'})
    >>> _options("a?.csv")
    ('a?.csv', {})
    """
    path, _, query = spec.rpartition("?")
    if not path or "=" not in query:
        return spec, {}
    return path, dict(parse_qsl(query, keep_blank_values=True))


def _check_options(spec: str, options: Mapping[str, str], keys: Sequence[str]) -> None:
    for key, value in options.items():
        if key not in keys:
            raise UserError(f"{spec}: unknown key {key!r}{suggest(key, keys)}")
        if key == "unit" and value not in UNITS:
            raise UserError(f"{spec}: unknown unit {value!r}{suggest(value, UNITS)}")
        if len(value) != 1 and (key == "delimiter" or (key == "quote" and value)):
            raise UserError(f"{spec}: {key} must be one character, not {value!r}")


def _near(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(word, known, 1, cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""
