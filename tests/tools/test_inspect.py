import json

import pytest

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import gpt
from lm.tasks import causal_lm
from lm.text import tokenizers
from lm.train.config import Config
from lm.types import UserError
from tools import inspect


@pytest.fixture
def workdir(tmp_path):
    config = Config(
        model=gpt.Config(vocab_size=300, emb_dim=16, num_layers=2, num_heads=2),
        task=causal_lm.Config(length=32),
        data=DataConfig(sources=("x",), tokenizer="y"),
    )
    (tmp_path / "config.json").write_text(json.dumps(to_config_dict(config).to_dict()))
    tokenizers.train("bytes", []).save(tmp_path / "tokenizer")
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "checkpoints" / "damaged-10").mkdir()
    lines = [
        {"step": 10, "train/loss": 3.0, "perf/tokens_per_sec": 5.0},
        {"step": 20, "train/loss": 2.0, "perf/tokens_per_sec": 7.0},
        {"step": 20, "eval/validation/loss": 2.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 30, "trai')
    return tmp_path


def test_tells_what_is_there(workdir):
    found = inspect.describe(workdir)
    assert found["model"] == "gpt" and found["task"] == "causal_lm"
    assert found["step"] == 20 and found["checkpoints"] == [20]
    assert found["train/loss"] == 2.0 and found["eval/validation/loss"] == 2.5
    # 300 x 16 embeddings; a layer has 4 x 16 x 16 of attention, 2 x 16 x 64 and norms.
    assert found["parameters"] == 300 * 16 + 2 * (1024 + 2048 + 32) + 16


def test_prints_a_column_for_each_workdir(workdir, capsys):
    args = inspect.parser.parse_args([str(workdir), str(workdir)])
    assert len(inspect.main(args)["workdirs"]) == 2
    assert "eval/validation/loss" in capsys.readouterr().out


def test_a_folder_that_is_no_workdir_is_named(tmp_path):
    with pytest.raises(UserError, match="is .* a workdir of lm.train"):
        inspect.describe(tmp_path)
