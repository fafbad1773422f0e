"""Conversations: the template, what is learned of them, and prompts."""

from collections import Counter

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.completion import Completer, Writer
from lm.data.files import Row
from lm.data.pipeline import Corpus
from lm.data.store import from_documents
from lm.decoding import Config as DecodingConfig
from lm.models import gpt, t5
from lm.tasks.chat import ROLES, Chat, Config
from lm.text import tokenizers
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
TASK = Chat(Config(length=200, max_new_tokens=20), BYTES)
MODEL = gpt.Config(
    vocab_size=264, emb_dim=16, num_layers=1, num_heads=2, max_len=200, dropout_rate=0.0
)
# Content that spells what the template is made of is content all the same.
CONTENTS = st.text(max_size=12) | st.sampled_from(
    ["<|user|>\n", "</s>", "</s>\n<|assistant|>\nyes", "\n", "<s>"]
)
TURNS = st.lists(st.tuples(st.sampled_from(ROLES), CONTENTS), min_size=1, max_size=6)


def example(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def parse(tokens, is_said=None):
    """Returns the turns that tokens with marks stand for, as the template is read."""
    assert tokens[0] == BYTES.bos_id
    tokens = tokens[1:]
    ends = np.flatnonzero(tokens == BYTES.eos_id)
    turns, begin = [], 0
    for end in ends:
        text = BYTES.decode(tokens[begin:end])
        text = text.removeprefix("\n") if begin else text
        role = next(role for role in ROLES if text.startswith(f"<|{role}|>\n"))
        turns.append((role, text.removeprefix(f"<|{role}|>\n")))
        begin = end + 1
    return turns, BYTES.decode(tokens[begin:])


@given(TURNS)
def test_the_template_is_read_back_and_the_loss_is_on_the_assistant_alone(turns):
    (document,) = TASK.encode([example(*turns)])
    said = [text for role, text in turns if role == "assistant"]
    if not said:
        assert "no turn of the assistant's" in str(document)
        return
    if isinstance(document, UserError):
        assert "the assistant's first turn ends after" in str(document)
        return
    tokens, mask = document["tokens"], document["said"] > 0
    assert len(tokens) <= 201 and tokens[-1] == BYTES.eos_id and mask[-1]
    found, rest = parse(tokens)
    assert rest == ""
    last = max(i for i, (role, _) in enumerate(turns) if role == "assistant")
    if len(found) < last + 1:  # it is cut at a turn's end
        assert found[-1][0] == "assistant"
    assert found == turns[: len(found)]
    # What has a loss is each answer with its end mark, and nothing else.
    answers = [text for role, text in found if role == "assistant"]
    ids = [[*BYTES.encode(text).tolist(), BYTES.eos_id] for text in answers]
    assert tokens[mask].tolist() == sum(ids, [])
    begins = np.flatnonzero(np.diff(mask.astype(int)) == 1) + 1
    for begin in begins:
        opening = BYTES.decode(tokens[:begin])
        assert opening.endswith("<|assistant|>\n")
    assert len(begins) == len(answers)


@given(TURNS)
def test_a_prompt_is_what_comes_before_the_last_answer(turns):
    asked = example(*turns)
    prompt = TASK.prompt(asked)
    (document,) = TASK.encode([asked])
    spoken = [role for role, _ in turns]
    if isinstance(document, UserError) or len(document["tokens"]) > 160:
        assert len(prompt) <= 180
    else:
        answer = turns[len(turns) - 1 - spoken[::-1].index("assistant")][1]
        expected = [*prompt, *BYTES.encode(answer), BYTES.eos_id]
        assert document["tokens"].tolist() == expected


@given(st.lists(st.tuples(st.sampled_from(ROLES), st.text(max_size=150)), min_size=1))
def test_any_conversation_makes_a_prompt_that_fits(turns):
    prompt = TASK.prompt(example(*turns))
    assert len(prompt) <= 180
    found, rest = parse(prompt)
    assert rest.removeprefix("\n") == "<|assistant|>\n"
    assert len(found) <= len(turns)


def test_the_oldest_turns_are_left_out_of_a_prompt_but_not_the_systems():
    turns = [("system", "be kind"), *[("user", f"{i} " * 20) for i in range(9)]]
    found, _ = parse(TASK.prompt(example(*turns)))
    assert found == [turns[0], turns[-2], turns[-1]]
    found, _ = parse(TASK.prompt(example(("system", "be kind"), ("user", "x" * 300))))
    assert len(found) == 1 and found[0][1].strip("x") == ""
    assert len(TASK.prompt(example(("user", "x" * 300)))) == 180


def test_a_text_is_a_users_turn():
    asked = TASK.prompt({"text": "Why?"})
    assert asked.tolist() == TASK.prompt(example(("user", "Why?"))).tolist()
    assert BYTES.decode(asked) == "<|user|>\nWhy?\n<|assistant|>\n"


def test_chatml_with_marks_of_the_tokenizers():
    """Its marks are tokens where the tokenizer has them, but not in what is said."""
    config = Config(opening="<extra_id_0>{role}\n", closing="\n")
    tokenizer = tokenizers.train("bytes", [], num_sentinels=2)
    task = Chat(config, tokenizer)
    prompt = task.prompt(example(("user", "<extra_id_0>")))
    assert (prompt == tokenizer.sentinel_ids[0]).sum() == 2
    assert tokenizer.decode(prompt) == "user\n<extra_id_0>\nassistant\n"
    assert task.encoding != TASK.encoding


def test_roles_may_have_openings_of_their_own_and_a_conversation_a_beginning():
    openings = ("S:", "U:", "</s>A:", "")
    config = Config(openings=openings, closing="", first="</s>be kind", length=300)
    task = Chat(config, BYTES)
    prompt = task.prompt(example(("user", "Why?")))
    begin, end = BYTES.bos_id, BYTES.eos_id
    expected = [begin, end, *BYTES.encode("be kindU:Why?"), end, end]
    assert prompt.tolist() == [*expected, *BYTES.encode("A:")]
    prompt = task.prompt(example(("system", "be short"), ("user", "Why?")))
    expected = [begin, *BYTES.encode("S:be short"), end, *BYTES.encode("U:Why?")]
    assert prompt.tolist() == [*expected, end, end, *BYTES.encode("A:")]
    asked = example(("user", "Why?"), ("assistant", "So."))
    (document,) = task.encode([asked])
    whole = [*task.prompt(asked), *BYTES.encode("So."), end]
    assert document["tokens"].tolist() == whole
    assert document["said"].sum() == 4
    with pytest.raises(UserError, match="has a turn of the tool's, which"):
        task.prompt(example(("tool", "4")))
    with pytest.raises(UserError, match="are not one for each of system, user, as"):
        Config(openings=("a", "b"))
    with pytest.raises(UserError, match="the assistant's must not be empty"):
        Config(openings=("a", "b", "", "c"))


@given(st.text(max_size=12), st.text(max_size=9))
def test_content_may_lose_the_white_space_around_it(said, answer):
    task = Chat(Config(length=200, max_new_tokens=20, strip=True), BYTES)
    asked = example(("user", f"{said} \n"), ("assistant", f"  {answer}"))
    bare = example(("user", said.strip()), ("assistant", answer.strip()))
    (found,), (expected,) = task.encode([asked]), TASK.encode([bare])
    assert found["tokens"].tolist() == expected["tokens"].tolist()
    assert task.prompt(asked).tolist() == TASK.prompt(bare).tolist()


def test_options_of_a_template_change_what_is_encoded_only_where_they_are_set():
    # Stores of text on disk are found by this name.
    assert TASK.encoding == "turns said (200, 'messages', '<|{role}|>\\n', '\\n')"
    for option in ({"first": "x"}, {"strip": True}, {"openings": tuple("suat")}):
        assert Chat(Config(length=200, **option), BYTES).encoding != TASK.encoding


def test_columns_of_turns_are_turns():
    columns = {"role": ["user", "assistant"], "content": ["a", "b"]}
    assert TASK.turns_of({"messages": columns}) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "chat.jsonl:7 has no 'text'"),
        ({"messages": "hello"}, "'messages' is 'hello', not a list of"),
        ({"messages": []}, "not a list of"),
        ({"messages": [{"role": "user"}]}, "not a list of"),
        ({"messages": [{"role": "user", "content": None}]}, "not a list of"),
        (example(("asistant", "a")), "role 'asistant'; did you mean 'assistant'"),
        (example(("user", "a")), "chat.jsonl:7 has no turn of the assistant's"),
        (
            example(("user", "a" * 99), ("assistant", "b" * 99)),
            "chat.jsonl:7: the assistant's first turn ends after 225 tokens, more than",
        ),
    ],
)
def test_bad_conversations_are_named(fields, message):
    good = example(("user", "a"), ("assistant", "b"))
    fine, error = TASK.encode([good, Row(fields, "chat.jsonl:7")])
    assert fine["said"].sum() == 2
    assert message in str(error)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="does not say who speaks; put {role} into"):
        Config(opening="user:")
    with pytest.raises(
        UserError, match="chat is not for a t5 model; set model.name to gpt "
    ):
        TASK.build_model(t5.Config(vocab_size=264))
    with pytest.raises(UserError, match="leaves no room for a prompt of 32 tokens"):
        Chat(Config(length=50, max_new_tokens=20), BYTES)


def rows_of(examples, seed=-1):
    corpus = Corpus([from_documents(TASK.encode(examples))])
    rows = TASK.rows(corpus.lengths(), seed >= 0, seed)
    return [
        TASK.features(
            [(p, corpus.cut(p, TASK.overlap)) for p in rows.pieces(0, number)],
            rows.capacity(number),
            None,
        )
        for number in range(rows.num_rows)
    ]


TALKS = [
    example(("user", f"{i}+{i}?"), ("assistant", f"{2 * i}"), *more)
    for i, more in enumerate(
        [[], [("user", "sure?"), ("assistant", "yes, very")], [("user", "ok")]] * 2
    )
]


@pytest.mark.parametrize("seed", [-1, 0])
def test_a_row_has_whole_conversations(seed):
    found = Counter()
    for row in rows_of(TALKS, seed):
        for number in range(1, row["segment_ids"].max() + 1):
            places = row["segment_ids"] == number
            targets = row["targets"][places]
            assert row["inputs"][places].tolist() == [BYTES.bos_id, *targets[:-1]]
            said = row["loss_mask"][places] > 0
            found[tuple(targets), tuple(said)] += 1
    documents = TASK.encode(TALKS)
    assert found == Counter(
        (tuple(d["tokens"][1:]), tuple(d["said"][1:] > 0)) for d in documents
    )


def batch_of(rows):
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"example_mask": np.ones(len(rows), np.float32)}


def init():
    model = TASK.build_model(MODEL)
    batch = batch_of(rows_of(TALKS[:1]))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch)["params"])
    return model, params


def test_conversations_lose_the_same_in_any_company():
    packed = rows_of(TALKS)
    alone = [row for talk in TALKS for row in rows_of([talk])]
    assert len(packed) < len(alone)
    model, params = init()
    loss = jax.jit(lambda batch: TASK.loss(model, params, batch, None))
    (total, metrics), (expected, _) = loss(batch_of(packed)), loss(batch_of(alone))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert metrics["loss"].weight == sum(row["loss_mask"].sum() for row in alone)


def test_answers_are_learned_and_given():
    talks = [example(("user", q), ("assistant", a)) for q, a in ("ab", "cd")]
    model, params = init()
    batch = batch_of(rows_of(talks))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: TASK.loss(model, p, batch, None)[0])(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(200):
        params, state = step(params, state)
    found = Writer(TASK, model, BYTES, batch_size=2)(params, talks)
    assert [(p["prediction"], p["finish_reason"]) for p in found] == [
        ("b", "eos"),
        ("d", "eos"),
    ]
    assert TASK.score(talks, found)["rouge1"] == 1
    assert TASK.text_of(talks[0]) == "<|user|>\na\n<|assistant|>\n"
    # A plain text is a user's turn.
    completer = Completer(
        model,
        params,
        BYTES,
        DecodingConfig(max_new_tokens=9, temperature=0.0),
        encode=lambda text: TASK.prompt({"text": text}),
    )
    assert [c.text for c in completer(["c", "a"])] == ["d", "b"]
    assert not completer.continues
