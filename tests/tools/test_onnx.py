"""ONNX and StableHLO: equal to JAX, with weights once, and run without us."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from lm.data.pipeline import DataConfig
from lm.models import (
    bert,
    birnn,
    feed_forward,
    gated_cnn,
    gpt,
    rnn,
    seq2seq,
    t5,
    textcnn,
)
from lm.nn.base import replace_known
from lm.tasks import (
    answer,
    build_task,
    causal_lm,
    classify,
    pair,
    rank,
    relation,
    tag,
    text_to_text,
)
from lm.text import tokenizers
from lm.train.config import Config
from lm.train.state import init_params
from lm.train.workdir import Loaded
from lm.types import UserError
from tools.export import graph as graph_lib
from tools.export import onnx as onnx_format
from tools.export import stablehlo
from tools.export.graph import Graph, Signature
from tools.export.runtime import backends

TOKENIZER = tokenizers.train("bytes", [])
V = TOKENIZER.vocab_size
LABELS = ("a", "b", "c")
FORMATS = {"onnx": onnx_format, "stablehlo": stablehlo}
PLAIN, INT8 = Namespace(quantize="none"), Namespace(quantize="int8")


def small(kind, **options):
    sizes = {"vocab_size": V, "num_layers": 1, "emb_dim": 16, "num_heads": 2}
    return replace_known(kind(), **(sizes | {"max_len": 48} | options))


def recurrent(kind, **options):
    sizes = {"vocab_size": V, "emb_dim": 16, "max_len": 48}
    return kind.Config(**(sizes | options))


def classifier(**options):
    return classify.Config(length=24, labels=LABELS, **options)


# Each task, and each option of a model, once at least.
ENCODERS = {
    "classify": (
        small(bert.Config, norm_position="pre", activation="gelu_tanh", num_layers=2),
        classifier(kind="several", pooling="max"),
    ),
    "pair": (
        small(bert.Config, position_encoding="relative", activation="relu"),
        pair.Config(length=24, kind="number", moments=(1.0, 2.0), pooling="mean"),
    ),
    "relation": (
        small(
            *(bert.Config,),
            position_encoding="sinusoidal",
            activation="swiglu",
            window=4,
            attention_softcap=5.0,
        ),
        relation.Config(length=24, labels=LABELS, pooling="last"),
    ),
    "tag": (small(bert.Config), tag.Config(length=24, labels=LABELS)),
    "answer": (
        small(
            *(bert.Config,),
            position_encoding="rotary",
            activation="geglu",
            norm="rms",
            use_bias=False,
            num_kv_heads=1,
            qk_norm=True,
        ),
        answer.Config(length=24, stride=4, max_question_tokens=8, max_answer_tokens=4),
    ),
    "textcnn": (small(textcnn.Config, num_filters=8), classifier(pooling="max")),
    "gated_cnn": (
        small(gated_cnn.Config, num_layers=2, dilations=(1, 2)),
        classifier(pooling="last"),
    ),
    "mean": (
        small(feed_forward.Config),
        classifier(pooling="mean", hidden="relu", hidden_layers=2),
    ),
    "lstm": (
        recurrent(birnn, num_layers=2, layer_norm=True),
        classifier(pooling="max"),
    ),
    "crf": (
        recurrent(birnn, cell="gru"),
        tag.Config(length=24, labels=LABELS, crf=True),
    ),
    "dual": (
        small(bert.Config),
        rank.Config(length=24, query_length=8, pooling="attention"),
    ),
    "cross": (
        small(bert.Config),
        rank.Config(length=32, query_length=8, kind="cross"),
    ),
}
WRITERS = {
    "decoder": (
        small(
            *(gpt.Config,),
            activation="swiglu",
            num_kv_heads=1,
            logit_softcap=9.0,
            window=8,
            num_layers=2,
        ),
        causal_lm.Config(length=32),
    ),
    "prefix_lm": (
        small(gpt.Config, position_encoding="learned", norm="layer"),
        text_to_text.Config(architecture="prefix_lm", length=16, targets_length=16),
    ),
    "t5": (
        small(t5.Config, num_layers=2),
        text_to_text.Config(length=24, targets_length=16),
    ),
    "rnn": (
        recurrent(rnn, num_layers=2, hidden_dim=12),
        causal_lm.Config(length=32),
    ),
    "seq2seq": (
        recurrent(seq2seq, num_layers=2, cell="gru"),
        text_to_text.Config(length=24, targets_length=16),
    ),
}


def make(model, task, lengths=()):
    """Returns a model with weights that are far from zero."""
    task = build_task(task, TOKENIZER)
    module = task.build_model(model)
    shapes = jax.eval_shape(lambda seed: init_params(module, seed), 0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype("f4"), shapes)
    data = DataConfig(sources=("none",), tokenizer="none")
    config = Config(model=model, task=task.config, data=data)
    loaded = Loaded(config, TOKENIZER, task, module, params, 0)
    return graph_lib.build(loaded, lengths), loaded


def row(signature, seed, batch=1):
    """Returns inputs of a signature such as a text would give."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, like in signature.inputs.items():
        shape = (batch, *like.shape[1:])
        if name.startswith(("kv_cache", "cross_cache", "state", "memory")):
            value = rng.normal(size=shape)
        elif name == "input_pos":
            value = np.minimum(np.arange(like.shape[0]) + 2, 9)
        elif name == "positions":
            value = np.broadcast_to(np.arange(shape[1]), shape)
        elif name == "spans":
            value = np.sort(rng.integers(1, 9, shape), axis=-1)
        elif name == "type_ids":
            value = rng.integers(0, 2, shape)
        elif "segment_ids" in name or "mask" in name:
            value = np.broadcast_to(np.arange(shape[1]) < 5 + seed, shape)
        else:
            value = rng.integers(4, V, shape)
        found[name] = value.astype(like.dtype)
    return found


class Jax:
    """Runs a graph's functions as an artefact would."""

    def __init__(self, graph):
        self.params = jax.tree.map(jnp.asarray, graph.params)
        self.functions = {s.name: jax.jit(s.function) for s in graph.signatures}

    def run(self, signature, inputs):
        return self.functions[signature](self.params, inputs)


def written(folder, name, graph, loaded, options=PLAIN):
    """Writes an artefact's model and opens it."""
    FORMATS[name].write(folder, graph, loaded, options)
    return backends.BACKENDS[name](folder / name)


def check_equal(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert np.abs(np.asarray(value, np.float64) - found[name]).max() <= tolerance


@pytest.mark.parametrize("case", ENCODERS)
def test_encoders_predict_as_jax_does(case, tmp_path):
    graph, loaded = make(*ENCODERS[case])
    (signature,) = graph.signatures
    rows = [row(signature, seed) for seed in range(4)]
    batch = {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}
    expected = Jax(graph).run(signature.name, batch)
    model = written(tmp_path, "onnx", graph, loaded)
    check_equal(model.run(signature.name, batch | {"extra": 0}), expected)
    models = [model]
    if case in ("tag", "answer"):
        models.append(written(tmp_path, "stablehlo", graph, loaded))
    for model in models:
        for i, each in enumerate(rows):
            one = {
                name: np.asarray(value[i : i + 1]) for name, value in expected.items()
            }
            found = model.run(signature.name, each)
            check_equal(found, one)
            for name, value in one.items():
                assert (found[name].argmax(-1) == value.argmax(-1)).all()
    # It is not the same whatever the row.
    assert any(np.ptp(value, axis=0).max() > 1e-3 for value in expected.values())


def greedy(model, graph, prompt, count):
    """Returns the likeliest tokens and the logits that they had."""
    names = {s.name: s for s in graph.signatures}
    caches: dict[str, Any] = {
        name: np.zeros(like.shape, like.dtype)
        for name, like in names["decode"].inputs.items()
        if name.startswith(("kv_cache", "state"))
    }
    if graph.architecture == "encoder_decoder":
        length = names["encode"].length
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : len(prompt)] = prompt
        source = {"inputs": tokens, "segment_ids": (tokens > 0).astype(np.int32)}
        caches |= model.run("encode", source) | {"segment_ids": source["segment_ids"]}
        last, place = max(TOKENIZER.pad_id, 0), 0
    else:
        length = min(s.length for s in graph.signatures)
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : len(prompt)] = prompt
        last, place = prompt[-1], len(prompt) - 1
        places = np.minimum(np.arange(length), place).astype(np.int32)
        read = {"tokens": tokens, "input_pos": places}
        caches |= model.run(f"prefill_{length}", read | caches)
    found, logits = [], []
    for _ in range(count):
        step = {"tokens": np.full((1, 1), last, np.int32)}
        step["input_pos"] = np.full((1,), place, np.int32)
        outputs = dict(model.run("decode", step | caches))
        logits.append(np.asarray(outputs.pop("logits"))[0, 0])
        caches |= outputs
        last, place = int(logits[-1].argmax()), place + 1
        found.append(last)
    return found, np.stack(logits)


@pytest.mark.parametrize("case", WRITERS)
def test_writers_write_as_jax_does(case, tmp_path):
    # Of a decoder, one length of prompts and the whole cache.
    graph, loaded = make(*WRITERS[case], [16, 32] if case == "decoder" else [])
    prompt = np.random.default_rng(1).integers(4, V, 9)
    tokens, logits = greedy(Jax(graph), graph, prompt, 12)
    assert len(set(tokens)) > 1
    for name in FORMATS if case != "prefix_lm" else ["onnx"]:
        model = written(tmp_path, name, graph, loaded)
        found, scores = greedy(model, graph, prompt, 12)
        assert found == tokens
        assert np.abs(scores - logits).max() <= 1e-4
    if case == "decoder":
        check_rows(backends.Onnx(tmp_path / "onnx"), graph)
        (tmp_path / "int8").mkdir()
        model = written(tmp_path / "int8", "onnx", graph, loaded, INT8)
        found, scores = greedy(model, graph, prompt, 1)
        assert found == tokens[:1]
        assert np.abs(scores - logits[:1]).max() < 0.1 * logits.std()


def check_rows(model, graph):
    """Checks that prompts of one length may be read together."""
    for signature in graph.signatures:
        rows = [row(signature, seed) for seed in range(2)]
        batch = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
        batch["input_pos"] = rows[0]["input_pos"]
        together = model.run(signature.name, batch)
        for i, inputs in enumerate(rows):
            alone = model.run(signature.name, inputs)
            check_equal({k: v[i : i + 1] for k, v in together.items()}, alone)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model whose weights are more than its graph."""
    folder = tmp_path_factory.mktemp("large")
    model = small(bert.Config, vocab_size=4000, emb_dim=64, norm_position="pre")
    graph, loaded = make(model, classifier(pooling="mean"), [8, 16, 24])
    written(folder, "onnx", graph, loaded)
    written(folder, "stablehlo", graph, loaded)
    return folder, graph, loaded


def test_lengths_share_their_weights(large):
    folder, graph, _ = large
    size = sum(x.nbytes for x in jax.tree.leaves(graph.params))
    assert size > 1e6
    for name, weights in (("onnx", "weights.bin"), ("stablehlo", "weights.npz")):
        assert (folder / name / weights).stat().st_size < 1.1 * size
        files = [path for path in (folder / name).iterdir() if path.stem != "weights"]
        assert len(files) == 3 + (name == "stablehlo")
        assert sum(path.stat().st_size for path in files) < 0.2 * size


def test_onnx_files_are_valid_and_named_as_signatures(large):
    folder, graph, _ = large
    for signature in graph.signatures:
        path = folder / "onnx" / f"{signature.name}.onnx"
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load_model(path, load_external_data=False)
        inputs = {each.name: each.type.tensor_type for each in model.graph.input}
        assert inputs.keys() == signature.inputs.keys()
        assert [each.name for each in model.graph.output] == ["probabilities"]
        sizes = inputs["inputs"].shape.dim
        assert sizes[0].dim_param == "batch" and sizes[1].dim_value == signature.length
        names = {tensor.name for tensor in model.graph.initializer}
        assert any(name.endswith("token/embedding") for name in names)
        made = {node.op_type for node in model.graph.node}
        assert {"Gelu", "LayerNormalization", "Softmax"} <= made
        used = {name for node in model.graph.node for name in node.input}
        assert names <= used


def test_int8_is_a_quarter_and_close(large, tmp_path):
    folder, graph, loaded = large
    model = written(tmp_path, "onnx", graph, loaded, INT8)
    size = (folder / "onnx" / "weights.bin").stat().st_size
    assert (tmp_path / "onnx" / "weights.bin").stat().st_size < 0.28 * size
    reference = Jax(graph)
    signature = graph.signatures[-1]
    same = []
    for seed in range(12):
        inputs = row(signature, seed, batch=4)
        expected = reference.run(signature.name, inputs)["probabilities"]
        found = model.run(signature.name, inputs)["probabilities"]
        assert np.abs(found - expected).max() < 0.05
        same.append(found.argmax(-1) == expected.argmax(-1))
    assert np.mean(same) > 0.9


CHILD = """
import sys
for name in sys.argv[3].split(","):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
import backends
model = backends.open_model(sys.argv[2], num_threads=1)
inputs = dict(np.load(sys.argv[2] + "/inputs.npz"))
np.savez(sys.argv[2] + "/outputs.npz", **model.run("length_16", inputs))
"""


@pytest.mark.parametrize("name", FORMATS)
def test_artefacts_need_nothing_of_ours(large, tmp_path, name):
    folder, graph, _ = large
    shutil.copytree(folder / name, tmp_path / "made" / name)
    inputs = row(graph.signatures[1], 3)
    np.savez(tmp_path / "made" / "inputs.npz", **inputs)
    runtime = Path(backends.__file__).parent
    blocked = ",".join(FORMATS[name].BLOCKED)
    command = [sys.executable, "-c", CHILD, runtime, tmp_path / "made", blocked]
    subprocess.run([str(word) for word in command], check=True, cwd=tmp_path)
    with np.load(tmp_path / "made" / "outputs.npz") as outputs:
        check_equal(dict(outputs), Jax(graph).run("length_16", inputs))


def test_stablehlo_tells_who_wrote_it(large, tmp_path):
    folder, graph, _ = large
    about = json.loads((folder / "stablehlo" / "about.json").read_text())
    assert about["jax"] == jax.__version__
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    written = (folder / "stablehlo" / "length_8.bin").read_bytes()
    exported = jax.export.deserialize(bytearray(written))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.calling_convention_version == about["calling_convention"]
    shutil.copytree(folder / "stablehlo", tmp_path / "stablehlo")
    (tmp_path / "stablehlo" / "length_8.bin").write_bytes(b"of another time")
    model = backends.open_model(tmp_path)
    with pytest.raises(RuntimeError, match="cannot read what jax .* wrote"):
        model.run("length_8", row(graph.signatures[0], 0))


def lowered(tmp_path, function, **inputs):
    """Runs a function of inputs by ONNX, and returns what it and JAX make of them."""
    inputs = {name: np.asarray(value) for name, value in inputs.items()}
    shapes = {
        name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        for name, x in inputs.items()
    }

    def wrapped(params, batch):
        return {"out": function(**batch)}

    outputs = jax.eval_shape(wrapped, {}, shapes)
    signature = Signature("f", 1, wrapped, shapes, outputs)
    model = written(
        tmp_path, "onnx", Graph("encoder", None, False, {}, (signature,)), None
    )
    return model.run("f", inputs)["out"], wrapped({}, inputs)["out"]


X = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
I = np.array([[3], [1]], np.int32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: jnp.cumsum(x, axis=1) + jax.lax.cumsum(x, axis=2, reverse=True),
        lambda x, i: jnp.stack(jnp.split(x, [2], axis=2)[::-1][0:1], axis=1),
        lambda x, i: jnp.concatenate([x[:, ::2], x[:, 1:4]], axis=1),
        lambda x, i: jnp.take(x, i[:, 0], axis=2, mode="clip"),
        lambda x, i: jnp.take_along_axis(x, i[:, :, None], axis=1),
        lambda x, i: jax.lax.dynamic_slice_in_dim(x, i[0, 0], 4, axis=1),
        lambda x, i: jax.lax.dynamic_update_slice_in_dim(x, 2 * x[:, :4], i[0, 0], 1),
        lambda x, i: jnp.einsum("btd,bsd->bts", x, x),
        lambda x, i: jnp.einsum("btd,bud,bd->btu", x, x, x[:, 0]),
        lambda x, i: jnp.einsum("btd,de->ebt", x, X[0, :5].T @ X[0, :5]),
        lambda x, i: x @ X[1].T + jnp.linspace(0, 1, 5)[None, None],
        lambda x, i: (x > 0).any(axis=1) & ~(x > 1).all(axis=1) ^ (x[:, 0] < 0),
        lambda x, i: (10 * x).astype(jnp.int32) % 3 + jnp.sign(i)[:, :, None],
        lambda x, i: jnp.where(x != 0, x**3 / jnp.sqrt(1 + x**2) ** -0.5, jnp.inf),
        lambda x, i: jnp.floor(x) - jnp.ceil(x) + jax.nn.relu(x).min(axis=1)[:, None],
        lambda x, i: jnp.broadcast_to(i[:, :, None], x.shape).sum(axis=2),
        lambda x, i: jax.nn.one_hot(i[:, 0], 5) * x.argmax(axis=2),
        lambda x, i: jnp.full((x.shape[0], 3), 2.5),
        lambda x, i: jax.checkpoint(jnp.tanh)(x) + jax.nn.logsumexp(x, 1)[:, None],
    ],
)
def test_operations_do_as_in_jax(function, tmp_path):
    found, expected = lowered(tmp_path, function, x=X, i=I)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function, name",
    [
        (lambda x: jnp.sort(x, axis=1), "operation sort"),
        (lambda x: x.astype(jnp.int32) & 3, "operation and of truths only"),
        (lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, jnp.exp, x), "while"),
        (lambda x: x[:, jnp.int32(x[0, 0, 0]), jnp.int32(x[0, 0, 1])], "gather"),
    ],
)
def test_what_onnx_lacks_is_named(function, name, tmp_path):
    with pytest.raises(UserError, match=name) as caught:
        lowered(tmp_path, function, x=X)
    assert "\n" not in str(caught.value)
