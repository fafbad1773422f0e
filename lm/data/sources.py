"""Where texts come from: TFDS data sets and files.

    tfds:NAME[/CONFIG][:VERSION][?text=FEATURE]
    PATH.{jsonl,json,txt,csv,tsv,conll,bio,iob,squad}[.gz][?KEY=VALUE&…]
    PATH.parquet[?text=COLUMN]

A path may be a glob, and local or at `gs://`. If it has `{split}` in it, that stands
for the name of a split, whatever the splits are called. The texts of other files are
divided by a hash: 90% are `train`, 5% `validation`, 5% `test`; equal texts are in the
same split. `all` is every text. The keys, where `%09` is a tab as in a URL:

    text       the column of the text, by default `text`; nothing (`?text=`) takes rows
               as they are, and divides them by a hash of all that is in them
    format     which of these the files are, if their names do not say so; .conll, .bio
               and .iob have a word and its tag a line, .squad is JSON as of SQuAD
    unit       of .txt, what a document is: a `line` (the default), a `paragraph` (up to
               a blank line), a `file`
    target     of .txt, another path; its first document becomes the `target` of the
               first of this one, and so on
    delimiter  between columns: by default of .csv a comma, of .tsv a tab, of .conll
               spaces or tabs
    quote      of .csv and .tsv, around fields: by default `"`, none
    words      of .conll, the number of the column of the words: by default 0
    tags       of .conll, that of the tags: by default -1, the last
"""

import difflib
import functools
import glob
import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

from lm.cli import suggest
from lm.data import files
from lm.data.files import BadRows, Fields, Row
from lm.data.readers import READERS, Rows, read_dataset
from lm.data.write import version_key
from lm.types import UserError

SPLITS = ("train", "validation", "test")
UNITS = ("line", "paragraph", "file")
_CURE = (
    "put ?text=COLUMN after the source's name, or ?text= if its rows have no text, "
    "as those of words and tags or of counts"
)


class Source(Protocol):
    """Texts, in splits."""

    @property
    def bad_rows(self) -> BadRows:
        """What is done about a row that cannot be an example."""
        ...

    def fingerprint(self, split: str) -> str:
        """Returns what changes when the split's files do; reads none of them."""
        ...

    def examples(self, split: str, keep_blank: bool = False) -> Iterator[Row]:
        """Yields the documents, always in the same order.

        `text` is a str and not blank, unless blank ones are to be kept, for example to
        predict each row; the other fields of a row are as they are. What is held in
        memory does not grow with the number of documents, unless the files are SQuAD's.

        Raises:
            UserError: If there is no such split, a file is broken, or a row is and bad
                rows are not skipped.
        """
        ...


def open_source(spec: str, data_dir: str, bad_rows: str = "stop") -> Source:
    """Opens texts.

    Args:
        spec: Which and how; see above.
        data_dir: Where TFDS data sets are.
        bad_rows: At a broken row, or one without a text, `stop` with an error, or
            `skip` and count it.

    Raises:
        UserError: If there is no such data set, kind of file or key.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "two.csv")
    >>> _ = path.write_text('id,review\\n1,"Good, good."\\n2,Bad.\\n')
    >>> list(open_source(f"{path}?text=review", "data").examples("all"))
    [{'id': '1', 'text': 'Good, good.'}, {'id': '2', 'text': 'Bad.'}]
    """
    if not spec:
        raise UserError("the source is empty; name a file, or tfds:NAME")
    path, options = _options(spec)
    bad = BadRows(bad_rows == "skip")
    if path.startswith("tfds:"):
        _check_options(spec, options, ["text"])
        folder = _dataset_folder(path.removeprefix("tfds:"), data_dir)
        return _Dataset(spec, folder, options.get("text", "text"), bad)
    suffix = Path(path.removesuffix(".gz")).suffix
    kind = options.get("format", suffix.removeprefix("."))
    if (folder := Path(path).expanduser()).is_dir():
        found = {file.suffix for file in folder.iterdir()}
        kind = next((kind for kind in READERS if f".{kind}" in found), "jsonl")
        raise UserError(f"{path} is a folder; name its files, as in {path}/*.{kind}")
    if kind not in READERS or (kind == "parquet" and path.endswith(".gz")):
        raise UserError(
            f"{spec} is no known kind of text{suggest(kind, list(READERS))}, or "
            "tfds:NAME; or set ?format="
        )
    keys = list(inspect.signature(READERS[kind]).parameters)[2:]
    _check_options(spec, options, ["text", "format", *keys])
    paths = (path, options["target"]) if options.get("target") else (path,)
    if len({"{split}" in each for each in paths}) > 1:
        raise UserError(f"{spec}: put {{split}} into both paths, or into neither")
    given = {key: value for key, value in options.items() if key in keys}
    given.pop("target", None)
    return _Files(
        tuple(p if files.is_remote(p) else str(Path(p).expanduser()) for p in paths),
        options.get("text", "text"),
        functools.partial(READERS[kind], **given),
        bad,
    )


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
        patterns: Of the paths of what is read side by side; the first is of the texts.
        column: Of the text; "" takes rows as they are.
        read: A reader.
        bad_rows: See `Source`.
    """

    patterns: tuple[str, ...]
    column: str
    read: Callable[..., Rows]
    bad_rows: BadRows

    def fingerprint(self, split: str) -> str:
        """See `Source`."""
        return files.fingerprint(itertools.chain(*self._paths(split)))

    def examples(self, split: str, keep_blank: bool = False) -> Iterator[Row]:
        """See `Source`."""
        is_whole = split == "all" or "{split}" in self.patterns[0]
        for paths in self._paths(split):
            with files.open_file(paths[0]) as file:
                rows = self.read(file, *paths)
                found = _examples(
                    rows, self.column, paths[0], self.bad_rows, keep_blank
                )
                for example in found:
                    if is_whole or split_of(self._hashed(example)) == split:
                        yield example

    def _hashed(self, example: Row) -> str:
        """Returns what decides which split an example is in."""
        if self.column:
            return example["text"]
        return json.dumps(example, sort_keys=True, default=str)

    def _paths(self, split: str) -> list[tuple[str, ...]]:
        """Returns the paths of a split, together those that are read side by side."""
        if "{split}" not in self.patterns[0] and split not in (*SPLITS, "all"):
            raise UserError(
                f"{self.patterns[0]} has no split {split!r}{suggest(split, SPLITS)}, "
                "all, or put {split} into the path"
            )
        name = "*" if split == "all" else split
        patterns = [pattern.replace("{split}", name) for pattern in self.patterns]
        found = [_find(pattern) for pattern in patterns]
        if len({len(paths) for paths in found}) > 1:
            numbers = [f"{pattern} {len(p)}" for pattern, p in zip(patterns, found)]
            raise UserError(
                f"{' files, '.join(numbers)}: each file of the one must belong to one "
                "of the other"
            )
        return list(zip(*found))


def _find(pattern: str) -> list[str]:
    """Returns the files that match: one at least, and none that is empty."""
    paths = files.find(pattern)
    if not paths:
        siblings = [path.name for path in Path(pattern).parent.glob("*")]
        near = _near(Path(pattern).name, siblings)
        raise UserError(f"there is no file {pattern}{near}; check the path")
    for path in paths:
        if not files.stat(path)[0]:
            raise UserError(f"{path} is empty; name another file")
    return paths


def _examples(
    rows: Rows,
    column: str,
    name: str,
    bad_rows: BadRows,
    keep_blank: bool,
) -> Iterator[Row]:
    """Yields the rows that can be examples."""
    for number, row in rows:
        try:
            if isinstance(row, UserError):
                raise row
            example = _example(row, column, f"{name}:{number}")
        except UserError as error:
            bad_rows.add(error)
        else:
            if keep_blank or not column or example["text"].strip():
                yield example


def _example(row: Fields, column: str, where: str) -> Row:
    """Checks a row and names its text `text`; null is blank.

    If the column is "", the row is as it is.
    """
    if not column:
        return Row(row, where)
    if column not in row:
        raise UserError(
            f"{where} has no column {column!r}{suggest(column, list(row))}; {_CURE}"
        )
    text = row.pop(column)
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise UserError(f"{where}: {column!r} is {text!r:.40}, not a text; {_CURE}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {column!r} has {text[error.start]!r}, half of a character, at "
            f"character {error.start}; remove it"
        ) from error
    row["text"] = text
    return Row(row, where)


@dataclass(frozen=True)
class _Dataset:
    """A TFDS data set on disk.

    Attributes:
        spec: Its name in messages.
        folder: Where its version is.
        column: The feature with the text.
        bad_rows: See `Source`.
    """

    spec: str
    folder: str
    column: str
    bad_rows: BadRows

    def fingerprint(self, split: str) -> str:
        """See `Source`; it is that of all splits."""
        del split
        return files.fingerprint(files.find(f"{glob.escape(self.folder)}/*"))

    def examples(self, split: str, keep_blank: bool = False) -> Iterator[Row]:
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
            rows = read_dataset(dataset, builder.info.features)
            name = f"{self.spec} {split}"
            yield from _examples(rows, self.column, name, self.bad_rows, keep_blank)
        except tf.errors.OpError as error:
            raise UserError(
                f"{self.folder} cannot be read: {error.message}; delete it and fetch "
                "it again"
            ) from error


def _dataset_folder(name: str, data_dir: str) -> str:
    """Finds `data_dir/NAME[/CONFIG]/VERSION`, by default the newest version."""
    path, _, version = name.partition(":")
    if not path:
        raise UserError("tfds: names no data set; write tfds:NAME")
    data_dir = data_dir.rstrip("/")
    root = glob.escape(f"{data_dir}/{path}")
    if versions := _folders(f"{root}/[0-9]*"):
        newest = max(versions, key=version_key)
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
        f"{missing}{near}; run: python -m tools.fetch_data {path} "
        f"--data-dir={data_dir}, if its --list has it, or tools.prepare_data"
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
        if key in ("words", "tags") and not re.fullmatch(r"-?\d{1,3}", value):
            raise UserError(f"{spec}: {key} must be a column's number, not {value!r}")
        if len(value) != 1 and (key == "delimiter" or (key == "quote" and value)):
            raise UserError(f"{spec}: {key} must be one character, not {value!r}")


def _near(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(word, known, 1, cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""
