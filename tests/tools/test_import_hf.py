"""Imported models compute what transformers does, and go back bit for bit.

The cases in `fixtures/huggingface` are written where PyTorch and transformers are, by

    .venv-bench/bin/python tests/oracle/references.py \\
        tests/tools/fixtures/huggingface \\
        bert-mlm bert-classify bert-regress bert-tag bert-answer roberta-classify \\
        distilbert-mlm electra-discriminator albert-mlm gpt2 gpt2-classify \\
        gpt2-tag neox llama-classify llama3 qwen3 gemma2 gemma3 t5-v1_0 mt5

and `make test-oracle` holds those of all families to the same.
"""

import contextlib
import dataclasses
import functools
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm import embed, evaluate, generate, predict, sharding
from lm.data.pipeline import DataConfig
from lm.models import bert, gpt, t5
from lm.nn.transformer import stack_layers
from lm.tasks import build_task, causal_lm, classify, text_to_text
from lm.text import tokenizers
from lm.train import loop
from lm.train import workdir as workdir_lib
from lm.train.config import Config
from lm.train.optim import OptimConfig
from lm.train.state import abstract_params
from lm.types import UserError
from tests.tools import hf_cases
from tools import import_hf
from tools.export import __main__ as export
from tools.export import proof
from tools.huggingface import files

FIXTURES = Path(__file__).parent / "fixtures/huggingface"
CASES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
LABELS = ("joy", "anger", "fear", "love", "surprise")
TEXTS = ["a red sea", "a blue sea", "cold", "the sun is warm", "b"] * 4


def cases_with(name):
    return [
        case for case in CASES if name in np.load(FIXTURES / case / "reference.npz")
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer for all cases, and texts with a label and a target."""
    folder = tmp_path_factory.mktemp("huggingface")
    hf_cases.save_tokenizer(folder / "tokenizer")
    rows = [
        {"text": text, "label": LABELS[i % 5], "target": text[::-1]}
        for i, text in enumerate(TEXTS)
    ]
    for split in ("train", "validation"):
        lines = [json.dumps(row | {"text": f"{row['text']} {split}"}) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def case(folder):
    """Returns cases by their names, each imported once."""
    imported = folder / "imported"

    @functools.cache
    def case(name):
        return hf_cases.open_case(FIXTURES / name, imported, folder / "tokenizer")

    return case


# --- What is computed ---------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_outputs(case, name):
    hf_cases.check_outputs(case(name))


@pytest.mark.parametrize("name", cases_with("greedy"))
def test_greedy_text(case, name):
    hf_cases.check_greedy(case(name))


@pytest.mark.parametrize("name", cases_with("labels"))
def test_gradients(case, name, tmp_path):
    hf_cases.check_gradients(case(name), tmp_path)


# --- There and back -----------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_was_imported_is_exported(case, name, tmp_path):
    hf_cases.check_export(case(name), tmp_path / "exported")


def test_export_in_half_precision(case, tmp_path):
    source = case("gpt2")
    hf_cases.export(source.workdir, tmp_path / "half", "--dtype=bfloat16")
    assert hf_cases.config_of(tmp_path / "half")["dtype"] == "bfloat16"
    made = files.open_checkpoint(tmp_path / "half")
    for name, value in load_file(source.source / "model.safetensors").items():
        half = made[name].read()
        assert half.dtype.name == "bfloat16"
        np.testing.assert_array_equal(half, value.astype(half.dtype))


def edited(name, folder, changes=(), drop=()):
    """Copies a case with another config.json."""
    source = folder / name
    shutil.copytree(FIXTURES / name, source)
    values = {**hf_cases.config_of(source), **dict(changes)}
    values = {key: value for key, value in values.items() if key not in drop}
    (source / "config.json").write_text(json.dumps(values))
    return source


# Configs of transformers 4, and of some that write no defaults.
OLDER = {
    "bert-mlm": (
        {"position_embedding_type": "absolute", "torch_dtype": "float32"},
        {
            *("hidden_act", "type_vocab_size", "hidden_dropout_prob", "is_decoder"),
            *("attention_probs_dropout_prob", "add_cross_attention", "dtype"),
            *("tie_word_embeddings", "classifier_dropout", "pad_token_id"),
        },
    ),
    "gpt2": (
        {"n_ctx": 64, "torch_dtype": "float32", "task_specific_params": {"a": 1}},
        {
            *("activation_function", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
            *("scale_attn_weights", "reorder_and_upcast_attn", "dtype"),
            *("scale_attn_by_inverse_layer_idx", "add_cross_attention"),
        },
    ),
    "neox": (
        {"rotary_pct": 0.25, "rotary_emb_base": 10000, "torch_dtype": "float32"},
        {"rope_parameters", "dtype", "attention_bias", "is_decoder"},
    ),
    "llama3": (
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            "torch_dtype": "float32",
            "pretraining_tp": 1,
        },
        {"rope_parameters", "dtype", "mlp_bias", "attention_bias"},
    ),
    "qwen3": (
        {
            "rope_theta": 1e4,
            "rope_scaling": None,
            "max_window_layers": 28,
            "sliding_window": None,
            "torch_dtype": "float32",
        },
        {"rope_parameters", "dtype", "layer_types"},
    ),
    "gemma2": (
        {"rope_theta": 1e4, "torch_dtype": "float32", "cache_implementation": "hybrid"},
        {"rope_parameters", "dtype", "layer_types", "tie_word_embeddings"},
    ),
    "gemma3": (
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
            "torch_dtype": "float32",
        },
        {"rope_parameters", "dtype", "layer_types", "_sliding_window_pattern"},
    ),
    "t5-v1_0": (
        {"n_positions": 512, "torch_dtype": "float32"},
        {
            *("tie_word_embeddings", "scale_decoder_outputs", "dense_act_fn"),
            *("is_gated_act", "dtype"),
        },
    ),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_configs_say_the_same(case, name, folder, tmp_path):
    source = edited(name, tmp_path, *OLDER[name])
    hf_cases.import_(source, tmp_path / "workdir", folder / "tokenizer")
    made = workdir_lib.load_config(tmp_path / "workdir")
    wanted = case(name).loaded.config
    assert (made.model, made.task) == (wanted.model, wanted.task)
    # Nobody asked for another form.
    hf_cases.export(tmp_path / "workdir", tmp_path / "exported")
    assert hf_cases.config_of(tmp_path / "exported") == hf_cases.config_of(source)


POOLINGS = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}


def test_how_sentence_transformers_pool(folder, tmp_path):
    source = edited("electra-discriminator", tmp_path)
    path = source / "1_Pooling/config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(POOLINGS | {"pooling_mode_max_tokens": True}))
    shutil.copy(folder / "tokenizer/vocab.txt", source)
    words = [f"--from={source}", f"--workdir={tmp_path / 'workdir'}"]
    import_hf.main(import_hf.parser.parse_args(words))
    assert workdir_lib.load_config(tmp_path / "workdir").task.pooling == "max"
    hf_cases.export(tmp_path / "workdir", tmp_path / "exported")
    copied = tmp_path / "exported/vocab.txt"
    assert copied.read_text() == (source / "vocab.txt").read_text()
    for values in (POOLINGS, dict.fromkeys(POOLINGS, True)):
        path.write_text(json.dumps(values))
        with refused(str(path)):
            import_hf.main(import_hf.parser.parse_args([*words, "--overwrite"]))


def test_shards_with_an_index(case, folder, tmp_path):
    source = tmp_path / "gpt2"
    shutil.copytree(FIXTURES / "gpt2", source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for i, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, source / file)
        index |= dict.fromkeys(part, file)
    path = source / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    hf_cases.import_(source, tmp_path / "workdir", folder / "tokenizer")
    made = workdir_lib.load(tmp_path / "workdir").params
    jax.tree.map(np.testing.assert_array_equal, made, case("gpt2").loaded.params)


def test_parameters_lie_where_they_are_to_stay(case, folder, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        workdir_lib, "save_params", lambda *arguments: saved.append(arguments[-1])
    )
    flags = (tmp_path / "workdir", folder / "tokenizer", "--fsdp=-1")
    hf_cases.import_(FIXTURES / "bert-mlm", *flags)
    params = case("bert-mlm").loaded.params
    jax.tree.map(np.testing.assert_array_equal, saved[0], params)
    # All but vectors are divided.
    for leaf in jax.tree.leaves(saved[0]["encoder"]["layers"]["mlp"]):
        parts = [shard.data.size for shard in leaf.addressable_shards]
        assert leaf.ndim < 3 or parts == [leaf.size // 8] * 8
    assert not saved[0]["embedder"]["token"]["embedding"].is_fully_replicated


# --- A workdir as any ---------------------------------------------------------------


def run(command, workdir, *flags):
    return command.main(command.parser.parse_args([f"--workdir={workdir}", *flags]))


def test_commands_serve_a_classifier(case, folder, monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", (20, 20))
    workdir = case("bert-classify").workdir
    source = [f"--source={folder / 'validation.jsonl'}", "--split=all"]
    found = run(evaluate, workdir, *source, "--batch-size=8")
    assert math.isfinite(found["eval/all/loss"])
    words = ["--text=a red sea", "--batch-size=8", "--json"]
    (made,) = run(predict, workdir, *words)["predictions"]
    assert tuple(made["probabilities"]) == LABELS
    assert sum(made["probabilities"].values()) == pytest.approx(1)
    (made,) = run(embed, workdir, *words)["predictions"]
    assert np.linalg.norm(made["vector"]) == pytest.approx(1)


def test_commands_serve_a_decoder(case, folder):
    workdir = case("gpt2").workdir
    source = [f"--source={folder / 'validation.jsonl'}", "--split=all"]
    found = run(evaluate, workdir, *source, "--batch-size=8")
    assert found["eval/all/perplexity"] > 1
    words = ["--prompt=a red sea", "--temperature=0", "--max-new-tokens=4"]
    (made,) = run(generate, workdir, *words, "--json")["generations"]
    assert made["tokens"] == 4 or made["finish_reason"] == "eos"


def test_an_artefact_predicts_the_same(case, folder, tmp_path, monkeypatch):
    # To be timed takes JAX a process of its own.
    times = {"latency_ms": 1.0, "peak_mb": None}
    monkeypatch.setattr(proof, "_time_jax", lambda *_: times)
    source = [f"--source={folder / 'validation.jsonl'}", "--split=all"]
    output = f"--output={tmp_path / 'made'}"
    found = run(export, case("bert-classify").workdir, *source, output)
    assert found["examples"] == 20
    assert found["agreement"] == 1.0 and found["max_error"] <= 1e-4


def data_of(folder, tokenizer="tokenizer"):
    return DataConfig(
        sources=(str(folder / "{split}.jsonl"),),
        tokenizer=str(folder / tokenizer),
        data_dir=str(folder),
    )


def make_workdir(config, workdir):
    """Makes the workdir of a run, with parameters that all differ."""
    config, tokenizer = workdir_lib.prepare(workdir, config)
    model = build_task(config.task, tokenizer).build_model(config.model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.device_put(rng.normal(0, 0.3, leaf.shape).astype(np.float32)),
        sharding.unbox(abstract_params(model)),
    )
    workdir_lib.save_params(workdir, config, params)


def test_training_begins_with_what_was_imported(case, folder, tmp_path):
    source = case("bert-classify")
    config = Config(
        model=source.loaded.config.model,
        task=classify.Config(length=24, hidden="tanh"),
        data=data_of(folder),
        optim=OptimConfig(learning_rate=1e-3),
        init_from=str(source.workdir),
        batch_size=8,
        num_train_steps=2,
        warmup_steps=1,
    )
    workdir = tmp_path / "trained"
    loop.train(config, workdir)
    trained = workdir_lib.load(workdir)
    assert trained.step == 2
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        trained.params["backbone"]["encoder"],
        source.loaded.params["backbone"]["encoder"],
    )
    # Two steps of Adam; parameters of a new model would be 0.3 away.
    assert 0 < max(jax.tree.leaves(moved)) < 0.01
    check_round_trip(workdir, tmp_path, "bert", "BertForSequenceClassification")
    made = [
        run(predict, place, "--text=cold", "--batch-size=8", "--json")["predictions"]
        for place in (workdir, tmp_path / "back")
    ]
    assert made[0] == made[1]


# --- What was made here -------------------------------------------------------------


def check_round_trip(workdir, folder, family, architecture):
    """Asserts that an export is of a family and, imported, the same model."""
    output = folder / "exported"
    assert hf_cases.export(workdir, output)["architecture"] == architecture
    assert hf_cases.config_of(output)["model_type"] == family
    words = [f"--from={output}", f"--workdir={folder / 'back'}"]
    import_hf.main(import_hf.parser.parse_args(words))
    made, wanted = (workdir_lib.load(place) for place in (folder / "back", workdir))
    params = wanted.params
    if not wanted.config.model.scan_layers:
        params = stack_layers(params)
    jax.tree.map(np.testing.assert_array_equal, made.params, params)
    assert made.tokenizer.fingerprint == wanted.tokenizer.fingerprint
    rows = np.random.default_rng(0).integers(5, 31, (2, 9), np.int32)
    batch = {"inputs": rows, "segment_ids": np.ones_like(rows)}
    batch |= {f"encoder_{name}": value for name, value in batch.items()}
    outputs = [
        jax.jit(each.model.apply)({"params": jax.device_get(each.params)}, batch)
        for each in (made, wanted)
    ]
    # A loop of layers and a scan of them round differently.
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *outputs)


SMALL = {"vocab_size": 64, "num_layers": 2, "emb_dim": 16, "num_heads": 4}
LLAMA = gpt.Config(**SMALL, num_kv_heads=2, mlp_dim=24, max_len=32, activation="swiglu")
GPT2 = gpt.Config(
    **SMALL,
    mlp_dim=24,
    max_len=32,
    position_encoding="learned",
    norm="layer",
    norm_eps=1e-5,
    use_bias=True,
)


@pytest.mark.parametrize(
    "model, task, family, architecture",
    [
        (
            dataclasses.replace(LLAMA, tie_embeddings=False, scan_layers=False),
            causal_lm.Config(length=32),
            "llama",
            "LlamaForCausalLM",
        ),
        (GPT2, causal_lm.Config(length=32), "gpt2", "GPT2LMHeadModel"),
        (
            t5.Config(**SMALL, mlp_dim=24, max_len=32, attention_scale=1.0),
            text_to_text.Config(length=16, targets_length=16),
            "t5",
            "T5ForConditionalGeneration",
        ),
    ],
    ids=["llama", "gpt2", "t5"],
)
def test_a_model_of_ours(folder, tmp_path, model, task, family, architecture):
    config = Config(model=model, task=task, data=data_of(folder), batch_size=8)
    make_workdir(config, tmp_path / "made")
    check_round_trip(tmp_path / "made", tmp_path, family, architecture)


def test_a_model_that_no_family_can_say(folder, tmp_path):
    model = dataclasses.replace(LLAMA, position_encoding="sinusoidal")
    task = causal_lm.Config(length=32)
    config = Config(model=model, task=task, data=data_of(folder), batch_size=8)
    make_workdir(config, tmp_path / "made")
    for flags, parts in (
        # The family that comes nearest.
        ((), ["a llama has model.position_encoding rotary, not sinusoidal"]),
        (("--family=gpt2",), ["model.norm layer, not rms", "model.activation"]),
        (("--family=bert",), ["a gpt is no bert"]),
        (("--family=lama",), ["did you mean 'llama'"]),
    ):
        with refused(*parts):
            hf_cases.export(tmp_path / "made", tmp_path / "exported", *flags)
    assert names_in(tmp_path) == ["made"]


# --- What is refused ----------------------------------------------------------------


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def refused(*parts):
    """Expects a UserError of one line that has all the parts."""
    with pytest.raises(UserError) as raised:
        yield
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@contextlib.contextmanager
def refused_without_a_trace(folder, *parts):
    """Expects that, and yields a workdir of which nothing is left."""
    place = folder / "place"
    place.mkdir()
    with refused(*parts):
        yield place / "workdir"
    assert names_in(place) == []


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}


def test_a_config_that_names_no_class(folder, tmp_path):
    source = edited("gpt2", tmp_path, {"architectures": None})
    hf_cases.import_(source, tmp_path / "made", folder / "tokenizer")
    result = hf_cases.export(tmp_path / "made", tmp_path / "exported")
    assert result["architecture"] == "GPT2Model"


def test_a_classifier_that_ends_otherwise(folder, tmp_path):
    model = bert.Config(**SMALL, max_len=32)
    task = classify.Config(length=16, pooling="mean", hidden="tanh")
    config = Config(model=model, task=task, data=data_of(folder), batch_size=8)
    make_workdir(config, tmp_path / "made")
    with refused("no class for a task classify that ends as task.pooling=mean"):
        hf_cases.export(tmp_path / "made", tmp_path / "exported", "--family=bert")


@pytest.mark.parametrize(
    "name, changes, part",
    [
        ("bert-mlm", {"model_type": "bart"}, "'bart' is not supported; did you mean"),
        ("bert-mlm", {"model_type": None}, "model_type"),
        (
            "bert-mlm",
            {"architectures": ["BertForNextSentencePrediction"]},
            "BertForNextSentencePrediction",
        ),
        ("bert-mlm", {"position_embedding_type": "relative_key"}, "'relative_key'"),
        ("bert-mlm", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        ("bert-mlm", {"is_decoder": True}, "is_decoder"),
        ("bert-classify", {"problem_type": "odd"}, "problem_type is 'odd'"),
        ("bert-classify", {"id2label": {"a": "b"}}, "id2label"),
        ("bert-classify", {"id2label": {"0": "a", "1": "b"}}, "classifier.bias"),
        ("albert-mlm", {"num_hidden_groups": 2}, "num_hidden_groups"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        ("llama3", {"rope_parameters": YARN}, "'yarn'"),
        ("llama3", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters"),
        ("llama3", {"rope_parameters": "linear"}, "rope_parameters"),
        ("llama3", {"attention_bias": True}, "attention_bias is True"),
        ("llama3", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama3", {"foo_scale": 2}, "foo_scale = 2"),
        ("llama3", {"num_attention_heads": "6"}, "num_heads"),
        ("llama3", {"num_hidden_layers": 1.5}, "num_layers"),
        ("llama3", {"num_hidden_layers": 1}, "model.layers.1."),
        ("llama3", {"num_hidden_layers": 3}, "no tensor model.layers.2."),
        ("llama3", {"intermediate_size": 27}, "[28, 24]"),
        ("gemma3", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        (
            "gemma3",
            {"layer_types": [*["full_attention"] * 2, "sliding_attention"]},
            "layer_types",
        ),
        ("t5-v1_0", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj"),
        ("t5-v1_0", {"decoder_start_token_id": 5}, "decoder_start_token_id is 5"),
        ("bert-mlm", {"architectures": "BertModel"}, "not a list of names"),
    ],
)
def test_configs_that_would_change_the_numbers(folder, tmp_path, name, changes, part):
    source = edited(name, tmp_path, changes)
    with refused_without_a_trace(tmp_path, part) as workdir:
        hf_cases.import_(source, workdir, folder / "tokenizer")


BIAS, WEIGHT = (f"bert.encoder.layer.1.output.dense.{n}" for n in ("bias", "weight"))
EXTRA = "bert.encoder.layer.7.output.dense.bias"


@pytest.mark.parametrize(
    "change, parts",
    [
        (lambda tensors: tensors.pop(BIAS), (BIAS, "no tensor")),
        (lambda tensors: tensors.update({EXTRA: tensors[BIAS]}), (EXTRA, "no place")),
        (
            lambda tensors: tensors.update({BIAS: np.ones(3, np.float32)}),
            (BIAS, "[3]", "[24]"),
        ),
        # As many numbers, but turned.
        (
            lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].T.copy()}),
            (WEIGHT, "[40, 24]", "[24, 40]"),
        ),
        (
            lambda tensors: tensors.update({BIAS: np.ones(24, np.int32)}),
            (BIAS, "int32"),
        ),
    ],
    ids=["missing", "extra", "shape", "turned", "type"],
)
def test_tensors_that_do_not_fit(folder, tmp_path, change, parts):
    source = edited("bert-mlm", tmp_path)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")
    with refused_without_a_trace(tmp_path, *parts) as workdir:
        hf_cases.import_(source, workdir, folder / "tokenizer")


def test_files_that_are_not_whole(folder, tmp_path):
    source = edited("bert-mlm", tmp_path)
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with refused_without_a_trace(tmp_path, str(path)) as workdir:
        hf_cases.import_(source, workdir, folder / "tokenizer")
    (tmp_path / "place").rmdir()
    (source / "config.json").write_text('{"model_type": "bert"')
    with refused_without_a_trace(tmp_path, "config.json cannot be read") as workdir:
        hf_cases.import_(source, workdir, folder / "tokenizer")
    (tmp_path / "place").rmdir()
    (source / "config.json").unlink()
    with refused_without_a_trace(tmp_path, "no ", "config.json") as workdir:
        hf_cases.import_(source, workdir, folder / "tokenizer")


def test_tokenizers_that_do_not_fit(folder, tmp_path):
    source = FIXTURES / "bert-mlm"
    with refused_without_a_trace(tmp_path, "no tokenizer", str(source)) as workdir:
        words = [f"--from={source}", f"--workdir={workdir}"]
        import_hf.main(import_hf.parser.parse_args(words))
    tokenizers.train("bytes", []).save(tmp_path / "bytes")
    (tmp_path / "place").rmdir()
    with refused_without_a_trace(tmp_path, "tokens but", "is 61") as workdir:
        hf_cases.import_(source, workdir, tmp_path / "bytes")


def test_a_size_that_does_not_divide_over_devices(folder, tmp_path):
    with refused_without_a_trace(tmp_path, "22", "8 devices") as workdir:
        source = FIXTURES / "t5-v1_0"
        hf_cases.import_(source, workdir, folder / "tokenizer", "--fsdp=-1")


def test_only_a_workdir_is_replaced(folder, tmp_path):
    source, tokenizer = FIXTURES / "bert-mlm", folder / "tokenizer"
    workdir = tmp_path / "workdir"
    hf_cases.import_(source, workdir, tokenizer)
    (workdir / "mark").touch()
    with refused(str(workdir), "--overwrite"):
        hf_cases.import_(source, workdir, tokenizer)
    assert (workdir / "mark").exists()
    hf_cases.import_(source, workdir, tokenizer, "--overwrite")
    assert not (workdir / "mark").exists()
    assert workdir_lib.load(workdir).step == 0
    (tmp_path / "other").mkdir()
    for other in (tmp_path / "other/file", tmp_path / "file"):
        other.write_text("mine")
    for name, why in (("other", "has no huggingface"), ("file", "is no folder")):
        with refused(f"{tmp_path / name} {why}"):
            hf_cases.import_(source, tmp_path / name, tokenizer, "--overwrite")
    assert names_in(tmp_path) == ["file", "other", "workdir"]
    assert (tmp_path / "other/file").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_an_import_that_is_ended_leaves_nothing(folder, tmp_path, monkeypatch, error):
    reads = []

    def open_checkpoint(path):
        """Opens one that can be read half."""

        def half(read):
            def read_half():
                reads.append(read)
                if len(reads) == 9:
                    raise error("ended")
                return read()

            return read_half

        tensors = opened(path)
        return {
            name: dataclasses.replace(tensor, read=half(tensor.read))
            for name, tensor in tensors.items()
        }

    opened = files.open_checkpoint
    monkeypatch.setattr(files, "open_checkpoint", open_checkpoint)
    with pytest.raises(error, match="ended"):
        source = FIXTURES / "bert-mlm"
        hf_cases.import_(source, tmp_path / "place/workdir", folder / "tokenizer")
    assert len(reads) == 9
    assert names_in(tmp_path / "place") == []
