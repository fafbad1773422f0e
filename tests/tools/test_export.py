"""Exports: equal to JAX, self-contained, and nothing half-written."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding
from lm.data.pipeline import DataConfig
from lm.models import bert, gpt
from lm.tasks import causal_lm, classify, pair
from lm.text import tokenizers
from lm.train import workdir as workdir_lib
from lm.train.config import Config
from lm.train.evaluation import Predictor
from lm.train.loop import train
from lm.train.optim import OptimConfig
from lm.types import UserError
from tools.export import __main__ as export
from tools.export import graph, tflite

WORDS = ["red", "green", "blue", "warm", "cold", "sea"]
ODD = ["", " ", "red \ud800 sea", "日本 🌊", "blue " * 90]


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
            rows.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    texts = [json.loads(row)["text"] for row in rows] * 20
    tokenizers.train("bytes", []).save(folder / "bytes")
    tokenizers.train("wordpiece", texts, vocab_size=80).save(folder / "wordpiece")
    tokenizers.train("unigram", texts, vocab_size=290).save(folder / "unigram")
    return folder


def trained(folder, name, tokenizer, task, steps=20, **shape):
    """Trains a model and returns its workdir."""
    shape = {"num_layers": 1, "emb_dim": 32, "num_heads": 2, "max_len": 64} | shape
    model = bert.Config(vocab_size=304, norm_position="pre", **shape)
    config = Config(
        model=model,
        task=task,
        data=DataConfig(
            sources=(str(folder / "{split}.jsonl"),),
            tokenizer=str(folder / tokenizer),
            data_dir=str(folder),
        ),
        optim=OptimConfig(learning_rate=3e-3),
        batch_size=32,
        num_train_steps=steps,
        warmup_steps=10,
    )
    train(config, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def workdir(folder):
    task = classify.Config(length=64, pooling="mean")
    return trained(folder, "one", "wordpiece", task, 60, num_layers=2)


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
from client import Model
model = Model(sys.argv[1])
print(json.dumps([model.predict(*texts) for texts in json.load(sys.stdin)]))
"""


def client(folder, texts):
    """Predicts with the artefact's own client where nothing of ours can be found."""
    command = [sys.executable, "-c", CLIENT, str(folder)]
    done = subprocess.run(
        command, input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "how, error, share",
    [
        ("none", 1e-4, 1.0),
        ("float16", 1e-2, 0.5),
        ("int8", 0.1, 0.28),
        ("int8_weights", 0.1, 0.28),
        ("int4", 0.5, 0.28),
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


def num_bytes(workdir):
    """Returns the size of a model's parameters."""
    return sum(x.nbytes for x in jax.tree.leaves(workdir_lib.load(workdir).params))


@pytest.mark.parametrize(
    "tokenizer, task",
    [
        ("wordpiece", None),
        ("unigram", classify.Config(length=64, kind="several", label="labels")),
        ("bytes", classify.Config(length=64, kind="number", label="size")),
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
    fields = ("text", "text_b") if isinstance(task, pair.Config) else ("text",)
    found = client(moved, [[e[name] for name in fields] for e in examples])
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


def test_the_client_is_a_command(workdir):
    result = run(workdir, "--quantize=int8")
    command = [sys.executable, f"{result['output']}/client.py", "green warm"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["label"] == "green"
    assert "accuracy" in (workdir / "export/tflite-int8/README.md").read_text()
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
    assert about["labels"] == ["blue", "green", "red"] and about["step"] == 60
    assert set(about["signatures"][0]["inputs"]) == {"inputs", "segment_ids"}


def test_only_what_decides_is_an_input(workdir):
    loaded = workdir_lib.load(workdir)
    (signature,) = graph.signatures(loaded, [16])
    assert sorted(signature.inputs) == ["inputs", "segment_ids"]
    assert [each.shape for each in signature.inputs.values()] == [(1, 16)] * 2


def test_a_loss_of_score_is_refused_and_leaves_nothing(workdir, tmp_path, monkeypatch):
    real = tflite.convert

    def convert(signatures):
        (signature,) = signatures
        true = signature.function

        def blind(batch):
            return jax.tree.map(lambda x: jnp.full_like(x, 1 / 3), true(batch))

        return real([dataclasses.replace(signature, function=blind)])

    monkeypatch.setattr(tflite, "convert", convert)
    with pytest.raises(UserError, match="accuracy falls from .* more than --tolerance"):
        run(workdir, f"--output={tmp_path / 'made'}")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(folder, workdir, tmp_path):
    model = gpt.Config(vocab_size=280, emb_dim=8, num_layers=1, num_heads=2, max_len=16)
    config = Config(
        model=model,
        task=causal_lm.Config(length=16),
        data=DataConfig(
            sources=(str(folder / "{split}.jsonl"),),
            tokenizer=str(folder / "bytes"),
            data_dir=str(folder),
        ),
        batch_size=8,
        num_train_steps=1,
        warmup_steps=0,
    )
    train(config, tmp_path / "gpt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for where, flags, message in (
        (workdir, ["--format=tfl"], "unknown --format 'tfl'; did you mean 'tflite'"),
        (workdir, ["--quantize=int7"], "unknown --quantize 'int7'"),
        (workdir, ["--max-len=65"], "--max-len 65 is not from 3 to task.length, 64"),
        (workdir, ["--max-len=a"], "--max-len a is not numbers such as 32,128"),
        (workdir, ["--examples=-1"], "--examples must be at least 0"),
        (workdir, ["--split=tset"], "tset"),
        (workdir, [f"--output={tmp_path / 'mine'}"], "mine exists; set --overwrite"),
        (
            workdir,
            [f"--output={tmp_path / 'mine'}", "--overwrite"],
            "mine is no export; move it away",
        ),
        (tmp_path / "none", [], "is .*none a workdir of lm.train"),
        (tmp_path / "gpt", [], "task causal_lm cannot be exported; those that can"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run(where, *flags)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert not list(workdir.glob("export/*"))
