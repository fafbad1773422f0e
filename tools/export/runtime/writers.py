"""Text from text, token by token: decoders and encoder-decoders.

A decoder's `prefill` reads a prompt into a cache of keys and values, or into a state,
and `decode` reads one token more and returns the scores of the next. An
encoder-decoder's `encode` makes the keys and values of a source, or a memory of it,
which its `decode` reads at every step.
"""

import re

import numpy as np


class Writer:
    """A model that writes, and all that is around it.

    Attributes:
        about: What `signature.json` says.
        tokenizer: The model's.
        backend: What runs the model's functions.
    """

    def __init__(self, backend, tokenizer, about):
        """Takes a model apart into what it reads with and what it writes with."""
        self.about, self.tokenizer, self.backend = about, tokenizer, backend
        signatures = about["signatures"]
        self._reads = sorted(
            (each["length"], each["name"])
            for each in signatures
            if not each["name"].startswith("decode")
        )
        self._shapes = {each["name"]: each["inputs"] for each in signatures}
        self._has_encoder = about["architecture"] == "encoder_decoder"
        self._forbidden = np.array(about["writing"]["forbidden"], np.int64)

    def predict(self, **fields):
        """Returns what the task predicts, by the likeliest token each time.

        Args:
            fields: `text`; or of a conversation its `messages`.

        Returns:
            `prediction`, `finish_reason` (`eos` or `length`) and `log_prob`.
        """
        return self.complete(self.prompt(**fields))

    def generate(self, text, max_new_tokens=0, **sampling):
        """Continues or answers a text; `sampling` as in `tokens`."""
        prompt = self.prompt(text=text)
        return self.complete(prompt, max_new_tokens, **sampling)["prediction"]

    def complete(self, prompt, max_new_tokens=0, **sampling):
        """Returns what `predict` does, of a prompt's tokens; options as in `tokens`."""
        ids, log_prob = [], 0.0
        for token, score in self.tokens(prompt, max_new_tokens, **sampling):
            ids.append(token)
            log_prob += score
        is_over = bool(ids) and ids[-1] == self.about["marks"]["eos"]
        # What a token stands for may depend on whether it is a text's first.
        before = [] if self._has_encoder else prompt[-1:]
        text = self._text(before + ids)[len(self._text(before)) :]
        reason = "eos" if is_over else "length"
        return {"prediction": text, "finish_reason": reason, "log_prob": log_prob}

    def _text(self, ids):
        """Returns a text in which sentinels are spelled."""
        spelled = {i: name for name, i in self.about["writing"]["sentinels"].items()}
        text, run = "", []
        for i in [*ids, None]:
            if i is None or i in spelled:
                text += self.tokenizer.decode(run) + spelled.get(i, "")
                run = []
            else:
                run.append(i)
        return text

    def prompt(self, **fields):
        """Returns the tokens that the model reads; see `predict`.

        Raises:
            ValueError: If there is no text.
        """
        task, marks, encode = self.about["task"], self.about["marks"], self._encode
        text = fields.get("text")
        if not isinstance(text, str) and not fields.get(task.get("messages")):
            raise ValueError(f"'text' is {text!r:.40}, not a text; give one")
        bos, eos = ([i] if i >= 0 else [] for i in (marks["bos"], marks["eos"]))
        if task["name"] == "chat":
            turns = fields.get(task["messages"]) or [{"role": "user", "content": text}]
            return self._conversation(bos, turns)
        if task["name"] == "text_to_text":
            ids = ([] if self._has_encoder else bos) + encode(task["prefix"] + text)
            return ids[: task["length"] - 1] + eos
        if self._has_encoder:
            return self._encode_sentinels(text) + eos
        return [*bos, *encode(text)] or eos

    def _encode(self, text):
        return list(self.tokenizer.encode(text))

    def _encode_sentinels(self, text):
        numbers = self.about["writing"]["sentinels"]
        spelled = "|".join(map(re.escape, numbers))
        parts = re.split(f"({spelled})", text) if spelled else [text]
        found = [[numbers[p]] if p in numbers else self._encode(p) for p in parts]
        return sum(found, [])

    def _conversation(self, bos, turns):
        """Lays out turns up to the assistant's last, and begins that one.

        If they are too many, the oldest are left out, but for one of the system's, and
        of a single turn that is too long the end.
        """
        task, writing = self.about["task"], self.about["writing"]
        roles = [turn["role"] for turn in turns]
        if "assistant" in roles:
            turns = turns[: len(turns) - 1 - roles[::-1].index("assistant")]
        opening, closing = writing["opening"], writing["closing"]
        end = [self.about["marks"]["eos"], *closing]
        if turns[0]["role"] != "system":
            bos = bos + writing["first"]
        for role in {turn["role"] for turn in turns}:
            if not opening.get(role):
                raise ValueError(f"the model has no turns of the {role!r}")
        said = [(t["role"], t["content"]) for t in turns]
        if task["strip"]:
            said = [(role, content.strip()) for role, content in said]
        contents = [(role, self._encode(content)) for role, content in said]
        parts = [[opening[role], ids, end] for role, ids in contents]
        room = task["length"] - task["max_new_tokens"]
        room -= len(bos) + len(opening["assistant"])
        sizes = [sum(map(len, part)) for part in parts]
        while len(parts) > 1 and sum(sizes) > room:
            oldest = 1 if turns[0]["role"] == "system" and len(parts) > 2 else 0
            del parts[oldest], sizes[oldest]
            turns = turns[:oldest] + turns[oldest + 1 :]
        if sum(sizes) > room:
            parts[0][1] = parts[0][1][: room - sum(sizes)]
        return sum(sum(parts, []), bos[:]) + opening["assistant"]

    def tokens(
        self, prompt, max_new_tokens=0, temperature=0.0, top_k=0, top_p=1.0, seed=0
    ):
        """Yields tokens and their log probabilities, the end mark's too.

        Args:
            prompt: Tokens, at least one.
            max_new_tokens: 0 means as many as the task's, or as there is room for.
            temperature: What log probabilities are divided by; 0 takes the likeliest.
            top_k: If positive, only the k likeliest tokens may come.
            top_p: Only the likeliest tokens of together at least this probability.
            seed: Of the draws.

        Raises:
            ValueError: If there is no room, or an option is out of range.
        """
        if not 0 <= temperature < np.inf or max_new_tokens < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"temperature={temperature}, max_new_tokens={max_new_tokens} or "
                f"top_p={top_p} is out of range"
            )
        rng, writing = np.random.default_rng(seed), self.about["writing"]
        cache, token, place, room = self._read(prompt)
        number = min(max_new_tokens or writing["max_new_tokens"] or room, room)
        if number < max(1, max_new_tokens):
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves room for {room} new ones"
            )
        for _ in range(number):
            logits = self._decode(cache, token, place)
            logits[self._forbidden] = -np.inf
            log_probs = logits - logits.max()
            log_probs -= np.log(np.exp(log_probs).sum())
            token, place = draw(log_probs, temperature, top_k, top_p, rng), place + 1
            yield token, float(log_probs[token])
            if token == self.about["marks"]["eos"]:
                return

    def log_probs(self, prompt, ids):
        """Returns the log probabilities [n, V] with which each of n tokens is met."""
        cache, token, place, _ = self._read(prompt)
        found = []
        for i in ids:
            logits = self._decode(cache, token, place)
            logits -= logits.max()
            found.append(logits - np.log(np.exp(logits).sum()))
            token, place = i, place + 1
        return np.array(found)

    def _read(self, prompt):
        """Reads a prompt.

        Returns the cache, the first token to decode, its place, and the room there is.
        """
        size = next((s for s in self._reads if s[0] >= len(prompt)), None)
        if size is None or not prompt:
            longest = self._reads[-1][0]
            raise ValueError(
                f"a prompt of {len(prompt)} tokens; the model reads 1 to {longest}"
            )
        length, name = size
        # The places that are padding are those of the last token.
        ids = np.full((1, length), self._pad(), np.int32)
        ids[0, : len(prompt)] = prompt
        decode = (
            "decode" + name.removeprefix("encode") if self._has_encoder else "decode"
        )
        shapes = self._shapes[decode]
        cache = {
            key: np.zeros(value["shape"], np.float32)
            for key, value in shapes.items()
            if key.startswith(("kv_cache", "state"))
        }
        room = self.about["writing"]["places"]
        if self._has_encoder:
            real = (np.arange(length) < len(prompt))[None].astype(np.int32)
            inputs = {"inputs": ids, "segment_ids": real}
            cache |= {"name": decode, **self.backend.run(name, inputs)}
            return cache | {"segment_ids": real}, self._pad(), 0, room
        places = np.minimum(np.arange(length), len(prompt) - 1).astype(np.int32)
        read = self.backend.run(name, {"tokens": ids, "input_pos": places, **cache})
        last = len(prompt) - 1
        return {"name": decode, **read}, prompt[-1], last, room - last

    def _decode(self, cache, token, place):
        """Reads a token into the cache; returns the logits [V] of the next."""
        inputs = {
            "tokens": np.array([[token]], np.int32),
            "input_pos": np.array([place], np.int32),
        }
        outputs = self.backend.run(cache["name"], inputs | cache)
        logits = outputs.pop("logits")[0, 0].astype(np.float64)
        cache.update(outputs)
        return logits

    def _pad(self):
        return max(self.about["marks"]["pad"], 0)


def draw(log_probs, temperature, top_k, top_p, rng):
    """Returns a token of log probabilities [V]; see `Writer.tokens`."""
    if not temperature:
        return int(log_probs.argmax())
    scores = log_probs / temperature
    order = np.argsort(-scores, kind="stable")
    if top_k:
        order = order[:top_k]
    shares = np.exp(scores[order] - scores[order[0]])
    shares /= shares.sum()
    if top_p < 1:
        kept = 1 + int(np.searchsorted(shares.cumsum(), top_p))
        order, shares = order[:kept], shares[:kept] / shares[:kept].sum()
    return int(rng.choice(order, p=shares))
