"""Every shipped config builds, and is the model that it says it is."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import pytest

from lm import config as config_lib
from lm import tree
from lm.models import build_model, textcnn
from lm.tasks import pair
from lm.train.config import Config
from lm.train.optim import make_optimizer
from lm.train.state import abstract_params
from lm.types import UserError

CONFIGS = sorted(Path("configs").glob("*.py"))

# Parameters of the published model: the shapes that transformers counts, plus what
# is said beside.
PUBLISHED = {
    "gpt2_124m": 124_439_808 + 47 * 768,  # rows that pad the vocabulary
    "bert_base": 109_514_298,  # BertForMaskedLM
    "t5_small": 76_961_152,  # google/t5-v1_1-small
    "t5_11b": 11_307_321_344,  # t5-11b
    "llama3_8b": 8_030_261_248,  # meta-llama/Meta-Llama-3-8B
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds_without_memory(path):
    config = Config.of(config_lib.load(str(path)))
    params = nn.unbox(abstract_params(build_model(config.model)))
    optimizer = make_optimizer(config.optim, config.numbers, params)
    assert jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    if path.stem in PUBLISHED:
        assert tree.count(params) == PUBLISHED[path.stem]
    # The docstring is a document: it has the command, and what it counts is so.
    assert f"--config=configs/{path.name}" in path.read_text()
    counts = re.findall(r"\d+(?:,\d{3}){3}", path.read_text())
    assert {int(number.replace(",", "")) for number in counts} <= {tree.count(params)}


@pytest.mark.parametrize(
    "override, said",
    [
        ("--config.optim.lerning_rate=1", "learning_rate"),
        ("--config.optim=1", "config.optim has fields of its own; set one, such as"),
        ("--config.optim.b1.x=1", "unknown key config.optim.b1.x"),
        ("--config.batch_size=many", "config.batch_size must be of type int"),
        ("--config.batch_size=1.5", "config.batch_size must be of type int"),
        ("--config.batch_size=", "config.batch_size must be of type int"),
        ("--config.data.shuffle=maybe", "config.data.shuffle must be of type bool"),
        ("--config.data.weights=('a',)", "config.data.weights[0] must be of type flo"),
        ("--config.model.norm=rmss", "did you mean 'rms'"),
        ("--config.model.num_heads=3", "does not divide by model.num_heads 3"),
        ("--config.task.name=causal_llm", "did you mean 'causal_lm'"),
        ("--config.task.length=100000", "exceeds model.max_len"),
        ("--config.eval.batch_size=-1", "eval.batch_size must be at least 0, not -1"),
        ("--config.guard.max_skipped=0", "guard.max_skipped must be at least 1"),
        ("--config.model.num_kv_heads=-1", "model.num_kv_heads must be at least 0"),
        ("--config.model.mlp_dim=-1", "model.mlp_dim must be at least 0"),
        ("--config.model.dropout_rate=1.0", "dropout_rate must be at least 0 and less"),
        ("--config.model.relative_buckets=1", "relative_buckets must be at least 4"),
        ("--config.model.relative_max_distance=0", "must be at least 17"),
        (
            "--config.seed=4294967296",
            "seed must be at least 0 and less than 2147483648",
        ),
        ("--config.warmup_steps=-5", "warmup_steps must be at least 0"),
        ("--config.optim.learning_rate=1e400", "learning_rate must be at least 0"),
        ("--config.optim.weight_decay=-1", "weight_decay must be at least 0"),
        ("--config.mesh.rules=('batch=dat',)", "mesh.rules"),
        ("--config.grad_accum_steps=5", "does not divide by grad_accum_steps"),
    ],
)
def test_a_mistyped_override_is_one_line_with_a_cure(override, said):
    with pytest.raises(UserError) as caught:
        Config.of(config_lib.load("configs/gpt_tiny.py", [override]))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "group, old, new",
    [
        (group, *names)
        for group, table in config_lib.CHOICES.items()
        for names in itertools.product(table, repeat=2)
    ],
)
def test_another_name_has_its_own_defaults_and_what_was_changed(group, old, new):
    before, after = (
        dataclasses.asdict(config_lib.CHOICES[group][name]()) for name in (old, new)
    )
    assert config_lib.choose(group, new, before) == after
    for key in before.keys() & after.keys():
        assert type(before[key]) is type(after[key]), key
    found = config_lib.choose(group, new, before | {"length": 7, "max_len": 9})
    assert found == after | {
        key: value for key, value in (("length", 7), ("max_len", 9)) if key in after
    }


def test_names_are_set_before_the_fields_that_they_bring():
    words = ["task.text_b=other", "task.length=100", "task.name=pair", "model.widths=2"]
    words += ["model.name=textcnn"]
    overrides = [f"--config.{word}" for word in words]
    config: Any = Config.of(config_lib.load("configs/bbc.py", overrides))
    assert config.task == pair.Config(
        text_b="other", length=100, pooling="mean", dropout_rate=0.3
    )
    assert config.model == textcnn.Config(
        vocab_size=8192, emb_dim=128, max_len=256, widths=(2,)
    )
    with pytest.raises(UserError, match="unknown key config.model.num_heads"):
        config_lib.load("configs/bbc.py", [*overrides, "--config.model.num_heads=2"])


@pytest.mark.parametrize(
    "path, said",
    [
        ("configs/gpt_tinny.py", "did you mean 'configs/gpt_tiny.py'"),
        ("configs", "no config file"),
    ],
)
def test_a_config_that_is_not_there_is_named(path, said):
    with pytest.raises(UserError, match=said):
        config_lib.load(path)


@pytest.mark.parametrize("text", ["x = 1", "def get_config(): return 1 +", "1/0"])
def test_a_broken_config_is_one_line(tmp_path, text):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UserError) as caught:
        Config.of(config_lib.load(str(tmp_path / "broken.py")))
    assert "broken.py" in str(caught.value) and "\n" not in str(caught.value)
