"""Words and tags: pieces, windows, packing, schemes and odd inputs."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.files import Row
from lm.data.pipeline import one_pass
from lm.models import bert, birnn
from lm.tasks.tag import Config, Tag, scored, windows
from lm.text import tokenizers
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
MODEL = bert.Config(
    vocab_size=280,
    emb_dim=8,
    num_layers=1,
    num_heads=2,
    max_len=32,
    position_encoding="rotary",
)
BIRNN = birnn.Config(vocab_size=280, emb_dim=8, max_len=32)
TEXTS = [
    {"text": "the cat sat", "words": ["the", "cat", "sat"], "tags": ["D", "N", "V"]},
    {"text": "cats", "words": ["cats"], "tags": ["N"]},
    {"text": "a dog sat", "words": ["a", "dog", "sat"], "tags": ["D", "N", "V"]},
]
PROSE = [
    "the cat sat on the mat, and the dogs sat by the doors.",
    "a cat and a dog sat down on a cold stone, as cats and dogs do.",
]
TOKENIZERS = {
    "bytes": BYTES,
    "chars": tokenizers.train("chars", PROSE),
    "unigram": tokenizers.train("unigram", PROSE, 286),
    "byte_bpe": tokenizers.train("byte_bpe", PROSE, 270),
    "wordpiece": tokenizers.train("wordpiece", PROSE, 55),
}


def row(**fields):
    return Row({"text": "x", **fields}, "file.jsonl:7")


def make(examples=TEXTS, tokenizer=BYTES, **options):
    config = Config(**{"length": 32, **options})
    return Tag(Tag.resolve(config, examples, False), tokenizer)


def batches_of(task, documents, train, batch_size=4):
    """Makes all batches of an epoch as the pipeline does, but packed if `train`."""

    class Layout(Tag):
        def rows(self, lengths, _, seed):
            return Tag.rows(self, lengths, train, seed)

    task = Layout(task.config, task.tokenizer)
    batches = one_pass(task, documents, batch_size)
    return batches, [batches.batch(i) for i in range(batches.num_batches)]


def init(task, config=MODEL):
    model = task.build_model(config)
    _, (batch,) = batches_of(task, task.encode_inputs([{"text": "x"}]), False)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch)["params"])
    noise = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: x + 0.1 * noise.standard_normal(x.shape, np.float32), params
    )


def total(task, model, params, examples, train):
    _, batches = batches_of(task, task.encode(examples), train)
    loss = jax.jit(lambda batch: task.loss(model, params, batch, None))
    found = [loss(batch) for batch in batches]
    objective = sum(objective for objective, _ in found)
    return objective, sum(metrics["loss"].weight for _, metrics in found)


def predict(task, model, params, examples, train=False):
    batches, made = batches_of(task, task.encode_inputs(examples), train)
    rows = [[] for _ in examples]
    step = jax.jit(lambda batch: task.predict(model, params, batch))
    for number, batch in enumerate(made):
        outputs = jax.device_get(step(batch))
        for i, pieces in enumerate(batches.documents(number)):
            for piece in pieces:
                here = {name: value[i] for name, value in outputs.items()}
                rows[piece.doc].append((piece.start, here))
    return [
        task.decode(example, [output for _, output in sorted(r, key=lambda x: x[0])])
        for example, r in zip(examples, rows)
    ]


def test_tags_are_found_sorted_and_counted():
    config = make().config
    assert config.labels == ("D", "N", "V") and config.counts == (2, 3, 2)
    assert make(labels=("V", "N", "D")).config.counts == (2, 3, 2)


@pytest.mark.parametrize(
    "fields, options, message",
    [
        ({"tags": ["N"]}, {}, "file.jsonl:7 has no 'words'"),
        ({"words": ["x"]}, {}, "file.jsonl:7 has no 'tags'"),
        ({"words": ["x"], "tag": ["N"]}, {}, "did you mean 'tag'"),
        ({"words": [], "tags": []}, {}, "7: 'words' is .., not a list of one or more"),
        ({"words": "a b", "tags": ["N"]}, {}, "7: 'words' is 'a b', not a list"),
        ({"words": ["x"], "tags": "N"}, {}, "7: 'tags' is 'N', not a list"),
        ({"words": ["a", "b"], "tags": ["N"]}, {}, "7 has 2 'words' but 1 'tags'"),
        ({"words": ["x"], "tags": [None]}, {}, "7 has the tag None, which"),
        ({"words": ["x"], "tags": [["N"]]}, {}, "has the tag .'N'., which"),
        ({"words": ["x"], "tags": [""]}, {}, "has the tag '', which"),
        ({"words": ["x"], "tags": ["PER"]}, {"scheme": "bio"}, "task.scheme=bio does"),
        ({"words": ["x"], "tags": ["S-A"]}, {"scheme": "bio"}, "task.scheme=bio does"),
        ({"words": ["x"], "tags": ["B-"]}, {"scheme": "bioes"}, "has the tag 'B-'"),
    ],
)
def test_a_bad_example_is_named(fields, options, message):
    bad = row(**fields)
    with pytest.raises(UserError, match=message):
        make([bad], **options)
    good = [{"words": ["a", "b"], "tags": ["O", "B-A"]}]
    assert make(good, **options).config.labels == ("B-A", "O")
    assert Tag.resolve(Config(**options), [*good, bad], True).counts == (1, 1)
    (error,) = make(good, **options).encode([bad])
    assert isinstance(error, UserError) and "file.jsonl:7" in str(error)


def test_a_tag_that_training_never_saw_is_named():
    fine, bad = make().encode([TEXTS[1], row(words=["x"], tags=["Z"])])
    assert fine["label"].max() == 1
    assert "file.jsonl:7 has the label 'Z'" in str(bad)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(words=st.lists(st.text("catsond.,éX中🙂", min_size=1, max_size=6), max_size=6))
@settings(max_examples=30)
def test_words_are_encoded_as_inside_their_text(kind, words):
    tokenizer = TOKENIZERS[kind]
    (found,) = make(tokenizer=tokenizer).encode_inputs([{"words": words}])
    assert found["is_word"].sum() == len(words)
    inner = found["tokens"][1:-1]
    if kind != "wordpiece" or tokenizer.unk_id not in inner:
        expected = tokenizer.encode(" ".join(words))
        np.testing.assert_array_equal(inner, expected)
    # A word ends where the next begins.
    begins = np.flatnonzero(found["is_word"])
    for word, start, stop in zip(words, begins, [*begins[1:], len(inner) + 1]):
        pieces = found["tokens"][start:stop]
        if tokenizer.unk_id not in pieces:
            assert tokenizer.decode(pieces).replace(" ", "") == word


def test_without_separator_characters_are_words():
    task = make(tokenizer=TOKENIZERS["chars"], separator="")
    words = list("cat")
    (given_words, text) = task.encode_inputs([{"words": words}, {"text": " ca\tt\n"}])
    np.testing.assert_array_equal(given_words["tokens"], text["tokens"])
    assert text["is_word"].tolist() == [0, 1, 1, 1, 0]
    assert task.words_of({"text": "中 文🙂"}) == ["中", "文", "🙂"]


def test_text_alone_is_split_at_white_space():
    assert make().words_of({"text": " a  b\n中文 "}) == ["a", "b", "中文"]


def test_a_word_of_no_pieces_has_a_place():
    tokenizer = TOKENIZERS["wordpiece"]
    assert not len(tokenizer.encode("\x00"))
    (found,) = make(tokenizer=tokenizer).encode_inputs([{"words": ["\x00", "", "cat"]}])
    assert found["tokens"][1:3].tolist() == [tokenizer.unk_id] * 2
    assert found["is_word"][:4].tolist() == [0, 1, 1, 1]


@given(st.lists(st.integers(0, 60), max_size=5), st.integers(1, 30))
def test_each_token_is_scored_in_one_window(sizes, length):
    found = [np.zeros(size, int) for size in sizes]
    for text, start, stop in windows(np.array(sizes, int), length).tolist():
        assert 0 < stop - start <= length
        found[text][start:stop] += scored(start, stop, sizes[text], length)
    assert all((times == 1).all() for times in found)


@pytest.mark.parametrize("config", [MODEL, BIRNN], ids=["bert", "birnn"])
@pytest.mark.parametrize("crf", [False, True])
def test_packed_texts_do_not_see_each_other(config, crf):
    task = make(crf=crf)
    model, params = init(task, config)
    _, packed = batches_of(task, task.encode(TEXTS), True)
    assert len(packed) == 1 and packed[0]["segment_ids"].max() > 1
    together, weight = total(task, model, params, TEXTS, True)
    alone, _ = total(task, model, params, TEXTS, False)
    assert weight == 7
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_every_word_of_a_long_text_has_a_tag():
    words = [f"w{i}" for i in range(40)] + ["x" * 100, "y"]
    example = {"words": words, "tags": ["N", "V"] * 21}
    task = make([example])
    model, params = init(task)
    for train in (True, False):
        _, weight = total(task, model, params, [example], train)
        assert weight == 42
    (prediction,) = predict(task, model, params, [example])
    assert prediction["words"] == words
    assert len(prediction["tags"]) == len(prediction["probabilities"]) == 42


def test_a_prediction_is_the_likeliest_tag():
    task = make()
    model, params = init(task)
    _, (batch,) = batches_of(task, task.encode_inputs(TEXTS[1:2]), False)
    # Of the first piece of "cats".
    logits = jax.jit(model.apply)({"params": params}, batch)[0, 1]
    (prediction,) = predict(task, model, params, TEXTS[1:2])
    assert prediction["tags"] == [task.config.labels[int(logits.argmax())]]
    np.testing.assert_allclose(
        prediction["probabilities"], [jax.nn.softmax(logits).max()], rtol=1e-5
    )
    nats = -jax.nn.log_softmax(logits)[1]
    objective, _ = total(task, model, params, TEXTS[1:2], False)
    np.testing.assert_allclose(objective, nats, rtol=1e-5)


def test_tags_of_a_field_are_predicted_together():
    task = make(crf=True)
    model, params = init(task)
    (text,) = [TEXTS[0]]
    (batch,) = batches_of(task, task.encode([text]), False)[1]
    chains = model.apply({"params": params}, batch)
    # What each word says, and what follows what, in the order of D, N, V.
    unary = np.asarray(chains.unary[0])[batch["loss_mask"][0] > 0]
    begin, end = np.asarray(chains.begin), np.asarray(chains.end)
    between = np.asarray(chains.transitions)
    scores = {
        way: begin[way[0]]
        + sum(unary[place, tag] for place, tag in enumerate(way))
        + between[way[0], way[1]]
        + between[way[1], way[2]]
        + end[way[2]]
        for way in itertools.product(range(3), repeat=3)
    }
    weights = {way: np.exp(score) for way, score in scores.items()}
    all_ways, best = sum(weights.values()), max(scores, key=lambda way: scores[way])
    objective, metrics = task.loss(model, params, batch, None)
    np.testing.assert_allclose(objective, np.log(all_ways) - scores[0, 1, 2], rtol=1e-5)
    assert metrics["loss"].weight == 3
    assert metrics["accuracy"].total == sum(np.array(best) == [0, 1, 2])
    (prediction,) = predict(task, model, params, [text])
    assert prediction["tags"] == ["DNV"[tag] for tag in best]
    shares = [
        sum(w for way, w in weights.items() if way[place] == tag) / all_ways
        for place, tag in enumerate(best)
    ]
    np.testing.assert_allclose(prediction["probabilities"], shares, rtol=1e-4)


def test_a_field_learns_what_follows_what():
    # Words that say nothing: a tag is known by the one before alone.
    texts = [
        {"text": "x", "words": ["x"] * n, "tags": (["B", "A"] * n)[:n]}
        for n in (7, 5, 6)
    ]
    task = make(texts, crf=True)
    model, params = init(task)
    batches = batches_of(task, task.encode(texts), False)[1]

    def loss(crf):
        given = params | crf
        return sum(task.loss(model, given, batch, None)[0] for batch in batches)

    crf = {name: params[name] for name in ("transitions", "begin", "end")}
    step = jax.jit(jax.value_and_grad(loss))
    before, gradient = step(crf)
    for _ in range(100):
        crf = jax.tree.map(lambda p, g: p - 0.1 * g, crf, gradient)
        after, gradient = step(crf)
    assert after < 0.5 * before


def test_balanced_tags_weigh_the_same():
    task = make(class_weights="balanced")
    model, params = init(task)
    _, batches = batches_of(task, task.encode(TEXTS), True)
    _, metrics = jax.jit(lambda batch: task.loss(model, params, batch, None))(*batches)
    np.testing.assert_allclose(metrics["loss"].weight, 7, rtol=1e-6)
    assert metrics["accuracy"].weight == 7
    alone = total(task, model, params, TEXTS[1:2], False)
    np.testing.assert_allclose(alone[1], 7 / 3 / 3, rtol=1e-6)  # an N


def test_smoothing_mixes_in_the_uniform_distribution():
    plain, smooth = make(), make(label_smoothing=0.3)
    model, params = init(plain)
    _, (batch,) = batches_of(plain, plain.encode(TEXTS[1:2]), False)
    nats = -jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, batch)[0, 1])
    objective, _ = total(smooth, model, params, TEXTS[1:2], False)
    expected = 0.7 * nats[1] + 0.3 * nats.mean()
    np.testing.assert_allclose(objective, expected, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["none", "bio"])
def test_a_report_has_classes_and_the_texts_of_most_mistakes(scheme):
    examples = [
        row(words=["a", "b", "c"], tags=["B-X", "I-X", "O"]),
        row(words=["d", "e"], tags=["B-Y", "O"]),
    ]
    task = make(examples, scheme=scheme)
    tags = [["B-X", "I-X", "O"], ["O", "B-X"]]
    found = task.details(examples, [{"tags": some} for some in tags])
    (worst,) = found["worst"]
    assert worst["gold"] == ["d/B-Y", "e/O"] and worst["predicted"] == ["d/O", "e/B-X"]
    classes = {line["label"]: line for line in found["per_class"]}
    assert classes["X" if scheme == "bio" else "B-X"]["precision"] == 0.5
    matrix = dict(zip(found["confusion"]["labels"], found["confusion"]["matrix"]))
    if scheme == "bio":  # X, Y, no entity
        assert matrix == {"X": [1, 0, 0], "Y": [0, 0, 1], "no entity": [1, 0, 0]}
    else:  # B-X, B-Y, I-X, O
        assert matrix["O"] == [1, 0, 0, 1] and matrix["B-Y"] == [0, 0, 0, 1]


@pytest.mark.parametrize("separator, text", [(" ", "b c"), ("", "bc")])
def test_entities_have_their_text(separator, text):
    examples = [{"words": list("abcd"), "tags": ["O", "B-X", "I-X", "O"]}]
    task = make(examples, scheme="bio", separator=separator)
    label = jnp.array([-1, 2, 0, 1, 2, -1])
    outputs = [{"label": label, "probability": jnp.ones(6)}]
    prediction = task.decode(examples[0], outputs)
    assert prediction["tags"] == ["O", "B-X", "I-X", "O"]
    assert prediction["entities"] == [
        {"type": "X", "start": 1, "stop": 3, "text": text}
    ]
    assert "entities" not in make().decode(examples[0], [])


ODD = st.text(max_size=40)


@given(st.one_of(st.builds(lambda t: {"text": t}, ODD), st.lists(ODD, max_size=5)))
@settings(max_examples=50)
def test_predicting_takes_any_text(odd):
    example = odd if isinstance(odd, dict) else {"text": "", "words": odd}
    for kind, tokenizer in TOKENIZERS.items():
        task = make(tokenizer=tokenizer, length=16, separator=" " * (kind != "chars"))
        batches, made = batches_of(task, task.encode_inputs([example]), False, 1)
        outputs = [
            {
                "label": np.where(batch["loss_mask"][0] > 0, 1, -1),
                "probability": batch["loss_mask"][0],
            }
            for batch in made
        ]
        order = np.argsort([batches.documents(i)[0][0].start for i in range(len(made))])
        prediction = task.decode(example, [outputs[i] for i in order])
        assert prediction["tags"] == ["N"] * len(prediction["words"])


def test_what_decides_the_columns_is_in_the_encoding():
    tasks = [make(), make(labels=("V", "N", "D")), make(separator="")]
    assert len({task.encoding for task in tasks}) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scheme": "iob"}, "did you mean 'bio'"),
        ({"separator": ","}, "unknown task.separator ','"),
        ({"length": 2}, "task.length must be at least 3"),
        ({"class_weights": "x"}, "unknown task.class_weights"),
        ({"crf": True, "label_smoothing": 0.1}, "or set task.crf=False"),
        ({"crf": True, "class_weights": "balanced"}, "or set task.crf=False"),
    ],
)
def test_a_config_that_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Config(**options)
