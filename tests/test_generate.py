"""The command: what it prints, where, and what it says of mistakes."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from lm import cli, generate, sharding
from lm.data.pipeline import DataConfig
from lm.models import gpt
from lm.tasks import causal_lm
from lm.text.tokenizer import ByteTokenizer
from lm.train import loop
from lm.train import workdir as workdir_lib
from lm.train.checkpoint import Checkpoints
from lm.train.config import Config

NEW = 6


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The folder of a run that stopped before its first step."""
    folder = tmp_path_factory.mktemp("runs")
    ByteTokenizer().save(folder / "tokenizer")
    sizes = {"vocab_size": 264, "emb_dim": 16, "num_layers": 1, "num_heads": 2}
    config = Config(
        model=gpt.Config(**sizes, position_encoding="learned", max_len=64),
        task=causal_lm.Config(length=32),
        data=DataConfig(sources=("none",), tokenizer=str(folder / "tokenizer")),
    )
    run = loop.build(*workdir_lib.prepare(folder / "gpt", config))
    checkpoints = Checkpoints(folder / "gpt" / "checkpoints", config.checkpoint)
    with sharding.use(run.mesh, config.mesh):
        checkpoints.save(3, run.init(), {}, {})
    checkpoints.close()
    return folder / "gpt"


@pytest.fixture
def command(workdir, monkeypatch, capsys):
    def command(*flags, stdin=None):
        """Returns the exit status, standard output and standard error."""
        argv = ["generate", f"--workdir={workdir}", f"--max-new-tokens={NEW}", *flags]
        monkeypatch.setattr(sys, "argv", argv)
        terminal = SimpleNamespace(isatty=lambda: True)
        pipe = SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", terminal if stdin is None else pipe)
        with pytest.raises(SystemExit) as exit:
            cli.run(generate.main, generate.parser)
        return exit.value.code, *capsys.readouterr()

    return command


def generations(command, *flags, **options):
    code, out, _ = command("--json", *flags, **options)
    assert code == 0
    return json.loads(out)["generations"]


def test_json_is_one_object_on_standard_output(command):
    code, out, err = command("--json", "--prompt=ab", "--prompt=cd", "--temperature=0")
    assert code == 0
    result = json.loads(out)
    assert result["step"] == 3 and result["tokens_per_sec"] > 0
    assert [found["prompt"] for found in result["generations"]] == ["ab", "cd"]
    for found in result["generations"]:
        assert set(found) == {"prompt", "text", "tokens", "finish_reason", "log_prob"}
        assert found["tokens"] <= NEW and found["log_prob"] < 0
        assert f"{found['prompt']}{found['text']}" in err


def test_one_prompt_streams_what_it_prints_otherwise(command):
    flags = ("--prompt=ab", "--seed=5")
    [found] = generations(command, *flags)
    for more in ((), ("--no-stream",)):
        code, out, err = command(*flags, *more)
        assert (code, out) == (0, f"ab{found['text']}\n")
        assert err.startswith(f"{found['tokens']} tokens in ")


def test_prompts_come_from_files_and_pipes(command, tmp_path):
    expected = generations(command, "--prompt=ab", "--prompt=cd e", "--prompt=f")
    lines = b"ab\n\ncd e\r\nf"
    assert generations(command, stdin=lines) == expected
    (tmp_path / "prompts").write_bytes(lines)
    file = f"--prompts-file={tmp_path / 'prompts'}"
    assert generations(command, file, "--batch-size=2") == expected
    _, out, _ = command(file)
    texts = [found["prompt"] + found["text"] for found in expected]
    assert out == "\n\n".join(texts) + "\n"


def test_a_terminal_is_asked(command, monkeypatch):
    typed = iter(["ab", "cd"])

    def answer(question):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    code, out, _ = command("--top-k=3")
    a, b = generations(command, "--top-k=3", "--prompt=ab", "--prompt=cd")
    assert (code, out) == (0, f"ab{a['text']}\ncd{b['text']}\n\n")


def test_samples_and_beams(command):
    samples = generations(command, "--prompt=ab", "--num-samples=3")
    assert len({found["text"] for found in samples}) == 3
    beams = generations(command, "--prompt=ab", "--num-samples=2", "--beam=3")
    assert len({found["text"] for found in beams}) == 2
    code, out, _ = command("--prompt=ab", "--beam=3")
    assert (code, out) == (0, f"ab{beams[0]['text']}\n")


def test_a_stop_string_is_cut(command):
    [found] = generations(command, "--prompt=ab", "--temperature=0")
    stop = found["text"][2:4]
    [cut] = generations(command, "--prompt=ab", "--temperature=0", f"--stop={stop}")
    assert cut["text"] == found["text"].partition(stop)[0]
    assert cut["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--top-p=2"], "--top-p must be above 0 and at most 1"),
        (["--num-samples=0"], "--num-samples must be at least 1"),
        (["--num-samples=3", "--beam=2"], "--num-samples must be at most --beam=2"),
        (["--num-samples=3", "--temperature=0"], "leave out --num-samples"),
        (["--batch-size=0"], "--batch-size must be at least 1"),
        (["--seed=-1"], "--seed must be from 0 to"),
        (["--stop="], "--stop must not be empty"),
        (["--step=7"], "no checkpoint of step '7'"),
        (["--workdir=nowhere"], "no nowhere/config.json"),
        (["--prompt=" + "x" * 60], "needs 67 positions but the model has 64"),
        (["--prompt=\udcff"], "--prompt is not UTF-8"),
        (["--prompts-file=nowhere"], "cannot read --prompts-file=nowhere: No such"),
    ],
)
def test_mistakes_are_one_line(command, flags, message):
    code, out, err = command("--prompt=ab", *flags)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "stdin,message", [(b"\n", "no prompt; give --prompt"), (b"\xff", "is not UTF-8")]
)
def test_bad_standard_input_is_one_line(command, stdin, message):
    code, out, err = command(stdin=stdin)
    assert (code, out) == (1, "")
    assert message in err and err.count("\n") == 1
