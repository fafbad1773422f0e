"""Text in, text out: prompts to tokens, and tokens as they come to text."""

import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lm import decoding, sharding
from lm.tasks.generative import Generative
from lm.text.tokenizer import Tokenizer
from lm.types import Params, PyTree, UserError

# Tokens between two looks of the host at what the device has written.
CHUNK = 32
# Prompts are padded to this many tokens, or twice, four times, … as many.
MIN_LENGTH = 16


@dataclass(frozen=True)
class Completion:
    """A continuation.

    Attributes:
        prompt: What it continues, or answers.
        text: The continuation alone, without end mark and stop string.
        tokens: Number of tokens written, those of end mark and stop string included.
        finish_reason: `eos` (the model ended it), `stop` (a stop string) or `length`.
        log_prob: Sum of the tokens' log p, as `lm.decoding` defines it.
    """

    prompt: str
    text: str
    tokens: int
    finish_reason: str
    log_prob: float


class Growing:
    """A continuation that grows token by token.

    Attributes:
        ids: The tokens so far.
        log_prob: Sum of their log p.
        finish_reason: Empty until it ends, then as in `Completion`.

    >>> def decode(ids):
    ...     return bytes(ids).decode(errors="replace")
    >>> growing = Growing(decode, max_new_tokens=9, eos_id=-1, stop=["--"])
    >>> for byte in "é-é--".encode():
    ...     growing.extend([byte], [-0.5])
    ...     print(growing.settled, growing.finish_reason)
    <BLANKLINE>
    é
    é
    é
    é-é
    é-é
    é-é stop
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        max_new_tokens: int,
        eos_id: int,
        stop: Sequence[str],
    ):
        """Begins with no token.

        Args:
            decode: Returns the text of all tokens so far.
            max_new_tokens: Number of tokens after which it ends.
            eos_id: The token that ends it, or -1.
            stop: The strings that end it.
        """
        self._decode = decode
        self._max_new_tokens = max_new_tokens
        self._eos_id = eos_id
        self._stop = stop
        self._stop_at: int | None = None
        self.ids: list[int] = []
        self.log_prob = 0.0
        self.finish_reason = ""

    @property
    def text(self) -> str:
        """The text so far, up to a stop string."""
        return self._decode(self.ids)[: self._stop_at]

    @property
    def settled(self) -> str:
        """The part of the text that no further token changes.

        While the text grows, bytes at its end that are no character, and what may
        begin a stop string, are not settled.
        """
        if self.finish_reason:
            return self.text
        text = self.text.rstrip("\ufffd")
        starts = (stop[:n] for stop in self._stop for n in range(1, len(stop)))
        held = max((len(start) for start in starts if text.endswith(start)), default=0)
        return text[: len(text) - held]

    def extend(self, tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        """Adds tokens up to the text's end; a token of -1 is none."""
        for token, log_prob in zip(tokens, log_probs):
            if token < 0 or self.finish_reason:
                break
            self.ids.append(token)
            self.log_prob += log_prob
            self.finish_reason = self._reason()

    def _reason(self) -> str:
        if self._stop:
            text = self.text
            found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
            self._stop_at = min(found, default=None)
        if self._stop_at is not None:
            return "stop"
        if self.ids[-1] == self._eos_id:
            return "eos"
        return "length" if len(self.ids) == self._max_new_tokens else ""


class Prompt(NamedTuple):
    """A prompt as tokens.

    Attributes:
        text: The prompt.
        ids: What is read, int32 [n].
        inputs: What the decoder continues: `ids`, or with an encoder its own start.
    """

    text: str
    ids: np.ndarray
    inputs: np.ndarray


class Completer:
    """Text in, text out: a model, its tokenizer and the options.

    Attributes:
        continues: Whether a text goes on where its prompt ends, so that they are one.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        tokenizer: Tokenizer,
        config: decoding.Config,
        stop: Sequence[str] = (),
        seed: int = 0,
        prefix_lm: bool = False,
        encode: Callable[[str], np.ndarray] | None = None,
    ):
        """Prepares a model.

        Args:
            model: A decoder or an encoder-decoder.
            params: Its parameters, whole on every device.
            tokenizer: Its tokenizer.
            config: How tokens are chosen.
            stop: Strings that end a text.
            seed: Of the draws, from 0 to 2³² - 1.
            prefix_lm: Whether a decoder reads its prompt in both directions.
            encode: Returns the tokens of a prompt; by default they are those that the
                tasks which learn from texts alone make of a text.

        Raises:
            UserError: If the model writes no text.
        """
        model_config: Any = model.config  # pyright: ignore
        if not hasattr(model, "prefill"):
            raise UserError(
                f"a {model_config.name} model does not write text; choose the workdir "
                "of one that does, such as gpt or t5"
            )
        self.has_encoder = getattr(model, "architecture", "") == "encoder_decoder"
        self._model = model
        self._model_config = model_config
        self._params = params
        self._tokenizer = tokenizer
        self._config = config
        self._stop = stop
        self._seed = seed
        self._prefix_lm = prefix_lm
        self._encode = encode or self._encode_text
        self.continues = not (encode or self.has_encoder)
        self._mesh = sharding.build_mesh(sharding.MeshConfig())
        sentinels = tokenizer.sentinel_ids if self.has_encoder else ()
        self._sentinels = {i: tokenizer.token(i) for i in sentinels}
        allowed = writable(tokenizer, model_config.vocab_size, sentinels)
        self._vocabulary = jax.device_put(
            decoding.Vocabulary(allowed, np.int32(tokenizer.eos_id)),
            sharding.replicated(self._mesh),
        )

    def __call__(
        self,
        prompts: Sequence[str],
        num_samples: int = 1,
        show: Callable[[str], None] | None = None,
    ) -> list[Completion]:
        """Returns `num_samples` texts of the first prompt, of the second, ….

        Args:
            prompts: At least one.
            num_samples: With beams at most as many as these: the best ones, fewer if
                there are not that many texts.
            show: Is given the text piece by piece as it is written; for one prompt,
                one sample and no beams.

        Raises:
            UserError: If a prompt is empty or too long for the model.
        """
        read = [self.read(prompt, self._encode(prompt)) for prompt in prompts]
        return self.complete(read, num_samples, show)

    def complete(
        self,
        prompts: Sequence[Prompt],
        num_samples: int = 1,
        show: Callable[[str], None] | None = None,
    ) -> list[Completion]:
        """Returns texts as `__call__` does, of prompts that are tokens already."""
        with sharding.use(self._mesh, sharding.MeshConfig()):
            if self._config.beam_size:
                return self._search(prompts, num_samples)
            rows = [(prompt, i) for prompt in prompts for i in range(num_samples)]
            return self._sample(rows, show)

    def _sample(
        self, rows: Sequence[tuple[Prompt, int]], show: Callable[[str], None] | None
    ) -> list[Completion]:
        texts = [self._growing(prompt) for prompt, _ in rows]
        shown = 0
        for tokens, log_probs in self._chunks(rows, 1 if show else CHUNK):
            for text, *new in zip(texts, tokens.tolist(), log_probs.tolist()):
                text.extend(*new)
            if show:
                settled = texts[0].settled
                show(settled[shown:])
                shown = len(settled)
            if all(text.finish_reason for text in texts):
                break
        return [_finish(prompt, text) for (prompt, _), text in zip(rows, texts)]

    def _chunks(
        self, rows: Sequence[tuple[Prompt, int]], size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields tokens and log p [B, size], one chunk behind the device."""
        model, params, config = self._model, self._params, self._config
        batch, cache_len = self._batch([prompt for prompt, _ in rows])
        numbers = np.zeros((len(batch["inputs"]), 2), np.uint32)
        numbers[: len(rows)] = [
            (zlib.crc32(prompt.ids.astype("<i4").tobytes()), i) for prompt, i in rows
        ]
        keys = decoding.row_keys(np.uint32(self._seed), numbers)
        state = decoding.start(
            model, params, self._put(batch), self._put(keys), config, cache_len
        )
        pending = None
        for _ in range(0, config.max_new_tokens, size):
            state, *written = decoding.advance(
                model, params, self._vocabulary, state, config, size
            )
            if pending is not None:
                yield jax.device_get(pending)
            pending = written
        yield jax.device_get(pending)

    def _search(self, prompts: Sequence[Prompt], num_samples: int) -> list[Completion]:
        batch, cache_len = self._batch(prompts)
        found = decoding.beam_search(
            self._model,
            self._params,
            self._vocabulary,
            self._put(batch),
            self._config,
            cache_len,
        )
        beams = jax.device_get(found)
        completions = []
        for row, prompt in enumerate(prompts):
            for place in range(num_samples):
                if beams.score[row, place] > -np.inf:
                    text = self._growing(prompt)
                    text.extend(
                        beams.tokens[row, place].tolist(),
                        beams.log_probs[row, place].tolist(),
                    )
                    completions.append(_finish(prompt, text))
        return completions

    def _batch(self, prompts: Sequence[Prompt]) -> tuple[dict[str, np.ndarray], int]:
        """Returns a batch and its cache's length, both of a few sizes only."""
        num_rows = _size(len(prompts), sharding.batch_shards(self._mesh))
        batch = _pad([prompt.inputs for prompt in prompts], num_rows)
        if self.has_encoder:
            source = _pad([prompt.ids for prompt in prompts], num_rows)
            batch |= {f"encoder_{name}": value for name, value in source.items()}
        if self._prefix_lm:
            batch["prefix_mask"] = batch["segment_ids"] > 0
        return batch, batch["inputs"].shape[1] + self._config.max_new_tokens

    def _put(self, rows: PyTree) -> PyTree:
        return jax.device_put(rows, sharding.batch_sharding(self._mesh))

    def read(self, text: str, ids: np.ndarray) -> Prompt:
        """Returns a prompt of these tokens.

        Args:
            text: What it is called.
            ids: What is read, int32 [n].

        Raises:
            UserError: If there are no tokens, or too many for the model.
        """
        if not len(ids):
            raise UserError(
                "an empty prompt needs a tokenizer with a mark of a text's beginning "
                "or end; write a --prompt"
            )
        begin = np.array([max(self._tokenizer.pad_id, 0)], np.int32)
        inputs = begin if self.has_encoder else ids
        self._check_length(text, len(ids), len(inputs))
        return Prompt(text, ids, inputs)

    def _encode_text(self, text: str) -> np.ndarray:
        """Encodes a prompt as tasks encode texts."""
        tokenizer = self._tokenizer
        start, end = (
            [] if i < 0 else [i] for i in (tokenizer.bos_id, tokenizer.eos_id)
        )
        if self.has_encoder:
            return np.array([*self._encode_sentinels(text), *end], np.int32)
        return np.array([*start, *tokenizer.encode(text)] or end, np.int32)

    def _encode_sentinels(self, text: str) -> Iterator[int]:
        """Encodes a text in which sentinels are spelled."""
        numbers = {name: i for i, name in self._sentinels.items()}
        spelled = "|".join(map(re.escape, numbers))
        for part in re.split(f"({spelled})", text) if spelled else [text]:
            yield from (
                [numbers[part]] if part in numbers else self._tokenizer.encode(part)
            )

    def _decode(self, ids: list[int]) -> str:
        """Decodes tokens, and spells sentinels."""
        runs = itertools.groupby(ids, self._sentinels.get)
        return "".join(
            name * len(list(run)) if name else self._tokenizer.decode(list(run))
            for name, run in runs
        )

    def _check_length(self, text: str, num_read: int, num_inputs: int) -> None:
        """Raises a UserError if the model lacks a position for some token."""
        limit, num_new = self._model_config.position_limit, self._config.max_new_tokens
        longest = max(num_read, num_inputs + num_new)
        if limit is not None and longest > limit:
            shown = text if len(text) <= 30 else f"{text[:29]}…"
            raise UserError(
                f"the prompt {shown!r} of {num_read} tokens, with "
                f"--max-new-tokens={num_new}, needs {longest} positions but the model "
                f"has {limit}; shorten it or lower --max-new-tokens"
            )

    def _growing(self, prompt: Prompt) -> Growing:
        # What a token stands for may depend on whether it is a text's first.
        before = [] if self.has_encoder else prompt.ids[-1:].tolist()
        begin = len(self._decode(before))
        return Growing(
            lambda ids: self._decode(before + ids)[begin:],
            self._config.max_new_tokens,
            self._tokenizer.eos_id,
            self._stop,
        )


class Writer:
    """Makes the predictions of a task that writes them."""

    def __init__(
        self,
        task: Generative,
        model: nn.Module,
        tokenizer: Tokenizer,
        batch_size: int,
        **options: Any,
    ):
        """Compiles nothing yet.

        Args:
            task: What is predicted.
            model: The task's.
            tokenizer: The task's.
            batch_size: Prompts at a time.
            options: Of `decoding.Config`, in the place of the task's.
        """
        self._task, self._model, self._tokenizer = task, model, tokenizer
        self._batch_size = batch_size
        self._config = decoding.Config(**{**task.decoding, **options})

    def __call__(
        self,
        params: Params,
        examples: Sequence[Mapping[str, Any]],
        watch: Callable[..., Iterable] = lambda items, total: items,
    ) -> list[dict[str, Any]]:
        """Returns `prediction`, `finish_reason` and `log_prob` of each example.

        They are as in `Completion`, where the prediction is `text`.

        Args:
            params: Whole on every device.
            examples: At least one.
            watch: Shows how far it is, as `lm.cli.progress` does.
        """
        task = self._task
        completer = Completer(
            self._model,
            params,
            self._tokenizer,
            self._config,
            prefix_lm=task.prefix_lm,
        )
        prompts = [completer.read("", task.prompt(example)) for example in examples]
        # Prompts of a batch are padded to the longest, so those of a length meet.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
        starts = range(0, len(order), self._batch_size)
        found: dict[int, Completion] = {}
        for start in watch(starts, len(starts)):
            numbers = order[start : start + self._batch_size]
            batch = completer.complete([prompts[i] for i in numbers])
            found.update(zip(numbers, batch, strict=True))
        return [
            {
                "prediction": found[i].text,
                "finish_reason": found[i].finish_reason,
                "log_prob": found[i].log_prob,
            }
            for i in range(len(examples))
        ]


def writable(
    tokenizer: Tokenizer, vocab_size: int, sentinels: Sequence[int]
) -> np.ndarray:
    """Returns which ids may be written, bool [V]: no marks but the end's and sentinels.

    The model's embedding may have more rows, `vocab_size`, than there are tokens.
    """
    allowed = np.zeros(vocab_size, bool)
    allowed[: tokenizer.vocab_size] = ~tokenizer.is_special
    allowed[[i for i in (tokenizer.eos_id, *sentinels) if i >= 0]] = True
    return allowed


def _finish(prompt: Prompt, text: Growing) -> Completion:
    return Completion(
        prompt.text, text.text, len(text.ids), text.finish_reason, text.log_prob
    )


def _size(count: int, unit: int) -> int:
    """Returns the first of unit, 2 · unit, 4 · unit, … that is at least `count`.

    >>> _size(3, 16), _size(17, 16)
    (16, 32)
    """
    while unit < count:
        unit *= 2
    return unit


def _pad(rows: Sequence[np.ndarray], num_rows: int) -> dict[str, np.ndarray]:
    """Pads token rows on the right and below; segment ids are 0 there.

    >>> batch = _pad([np.array([5, 6])], num_rows=2)
    >>> batch["inputs"].shape, batch["segment_ids"].sum(axis=1)
    ((2, 16), array([2, 0]))
    """
    shape = (num_rows, _size(max(map(len, rows)), MIN_LENGTH))
    batch = {name: np.zeros(shape, np.int32) for name in ("inputs", "segment_ids")}
    for i, row in enumerate(rows):
        batch["inputs"][i, : len(row)] = row
        batch["segment_ids"][i, : len(row)] = 1
    return batch
