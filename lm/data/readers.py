"""Readers of files of texts.

A reader yields the rows of an open file, each with the number of its (last) line; the
name it is given is for messages. In place of a row that is broken it yields a
`UserError`, and goes on; it raises one where it cannot. What a reader takes besides are
the keys of `lm.data.sources`, as strings.
"""

import contextlib
import csv
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from lm.data.files import Fields, open_file
from lm.types import UserError

Rows = Iterator[tuple[int, Fields | UserError]]

# Rows of a table that are in memory at once.
READ_ROWS = 128


def read_text(
    file: Iterable[bytes], name: str, target: str = "", unit: str = "line"
) -> Rows:
    r"""Yields lines, paragraphs (up to a blank line) or the whole file as `text`.

    Args:
        file: Of the texts.
        name: Its path.
        target: A file of as many texts, which become the `target` of each.
        unit: `line`, `paragraph` or `file`.

    >>> file = [b"Good day,\n", b"sir.\n", b"\n", b"Good night."]
    >>> [row["text"] for _, row in read_text(file, "two.txt", unit="paragraph")]
    ['Good day,\nsir.', 'Good night.']
    """
    texts = _units(file, name, unit)
    if not target:
        for number, text in texts:
            yield number, text if isinstance(text, UserError) else {"text": text}
        return
    with open_file(target) as other:
        for one, two in itertools.zip_longest(texts, _units(other, target, unit)):
            if one is None or two is None:
                more, fewer = (target, name) if one is None else (name, target)
                raise UserError(
                    f"{more} has more {unit}s than {fewer}; each of the one must "
                    "belong to one of the other"
                )
            (number, text), (_, wanted) = one, two
            if isinstance(text, UserError):
                yield number, text
            elif isinstance(wanted, UserError):
                yield number, wanted
            else:
                yield number, {"text": text, "target": wanted}


def _units(
    file: Iterable[bytes], name: str, unit: str
) -> Iterator[tuple[int, str | UserError]]:
    held: list[str] = []
    broken: list[UserError] = []
    last = 0
    for number, line in enumerate(_lines(file, name, broken), 1):
        is_blank = line.isspace()
        if unit != "paragraph" or not is_blank:
            held.append(line.rstrip("\r\n"))
            last = number
        if held and (unit == "line" or (unit == "paragraph" and is_blank)):
            yield last, broken[0] if broken else "\n".join(held)
            held.clear()
            broken.clear()
    if held:
        yield last, broken[0] if broken else "\n".join(held)


def read_json(file: Iterable[bytes], name: str) -> Rows:
    """Yields the objects of JSON lines."""
    broken: list[UserError] = []
    for number, line in enumerate(_lines(file, name, broken), 1):
        if broken:
            yield number, broken.pop()
        elif not line.isspace():
            yield number, _object(line, f"{name}:{number}")


def _object(line: str, where: str) -> Fields | UserError:
    try:
        row = json.loads(line)
    except ValueError as error:
        return UserError(
            f"{where} is broken JSON: {error}; write one object a line, or set "
            "?format=squad if that is what it is"
        )
    if not isinstance(row, dict):
        return UserError(
            f"{where} is not a JSON object; write one object a line, such as "
            '{"text": "…"}'
        )
    if isinstance(row.get("data"), list) and "text" not in row:
        return UserError(f"{where} looks like SQuAD's JSON; set ?format=squad")
    return row


def read_squad(file: Iterable[bytes], name: str) -> Rows:
    """Yields the questions of SQuAD's JSON with their own numbers.

    `text` is the context. `answers` have a `text` and its `start` in the context, in
    characters; there are none where the text has no answer (Rajpurkar et al. 2018,
    https://arxiv.org/abs/1806.03822). The whole file is in memory.
    """
    try:
        questions = [
            (article, paragraph, question)
            for article in json.loads(b"".join(file))["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{name} is not SQuAD's JSON: {error!r:.80}") from error
    for number, (article, paragraph, question) in enumerate(questions, 1):
        try:
            answers = [
                {"text": answer["text"], "start": answer["answer_start"]}
                for answer in question["answers"]
            ]
            row = {
                "text": paragraph["context"],
                "question": question["question"],
                "answers": answers,
                "id": question["id"],
                "title": article.get("title", ""),
            }
        except (LookupError, TypeError, AttributeError) as error:
            row = UserError(f"{name}:{number} is no question of SQuAD's: {error!r:.80}")
        yield number, row


def read_conll(
    file: Iterable[bytes],
    name: str,
    words: str = "0",
    tags: str = "-1",
    delimiter: str = "",
) -> Rows:
    r"""Yields sentences, which end at a blank line; a line is a word and its tag.

    Columns stand between spaces or tabs, unless a delimiter is given; `words` and
    `tags` are their numbers. `text` is the words with spaces between. Lines that begin
    with `-DOCSTART-` are passed over.

    >>> file = [b"-DOCSTART- O\n", b"\n", b"Good A\n", b"night N\n"]
    >>> list(read_conll(file, "two.conll"))
    [(4, {'text': 'Good night', 'words': ['Good', 'night'], 'tags': ['A', 'N']})]
    """
    columns = int(words), int(tags)
    # Those counted from the front and those from the back must not meet.
    least = max(0, *(n + 1 for n in columns)) + max(0, *(-n for n in columns))
    sentence: list[list[str]] = []
    broken: list[UserError] = []
    last = 0
    lines = itertools.chain(_lines(file, name, broken), ["\n"])
    for number, line in enumerate(lines, 1):
        if line.isspace():
            if sentence:
                yield last, broken[0] if broken else _sentence(sentence)
            sentence.clear()
            broken.clear()
        elif not line.startswith("-DOCSTART-"):
            line, last = line.rstrip("\r\n"), number
            found = line.split(delimiter) if delimiter else re.findall(r"[^ \t]+", line)
            if len(found) < least:
                broken.append(
                    UserError(
                        f"{name}:{number} has {len(found)} columns, fewer than "
                        f"{least}; mend it, or set ?words=, ?tags= or ?delimiter="
                    )
                )
                found = [""] * least
            sentence.append([found[column] for column in columns])


def _sentence(pairs: Iterable[Iterable[str]]) -> Fields:
    words, tags = map(list, zip(*pairs))
    return {"text": " ".join(words), "words": words, "tags": tags}


def read_csv(
    file: Iterable[bytes], name: str, delimiter: str = ",", quote: str = '"'
) -> Rows:
    """Yields rows of strings under the names in the first one.

    Raises:
        UserError: If the first row is broken, or two columns have one name.
    """
    csv.field_size_limit(sys.maxsize)
    broken: list[UserError] = []
    reader = csv.reader(
        _lines(file, name, broken),
        delimiter=delimiter,
        quotechar=quote or None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        strict=True,
    )
    rows = _records(reader, name, broken)
    _, columns = next(rows, (0, []))
    if isinstance(columns, UserError):
        raise columns
    # Columns without a name are common, and nobody asks for them.
    if twice := [n for n in columns if n and columns.count(n) > 1]:
        raise UserError(f"{name} has two columns {twice[0]!r}; rename one")
    for number, row in rows:
        if isinstance(row, UserError):
            yield number, row
        elif len(row) == len(columns):
            yield number, dict(zip(columns, row))
        else:
            error = UserError(
                f"{name}:{number} has {len(row)} columns, the first row "
                f"{len(columns)}; mend it, or set ?delimiter= or ?quote="
            )
            yield number, error


def _records(
    reader: Any, name: str, broken: list[UserError]
) -> Iterator[tuple[int, list[str] | UserError]]:
    """Yields what a CSV reader does but blank lines; `broken` gets a row's lines."""
    while True:
        broken.clear()
        first = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = UserError(
                f"{name}:{first} is broken: {error}; mend it, or set ?quote="
            )
        if broken or row:
            yield reader.line_num, broken[0] if broken else row


def read_tsv(
    file: Iterable[bytes], name: str, delimiter: str = "	", quote: str = ""
) -> Rows:
    """Yields rows as `read_csv` does."""
    return read_csv(file, name, delimiter, quote)


def read_parquet(file: BinaryIO, name: str) -> Rows:
    """Yields the rows of a Parquet file with their own numbers."""
    import pyarrow
    from pyarrow import parquet

    try:
        # Unless told not to, it holds all of a file's bytes that it has read.
        opened = parquet.ParquetFile(file, pre_buffer=False)
        batches = opened.iter_batches(READ_ROWS)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, 1)
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} is broken Parquet: {reason}") from error


def read_dataset(dataset: Any, features: Mapping[str, Any]) -> Rows:
    """Yields the rows of a TFDS data set, in Python's types, with their own numbers.

    Arrays of numbers stay arrays. The number of a class becomes its name.
    """
    yield from enumerate(_dataset_rows(dataset, features), 1)


def _dataset_rows(dataset: Any, features: Mapping[str, Any]) -> Iterator[Fields]:
    import tensorflow_datasets as tfds

    specs = dataset.element_spec.values()
    # One by one, TensorFlow takes twice as long.
    if all(hasattr(spec, "shape") and spec.shape.rank in (0, 1) for spec in specs):
        for batch in dataset.ragged_batch(READ_ROWS):
            columns = [
                [_named(value, features[name]) for value in _unbatched(values)]
                for name, values in batch.items()
            ]
            for values in zip(*columns):
                yield dict(zip(batch, values))
    else:
        for row in tfds.as_numpy(dataset):
            yield {n: _named(_plain(v), features[n]) for n, v in row.items()}


def _unbatched(values: Any) -> list[Any]:
    """Returns the values of a batch of numbers, texts or lists of these."""
    if not hasattr(values, "row_splits"):
        return [_plain(value) for value in values.numpy()]
    items = _plain(values.flat_values.numpy())
    edges = values.row_splits.numpy().tolist()
    return [items[start:stop] for start, stop in itertools.pairwise(edges)]


def _named(value: Any, feature: Any) -> Any:
    """Replaces the numbers of classes by their names, and a dict of lists by dicts.

    >>> from tensorflow_datasets import features
    >>> label = features.ClassLabel(names=["bad", "good"])
    >>> _named(1, label), _named(np.array([0, 1]), features.Sequence(label))
    ('good', ['bad', 'good'])
    >>> answers = {"text": ["a", "b"], "start": np.array([3, 5])}
    >>> types = {"text": features.Text(), "start": np.int64}
    >>> _named(answers, features.Sequence(types))
    [{'text': 'a', 'start': 3}, {'text': 'b', 'start': 5}]
    """
    from tensorflow_datasets import features

    if isinstance(feature, features.FeaturesDict):
        return {name: _named(item, feature[name]) for name, item in value.items()}
    if isinstance(feature, features.Sequence):
        inner = feature.feature
        if not isinstance(inner, features.FeaturesDict):
            return _named(value, inner)
        columns = [_named(value[n], features.Sequence(inner[n])) for n in inner]
        lists = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns]
        return [dict(zip(inner, items)) for items in zip(*lists)]
    if not isinstance(feature, features.ClassLabel):
        return value
    if isinstance(value, np.ndarray):
        return [_named(item, feature) for item in value.tolist()]
    # TFDS says -1 where a test set keeps its labels to itself.
    return None if value < 0 else feature.names[value]


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


READERS: dict[str, Callable[..., Rows]] = {
    "jsonl": read_json,
    "json": read_json,
    "txt": read_text,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "conll": read_conll,
    "bio": read_conll,
    "iob": read_conll,
    "squad": read_squad,
}


def _lines(file: Iterable[bytes], name: str, broken: list[UserError]) -> Iterator[str]:
    """Yields lines with their ends; a byte order mark is dropped.

    Before it yields one that is not UTF-8, it adds that to what is `broken`.
    """
    for number, line in enumerate(file, 1):
        encoding = "utf-8-sig" if number == 1 else "utf-8"
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            broken.append(
                UserError(
                    f"{name}:{number} is not UTF-8 at byte {error.start} of the line; "
                    "convert the file, for example with iconv"
                )
            )
            text = line.decode(encoding, "replace")
        yield text
