"""Answer in a conversation: supervised fine-tuning on what the assistant says.

Ouyang et al. (2022), https://arxiv.org/abs/2203.02155, section 3.5, with the loss on
the assistant's turns alone. Axes: T time.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from lm.cli import suggest
from lm.config import check_range
from lm.data.packing import FitRows, Rows, join
from lm.data.pipeline import Pieces
from lm.metrics import Metrics
from lm.tasks import fields, labels, text_scores
from lm.tasks.base import marked, token_loss
from lm.tasks.generative import Generative, next_token_row
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Config:
    """Options of the task.

    A turn is its opening, its content, the tokenizer's end mark and its closing; a
    conversation begins with the tokenizer's mark for it, if there is one. A mark that
    opening or closing spell is that mark; content never makes one. ChatML, whose end
    mark is <|im_end|>, has the opening "<|im_start|>{role}\\n".

    Attributes:
        length: T. A longer conversation ends with the last turn of the assistant's that
            is whole in it. A prompt has `max_new_tokens` fewer.
        messages: The field of an example with its turns: a list of `{"role": …,
            "content": …}`. One that lacks it is a user's turn, its `text`.
        opening: What comes before the content, where {role} is who speaks: `system`,
            `user`, `assistant` or `tool`.
        closing: What comes after the end mark.
        openings: Those of the roles, in this order, in the place of `opening`; where
            one is empty, there is no such turn.
        first: What a conversation begins with unless that is a turn of the system's.
        strip: Whether content loses the white space around it.
        max_new_tokens: Of a predicted turn.
        z_loss: Weight of log² Z.
    """

    name: str = "chat"
    length: int = 512
    messages: str = "messages"
    opening: str = "<|{role}|>\n"
    closing: str = "\n"
    openings: tuple[str, ...] = ()
    first: str = ""
    strip: bool = False
    max_new_tokens: int = 128
    z_loss: float = 0.0

    def __post_init__(self):
        if "{role}" not in self.opening:
            raise UserError(
                f"task.opening {self.opening!r} does not say who speaks; put {{role}} "
                "into it"
            )
        if self.openings and (len(self.openings) != len(ROLES) or not self.openings[2]):
            raise UserError(
                f"task.openings {self.openings!r} are not one for each of "
                f"{', '.join(ROLES)}; the assistant's must not be empty"
            )
        check_range("task.max_new_tokens", self.max_new_tokens, 1)

    def opening_of(self, role: str) -> str:
        """Returns what comes before the content; empty if there is no such turn."""
        if self.openings:
            return self.openings[ROLES.index(role)]
        return self.opening.replace("{role}", role)


Turn = tuple[str, str]  # who speaks, and what


class Chat(Generative):
    """The task. Several conversations share a row; none is cut in two.

    Attributes:
        openings: Tokens before the content of each role.
        closing: Tokens after the end mark.
        first: Tokens between the mark of the beginning and a turn not the system's.
    """

    overlap = 1
    architectures = ("decoder",)
    prefix_lm = False

    def __init__(self, config: Config, tokenizer: Tokenizer):
        """Keeps both.

        Raises:
            UserError: If the tokenizer has no mark of a text's end.
        """
        if tokenizer.eos_id < 0:
            raise UserError(
                "task chat needs a tokenizer with a mark of a text's end, such as "
                "</s>; train one with python -m tools.train_tokenizer"
            )
        self.config = config
        self.tokenizer = tokenizer
        self._begin = marked(tokenizer)
        self._end = np.array([tokenizer.eos_id], np.int32)
        self.closing = encode_spelled(tokenizer, config.closing)
        self.openings = {
            role: encode_spelled(tokenizer, config.opening_of(role)) for role in ROLES
        }
        self.first = encode_spelled(tokenizer, config.first)
        opening = max(map(len, self.openings.values()))
        least = len(self._begin) + len(self.first) + 2 * opening + len(self.closing) + 2
        if config.length - config.max_new_tokens < least:
            raise UserError(
                f"task.length {config.length} leaves no room for a prompt of {least} "
                f"tokens beside task.max_new_tokens {config.max_new_tokens}; raise it, "
                "or lower those"
            )

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        config = self.config
        made_of = (config.length, config.messages, config.opening, config.closing)
        more = (config.openings, config.first, config.strip)
        return f"turns said {made_of}" + f" {more}" * any(more)

    @property
    def decoding(self) -> Mapping[str, Any]:
        """See `Generative`."""
        return {"max_new_tokens": self.config.max_new_tokens, "temperature": 0.0}

    def turns_of(self, example: Mapping[str, Any]) -> list[Turn]:
        """Returns the turns of a conversation.

        Raises:
            UserError: If the field is no conversation.
        """
        name, where = self.config.messages, labels.where(example)
        if example.get(name) is None:
            return [("user", fields.text(example, "text"))]
        value = example[name]
        try:
            if isinstance(value, Mapping):  # columns, as in TFDS
                turns = list(zip(value["role"], value["content"], strict=True))
            else:
                turns = [(turn["role"], turn["content"]) for turn in value]
        except (LookupError, TypeError, ValueError):
            turns = []
        if not turns or not all(isinstance(word, str) for t in turns for word in t):
            raise UserError(
                f"{where}: {name!r} is {value!r:.60}, not a list of "
                '{"role": …, "content": …}; mend it'
            )
        for role, _ in turns:
            if role not in ROLES:
                raise UserError(f"{where} has the role {role!r}{suggest(role, ROLES)}")
            if not self.config.opening_of(role):
                raise UserError(
                    f"{where} has a turn of the {role}'s, which conversations with "
                    "this model cannot have; leave it out, or set task.openings"
                )
        return turns

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Encodes conversations; `said` [n] is 1 in the assistant's turns, else 0."""
        documents = []
        for example in examples:
            try:
                documents.append(self._document(example))
            except UserError as error:
                documents.append(error)
        return documents

    def _document(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Encodes a conversation up to the last of the assistant's turns that fits.

        Raises:
            UserError: If none does, or there is none.
        """
        self.target_of(example)
        turns = self._encoded(self.turns_of(example))
        begin = self._before(turns)
        parts, ends, size = [(begin, 0)], [], len(begin)
        for role, ids in turns:
            opening, closing = self.openings[role], self.closing
            said = int(role == "assistant")
            size += len(opening) + len(ids) + 1
            if said:
                ends.append(size)
            size += len(closing)
            parts += [(opening, 0), (ids, said), (self._end, said), (closing, 0)]
        if ends[0] > self.config.length + 1:
            raise UserError(
                f"{labels.where(example)}: the assistant's first turn ends after "
                f"{ends[0]} tokens, more than task.length {self.config.length}; raise "
                "it, or leave such rows out with data.bad_rows=skip"
            )
        end = max(end for end in ends if end <= self.config.length + 1)
        tokens, said = zip(*parts)
        said = np.repeat(np.array(said, np.int32), [len(ids) for ids in tokens])
        return {"tokens": np.concatenate(tokens)[:end], "said": said[:end]}

    def prompt(self, example: Mapping[str, Any]) -> np.ndarray:
        """Returns what comes before the assistant's last turn, and its opening.

        If that is too long, the oldest turns are left out, but for one of the system's,
        and of a single turn that is too long the end.
        """
        turns = self.turns_of(example)
        spoken = [role for role, _ in turns]
        if "assistant" in spoken:
            turns = turns[: len(turns) - 1 - spoken[::-1].index("assistant")]
        encoded = self._encoded(turns)
        opening = self.openings["assistant"]
        room = self.config.length - self.config.max_new_tokens
        begin = self._before(encoded)
        room -= len(begin) + len(opening)
        sizes = [len(self._turn(*turn)) for turn in encoded]
        while len(encoded) > 1 and sum(sizes) > room:
            oldest = 1 if encoded[0][0] == "system" and len(encoded) > 2 else 0
            del encoded[oldest], sizes[oldest]
        if sum(sizes) > room:
            role, ids = encoded[0]
            encoded = [(role, ids[: room - sum(sizes)])]
        parts = [self._turn(*turn) for turn in encoded]
        return np.concatenate([begin, *parts, opening])

    def target_of(self, example: Mapping[str, Any]) -> str:
        """Returns the last of the assistant's turns.

        Raises:
            UserError: If there is none.
        """
        said = [text for role, text in self.turns_of(example) if role == "assistant"]
        if not said:
            raise UserError(
                f"{labels.where(example)} has no turn of the assistant's to learn from"
            )
        return said[-1]

    def _encoded(self, turns: Sequence[Turn]) -> list[tuple[str, np.ndarray]]:
        """Encodes what is said."""
        contents = [text.strip() if self.config.strip else text for _, text in turns]
        contents = self.tokenizer.encode_batch(contents)
        return [(role, ids) for (role, _), ids in zip(turns, contents)]

    def _before(self, turns: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
        """Returns what comes before the turns."""
        is_systems = bool(turns) and turns[0][0] == "system"
        return self._begin if is_systems else np.append(self._begin, self.first)

    def _turn(self, role: str, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([self.openings[role], ids, self._end, self.closing])

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Packs conversations."""
        sizes = lengths["tokens"] - 1
        return FitRows(sizes, (self.config.length,), seed if train else -1)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row; `targets` are `inputs` shifted by one."""
        (length,) = capacity
        texts = [columns["tokens"] for _, columns in pieces]
        said, _, _ = join([columns["said"][1:] for _, columns in pieces], length)
        row = next_token_row(texts, length, max(self.tokenizer.pad_id, 0))
        return row | {"loss_mask": said.astype(np.float32)}

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed cross-entropy of the assistant's tokens, and metrics."""
        return token_loss(model, params, batch, rng, self.config.z_loss)

    def score(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """See `Generative`; as of summaries, by ROUGE."""
        gold = [self.target_of(example) for example in examples]
        found = [prediction["prediction"] for prediction in predictions]
        return text_scores.generation(gold, found, "summary")


def encode_spelled(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Encodes a text in which the tokenizer's marks are spelled: int32 [n].

    >>> from lm.text.tokenizers import train
    >>> encode_spelled(train("bytes", []), "<s>A").tolist()
    [2, 70]
    """
    special = np.flatnonzero(tokenizer.is_special).tolist()
    marks = {tokenizer.token(i): i for i in special}
    spelled = "|".join(re.escape(name) for name in marks if name)
    parts = re.split(f"({spelled})", text) if spelled else [text]
    ids = [
        np.array([marks[part]]) if part in marks else tokenizer.encode(part)
        for part in parts
        if part
    ]
    return np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)
