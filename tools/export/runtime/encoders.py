"""Examples to predictions: what stands around an encoder's function for each task.

A model has `rows`, which makes rows of an example's fields, `run`, and `decode`, which
makes the prediction. A row is a dict of inputs, arrays [1, T]; T is the length of the
shortest signature that has room.
"""

import abc
import json
import operator
from types import SimpleNamespace

import numpy as np


class Encoder(abc.ABC):
    """What all tasks share.

    Attributes:
        about: What `signature.json` says.
        tokenizer: The model's.
        backend: What runs the model's functions.
        task: The task's options.
        length: T of the longest row.
    """

    def __init__(self, backend, tokenizer, about):
        """Takes all that a model is made of."""
        self.about, self.tokenizer, self.backend = about, tokenizer, backend
        self.task = SimpleNamespace(**about["task"])
        self._marks = SimpleNamespace(**about["marks"])
        self._names = {each["length"]: each["name"] for each in about["signatures"]}
        self.length = max(self._names)

    def predict(self, /, **fields):
        """Returns what is predicted for an example, as JSON values.

        Args:
            fields: The example's, such as `text`; the task ignores other ones.

        Raises:
            ValueError: If one is missing, or is not what it should be.
        """
        return self.decode(fields, [self.run(row) for row in self.rows(**fields)])

    @abc.abstractmethod
    def rows(self, /, **fields) -> list[dict[str, np.ndarray]]:
        """Returns the rows of an example; see `predict`."""

    def run(self, row):
        """Returns what the model makes of a row, arrays without the axis of rows."""
        outputs = self.backend.run(self._names[row["inputs"].shape[1]], row)
        return {name: np.asarray(values)[0] for name, values in outputs.items()}

    @abc.abstractmethod
    def decode(self, fields, outputs):
        """Returns the prediction of an example, given what `run` makes of its rows."""

    def _row(self, tokens, **columns):
        """Makes the row of some tokens, with further inputs, arrays of a value each."""
        size = len(tokens)
        columns["segment_ids"] = np.ones(size, np.int32)
        length = min(length for length in self._names if length >= size)
        row = {"inputs": np.full((1, length), max(self._marks.pad, 0), np.int32)}
        row["inputs"][0, :size] = tokens
        for name, values in columns.items():
            row[name] = np.zeros((1, length), values.dtype)
            row[name][0, :size] = values
        return row

    def _marked(self, *texts):
        """Puts a mark before the first of these ids and one after each, if any."""
        marks = self._marks.bos, self._marks.eos
        bos, eos = ([id] if id >= 0 else [] for id in marks)
        return [*bos, *(id for text in texts for id in (*text, *eos))]

    def _pair(self, first, second):
        """Makes the row of two texts, of which the second has `type_ids` 1."""
        tokens = self._marked(first, second)
        types = np.zeros(len(tokens), np.int32)
        types[len(self._marked(first)) :] = 1
        return self._row(tokens, type_ids=types)


class Classify(Encoder):
    """A text's class, its classes, or a number."""

    def rows(self, /, **fields):
        """See `Encoder`."""
        ids = self.tokenizer.encode(_text(fields, "text"))
        return [self._row(self._marked(ids[: self.length - 2]))]

    def decode(self, fields, outputs):
        """Returns `label`, `labels` or `value`, with `probabilities` of classes."""
        task, (output,) = self.task, outputs
        if task.kind == "number":
            mean, deviation = task.moments or (0.0, 1.0)
            return {"value": mean + deviation * float(output["value"])}
        found = dict(zip(task.labels, output["probabilities"].tolist()))
        if task.kind == "one":
            return {"label": max(found, key=found.__getitem__), "probabilities": found}
        least = zip(task.labels, task.thresholds or (0.5,) * len(task.labels))
        labels = [name for name, threshold in least if found[name] >= threshold]
        return {"labels": labels, "probabilities": found}


class Pair(Classify):
    """The class of two texts: `text`, and the field that the task names."""

    def rows(self, /, **fields):
        """See `Encoder`; of two texts that do not fit, the longer is cut first."""
        texts = _text(fields, "text"), _text(fields, self.task.text_b)
        first, second = map(self.tokenizer.encode, texts)
        room = self.length - 3
        of_second = min(len(second), max(room - len(first), room // 2))
        return [self._pair(first[: room - of_second], second[:of_second])]


class Relation(Classify):
    """The relation between two spans of a text, which stand between marks."""

    def rows(self, /, **fields):
        """See `Encoder`; a long text is cut to what is about the spans."""
        task, text = self.task, _text(fields, "text")
        placed = self.tokenizer.place(text)
        spans = [_span(fields, name, len(text)) for name in (task.head, task.tail)]
        bounds = np.ravel([placed.tokens(*span) for span in spans])
        tokens, places = self._insert(placed.ids, bounds)
        room = self.length - 2
        if len(tokens) > room:
            kept = self._around(places.min(), places.max() + 1, len(tokens), room)
            tokens = tokens[kept]
            places = np.minimum(np.searchsorted(kept, places), room - 1)
        places = places + int(self._marks.bos >= 0) + [0, 1, 0, 1]
        row = self._row(self._marked(tokens))
        return [row | {"spans": places.astype(np.int32).reshape(1, 2, 2)}]

    def _insert(self, ids, bounds):
        """Puts marks at the bounds of both spans [4]; returns their places, too."""
        unknown = max(self.tokenizer.unk_id, 0)
        marks = [[unknown, *self.tokenizer.encode(mark)][-1] for mark in "@#"]
        # Where spans meet, the one that comes first is closed before the other opens.
        turn = np.array([0, 1, 2, 3] if bounds[0] <= bounds[2] else [2, 3, 0, 1])
        order = turn[np.argsort(bounds[turn], kind="stable")]
        places = np.empty(4, int)
        places[order] = bounds[order] + np.arange(4)
        return np.insert(ids, bounds[order], np.repeat(marks, 2)[order]), places

    @staticmethod
    def _around(start, stop, size, room):
        """Chooses `room` of `size` tokens: those about [start, stop), or its ends."""
        if stop - start > room:
            half = room // 2
            return np.r_[start : start + room - half, stop - half : stop]
        first = np.clip((start + stop - room) // 2, 0, size - room)
        return np.arange(first, first + room)


class Tag(Encoder):
    """A tag for each word. A long text is read in windows that overlap."""

    def rows(self, /, **fields):
        """See `Encoder`; the words are a list, or those of `text`."""
        pieces = self._pieces(self._words(fields))
        tokens = self._marked([id for piece in pieces for id in piece])
        sizes = [int(self._marks.bos >= 0), *map(len, pieces)]
        is_word = np.zeros(len(tokens), np.float32)
        is_word[np.cumsum(sizes)[:-1]] = 1
        # A token counts in the window that has most about it.
        size, edge = self.length, self.length // 8
        rows, start, stop = [], 0, 0
        while stop < len(tokens):
            stop = min(start + size, len(tokens))
            wanted = is_word[start:stop].copy()
            wanted[: edge if start else 0] = 0
            wanted[len(wanted) - (edge if stop < len(tokens) else 0) :] = 0
            places = np.arange(stop - start, dtype=np.int32)
            row = self._row(tokens[start:stop], positions=places, loss_mask=wanted)
            rows.append(row)
            start += size - 2 * edge
        return rows

    def decode(self, fields, outputs):
        """Returns `words`, the `tags` and `probabilities` of each, and `entities`."""
        task, words = self.task, self._words(fields)
        labels, probabilities = (
            np.concatenate([np.zeros(0), *(output[name] for output in outputs)])
            for name in ("label", "probability")
        )
        is_word = labels >= 0
        tags = [task.labels[int(label)] for label in labels[is_word]][: len(words)]
        prediction = {
            "words": words,
            "tags": tags,
            "probabilities": probabilities[is_word].tolist()[: len(words)],
        }
        if task.scheme == "none":
            return prediction
        entities = [
            {
                "type": kind,
                "start": start,
                "stop": stop,
                "text": task.separator.join(words[start:stop]),
            }
            for kind, start, stop in _entities(tags)
        ]
        return prediction | {"entities": entities}

    def _words(self, fields):
        """Returns an example's words."""
        words = fields.get(self.task.words)
        if isinstance(words, list | tuple):
            return [str(word) for word in words]
        words = _text(fields, "text").split()
        return words if self.task.separator else list("".join(words))

    def _pieces(self, words):
        """Encodes words, each as where it stands in its text, as one or more ids."""
        encode, marks = self.tokenizer.encode, self._marks
        before = f"a{self.task.separator}" if self.task.separator else ""
        cut = len(encode(before.strip()))
        # A tokenizer may drop a word, such as a control character, altogether.
        unknown = [marks.unk if marks.unk >= 0 else max(marks.pad, 0)]
        inside = {word: encode(before + word)[cut:] for word in words[1:]}
        pieces = [*map(encode, words[:1]), *(inside[word] for word in words[1:])]
        return [piece or unknown for piece in pieces]


class Answer(Encoder):
    """The answer to a question in a text, which is read in windows that overlap."""

    def rows(self, /, **fields):
        """See `Encoder`."""
        question, placed = self._encode(fields)
        windows = self._windows(len(question), len(placed.ids))
        return [self._pair(question, placed.ids[a:b]) for a, b in windows]

    def decode(self, fields, outputs):
        """Returns `answer`, its `score` and its `start` in the text, in characters.

        No answer is "" and starts at -1.
        """
        task, text = self.task, fields["text"]
        question, placed = self._encode(fields)
        spans, nothing = self._spans(len(question), len(placed.ids), outputs)
        blank = [not text[a:b].strip() for _, a, b in zip(*placed)]
        spans[np.array(blank, bool)] = -np.inf
        best = spans.max(initial=-np.inf)
        if not task.unanswerable:
            nothing = -np.inf
        total = np.logaddexp.reduce(np.append(spans, nothing))
        if total == -np.inf:  # there is no text
            return {"answer": "", "score": 0.0, "start": -1}
        if nothing - best > task.threshold:
            score = float(np.exp(nothing - total))
            return {"answer": "", "score": score, "start": -1}
        first, more = np.unravel_index(spans.argmax(), spans.shape)
        start, stop = placed.starts[first], placed.stops[first + more]
        found = text[start:stop]
        return {
            "answer": found.strip(),
            "score": float(np.exp(best - total)),
            "start": int(start) + len(found) - len(found.lstrip()),
        }

    def _encode(self, fields):
        """Returns the ids of the question, and the text."""
        question = self.tokenizer.encode(_text(fields, self.task.question))
        text = self.tokenizer.place(_text(fields, "text"))
        return question[: self.task.max_question_tokens], text

    def _windows(self, num_question, num_tokens):
        """Cuts a text into windows [start, stop) of its tokens, at least one."""
        room, stride = self.length - 3 - num_question, self.task.stride
        count = 1 + -(-max(num_tokens - room, 0) // stride)
        starts = [number * stride for number in range(count)]
        return [(start, min(start + room, num_tokens)) for start in starts]

    def _spans(self, num_question, num_tokens, outputs):
        """Returns the scores of spans of a text, and of no answer.

        A span's is the sum of its ends' logits in the window where it is highest; at
        [n, m] stands that of n's token and m more. No answer's is that of the row's
        first token in the window where it is lowest.
        """
        spans = np.full((num_tokens, self.task.max_answer_tokens), -np.inf)
        nothing, before = np.inf, len(self._marked([])) + num_question
        windows = self._windows(num_question, num_tokens)
        for (begin, stop), output in zip(windows, outputs):
            ends = [output[f"{end}_logits"].astype(float) for end in ("start", "end")]
            nothing = min(nothing, float(ends[0][0] + ends[1][0]))
            start, end = (x[before : before + stop - begin] for x in ends)
            for more in range(min(spans.shape[1], len(start))):
                here = spans[begin : begin + len(start) - more, more]
                np.maximum(here, start[: len(start) - more] + end[more:], out=here)
        return spans, nothing


class Dual(Encoder):
    """Vectors of a text and, if there is one, of a query; near ones belong together."""

    def rows(self, /, **fields):
        """See `Encoder`."""
        query, name = [], self.task.query
        if fields.get(name) is not None:
            room = min(self.task.query_length, self.length) - 2
            query = [self.tokenizer.encode(_text(fields, name))[:room]]
        text = self.tokenizer.encode(_text(fields, "text"))[: self.length - 2]
        return [self._row(self._marked(ids)) for ids in (text, *query)]

    def decode(self, fields, outputs):
        """Returns `text_vector` and `query_vector`, lists of length 1 as vectors."""
        names = "text_vector", "query_vector"
        # To the model both are texts.
        return {n: out["text_vector"].tolist() for n, out in zip(names, outputs)}


class Cross(Encoder):
    """How well a text fits a query."""

    def rows(self, /, **fields):
        """See `Encoder`; what is too long is cut off."""
        of_query = self.task.query_length
        of_text = self.length - of_query
        query = self.tokenizer.encode(_text(fields, self.task.query))[: of_query - 2]
        text = self.tokenizer.encode(_text(fields, "text"))[: of_text - 2]
        return [self._pair(query, text)]

    def decode(self, fields, outputs):
        """Returns `score`."""
        return {"score": outputs[0]["score"].item()}


_KINDS = Classify, Pair, Relation, Tag, Answer, Dual, Cross


def build(backend, tokenizer, about):
    """Returns the model of a task; see `Encoder`."""
    task = about["task"]
    kind = task["kind"] if task["name"] == "rank" else task["name"]
    (model,) = (each for each in _KINDS if each.__name__.lower() == kind)
    return model(backend, tokenizer, about)


def _text(fields, name):
    """Returns a field that is a text."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {value!r:.40}, not a text; give one")
    return value


def _span(fields, name, size):
    """Returns a field that is [start, stop) in a text, as a list or as JSON."""
    value = fields.get(name)
    try:
        given = json.loads(value) if isinstance(value, str) else value
        start, stop = map(operator.index, given)
    except (TypeError, ValueError):
        start = stop = -1
    if not 0 <= start < stop <= size:
        raise ValueError(
            f"{name!r} is {value!r:.40}, not [start, stop) of a text of {size} "
            "characters; mend it"
        )
    return start, stop


def _entities(tags):
    """Returns the type of each entity, its first word and the one after its last.

    An entity begins at B and S, and at I and E that continue none of their type.

    >>> _entities(["B-PER", "I-PER", "O", "I-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4)]
    """
    found, before = [], "O"
    for place, tag in enumerate(tags):
        is_inside = tag[0] in "IE" and before[0] in "BI" and tag[1:] == before[1:]
        if is_inside:
            found[-1] = (*found[-1][:2], place + 1)
        elif tag != "O":
            found.append((tag[2:], place, place + 1))
        before = tag
    return found
