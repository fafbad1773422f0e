"""Find the answer to a question in a text, or that it has none.

Devlin et al. (2019), https://arxiv.org/abs/1810.04805, sections 4.2 and 4.3. A text
longer than a row is read in windows that overlap. Axes: B batch, T time.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config import check_range
from lm.data.packing import BucketRows, Rows
from lm.data.pipeline import Pieces
from lm.metrics import Mean, Metrics
from lm.nn.heads import TokenHead
from lm.tasks import fields, labels, text_scores
from lm.tasks.base import Predictive, apply, marked, padded, sides
from lm.text.offsets import Placed, place
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

# Marks of a row: [CLS] question [SEP] text [SEP].
MARKS = 3

# Some of SQuAD's answers are a character further on than they say.
SLACK = 2

# Examples that a report shows.
WORST = 20


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        length: T of the longest row, question and marks included.
        stride: Tokens of the text from the beginning of a window to that of the next.
        max_question_tokens: The rest of a longer question is cut off.
        max_answer_tokens: Of a predicted answer. A span of up to as many is whole in
            one window at least.
        question: The field of an example that has its question.
        answers: The field with its answers: a list of `{"text": …, "start": …}`, where
            `start` counts characters of the text. Training is on the first.
        unanswerable: Whether there may be none.
        threshold: By how much the score of no answer must exceed that of the best span
            to be preferred, if `unanswerable`: τ in section 4.3, with the other sign.
        dropout_rate: Of the states that the answer is found by.
    """

    name: str = "answer"
    length: int = 384
    stride: int = 128
    max_question_tokens: int = 64
    max_answer_tokens: int = 30
    question: str = "question"
    answers: str = "answers"
    unanswerable: bool = False
    threshold: float = 0.0
    dropout_rate: float = 0.0

    def __post_init__(self):
        for name in ("stride", "max_question_tokens", "max_answer_tokens"):
            check_range(f"task.{name}", getattr(self, name), 1)
        check_range("task.dropout_rate", self.dropout_rate, 0, 1)
        room = self.length - MARKS - self.max_question_tokens
        if self.stride + self.max_answer_tokens - 1 > room:
            raise UserError(
                f"task.length {self.length} leaves {room} tokens of text beside the "
                f"longest question, too few for task.stride {self.stride} and "
                f"task.max_answer_tokens {self.max_answer_tokens}; raise the one or "
                "lower the others"
            )


@dataclass(frozen=True)
class Answer(Predictive):
    """The task. A row is a question and a window of its text."""

    config: Config
    tokenizer: Tokenizer
    overlap = 0

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        config = self.config
        made_of = (config.question, config.answers, config.unanswerable)
        return f"question text answer {made_of} {config.max_question_tokens}"

    def build_model(self, config: Any) -> nn.Module:
        """See `Task`."""
        return TokenHead(super().build_model(config), 2, self.config.dropout_rate)

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Encodes questions, texts and the answer's tokens [first, last), if any."""
        documents = []
        for example, text in zip(examples, self._place(examples)):
            try:
                answers = self.answers_of(example)
                found = [text.tokens(start, start + len(a)) for a, start in answers[:1]]
                answer = np.array(found, np.int32).reshape(-1)
                documents.append(self._inputs(example, text) | {"answer": answer})
            except UserError as error:
                documents.append(error)
        return documents

    def encode_inputs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """See `Predictive`.

        Raises:
            UserError: If an example has no question.
        """
        return [
            self._inputs(example, text)
            for example, text in zip(examples, self._place(examples))
        ]

    def _place(self, examples: Sequence[Mapping[str, Any]]) -> list[Placed]:
        return place(self.tokenizer, [example["text"] for example in examples])

    def _inputs(
        self, example: Mapping[str, Any], text: Placed
    ) -> dict[str, np.ndarray]:
        question = self.tokenizer.encode(fields.text(example, self.config.question))
        return {
            "tokens": text.ids,
            "question": question[: self.config.max_question_tokens],
        }

    def text_of(self, example: Mapping[str, Any]) -> str:
        """Returns the question and the text: neither alone makes an example."""
        return f"{fields.text(example, self.config.question)}\n\n{example['text']}"

    def answers_of(self, example: Mapping[str, Any]) -> list[tuple[str, int]]:
        """Returns the right answers, without space around, and where each begins.

        Raises:
            UserError: If they are not where they should be, or there should be one.
        """
        config, where = self.config, labels.where(example)
        value = labels.field(example, config.answers)
        try:
            if isinstance(value, Mapping):  # columns, as in TFDS and Hugging Face
                starts = value["start" if "start" in value else "answer_start"]
                pairs = list(zip(value["text"], starts, strict=True))
            else:
                pairs = [(answer["text"], answer["start"]) for answer in value]
            answers = [(str(text), int(start)) for text, start in pairs]
        except (LookupError, TypeError, ValueError):
            raise UserError(
                f"{where}: {config.answers!r} is {value!r:.60}, not a list of "
                '{"text": …, "start": …}; mend it'
            ) from None
        found = []
        for answer, start in answers:
            stripped = answer.strip()
            end = start + len(answer) + SLACK
            at = example["text"].find(stripped, max(start, 0), end) if stripped else -1
            if at < 0:
                raise UserError(
                    f"{where}: the text has no answer {answer!r:.40} at character "
                    f"{start}; mend it"
                )
            found.append((stripped, at))
        if not (found or config.unanswerable):
            raise UserError(
                f"{where} has no answer; if there need be none, set "
                "task.unanswerable=True"
            )
        return found

    def _before(self, num_question: int) -> int:
        """Returns the place of the text's first token in a row."""
        nothing = np.zeros(0, np.int32)
        return len(marked(self.tokenizer, nothing)) + num_question

    def windows(self, num_tokens: np.ndarray, num_question: np.ndarray) -> np.ndarray:
        """Cuts texts into windows.

        Args:
            num_tokens: Of each text [n].
            num_question: Of each question [n].

        Returns:
            Text, start and stop of each window [m, 3], in the texts' order. A text of
            no tokens has a window, too.
        """
        stride = self.config.stride
        room = self.config.length - MARKS - num_question
        count = 1 + -(-np.maximum(num_tokens - room, 0) // stride)
        texts = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(texts)) - np.repeat(np.cumsum(count) - count, count)
        starts = number * stride
        stops = np.minimum(starts + room[texts], num_tokens[texts])
        return np.stack([texts, starts, stops], axis=1)

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays out one window a row, padded to a power of two."""
        pieces = self.windows(lengths["tokens"], lengths["question"])
        texts, starts, stops = pieces.T
        sizes = lengths["question"][texts] + stops - starts + MARKS
        return BucketRows(sizes, sides(self.config.length), pieces)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row.

        `type_ids` are 1 from the text's first token to the mark of its end. `start` and
        `end` are the places of the answer's first and last token; 0, that of [CLS],
        where it is not whole in the window or there is none.
        """
        (length,) = capacity
        type_ids = np.zeros(length, np.int32)
        places = np.zeros(2, np.int32)
        row = {}
        for piece, columns in pieces:
            tokens = marked(self.tokenizer, columns["question"], columns["tokens"])
            row = {"tokens": tokens}
            before = self._before(len(columns["question"]))
            type_ids[before : len(tokens)] = 1
            answer = columns.get("answer", np.zeros(0, np.int32))
            if len(answer) and piece.start <= answer[0] < answer[1] <= piece.stop:
                places = answer - [piece.start, piece.start + 1] + before
        start, end = places.astype(np.int32)
        return padded(row, length, self.tokenizer) | {
            "type_ids": type_ids,
            "start": start,
            "end": end,
        }

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed loss of the windows, and metrics.

        A window's is the mean cross-entropy of `start` and `end` among the tokens of
        the text and [CLS].
        """
        logits = apply(model, params, batch, rng)
        is_first = jnp.arange(logits.shape[1])[None] == 0
        is_place = (batch["type_ids"] > 0) | is_first
        log_probs = jax.nn.log_softmax(
            jnp.where(is_place[:, :, None], logits, jnp.finfo(jnp.float32).min), axis=1
        )
        places = jnp.stack([batch["start"], batch["end"]], axis=-1)
        at_places = jnp.take_along_axis(log_probs, places[:, None], axis=1)[:, 0]
        right = (log_probs.argmax(axis=1) == places).all(axis=-1)
        mask = batch["example_mask"]
        total = -(mask * at_places.mean(axis=-1)).sum()
        return total, {
            "loss": Mean(total, mask.sum()),
            "accuracy": Mean((mask * right).sum(), mask.sum()),
        }

    def predict(self, model: nn.Module, params: Params, batch: Batch) -> Batch:
        """Returns `start_logits` and `end_logits` [B, T] of an answer's ends."""
        start, end = jnp.moveaxis(apply(model, params, batch, None), -1, 0)
        return {"start_logits": start, "end_logits": end}

    def decode(
        self, example: Mapping[str, Any], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """Returns `answer`, its `score` and its `start` in the text, in characters.

        The score is the probability of the answer among all spans of up to
        `max_answer_tokens` in all windows, and no answer if that may be. No answer is
        "" and starts at -1.
        """
        config, text = self.config, example["text"]
        (placed,) = self._place([example])
        spans, nothing = self._spans(placed, self._inputs(example, placed), outputs)
        blank = [not text[a:b].strip() for _, a, b in zip(*placed)]
        spans[np.array(blank, bool)] = -np.inf
        best = spans.max(initial=-np.inf)
        if not config.unanswerable:
            nothing = -np.inf
        total = np.logaddexp.reduce(np.append(spans, nothing))
        if total == -np.inf:  # there is no text
            return {"answer": "", "score": 0.0, "start": -1}
        if nothing - best > config.threshold:
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

    def _spans(
        self,
        placed: Placed,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> tuple[np.ndarray, float]:
        """Returns the scores of spans of a text, and of no answer.

        A span's is the sum of its ends' logits in the window where it is highest; at
        [n, m] stands that of n's token and m more. No answer's is that of [CLS] in the
        window where it is lowest, as in Devlin et al.'s `run_squad.py`.
        """
        num_tokens, num_question = len(placed.ids), len(inputs["question"])
        spans = np.full((num_tokens, self.config.max_answer_tokens), -np.inf)
        nothing = np.inf
        before = self._before(num_question)
        windows = self.windows(np.array([num_tokens]), np.array([num_question]))
        for (_, begin, stop), output in zip(windows, outputs, strict=True):
            start, end = (
                np.asarray(output[name], np.float64)
                for name in ("start_logits", "end_logits")
            )
            nothing = min(nothing, float(start[0] + end[0]))
            start, end = (x[before : before + stop - begin] for x in (start, end))
            for more in range(min(spans.shape[1], len(start))):
                here = spans[begin : begin + len(start) - more, more]
                sums = start[: len(start) - more] + end[more:]
                np.maximum(here, sums, out=here)
        return spans, nothing

    def score(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """See `Predictive`; `lm.tasks.text_scores` has the details."""
        gold = [[text for text, _ in self.answers_of(e)] for e in examples]
        return text_scores.squad(
            gold, [prediction["answer"] for prediction in predictions]
        )

    def details(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Returns the answers that have least to do with the right ones.

        Of those that are as bad, the surest are the worst.
        """
        found = []
        for example, prediction in zip(examples, predictions):
            f1 = self.score([example], [prediction])["f1"]
            row = {
                "text": self.text_of(example),
                # Several people may have given the same.
                "gold": list(dict.fromkeys(t for t, _ in self.answers_of(example))),
                "predicted": prediction["answer"],
                "probability": prediction["score"],
            }
            found.append((f1, -prediction["score"], row))
        found.sort(key=operator.itemgetter(0, 1))
        return {"worst": [row for _, _, row in found[:WORST]]}
