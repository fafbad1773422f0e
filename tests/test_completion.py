"""From prompts to tokens and back to text, with a model that writes what it is told."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import decoding
from lm.completion import CHUNK, Completer
from lm.models import MODELS, build_model
from lm.text.tokenizer import ByteTokenizer
from lm.train.state import init_params
from lm.types import UserError

SIZES = {"vocab_size": 300, "emb_dim": 16, "num_layers": 1, "num_heads": 2}


class Actor(nn.Module):
    """Writes what an encoder read, or else the token of each place in a script."""

    config: SimpleNamespace

    def setup(self):
        self.script = self.param("script", nn.initializers.zeros, (99,), jnp.int32)

    def prefill(self, batch, cache_len):
        length = batch["segment_ids"].sum(axis=1)
        lines = batch.get("encoder_inputs")
        if lines is None:
            lines = jnp.broadcast_to(self.script[None], (len(length), 99))
        else:
            lines = jnp.roll(lines, 1, axis=1)
        return self._logits(length, lines), lines[None]

    def step(self, tokens, positions, cache):
        return self._logits(positions + 1, cache[0]), cache

    def _logits(self, length, lines):
        tokens = jnp.take_along_axis(lines, length[:, None], axis=1)[:, 0]
        return 9.0 * jax.nn.one_hot(tokens, self.config.vocab_size)


class Reader(Actor):
    """Writes what its encoder read."""

    architecture = "encoder_decoder"


class Config(SimpleNamespace):
    """Hashable, as a model's config is."""

    __hash__ = object.__hash__


def act(text="", stop=(), tokenizer=None, script=(), encoder=False, **options):
    """Returns a completer that continues a letter by the text, or follows a script."""
    tokenizer = tokenizer or ByteTokenizer(num_sentinels=3)
    # The mark of a text's beginning and a letter come before the text.
    script = script or [0, 0, *tokenizer.encode(text), tokenizer.eos_id]
    params = {"script": jnp.array(np.resize(script, 99), jnp.int32)}
    config = Config(name="actor", vocab_size=300, position_limit=None)
    model = (Reader if encoder else Actor)(config)
    options = decoding.Config(**{"temperature": 0, "max_new_tokens": 64} | options)
    return Completer(model, params, tokenizer, options, stop)


def stream(completer, prompt="x"):
    pieces = []
    [found] = completer([prompt], show=pieces.append)
    assert "".join(pieces) == found.text
    [whole] = completer([prompt])
    assert (whole.text, whole.tokens) == (found.text, found.tokens)
    assert whole.finish_reason == found.finish_reason
    return found, pieces


def test_the_end_mark_is_counted_and_not_shown():
    found, pieces = stream(act("hello"))
    assert (found.text, found.tokens, found.finish_reason) == ("hello", 6, "eos")
    assert [piece for piece in pieces if piece] == list("hello")


def test_length_ends_a_text():
    found, _ = stream(act("hello", max_new_tokens=3))
    assert (found.text, found.tokens, found.finish_reason) == ("hel", 3, "length")


@pytest.mark.parametrize(
    "stop,text,tokens",
    [
        (["lo w"], "hel", 7),
        (["zzz", "wor", "o"], "hell", 5),
        (["h"], "", 1),
        (["world!"], "hello world", 12),
        (["ello wx"], "hello world", 12),
    ],
)
def test_stop_strings_end_a_text_before_them(stop, text, tokens):
    found, _ = stream(act("hello world", stop))
    assert (found.text, found.tokens) == (text, tokens)
    assert found.finish_reason == ("eos" if tokens == 12 else "stop")


def test_a_stop_string_may_lie_across_two_chunks():
    text = "-" * (CHUNK - 2) + "STOP" + "-" * 20
    found, _ = stream(act(text, ["STOP"]))
    assert (found.text, found.tokens) == ("-" * (CHUNK - 2), CHUNK + 2)


def test_only_whole_characters_are_shown():
    found, pieces = stream(act("né 日本 🙂!"))
    assert found.text == "né 日本 🙂!"
    assert [piece for piece in pieces if piece] == list("né 日本 🙂!")


def test_bytes_that_are_no_character_are_shown_at_the_end():
    found, pieces = stream(act("aé", max_new_tokens=2))
    assert found.text == "a\ufffd" and pieces[-1] == "\ufffd"


class Foreign(ByteTokenizer):
    """As SentencePiece by its defaults, drops the space before the first word."""

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


def test_the_first_space_of_a_continuation_stays():
    found, _ = stream(act(" hello", tokenizer=Foreign()))
    assert found.text == " hello"


def test_an_encoder_decoder_answers_and_knows_sentinels():
    prompt = "a <extra_id_0> b<extra_id_2><extra_id_2>"
    [found] = act("", encoder=True)([prompt])
    assert (found.text, found.finish_reason) == (prompt, "eos")
    assert found.tokens == len("a  b") + 3 + 1


def test_a_decoder_reads_a_sentinel_as_text():
    prompt = "<extra_id_0>"
    script = [0] * (1 + len(prompt)) + [*ByteTokenizer(3).encode("ok"), 3]
    assert act(script=script)([prompt])[0].text == "ok"


@pytest.mark.parametrize("banned", [0, 1, 2, 4, 5, 299])
def test_no_mark_but_the_end_is_written(banned):
    # Then all other tokens tie, and the end is the first of these.
    [found] = act(script=[banned])(["x"])
    assert (found.tokens, found.finish_reason) == (1, "eos")


def test_an_empty_prompt_starts_from_a_mark():
    assert act("abc")([""])[0].finish_reason == "eos"
    tokenizer = ByteTokenizer()
    tokenizer.bos_id = -1
    assert act("abc", tokenizer=tokenizer)([""])[0].finish_reason == "eos"
    completer = act("abc", tokenizer=tokenizer)
    tokenizer.eos_id = -1
    with pytest.raises(UserError, match="an empty prompt needs a tokenizer with"):
        completer([""])


# --- Real models --------------------------------------------------------------------


def real(name="gpt", seed=0, options=None, **config):
    model = build_model(MODELS[name][0](**SIZES | config))
    params = jax.jit(init_params, static_argnums=0)(model, 0)
    options = options or decoding.Config(max_new_tokens=12)
    return Completer(model, params, ByteTokenizer(2), options, seed=seed)


def texts(completions):
    return [completion.text for completion in completions]


def test_a_text_depends_on_its_prompt_seed_and_sample_alone():
    completer = real()
    prompts = ["one", "a prompt that is longer than the others", "two", "one"]
    together = texts(completer(prompts, 2))
    assert together[0:2] == together[6:8]
    assert len(set(together)) == 6
    for i, prompt in enumerate(prompts[:3]):
        assert texts(completer([prompt], 2)) == together[2 * i : 2 * i + 2]
    assert texts(completer(prompts[:1])) == together[:1]
    assert texts(real(seed=1)(prompts, 2)) != together


def test_beams_are_the_best_texts_in_order():
    options = decoding.Config(max_new_tokens=5, beam_size=3)
    completer = real("t5", options=options)
    found = completer(["one", "two"], 2)
    assert [completion.prompt for completion in found] == ["one", "one", "two", "two"]
    for a, b in (found[:2], found[2:]):
        assert a.text != b.text
        assert a.log_prob >= b.log_prob or a.tokens != b.tokens


def test_a_model_that_writes_no_text_is_refused():
    with pytest.raises(UserError, match="a bert model does not write text"):
        real("bert")


@pytest.mark.parametrize("name,longest", [("gpt", 27), ("t5", 39)])
def test_learned_positions_bound_the_length(name, longest):
    completer = real(name, position_encoding="learned", max_len=40)
    with pytest.raises(UserError, match="needs 41 positions but the model has 40"):
        completer(["x" * (longest + 1)])
    assert completer(["x" * longest])[0].tokens > 0


def test_other_positions_do_not():
    assert real(max_len=20)(["x" * 30])[0].tokens > 0
