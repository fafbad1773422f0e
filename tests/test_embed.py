"""Vectors of any workdir: what they are, files, neighbours, and mistakes."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest

from lm import cli, embed, evaluate, sharding
from lm.data.pipeline import DataConfig
from lm.models import bert, gpt
from lm.nn.heads import pool
from lm.tasks import causal_lm, rank
from lm.text import tokenizers
from lm.train import loop
from lm.train import workdir as workdir_lib
from lm.train.checkpoint import Checkpoints
from lm.train.config import Config

TEXTS = ["red sun", "a blue sea", "", "red", "x" * 99]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some texts, and the workdirs of two runs that stopped before their first step."""
    folder = tmp_path_factory.mktemp("embed")
    rows = [{"text": t, "query": t, "id": i} for i, t in enumerate(TEXTS)]
    for split in ("train", "validation"):
        lines = [json.dumps(row) for row in rows if row["text"]]
        lines += [
            json.dumps({"text": str(n), "query": str(n)[::-1]}) for n in range(99)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "input.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    tokenizers.train("bytes", []).save(folder / "bytes")
    shape = {"vocab_size": 280, "emb_dim": 8, "num_layers": 1, "num_heads": 2}
    shape |= {"max_len": 32}
    for name, model, task in (
        ("rank", bert.Config(**shape), rank.Config(length=32, query_length=16)),
        ("gpt", gpt.Config(**shape), causal_lm.Config(length=32)),
    ):
        config = Config(
            model=model,
            task=task,
            data=DataConfig(
                sources=(str(folder / "{split}.jsonl"),),
                tokenizer=str(folder / "bytes"),
                data_dir=str(folder),
            ),
            batch_size=8,
        )
        run = loop.build(*workdir_lib.prepare(folder / name, config))
        checkpoints = Checkpoints(folder / name / "checkpoints", config.checkpoint)
        with sharding.use(run.mesh, config.mesh), contextlib.closing(checkpoints):
            checkpoints.save(1, run.init(), {}, {})
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Runs the command as a shell does, and returns what it prints."""

    def run(*flags, name="rank", fails=False, command=embed):
        words = [command.__name__, f"--workdir={folder / name}", *flags]
        monkeypatch.setattr(sys, "argv", words)
        out, err = io.StringIO(), io.StringIO()
        # The command takes over signals, which are the test run's.
        monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            cli.run(command.main, command.parser)
        assert bool(ended.value.code) == fails, err.getvalue()
        if fails:
            assert "Traceback" not in err.getvalue()
            return err.getvalue().strip().splitlines()[-1]
        return out.getvalue()

    return run


def test_files_have_a_vector_for_each_text_in_order(folder, run):
    source = f"--input={folder / 'input.jsonl'}"
    run(source, f"--output={folder / 'v.npz'}", "--batch-size=8")
    run(source, f"--output={folder / 'v.jsonl'}")
    vectors = np.load(folder / "v.npz")["vectors"]
    assert vectors.shape == (5, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-4)
    rows = [json.loads(line) for line in (folder / "v.jsonl").read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [*enumerate(TEXTS)]
    np.testing.assert_allclose([row["vector"] for row in rows], vectors, atol=1e-6)
    assert not [*folder.glob(".*.tmp")]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_is_the_pooled_states_of_a_language_model(folder, run, pooling):
    loaded = workdir_lib.load(folder / "gpt")
    tokens = np.array([[loaded.tokenizer.bos_id, *loaded.tokenizer.encode("red sun")]])
    tokens = np.append(tokens[tokens >= 0], loaded.tokenizer.eos_id)[None]
    batch = {"inputs": tokens.astype(np.int32)}
    states = loaded.model.apply({"params": loaded.params}, batch, method="hidden")
    expected = np.array(pool(states, np.ones(tokens.shape, np.int32), pooling))[0]
    output = run("--text=red sun", f"--pooling={pooling}", name="gpt")
    vector = json.loads(output)["vector"]
    np.testing.assert_allclose(
        vector, expected / np.linalg.norm(expected), rtol=1e-3, atol=1e-5
    )


def test_ranks_are_among_all_texts_also_in_the_intervals(folder, run, monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", (100, 100))
    run("--split=validation", "--keep-seen", command=evaluate)
    report = json.loads((folder / "rank" / "report-validation.json").read_text())
    for row in report["scores"]:
        assert row["low"] <= row["value"] <= row["high"]


def test_the_nearest_text_is_the_text_itself(folder, run):
    corpus = f"--corpus={folder / '{split}.jsonl'}", "--corpus-split=train"
    output = run("--text=red", "--text=a blue sea", "--nearest=2", *corpus)
    for line, text in zip(output.splitlines(), ["red", "a blue sea"], strict=True):
        found = json.loads(line)
        assert found["text"] == text and len(found["nearest"]) == 2
        first, second = found["nearest"]
        assert first["text"] == text and first["cosine"] == pytest.approx(1, abs=1e-5)
        assert second["cosine"] <= first["cosine"]
    output = run("--text=red", "--nearest=99", *corpus, "--json")
    (found,) = json.loads(output)["predictions"]
    assert len({row["text"] for row in found["nearest"]}) == 99


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give either --text or --input"),
        (["--text=a", "--input=b"], "give either --text or --input"),
        (["--text=a", "--nearest=2"], "--nearest=K and --corpus=SOURCE go together"),
        (["--text=a", "--output=a.csv"], "must end in .jsonl or .npz, not '.csv'"),
        (["--text=a", "--batch-size=7"], "7 does not divide over 8 devices"),
        (["--text=a", "--pooling=men"], "did you mean 'mean'"),
        (["--text=a", "--output=/nowhere/a.npz"], "cannot write /nowhere/a.npz"),
    ],
)
def test_mistakes_are_one_line(run, flags, message):
    assert message in run(*flags, fails=True)
