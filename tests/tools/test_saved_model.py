"""SavedModels: text in and equal to JAX, where there is neither JAX nor ours."""

import functools
import io
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2

from lm import cli, decoding, sharding
from lm.completion import Completer, Writer
from lm.data.pipeline import DataConfig
from lm.models import bert, gpt, t5
from lm.tasks import build_task, causal_lm, chat, classify, pair, rank, text_to_text
from lm.text import tokenizers
from lm.text.sentencepiece_tokenizer import SentencePieceTokenizer
from lm.train.config import Config
from lm.train.evaluation import Predictor
from lm.train.state import init_params
from lm.train.workdir import Loaded
from tools.export import graph as graph_lib
from tools.export import saved_model, text_ops

WORDS = ["red", "green", "blue", "warm", "cold", "sea"]
ODD = [
    *("red sea", "", " ", "red \ud800 sea", "日本 🌊", "a\x00b\u200b", "Ünter e\u0301"),
    *(
        "\u2581 x  ",
        "don't [UNK] </s> ½",
        "green <extra_id_0> warm",
        "blue " * 90,
        "sea",
    ),
]
CHAT = chat.Config(length=40, max_new_tokens=12, opening="<{role}>")
PREFIX_LM = text_to_text.Config(architecture="prefix_lm", length=16, targets_length=12)
ENCODER = bert.Config(vocab_size=300, emb_dim=32, num_layers=1, num_heads=2, max_len=64)
DECODER = gpt.Config(vocab_size=300, emb_dim=32, num_layers=1, num_heads=2, max_len=64)
BOTH = t5.Config(vocab_size=300, emb_dim=32, num_layers=1, num_heads=2)

# What is exported: a task, a tokenizer, a model and lengths.
CASES = {
    "classes": (
        classify.Config(length=64, labels=("red", "green", "blue"), pooling="mean"),
        *("wordpiece", ENCODER, [16, 64]),
    ),
    "pairs": (
        pair.Config(length=32, kind="number", moments=(100.0, 2.0), text_b="other"),
        *("bytes", ENCODER, []),
    ),
    "decoder": (causal_lm.Config(length=40), "unigram", DECODER, [40]),
    "encoder_decoder": (
        text_to_text.Config(length=24, targets_length=16, prefix="do "),
        *("unigram", BOTH, []),
    ),
    "tokens": (PREFIX_LM, "byte_bpe", DECODER, []),
}


@pytest.fixture(scope="module")
def tokenizer_of():
    """A tokenizer of each kind."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(200)]
    sizes = {"wordpiece": 44, "unigram": 280, "bpe": 280, "byte_bpe": 270}
    made = {
        kind: tokenizers.train(kind, texts, sizes.get(kind, 0), num_sentinels=2)
        for kind in (*sizes, "chars", "bytes")
    }
    # As T5's: a space before every text, and no bytes.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=3,
        control_symbols=["<extra_id_0>", "<extra_id_1>"],
        minloglevel=2,
    )
    return made | {"foreign": SentencePieceTokenizer(model.getvalue(), {})}


def loaded_of(task, tokenizer, model):
    """Returns a model that has learned nothing, but is of many opinions."""
    task = build_task(task, tokenizer)
    module = task.build_model(model)
    rng = np.random.default_rng(0)
    params = jax.tree.map_with_path(
        lambda path, x: np.float32(
            0.15 * rng.standard_normal(x.shape) + ("scale" in str(path[-1]))
        ),
        jax.eval_shape(functools.partial(init_params, module), jnp.uint32(0)),
    )
    data = DataConfig(sources=("none",), tokenizer="none")
    config = Config(model=model, task=task.config, data=data)
    return Loaded(config, tokenizer, task, module, params, 0)


# All of as many tokens: JAX compiles for each number that is left to be written.
PROMPTS = ["cold é", "\u2581 x  ", "red 日", "sea \u200b"]


def examples_of(name):
    texts = PROMPTS if name == "decoder" else ODD
    return [{"text": a, "other": b} for a, b in zip(texts, texts[::-1])]


CHILD = """
import json, sys
for name in ("jax", "flax", "lm", "tools", "sentencepiece", "tokenizers"):
    sys.modules[name] = None
import tensorflow as tf, tensorflow_text
def plain(value):
    return value.decode() if isinstance(value, bytes) else value
def run(function, fields):
    rows = []
    for here in slice(1), slice(1, None):  # one row, and the others in a batch
        if not len(next(iter(fields.values()))[here]):
            continue
        outputs = function(**{k: tf.constant(v[here]) for k, v in fields.items()})
        values = zip(*(each.numpy().tolist() for each in outputs.values()))
        rows += [{k: plain(v) for k, v in zip(outputs, row)} for row in values]
    return rows
made = {}
for folder, jobs in json.load(sys.stdin).items():
    model = tf.saved_model.load(folder)
    made[folder] = {"names": sorted(model.signatures)}
    for name, fields in jobs.items():
        try:
            made[folder][name] = run(model.signatures[name], fields)
        except tf.errors.InvalidArgumentError as error:
            made[folder][name] = str(error)
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_of):
    """All exports, and what they make of the examples in a process of their own."""
    home = tmp_path_factory.mktemp("saved_model")
    models, jobs = {}, {}
    for name, (task, kind, model, lengths) in CASES.items():
        loaded = models[name] = loaded_of(task, tokenizer_of[kind], model)
        graph = graph_lib.build(loaded, lengths)
        (home / name).mkdir()
        saved_model.write(home / name, graph, loaded, None)
        jobs[str(home / name / "saved_model")] = jobs_of(name, loaded)
    # As in conftest.py; TensorFlow's XLA does not know all flags of JAX's.
    flags = "--xla_backend_optimization_level=0"
    if tf.__version__.startswith("2.21."):
        flags += " --xla_cpu_use_fusion_emitters=false"
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
    )
    assert not done.returncode, done.stderr[-2000:]
    outputs = dict(zip(CASES, json.loads(done.stdout).values()))
    return SimpleNamespace(home=home, models=models, outputs=outputs)


def jobs_of(name, loaded):
    """Returns the inputs of signatures."""
    examples = examples_of(name)
    texts = [cli.valid(example["text"]) for example in examples]
    match name:
        case "classes":
            (row,) = loaded.task.encode_inputs([{"text": "red sea"}])
            tokens = row["tokens"].tolist()
            rest = [0] * (16 - len(tokens))
            row = {"inputs": [tokens + rest], "segment_ids": [[1] * len(tokens) + rest]}
            return {"serving_default": {"text": texts}, "length_16": row}
        case "pairs":
            return {"serving_default": {"text": texts, "other": texts[::-1]}}
        case "tokens":
            prompts = [loaded.task.prompt(example).tolist() for example in examples]
            rows = list(zip(*itertools.zip_longest(*prompts, fillvalue=-1)))
            return {"generate_ids": {"inputs": rows}}
        case "decoder":
            long = {"text": ["blue " * 90]}
            return {"generate": {"text": texts}, "serving_default": long}
        case _:
            return {"generate": {"text": texts}}


def expected_of(name, loaded):
    """Predicts in JAX."""
    examples, task = examples_of(name), loaded.task
    if name in ("classes", "pairs"):
        mesh = sharding.build_mesh(sharding.MeshConfig())
        return Predictor(task, loaded.model, mesh, 16)(loaded.params, examples)
    if name != "decoder":
        writer = Writer(task, loaded.model, loaded.tokenizer, 16)
        return writer(loaded.params, examples)
    (size,) = {len(loaded.tokenizer.encode(text)) for text in PROMPTS}
    room = task.config.length - 1 - size
    config = decoding.Config(max_new_tokens=room, temperature=0.0)
    completer = Completer(loaded.model, loaded.params, loaded.tokenizer, config)
    return [{"prediction": completion.text} for completion in completer(PROMPTS)]


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_those_of_jax(made, name):
    loaded, outputs = made.models[name], made.outputs[name]
    found = outputs[next(iter(jobs_of(name, loaded)))]
    for one, other in zip(found, expected_of(name, loaded), strict=True):
        match name:
            case "classes":
                shares = list(other["probabilities"].values())
                assert one["label"] == other["label"]
                assert one["probabilities"] == pytest.approx(shares, abs=1e-4)
            case "pairs":
                assert one["value"] == pytest.approx(other["value"], abs=1e-4)
            case "tokens":
                assert loaded.tokenizer.decode(one["tokens"]) == other["prediction"]
            case _:
                assert one == {"prediction": other["prediction"]}
    assert len({json.dumps(one) for one in found}) >= 3  # they differ


def test_what_is_too_long_to_be_continued_is_refused(made):
    error = made.outputs["decoder"]["serving_default"]
    assert "a text has more than 39 tokens; shorten it" in error


def test_signatures_take_tokens_and_text(made):
    names = {name: outputs["names"] for name, outputs in made.outputs.items()}
    writes = ["generate", "serving_default"]
    assert names == {
        "classes": ["length_16", "length_64", "serving_default"],
        "pairs": ["ids", "serving_default"],
        "decoder": ["decode", "generate", "prefill_40", "serving_default"],
        "encoder_decoder": ["decode", "encode", *writes],
        "tokens": ["decode", "generate_ids", "prefill_16", "prefill_28"],
    }
    found = made.outputs["classes"]
    shares = found["serving_default"][0]["probabilities"]
    assert found["length_16"][0]["probabilities"] == pytest.approx(shares, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_older_tensorflow_can_read_it(made, name):
    content = (made.home / name / "saved_model" / "saved_model.pb").read_bytes()
    functions = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].graph_def
    calls = [
        node.attr
        for function in functions.library.function
        for node in function.node_def
        if node.op == "XlaCallModule"
    ]
    assert calls
    assert all(attr["version"].i == 9 for attr in calls)
    assert all(b"StableHLO_v1.8.0" in attr["module"].s for attr in calls)


def test_gelu_is_gelu():
    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    expected = jax.nn.gelu(x, approximate=False)
    np.testing.assert_allclose(saved_model.gelu(x), expected, atol=2e-6)


@pytest.fixture(scope="module")
def prediction_log():
    """`PredictionLog`, as far as a request to predict goes."""
    field = descriptor_pb2.FieldDescriptorProto
    tensor = tensor_pb2.TensorProto.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(name="log.proto", package="log")
    file.dependency.append(tensor.file.name)
    for message, fields in {
        "PredictionLog": {"predict_log": (6, ".log.PredictLog")},
        "PredictLog": {"request": (1, ".log.Request")},
        "Request": {"model_spec": (1, ".log.Spec"), "inputs": (2, ".log.Entry")},
        "Spec": {"signature_name": (3, None)},
        "Entry": {"key": (1, None), "value": (2, f".{tensor.full_name}")},
    }.items():
        made = file.message_type.add(name=message)
        for name, (number, of) in fields.items():
            made.field.add(
                name=name,
                number=number,
                type_name=of,
                type=field.TYPE_MESSAGE if of else field.TYPE_STRING,
                label=field.LABEL_REPEATED
                if name == "inputs"
                else field.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    found = pool.FindMessageTypeByName("log.PredictionLog")
    return message_factory.GetMessageClass(found)


@pytest.mark.parametrize(
    "name, signatures",
    [
        ("classes", ["serving_default"] * 2),
        ("pairs", ["serving_default"]),
        ("decoder", ["serving_default", "generate"]),
        ("tokens", ["generate_ids"] * 2),
    ],
)
def test_requests_warm_up_each_length(made, prediction_log, name, signatures):
    folder = made.home / name / "saved_model"
    file = folder / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log.FromString(record.numpy())
        for record in tf.data.TFRecordDataset([str(file)])
    ]
    requests = [log.predict_log.request for log in logs]
    assert [request.model_spec.signature_name for request in requests] == signatures
    inputs = [
        {each.key: tf.make_ndarray(each.value) for each in request.inputs}
        for request in requests
    ]
    if name == "pairs":
        assert sorted(inputs[0]) == ["other", "text"]
    if name == "classes":
        examples = [{"text": each["text"][0].decode()} for each in inputs]
        short, long = made.models[name].task.encode_inputs(examples)
        assert len(short["tokens"]) <= 16 < len(long["tokens"]) <= 64
    if name == "tokens":
        assert [each["inputs"].shape for each in inputs] == [(1, 16), (1, 27)]


KINDS = "wordpiece", "unigram", "bpe", "chars", "bytes", "foreign"


@pytest.fixture(scope="module")
def text_of(tokenizer_of):
    return {kind: text_ops.open_text(tokenizer_of[kind], False) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_encoded_as_ours_is(tokenizer_of, text_of, kind):
    codes = [c for c in range(0, 0x110000, 43) if not 0xD800 <= c < 0xE000]
    words = [f"a{chr(code)}b" for code in codes]
    texts = [cli.valid(text) for text in ODD]
    texts += [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)]
    found = text_of[kind].encode(tf.constant(texts)).to_list()
    assert found == [ids.tolist() for ids in tokenizer_of[kind].encode_batch(texts)]


def test_a_tokenizer_that_tensorflow_lacks_is_told(tokenizer_of, capsys):
    for kind, writes in (("byte_bpe", False), ("wordpiece", True)):
        assert text_ops.open_text(tokenizer_of[kind], writes) is None
        line = f"TensorFlow cannot do what this {kind} tokenizer does"
        assert line in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "task, length",
    [
        (classify.Config(length=32, labels=("a", "b")), 32),
        (pair.Config(length=24, labels=("a", "b"), text_b="other"), 24),
        (rank.Config(length=24, query_length=8), 24),
        (PREFIX_LM, 28),
        (text_to_text.Config(length=20, prefix="do "), 20),
        (CHAT, 40),
    ],
)
@pytest.mark.parametrize("kind", ["unigram", "bytes", "wordpiece"])
def test_rows_are_the_tasks(tokenizer_of, text_of, task, length, kind):
    tokenizer = tokenizer_of[kind]
    built = build_task(task, tokenizer)
    stub = SimpleNamespace(task=built, tokenizer=tokenizer)
    graph = SimpleNamespace(length=length)
    layout = saved_model.find_layout(graph, stub, text_of[kind])
    examples = [{"text": a, "other": b} for a, b in zip(ODD, ODD[1:] + ODD)]
    fields = {
        name: tf.constant([cli.valid(example[name]) for example in examples])
        for name in layout.fields
    }
    found = {name: rows.to_list() for name, rows in layout.rows(fields).items()}
    if hasattr(built, "prompt"):
        expected = [{"tokens": built.prompt(example)} for example in examples]
    else:
        expected = built.encode_inputs(examples)
    assert found["inputs"] == [row["tokens"].tolist() for row in expected]
    if task.name == "pair":
        assert found["type_ids"] == [row["type_ids"].tolist() for row in expected]


@pytest.mark.parametrize("kind", ["unigram", "bytes", "foreign"])
@pytest.mark.parametrize("spells", [True, False])
def test_tokens_are_decoded_as_completions_are(tokenizer_of, kind, spells):
    tokenizer = tokenizer_of[kind]
    sentinels = tokenizer.sentinel_ids if spells else ()
    written = [*np.flatnonzero(~tokenizer.is_special), *sentinels]
    rng = np.random.default_rng(0)
    ids = rng.choice(written, (60, 9))
    if spells:
        ids[:20, 3] = sentinels[0]
    before = np.array([[3], [tokenizer.bos_id], [tokenizer.unk_id]] * 20)[
        :, int(spells) :
    ]
    names = {i: tokenizer.token(i) for i in sentinels}

    def decode(ids):
        runs = itertools.groupby(ids, names.get)
        return "".join(
            name * len(list(run)) if name else tokenizer.decode(list(run))
            for name, run in runs
        )

    expected = [
        decode([*a, *b])[len(decode(a)) :]
        for a, b in zip(before.tolist(), ids.tolist())
    ]
    ended = np.concatenate([ids, np.full((60, 2), -1)], axis=1)
    found = text_ops.make_decode(tokenizer, spells)(
        tf.constant(before, tf.int32), tf.constant(ended, tf.int32)
    )
    assert [text.decode() for text in found.numpy()] == expected


@pytest.mark.parametrize("thresholds", [(), (0.1, 0.5, 0.9)])
def test_several_classes_have_thresholds(tokenizer_of, thresholds):
    config = classify.Config(
        kind="several", labels=("a", "b", "c"), thresholds=thresholds
    )
    shares = np.float32([[0.1, 0.5, 0.95], [0.4, 0.6, 0.1], [0, 0, 0]])
    found = saved_model.prediction(config, {"probabilities": tf.constant(shares)})
    task = build_task(config, tokenizer_of["bytes"])
    for row, names in zip(shares, found["labels"].numpy()):
        expected = task.decode({}, [{"probabilities": row}])["labels"]
        assert [name.decode() for name in names if name] == expected
