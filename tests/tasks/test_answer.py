"""Answers: windows, places in the text, the best legal span, and odd inputs."""

import itertools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import sharding
from lm.data.files import Row
from lm.data.pipeline import Corpus
from lm.data.store import from_documents
from lm.models import bert
from lm.tasks.answer import Answer, Config
from lm.text import tokenizers
from lm.train.evaluation import Predictor
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
WORDS = tokenizers.train("wordpiece", ["the cat sat on a mat, where the dog lay."], 45)
SMALL = Config(length=32, stride=8, max_question_tokens=8, max_answer_tokens=6)
MODEL = bert.Config(vocab_size=280, emb_dim=8, num_layers=1, num_heads=2, max_len=32)


def example(text, question="who?", answer="", start=0):
    answers = [{"text": answer, "start": start}] if answer else []
    return {"text": text, "question": question, "answers": answers}


def rows_of(task, examples, inputs_only=False):
    """Returns a list of rows for each example."""
    documents = (task.encode_inputs if inputs_only else task.encode)(examples)
    corpus = Corpus([from_documents(documents)])
    rows = task.rows(corpus.lengths(), False, -1)
    found = [[] for _ in examples]
    for number in range(rows.num_rows):
        pieces = [(p, corpus.cut(p, task.overlap)) for p in rows.pieces(0, number)]
        row = task.features(pieces, rows.capacity(number), None)
        found[pieces[0][0].doc].append(row)
    return found


@st.composite
def configs(draw):
    stride, question, answer, more = (draw(st.integers(1, 12)) for _ in range(4))
    length = 3 + question + stride + answer - 1 + more - 1
    return Config("answer", length, stride, question, answer)


@given(configs(), st.integers(0, 60), st.data())
def test_a_window_holds_every_span(config, num_tokens, data):
    num_question = data.draw(st.integers(0, config.max_question_tokens))
    windows = Answer(config, BYTES).windows(
        np.array([3, num_tokens]), np.array([1, num_question])
    )
    mine = windows[windows[:, 0] == 1, 1:]
    assert len(mine) >= 1
    assert (np.diff(mine, axis=1) + num_question + 3 <= config.length).all()
    for begin in range(num_tokens):
        end = min(begin + config.max_answer_tokens, num_tokens)
        assert ((mine[:, 0] <= begin) & (end <= mine[:, 1])).any()


@st.composite
def answered(draw, alphabet):
    words = draw(st.lists(st.text(alphabet, min_size=1, max_size=4), min_size=1))
    first = draw(st.integers(0, len(words) - 1))
    answer = " ".join(words[first : first + draw(st.integers(1, 3))])
    start = len(" ".join([*words[:first], ""]))
    return example(" ".join(words), answer=answer, start=start)


TOKENIZERS = {"bytes": (BYTES, "aé☃"), "wordpiece": (WORDS, "cath,")}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_logits_at_an_answer_give_the_answer(kind, data):
    tokenizer, alphabet = TOKENIZERS[kind]
    config = Config(length=64, stride=9, max_question_tokens=8, max_answer_tokens=38)
    task = Answer(config, tokenizer)
    given_example = data.draw(answered(alphabet))
    ((answer, start),) = task.answers_of(given_example)
    (rows,) = rows_of(task, [given_example])
    outputs, is_there = [], []
    for row in rows:
        is_there.append(row["start"] > 0)
        if is_there[-1]:
            tokens = row["inputs"][row["start"] : row["end"] + 1]
            if kind == "bytes":
                assert tokenizer.decode(tokens) == answer
            assert row["type_ids"][[row["start"], row["end"]]].all()
        else:
            assert row["start"] == row["end"] == 0
        hit = {"start_logits": row["start"], "end_logits": row["end"]}
        places = np.arange(len(row["inputs"]))
        outputs.append({name: 9.0 * (places == at) for name, at in hit.items()})
    assert any(is_there)
    found = task.decode(given_example, outputs)
    assert (found["answer"], found["start"]) == (answer, start)


@given(st.integers(0, 2**32 - 1), st.integers(0, 50), st.booleans())
def test_the_best_of_all_legal_spans_is_found(seed, size, unanswerable):
    config = Config(
        length=32,
        stride=8,
        max_question_tokens=8,
        max_answer_tokens=6,
        unanswerable=unanswerable,
    )
    task = Answer(config, BYTES)
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab c"), size))
    asked = example(text)
    (rows,) = rows_of(task, [asked], inputs_only=True)
    outputs = [
        {n: rng.normal(size=len(row["inputs"])) for n in ("start_logits", "end_logits")}
        for row in rows
    ]
    scores = {}
    for number, output in enumerate(outputs):
        for a, b in itertools.product(range(size), repeat=2):
            start, stop = a + 8 * number, b + 1 + 8 * number
            inside = max(a, b) < 25 and stop <= size and 0 <= b - a < 6
            if inside and text[start] != " ":
                score = output["start_logits"][a + 6] + output["end_logits"][b + 6]
                scores[start, stop] = max(score, scores.get((start, stop), -np.inf))
    nothing = min(o["start_logits"][0] + o["end_logits"][0] for o in outputs)
    if unanswerable:
        scores[-1, -1] = nothing
    found = task.decode(asked, outputs)
    if not scores:
        assert found == {"answer": "", "score": 0.0, "start": -1}
        return
    best = max(scores, key=lambda span: scores[span])
    assert found["start"] == best[0]
    assert found["answer"] == text[slice(*best)].strip()
    total = sum(math.exp(score) for score in scores.values())
    assert found["score"] == pytest.approx(math.exp(scores[best]) / total)


def test_no_answer_must_be_as_much_better_as_the_threshold_says():
    output = {"start_logits": np.eye(16)[0] * 3, "end_logits": np.zeros(16)}
    for threshold, answer in ((2.9, ""), (3.1, "a")):
        config = Config(unanswerable=True, threshold=threshold)
        found = Answer(config, BYTES).decode(example("a"), [output])
        assert (found["answer"], found["start"]) == (answer, 0 if answer else -1)


def init(task, examples):
    (row, *_), *_ = rows_of(task, examples, inputs_only=True)
    model = task.build_model(MODEL)
    batch = {name: value[None] for name, value in row.items()}
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch)["params"])
    noise = jax.random.normal(jax.random.key(1), (MODEL.emb_dim, 2))
    params["head"]["kernel"] += noise
    return model, params


def test_loss_is_a_sum_over_real_rows():
    task = Answer(SMALL, BYTES)
    examples = [
        example("the cat sat on a mat", "what?", "cat", 4),
        example("the cat sat on a mat", "where?", "mat", 17),
    ]
    model, params = init(task, examples)
    rows = [row for found in rows_of(task, examples) for row in found]
    rows.append(task.features([], (32,), None))
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["example_mask"] = np.array([1.0, 1.0, 0.0], np.float32)
    total, metrics = jax.jit(lambda p, b: task.loss(model, p, b, None))(params, batch)
    outputs = jax.jit(lambda p, b: task.predict(model, p, b))(params, batch)
    outputs = jax.device_get(outputs)
    nats, right = [], []
    for i in range(2):
        ends = []
        for name, at in (("start_logits", "start"), ("end_logits", "end")):
            logits = outputs[name][i][(batch["type_ids"][i] > 0) | (np.arange(32) == 0)]
            before = int((batch["type_ids"][i] > 0).argmax())
            place = batch[at][i] - before + 1
            ends.append(int(logits.argmax()) == place)
            nats.append(jax.nn.logsumexp(logits) - logits[place])
        right.append(all(ends))
    np.testing.assert_allclose(total, sum(nats) / 2, rtol=1e-5)
    assert metrics["loss"].weight == metrics["accuracy"].weight == 2
    assert metrics["accuracy"].total == sum(right)


def test_long_texts_are_predicted_in_any_company():
    task = Answer(SMALL, BYTES)
    texts = ["cat", "", "a cat " * 40, "  ", "x" * 99, "中文 🙂", "the mat " * 9]
    examples = [example(text, question) for text in texts for question in ("", "q" * 9)]
    model, params = init(task, [example("cat")])
    predictor = Predictor(
        task, model, sharding.build_mesh(sharding.MeshConfig()), batch_size=8
    )
    together = predictor(params, examples)
    for asked, found in zip(examples, together, strict=True):
        (alone,) = predictor(params, [asked])
        assert alone["answer"] == found["answer"]
        assert alone["score"] == pytest.approx(found["score"], abs=1e-5)
        start = found["start"]
        assert asked["text"][start : start + len(found["answer"])] == found["answer"]
        assert (start < 0) == (not asked["text"].strip())


@given(st.text(max_size=80), st.text(max_size=20))
def test_predicting_takes_any_text(text, question):
    task = Answer(SMALL, WORDS)
    (rows,) = rows_of(task, [example(text, question)], inputs_only=True)
    for row in rows:
        assert (row["segment_ids"] > 0).sum() <= 32
    outputs = [
        {name: np.zeros(len(row["inputs"])) for name in ("start_logits", "end_logits")}
        for row in rows
    ]
    assert task.decode(example(text, question), outputs)["answer"] in text


@pytest.mark.parametrize("answer, start", [("cat", 4), (" cat", 2), (" cat ", 3)])
def test_an_answer_is_where_it_begins_or_just_behind(answer, start):
    task = Answer(SMALL, BYTES)
    (found,) = task.answers_of(example("the cat", answer=answer, start=start))
    assert found == ("cat", 4)


def test_answers_may_stand_in_columns():
    task = Answer(SMALL, BYTES)
    for name in ("start", "answer_start"):
        columns = {"text": ["a", "b"], name: np.array([0, 1], np.int32)}
        found = task.answers_of({"text": "abc", "question": "", "answers": columns})
        assert found == [("a", 0), ("b", 1)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"question": None}, "squad.json:7: 'question' is null"),
        ({"question": 5}, "squad.json:7: 'question' is 5, not a text"),
        ({"answers": None}, "squad.json:7: 'answers' is null"),
        ({"answers": "cat"}, "'answers' is 'cat', not a list of"),
        ({"answers": [{"text": "cat"}]}, "not a list of"),
        ({"answers": {"text": ["cat"], "start": []}}, "not a list of"),
        ({"answers": []}, "squad.json:7 has no answer; .* task.unanswerable=True"),
        (
            {"answers": [{"text": "cat", "start": 5}]},
            "squad.json:7: the text has no answer 'cat' at character 5",
        ),
        ({"answers": [{"text": " ", "start": 3}]}, "the text has no answer ' '"),
    ],
)
def test_bad_examples_are_named(change, message):
    task = Answer(SMALL, BYTES)
    good = example("the cat", answer="cat", start=4)
    bad = Row(good | change, "squad.json:7")
    fine, error = task.encode([good, bad])
    assert fine["answer"].tolist() == [4, 7]
    assert isinstance(error, UserError)
    with pytest.raises(UserError, match=message):
        raise error


def test_there_need_be_no_answer():
    config = Config(
        length=32,
        stride=8,
        max_question_tokens=8,
        max_answer_tokens=6,
        unanswerable=True,
    )
    task = Answer(config, BYTES)
    ((row,),) = rows_of(task, [example("the cat")])
    assert row["start"] == row["end"] == 0
    assert task.encoding != Answer(SMALL, BYTES).encoding


def test_windows_that_would_lose_answers_are_refused():
    with pytest.raises(UserError, match="leaves 21 tokens of text .* too few for"):
        Config(length=32, stride=17, max_question_tokens=8, max_answer_tokens=6)
    with pytest.raises(UserError, match="task.stride must be at least 1"):
        Config(stride=0)


def test_scores_are_those_of_the_answers():
    task = Answer(SMALL, BYTES)
    examples = [example("the cat", answer="cat", start=4)] * 2
    found = task.score(examples, [{"answer": "The cat!"}, {"answer": "dog"}])
    assert found["exact_match"] == pytest.approx(found["f1"])
    assert found["f1"] == 0.5


def test_the_worst_answers_are_told():
    task = Answer(SMALL, BYTES)
    examples = [example("the cat", answer="cat", start=4)] * 3
    answers = [("cat", 0.9), ("the", 0.2), ("t", 0.7)]
    made = [{"answer": text, "score": score} for text, score in answers]
    worst = task.details(examples, made)["worst"]
    assert [row["predicted"] for row in worst] == ["t", "the", "cat"]
    assert worst[0]["gold"] == ["cat"] and "who?" in worst[0]["text"]
