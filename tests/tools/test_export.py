"""Exports: equal to JAX, self-contained, and nothing half-written."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding
from lm.completion import Completer, Writer
from lm.data.pipeline import DataConfig
from lm.decoding import Config as DecodingConfig
from lm.models import bert, birnn, gated_cnn, gpt, rnn, seq2seq, t5, textcnn
from lm.tasks import (
    causal_lm,
    chat,
    classify,
    masked_lm,
    pair,
    rank,
    span_corruption,
    text_to_text,
)
from lm.text import tokenizers
from lm.train import workdir as workdir_lib
from lm.train.config import Config
from lm.train.evaluation import Predictor
from lm.train.loop import train
from lm.train.optim import OptimConfig
from lm.types import UserError
from tools.export import __main__ as export
from tools.export import artefact, graph, onnx, proof, tflite
from tools.export.runtime.writers import Writer as RuntimeWriter
from tools.export.runtime.writers import draw

WORDS = ["red", "green", "blue", "warm", "cold", "sea"]
ODD = ["", " ", "red \ud800 sea", "日本 🌊", "blue " * 90]
SMALL = {"num_layers": 1, "emb_dim": 32, "num_heads": 2, "max_len": 64}
BERT = bert.Config(vocab_size=304, norm_position="pre", **SMALL)
GPT = gpt.Config(vocab_size=304, **SMALL)
T5 = t5.Config(vocab_size=304, **SMALL)
RECURRENT = {"vocab_size": 304, "emb_dim": 32, "max_len": 64}
BIRNN = birnn.Config(**RECURRENT)
RNN = rnn.Config(num_layers=2, **RECURRENT)
GATED_CNN = gated_cnn.Config(num_layers=2, dilations=(1, 2), **RECURRENT)
SEQ2SEQ = seq2seq.Config(cell="gru", **RECURRENT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts whose class is their first word, and a tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    for split, number in (("train", 200), ("validation", 40)):
        rows = []
        for i in range(number):
            words = [WORDS[i % 3], *rng.choice(WORDS[3:], 4), split[0], str(i)]
            row = {"text": " ".join(words), "text_b": words[1], "label": words[0]}
            row["labels"] = words[:2]
            row["size"] = 100.0 + i % 3
            row["target"] = " ".join(words[1::-1])
            row["messages"] = [
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": row["target"]},
            ]
            rows.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    texts = [json.loads(row)["text"] for row in rows] * 20
    tokenizers.train("bytes", []).save(folder / "bytes")
    tokenizers.train("wordpiece", texts, vocab_size=80).save(folder / "wordpiece")
    made = tokenizers.train("unigram", texts, vocab_size=300, num_sentinels=8)
    made.save(folder / "unigram")
    return folder


def trained(folder, name, tokenizer, task, steps=20, model=BERT, rows=8, **shape):
    """Trains a model and returns its workdir."""
    config = Config(
        model=dataclasses.replace(model, **shape),
        task=task,
        data=DataConfig(
            sources=(str(folder / "{split}.jsonl"),),
            tokenizer=str(folder / tokenizer),
            data_dir=str(folder),
        ),
        optim=OptimConfig(learning_rate=3e-3),
        batch_size=rows,
        num_train_steps=steps,
        warmup_steps=10,
    )
    train(config, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def workdir(folder):
    task = classify.Config(length=64, pooling="mean")
    return trained(folder, "one", "wordpiece", task, 60, rows=16, num_layers=2)


@pytest.fixture(scope="module")
def recurrent(folder):
    task = classify.Config(length=64, pooling="max")
    return trained(folder, "recurrent", "wordpiece", task, 60, BIRNN, rows=16)


WRITERS = {
    "causal_lm": (GPT, causal_lm.Config(length=48)),
    "chat": (
        GPT,
        chat.Config(
            length=64,
            max_new_tokens=8,
            openings=("<|all|>\n", "<|you|>\n", "<|me|>\n", "<|it|>\n"),
            first="<|now|>\n",
            strip=True,
        ),
    ),
    "prefix_lm": (
        dataclasses.replace(GPT, position_encoding="learned"),
        text_to_text.Config(length=40, targets_length=16, architecture="prefix_lm"),
    ),
    "text_to_text": (T5, text_to_text.Config(length=40, targets_length=16)),
    "rnn": (RNN, causal_lm.Config(length=48)),
    "gated_cnn": (GATED_CNN, causal_lm.Config(length=48)),
    "seq2seq": (SEQ2SEQ, text_to_text.Config(length=40, targets_length=16)),
    "span_corruption": (T5, span_corruption.Config(length=32, targets_length=12)),
}


@pytest.fixture(scope="module")
def writer(folder):
    """Returns workdirs of tasks that write, each trained once."""

    @functools.cache
    def writer(name):
        model, task = WRITERS[name]
        return trained(folder, name, "unigram", task, 40, model)

    return writer


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Lets JAX be timed in one test alone: it takes a process that imports it."""
    times = {"latency_ms": 1.0, "peak_mb": None}
    monkeypatch.setattr(proof, "_time_jax", lambda *_: times)


def run(workdir, *flags):
    return export.main(export.parser.parse_args([f"--workdir={workdir}", *flags]))


def predictions_of(workdir, examples):
    loaded = workdir_lib.load(workdir)
    mesh = sharding.build_mesh(sharding.MeshConfig())
    return Predictor(loaded.task, loaded.model, mesh, 8)(loaded.params, examples)


CLIENT = """
import json, sys
for name in ("jax", "flax", "tensorflow", "lm", "tools"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from runtime import load
model = load(sys.argv[1])
print(json.dumps([model.predict(**fields) for fields in json.load(sys.stdin)]))
"""


def client(folder, examples, call="model.predict(**fields)"):
    """Predicts with what the artefact has, where nothing of ours can be found."""
    code = CLIENT.replace("model.predict(**fields)", call)
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(
        command, input=json.dumps(examples), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "how, error, share",
    [
        ("none", 1e-4, 1.0),
        ("float16", 1e-2, 0.5),
        ("int8", 0.1, 0.26),
        ("int8_weights", 0.1, 0.26),
        ("int8_static", 0.5, 0.26),
        ("int4", 0.5, 0.26),
    ],
)
def test_an_artefact_predicts_as_jax_does(workdir, tmp_path, how, error, share):
    result = run(workdir, f"--quantize={how}", f"--output={tmp_path / how}")
    assert result["examples"] == 40 and result["before"] > 0.9
    assert result["after"] >= result["before"] - 0.005
    assert result["max_error"] <= error
    # The rest is the graph, which has one size.
    size = (tmp_path / how / "model.tflite").stat().st_size
    assert size < share * num_bytes(workdir) + 100_000
    if how == "none":
        assert result["agreement"] == 1.0


@pytest.mark.parametrize(
    "flags",
    [
        ("--converter=tensorflow",),
        ("--format=saved_model",),
        ("--format=onnx",),
        ("--format=stablehlo",),
    ],
)
def test_every_way_predicts_as_jax_does(workdir, tmp_path, flags):
    result = run(workdir, *flags, f"--output={tmp_path / 'made'}", "--max-len=32,64")
    assert result["agreement"] == 1.0 and result["max_error"] <= 1e-4
    assert result.get("text_in", 1.0) == 1.0
    assert ("text_in" in result) == (flags == ("--format=saved_model",))


@pytest.mark.parametrize("format", ["tflite", "saved_model"])
def test_what_is_read_token_by_token_predicts_as_jax_does(recurrent, tmp_path, format):
    flags = f"--format={format}", f"--output={tmp_path / 'made'}"
    result = run(recurrent, *flags, "--max-len=32,64")
    assert result["agreement"] == 1.0 and result["max_error"] <= 1e-4


def test_loops_of_a_file_are_quantised(recurrent, tmp_path):
    result = run(recurrent, "--quantize=int8", f"--output={tmp_path / 'made'}")
    assert result["after"] >= result["before"] - 0.005
    size = (tmp_path / "made" / "model.tflite").stat().st_size
    # Unrolled, the graph alone would be several times as large.
    assert size < 0.26 * num_bytes(recurrent) + 30_000


@pytest.mark.parametrize(
    "kind, format, score",
    [
        ("dual", "tflite", "recall@1"),
        ("dual", "saved_model", "recall@1"),
        ("cross", "tflite", "order"),
    ],
)
def test_what_ranks_ranks_as_jax_does(folder, tmp_path, kind, format, score):
    task = rank.Config(length=48, kind=kind, query="text_b", query_length=12)
    workdir = trained(folder, str(tmp_path / kind), "wordpiece", task)
    result = run(workdir, f"--format={format}", f"--output={tmp_path / 'made'}")
    assert result["agreement"] == 1.0 and result["max_error"] <= 1e-4
    assert result["score"] == score and result["after"] == result["before"]


def test_filters_are_quantised(folder, tmp_path):
    sizes = {"vocab_size": 2000, "emb_dim": 64, "max_len": 64}
    model = textcnn.Config(**sizes, num_filters=64, init_stddev=0.2)
    task = classify.Config(length=64, pooling="max")
    workdir = trained(folder, "filters", "wordpiece", task, 60, model, rows=16)
    result = run(workdir, "--quantize=int8", f"--output={tmp_path / 'made'}")
    assert result["before"] > 0.9 and result["after"] >= result["before"] - 0.005
    size = (tmp_path / "made/model.tflite").stat().st_size
    assert size < 0.26 * num_bytes(workdir) + 20_000


def test_a_bundle_writes_as_jax_does(writer, tmp_path):
    result = run(writer("chat"), "--format=litertlm", f"--output={tmp_path / 'made'}")
    assert result["agreement"] == 1.0 and result["examples"] == 40


def num_bytes(workdir):
    """Returns the size of a model's parameters."""
    return sum(x.nbytes for x in jax.tree.leaves(workdir_lib.load(workdir).params))


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_writes_as_jax_does(writer, tmp_path, name):
    result = run(writer(name), f"--output={tmp_path / name}")
    assert result["agreement"] == 1.0 and result["after"] == result["before"]
    assert result["max_error"] < 1e-3  # log p, summed over all tokens
    loaded = workdir_lib.load(writer(name))
    texts = ["red sea", "cold <extra_id_0> sea", *ODD[:4]]
    call = "model.predict(**fields)"
    if name in ("causal_lm", "rnn", "gated_cnn", "span_corruption"):
        call = "{'prediction': model.generate(fields['text'], 12)}"
        config = DecodingConfig(max_new_tokens=12, temperature=0.0)
        complete = Completer(loaded.model, loaded.params, loaded.tokenizer, config)
        expected = [found.text for found in complete(texts)]
    else:
        write = Writer(loaded.task, loaded.model, loaded.tokenizer, 8)
        found = write(loaded.params, [{"text": text} for text in texts])
        expected = [prediction["prediction"] for prediction in found]
    made = client(tmp_path / name, [{"text": text} for text in texts], call)
    assert [prediction["prediction"] for prediction in made] == expected


def test_a_conversation_is_read_as_in_jax(writer, tmp_path):
    run(writer("chat"), f"--output={tmp_path / 'chat'}", "--quantize=int8")
    loaded = workdir_lib.load(writer("chat"))
    given, expected = [], []
    said = [("user", "red"), ("assistant", "sea"), ("user", "cold " * 9)]
    for turns in (
        said[:1],
        said,
        [("system", "warm"), *said, *said, *said],
        [("user", "blue " * 90)],
        [("system", "warm " * 40), ("user", "blue " * 90)],
    ):
        messages = [{"role": role, "content": content} for role, content in turns]
        expected.append(loaded.task.prompt({"messages": messages}).tolist())
        given.append({"messages": messages})
    call = "list(map(int, model.prompt(**fields)))"
    assert client(tmp_path / "chat", given, call) == expected


@pytest.mark.parametrize(
    "tokenizer, task",
    [
        ("wordpiece", None),
        ("wordpiece", pair.Config(length=32)),
    ],
)
def test_the_client_needs_neither_jax_nor_us(
    folder, workdir, tmp_path, tokenizer, task
):
    if task:
        workdir = trained(folder, str(tmp_path / "run"), tokenizer, task)
    run(workdir, "--max-len=16,32", f"--output={tmp_path / 'made'}", "--tolerance=1")
    moved = shutil.move(tmp_path / "made", tmp_path / "elsewhere")
    examples = [{"text": text, "text_b": "warm"} for text in ("red sea", *ODD)]
    found = client(moved, examples)
    expected = predictions_of(workdir, examples)
    for one, other, example in zip(found, expected, examples):
        if len(example["text"]) > 90:
            continue  # the longest signature is shorter than the model's rows
        assert one.keys() == other.keys()
        assert all(one[key] == other[key] for key in one if "label" in key)
        for name, number in numbers(other).items():
            assert numbers(one)[name] == pytest.approx(number, abs=1e-3)


def numbers(prediction):
    return prediction.get("probabilities", {"value": prediction.get("value")})


def test_the_client_is_a_command(workdir, monkeypatch):
    monkeypatch.undo()  # JAX is timed, too
    result = run(workdir, "--quantize=int8")
    assert result["jax_latency_ms"] > 0 and result["jax_peak_mb"] > result["peak_mb"]
    command = [sys.executable, f"{result['output']}/client.py", "green warm"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["label"] == "green"
    assert "accuracy" in (workdir / "export/tflite-int8/README.md").read_text()
    for arguments, message in (
        ([], "Each argument is a text"),
        (["{broken"], "error: Expecting property name"),
        (["green"], "tokenizer has neither tokenizer.json nor tokenizer.model"),
    ):
        if arguments == ["green"]:
            (workdir / "export/tflite-int8/tokenizer/tokenizer.json").unlink()
        done = subprocess.run(command[:2] + arguments, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr
        assert "Traceback" not in done.stderr
    shutil.rmtree(workdir / "export")


def test_lengths_share_their_weights(workdir, tmp_path):
    run(workdir, f"--output={tmp_path / 'one'}")
    run(workdir, "--max-len=16,32,64", f"--output={tmp_path / 'three'}")
    sizes = [
        (tmp_path / name / "model.tflite").stat().st_size for name in ("one", "three")
    ]
    assert sizes[1] - sizes[0] < 2 * num_bytes(workdir)
    about = json.loads((tmp_path / "three" / "signature.json").read_text())
    assert [s["length"] for s in about["signatures"]] == [16, 32, 64]
    assert about["task"]["labels"] == ["blue", "green", "red"] and about["step"] == 60
    assert set(about["signatures"][0]["inputs"]) == {"inputs", "segment_ids"}


def test_only_what_decides_is_an_input(workdir):
    loaded = workdir_lib.load(workdir)
    (signature,) = graph.build(loaded, [16]).signatures
    assert sorted(signature.inputs) == ["inputs", "segment_ids"]
    assert [each.shape for each in signature.inputs.values()] == [(1, 16)] * 2


def test_a_loss_of_score_is_refused_and_leaves_nothing(workdir, tmp_path, monkeypatch):
    real = tflite.convert

    def convert(made):
        (signature,) = made.signatures
        true = signature.function

        def blind(params, batch):
            return jax.tree.map(lambda x: jnp.full_like(x, 1 / 3), true(params, batch))

        blinded = dataclasses.replace(signature, function=blind)
        return real(dataclasses.replace(made, signatures=(blinded,)))

    monkeypatch.setattr(tflite, "convert", convert)
    with pytest.raises(UserError, match="accuracy falls from .* more than --tolerance"):
        run(workdir, f"--output={tmp_path / 'made'}")
    assert not list(tmp_path.iterdir())


def test_a_loss_is_blamed_on_its_layer(workdir, tmp_path):
    loaded = workdir_lib.load(workdir)
    # One weight of a row that is far from the others leaves these no bits.
    kernel = loaded.params["backbone"]["encoder"]["layers"]["mlp"]["wi"]["kernel"]
    spoilt = kernel.at[1, 0].add(5.0)
    loaded.params["backbone"]["encoder"]["layers"]["mlp"]["wi"]["kernel"] = spoilt
    options = export.parser.parse_args([f"--workdir={workdir}", "--quantize=int4"])
    made = graph.build(loaded)
    artefact.write(tmp_path, artefact.describe(loaded, made), loaded.tokenizer)
    found = tflite.cause(tmp_path, made, loaded, options)
    assert found.startswith("layers_1/mlp/wi, which alone changes an output by")


def test_an_operation_that_a_format_lacks_is_one_line(workdir):
    made = graph.build(workdir_lib.load(workdir), [16])
    (signature,) = made.signatures

    def transform(params, batch):
        return {"waves": jnp.fft.fft2(batch["inputs"] * params["backbone"]["x"]).real}

    params = {"backbone": {"x": np.ones((), np.float32)}}
    signature = dataclasses.replace(signature, function=transform)
    broken = dataclasses.replace(made, params=params, signatures=(signature,))
    for convert, message in (
        (tflite.convert, "TF Lite has no operation for this model"),
        (lambda graph: onnx.convert(*graph.signatures, graph.params), "operation fft"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            convert(broken)
        assert "\n" not in str(caught.value)


def test_sampling_draws_what_it_may():
    log_probs = np.log([0.4, 0.3, 0.2, 0.1])
    rng = np.random.default_rng(0)

    def draws(**options):
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
        return {draw(log_probs, rng=rng, **options) for _ in range(200)}

    assert draws() == {0, 1, 2, 3}
    assert draws(top_k=2) == {0, 1}
    assert draws(top_p=0.65) == {0, 1} and draws(top_p=0.75) == {0, 1, 2}
    assert draws(temperature=0.0) == draws(temperature=1e-3) == {0}


def test_a_writer_refuses_what_it_cannot_do():
    about = {
        "architecture": "decoder",
        "task": {"name": "causal_lm"},
        "marks": {"bos": 2, "eos": 3, "pad": 0},
        "writing": {"forbidden": []},
        "signatures": [{"name": "prefill_4", "length": 4, "inputs": {}}],
    }
    writer = RuntimeWriter(None, None, about)
    for call, message in (
        (lambda: writer.predict(), "'text' is None, not a text"),
        (lambda: next(writer.tokens([2], temperature=-1)), "temperature=-1"),
        (lambda: next(writer.tokens([2], temperature=np.nan)), "temperature=nan"),
        (lambda: next(writer.tokens([2], max_new_tokens=-1)), "max_new_tokens=-1"),
        (lambda: next(writer.tokens([2] * 5)), "5 tokens; the model reads 1 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_mistakes_are_one_line(folder, workdir, writer, tmp_path):
    bert_lm = trained(folder, "mlm", "wordpiece", masked_lm.Config(length=16), 10)
    shutil.copytree(workdir, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "checkpoints")
    shutil.copytree(bert_lm / "checkpoints", tmp_path / "mixed" / "checkpoints")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (folder / "words.jsonl").write_text('{"text": "red"}\n' * 3)
    for where, flags, message in (
        (workdir, ["--format=tfl"], "unknown --format 'tfl'; did you mean 'tflite'"),
        (workdir, ["--quantize=int7"], "unknown --quantize of tflite 'int7'"),
        (workdir, ["--max-len=65"], "--max-len 65 is not from 3 to task.length, 64"),
        (workdir, ["--max-len=a"], "--max-len a is not numbers such as 32,128"),
        (workdir, ["--examples=-1"], "--examples must be at least 0"),
        (workdir, ["--split=tset"], "tset"),
        (
            workdir,
            [f"--output={tmp_path / 'mine'}", "--overwrite"],
            "mine has no signature.json; move it away",
        ),
        (tmp_path / "mixed", [], "is of another model: .* is missing there"),
        (tmp_path / "none", [], "is .*none a workdir of lm.train"),
        (bert_lm, [], "task masked_lm predicts nothing that can be exported"),
        (workdir, ["--calibration=a.jsonl"], "--calibration is for"),
        (
            workdir,
            ["--quantize=int8_static", f"--calibration={folder / 'words.jsonl'}"],
            "words.jsonl:1 has no 'label'",
        ),
        (writer("chat"), ["--quantize=int8_static"], "is for a model that reads"),
        (workdir, ["--format=onnx", "--converter=tensorflow"], "--converter is for"),
        (
            workdir,
            ["--format=onnx", "--quantize=int4"],
            "--quantize of onnx",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run(where, *flags)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert not list(workdir.glob("export/*"))
