"""What an artefact has around an encoder is equal to `lm`: tokens, places, predictions.

The model runs in JAX here: what a format makes of it is another test's.
"""

import dataclasses
import functools
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import sharding
from lm.data.pipeline import DataConfig, one_pass
from lm.models import bert
from lm.tasks import (
    answer,
    build_task,
    classify,
    pair,
    rank,
    relation,
    tag,
    text_scores,
)
from lm.text import offsets, tokenizers
from lm.text.huggingface_tokenizer import HuggingFaceTokenizer
from lm.text.sentencepiece_tokenizer import SentencePieceTokenizer
from lm.text.tokenizer import MARKS
from lm.train.config import Config
from lm.train.evaluation import Predictor
from lm.train.workdir import Loaded
from tools.export import artefact, graph, runtime
from tools.export.runtime import encoders
from tools.export.runtime.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
REAL = [
    line
    for name in ("README.md", "CONTRIBUTING.md", "experiments/LOG.md")
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    if line.strip()
][:300]
CORPUS = [*REAL, "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", "naïve café 🌊"]
NAMES = ["<extra_id_0>", "<0x41>", *(n for names in MARKS.values() for n in names)]
SPELLED = " ".join(NAMES) + "".join(NAMES)
ODD = [
    *("", " ", "\n", "\0", "a\0b", "\u2581", " \u2581 a\u2581", "##", "Ġ", "\ufeff"),
    *(
        "red \ud800 sea",
        "\ud83c\udf0a",
        "日本 🌊",
        "👩‍🚀e\u0301",
        "ｆｕｌｌ",
        "\u3000x",
    ),
    *(SPELLED, "<<s>s>", "[SE[SEP]P]", "blue " * 400, "x" * 3000, "🌊" * 300),
]
TEXTS = st.lists(st.text() | st.sampled_from([*ODD[:19], *NAMES])).map("".join)


# Tokenizers.


def foreign_sentencepiece():
    """Puts a space before every text and has no bytes, as T5's does."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=200,
        user_defined_symbols=["<extra_id_0>"],
        character_coverage=0.98,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue(), {})


def marks_among_pieces():
    """Has its marks as ordinary pieces, too, as T5's `tokenizer.json` has."""
    names = ["<pad>", "</s>", "<unk>", "▁", "a", "<", "/", "s", ">", "<extra_id_0>"]
    model = hf.Tokenizer(hf.models.Unigram([(name, 0.0) for name in names], unk_id=2))
    model.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    model.decoder = hf.decoders.Metaspace()
    model.add_special_tokens([*names[:3], names[-1]])
    return HuggingFaceTokenizer(model, {})


def words():
    """Knows some words alone, and has no decoder."""
    vocab = {"[UNK]": 0, "the": 1, "a": 2, "[SEP]": 7}
    model = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token="[UNK]"))
    model.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    model.add_special_tokens(["[UNK]", "[SEP]"])
    return HuggingFaceTokenizer(model, {})


def changing_bytes():
    """Is of bytes, but changes text."""
    model = hf.Tokenizer.from_str(ours("byte_bpe")._tokenizer.to_str())
    model.normalizer = hf.normalizers.NFC()
    model.enable_truncation(3)
    model.enable_padding(length=8)
    return HuggingFaceTokenizer(model, {})


@functools.cache
def ours(kind):
    if kind == "uncased":
        return tokenizers.train("wordpiece", CORPUS, 400, normalization="nfkc_cf")
    if kind == "nfkc":
        return tokenizers.train("unigram", CORPUS, 450, normalization="nfkc")
    size = {"unigram": 450, "bpe": 450, "wordpiece": 400, "byte_bpe": 400}.get(kind, 0)
    return tokenizers.train(kind, CORPUS, size, num_sentinels=2)


KINDS = {
    **{kind: functools.partial(ours, kind) for kind in tokenizers.KINDS},
    **{kind: functools.partial(ours, kind) for kind in ("uncased", "nfkc")},
    "foreign_sentencepiece": foreign_sentencepiece,
    "marks_among_pieces": marks_among_pieces,
    "words": words,
    "changing_bytes": changing_bytes,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Returns tokenizers of a kind: `lm`'s and the runtime's."""

    @functools.cache
    def both(kind):
        folder = tmp_path_factory.mktemp(kind)
        tokenizer = KINDS[kind]()
        artefact.write(folder, {}, tokenizer)
        return tokenizer, Tokenizer(folder / "tokenizer")

    return both


def check_text(pair, text):
    expected, found = pair
    ids = found.encode(text)
    assert ids == expected.encode(text).tolist()
    assert found.decode(ids) == expected.decode(ids)
    (places,) = offsets.place(expected, [text])
    for one, other in zip(found.place(text), places, strict=True):
        np.testing.assert_array_equal(one, other)
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_text_has_the_same_tokens_and_places(both, kind):
    pair = both(kind)
    assert pair[1].lossless is pair[0].lossless
    assert len(REAL) == 300
    for text in (*REAL, *ODD):
        ids = check_text(pair, text)
        if pair[0].lossless and text.isascii():
            assert pair[1].decode(ids) == text
    assert (
        not pair[0]
        .is_special[[i for i in pair[1].encode(SPELLED) if i != pair[1].unk_id]]
        .any()
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(text=TEXTS, ids=st.lists(st.integers(-2, 500)))
def test_any_text_and_any_ids(both, kind, text, ids):
    pair = both(kind)
    check_text(pair, text)
    assert pair[1].decode(ids) == pair[0].decode(ids)
    assert pair[1].decode(np.array(ids, int)) == pair[0].decode(ids)


def test_marks_that_the_library_takes_for_text_are_cut(both):
    expected, found = both("marks_among_pieces")
    assert 1 in found._ids("a </s>a")  # what the library alone makes of it
    assert found.encode("a </s>a") == expected.encode("a </s>a").tolist()
    assert 1 not in found.encode("a </s>a")


# Tasks.

L = ("one", "two", "three")
BIO = tuple(f"{place}-{kind}" for place in "BI" for kind in "ABCD") + ("O",)
BIOES = tuple(f"{place}-{kind}" for place in "BIES" for kind in "AB") + ("O",)
# None repeats itself: of equal windows either may have the best answer.
SHORT = ["red sea", "a warm, blue sea of it", *ODD[:20], *REAL[5:8], " ".join(REAL[:9])]
ASK = {"stride": 8, "max_question_tokens": 8, "max_answer_tokens": 5}


def of_text():
    return [{"text": text, "label": "a field of no use"} for text in SHORT]


def of_pair(name):
    return [{"text": a, name: b} for a, b in zip(SHORT, [*SHORT[3:], *SHORT[:3]])]


def of_words():
    """Words that are a list, or those of a text; few, many, odd, or none."""
    lists = [SHORT, [], ["only"], ["red", 3, "\x07", "", "blue"], SHORT[0].split() * 30]
    return [{"words": each} for each in lists] + of_text()


def of_spans():
    """Spans side by side, one in the other, the same, far apart, of a long text."""
    far = "the sea " + "is very " * 20 + "blue"
    made = [
        ("a sea", [0, 1], [2, 5]),
        (far, [4, 7], [168, 172]),
        (far, [8, 10], [4, 7]),
    ]
    made.append((far, [84, 100], "[90, 94]"))
    for head, tail in itertools.product([[0, 3], [3, 9], [2, 5], [0, 9]], repeat=2):
        made.append(("日本 🌊e\u0301sea", head, tail))
    return [{"text": t, "head": head, "tail": tail} for t, head, tail in made]


def of_queries():
    return of_pair("query") + of_text()


CASES = {
    "one": (classify.Config(labels=L), "wordpiece", of_text),
    "several": (
        classify.Config(kind="several", labels=L, thresholds=(0.1, 0.5, 0.9)),
        "unigram",
        of_text,
    ),
    "several, by halves": (
        classify.Config(kind="several", labels=L),
        "foreign_sentencepiece",
        of_text,
    ),
    "number": (
        classify.Config(kind="number", moments=(3.0, 2.0), pooling="last"),
        "byte_bpe",
        of_text,
    ),
    "pair": (
        pair.Config(labels=L, text_b="other"),
        "bpe",
        functools.partial(of_pair, "other"),
    ),
    "tag": (tag.Config(labels=tuple("abcdefghi")), "wordpiece", of_words),
    "bio": (tag.Config(labels=BIO, scheme="bio"), "unigram", of_words),
    "bioes": (
        tag.Config(labels=BIOES, scheme="bioes", separator=""),
        "bytes",
        of_words,
    ),
    "relation": (relation.Config(labels=L, pooling="mean"), "wordpiece", of_spans),
    "answer": (
        answer.Config(**ASK),
        "byte_bpe",
        functools.partial(of_pair, "question"),
    ),
    "unanswerable": (
        answer.Config(unanswerable=True, threshold=0.5, question="q", **ASK),
        "foreign_sentencepiece",
        functools.partial(of_pair, "q"),
    ),
    "dual": (rank.Config(query_length=8), "unigram", of_queries),
    "cross": (
        rank.Config(kind="cross", query_length=8),
        "wordpiece",
        functools.partial(of_pair, "query"),
    ),
}
# To compile takes most of the time: models of one shape are compiled once.
LENGTHS = {"one": (16, 32), "answer": (24, 32)}


class Jax:
    """A backend that has no file."""

    def __init__(self, made):
        self._params = made.params
        self._signatures = {each.name: each for each in made.signatures}
        self._compiled = {
            name: jax.jit(each.function) for name, each in self._signatures.items()
        }
        self.used = set()

    def run(self, name, inputs):
        shapes = self._signatures[name].inputs
        taken = {key: inputs[key] for key in shapes}
        for key, value in taken.items():
            assert (value.shape, value.dtype) == (shapes[key].shape, shapes[key].dtype)
        self.used.add(name)
        return jax.device_get(self._compiled[name](self._params, taken))


def random_model(config, tokenizer):
    """Returns a model of a task whose parameters are noise."""
    task = build_task(config, tokenizer)
    shape = {"emb_dim": 16, "num_layers": 1, "num_heads": 2, "max_len": 32}
    shape |= {"scan_layers": False}  # which is quicker to compile
    run = Config(
        model=bert.Config(vocab_size=512, norm_position="pre", **shape),
        task=config,
        data=DataConfig(sources=("none",), tokenizer="none"),
    )
    model = task.build_model(run.model)
    fields = {"text": "a b", "text_b": "c", "question": "d", "query": "e"}
    fields |= {"other": "c", "q": "d", "head": [0, 1], "tail": [2, 3]}
    batch = one_pass(task, task.encode_inputs([fields]), 1).batch(0)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch)["params"])
    rng = np.random.default_rng(0)

    def noise(path, leaf):
        # What is the same for all examples is small.
        scale = 0.05 if path[-1].key == "bias" else 0.75
        return scale * rng.standard_normal(leaf.shape, np.float32)

    params = jax.tree_util.tree_map_with_path(noise, shapes)
    return Loaded(run, tokenizer, task, model, params, step=7)


def opened(folder, loaded, monkeypatch, lengths):
    """Returns the model that a folder's artefact is."""
    made = graph.build(loaded, lengths)
    about = artefact.describe(loaded, made) | {"format": "none"}
    artefact.write(folder, about, loaded.tokenizer)
    monkeypatch.setattr(runtime, "open_model", lambda folder, num_threads: Jax(made))
    return runtime.load(folder)


def check_same(found, expected):
    """Compares JSON values: numbers within 1e-5, all else equal."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            check_same(value, expected[name])
    elif isinstance(found, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected):
            check_same(*pair)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_those_of_jax(both, tmp_path, monkeypatch, name):
    config, kind, examples_of = CASES[name]
    config = dataclasses.replace(config, length=32)
    loaded = random_model(config, both(kind)[0])
    lengths = LENGTHS.get(name, (32,))
    model = opened(tmp_path, loaded, monkeypatch, lengths)
    examples = examples_of()
    mesh = sharding.build_mesh(sharding.MeshConfig(), jax.devices()[:1])
    predict = Predictor(loaded.task, loaded.model, mesh, 8)
    expected = predict(loaded.params, examples)
    for example, prediction in zip(examples, expected, strict=True):
        found = model.predict(**example)
        json.dumps(found)
        check_same(found, prediction)
    assert len(model.backend.used) == len(lengths)
    choices = {json.dumps(choice(prediction)) for prediction in expected}
    assert len(choices) > 1  # or else equality would say little


def choice(prediction):
    for name in ("label", "labels", "tags", "answer"):
        if name in prediction:
            return prediction[name]
    return prediction


def test_a_row_is_as_short_as_there_is_a_signature_for(both, tmp_path, monkeypatch):
    loaded = random_model(classify.Config(length=32, labels=L), both("bytes")[0])
    model = opened(tmp_path, loaded, monkeypatch, (8, 16, 24))
    for size, length in ((0, 8), (6, 8), (7, 16), (14, 16), (15, 24), (99, 24)):
        (row,) = model.rows(text="x" * size)
        assert row["inputs"].shape == (1, length)
        assert row["segment_ids"].sum() == min(size + 2, 24)
        assert model.run(row)["probabilities"].shape == (3,)


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("one", {}, "'text' is None, not a text"),
        ("one", {"text": 3}, "'text' is 3, not a text"),
        ("pair", {"text": "a"}, "'other' is None, not a text"),
        ("tag", {}, "'text' is None, not a text"),
        (
            "relation",
            {"text": "ab"},
            "'head' is None, not .start, stop. of",
        ),
        ("relation", {"text": "ab", "head": [1, 3]}, "'head' is .1, 3., not"),
        ("relation", {"text": "ab", "head": [0, 1], "tail": "[1"}, "'tail' is '.1', n"),
        ("answer", {"text": "a"}, "'question' is None, not a text"),
    ],
)
def test_mistakes_are_named(both, name, fields, message):
    config, kind, _ = CASES[name]
    about = {
        "task": dataclasses.asdict(config),
        "marks": {"pad": 0, "unk": 1, "bos": 2, "eos": 3},
        "signatures": [{"name": "serving_default", "length": config.length}],
    }
    model = encoders.build(None, both(kind)[1], about)
    with pytest.raises(ValueError, match=message) as caught:
        model.predict(**fields)
    assert "\n" not in str(caught.value)


@settings(max_examples=50)
@given(tags=st.lists(st.sampled_from(BIOES)))
def test_entities_are_found_as_they_are_scored(tags):
    assert encoders._entities(tags) == text_scores.entities(tags, "bioes")


ALONE = """
import json, sys
for name in ("jax", "flax", "tensorflow", "lm", "tools"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from runtime import Tokenizer, encoders
found = [Tokenizer(f"{folder}/tokenizer").encode("the sea") for folder in sys.argv[1:]]
print(json.dumps(found))
"""


def test_an_artefact_needs_nothing_of_ours(both, tmp_path):
    kinds = ("wordpiece", "unigram", "bytes")
    for kind in kinds:
        artefact.write(tmp_path / kind, {}, both(kind)[0])
    folders = [str(tmp_path / kind) for kind in kinds]
    command = [sys.executable, "-I", "-c", ALONE, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = [both(kind)[0].encode("the sea").tolist() for kind in kinds]
    assert json.loads(done.stdout) == expected
