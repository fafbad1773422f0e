"""What once went wrong with checkpoints of others, and what is said of mistakes."""

import dataclasses
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers as hf
from safetensors.numpy import load_file, save_file

from lm import config as config_lib
from lm import generate, predict, sharding
from lm.data.pipeline import DataConfig
from lm.models import bert, gpt
from lm.nn.heads import PooledHead
from lm.tasks import build_task, chat, classify, pair, rank
from lm.text import tokenizers
from lm.train import workdir as workdir_lib
from lm.train.config import Config
from lm.types import UserError
from tests.tools import hf_cases
from tools import export_hf, import_hf
from tools.huggingface import companions, configs, params, rules
from tools.huggingface.families import FAMILIES, common
from tools.huggingface.family import Family

FIXTURES = Path(__file__).parent / "fixtures/huggingface"
LABELS = ("joy", "anger", "fear", "love", "surprise")
SMALL: Any = {
    "vocab_size": 64,
    "num_layers": 1,
    "emb_dim": 8,
    "num_heads": 2,
    "max_len": 32,
}
BERT = bert.Config(**SMALL, mlp_dim=12)
LLAMA = gpt.Config(**SMALL, mlp_dim=12, activation="swiglu")
GPT2 = gpt.Config(
    **SMALL,
    mlp_dim=12,
    position_encoding="learned",
    norm="layer",
    norm_eps=1e-5,
    use_bias=True,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return hf_cases.save_tokenizer(tmp_path_factory.mktemp("faults") / "tokenizer")


def run_of(model, task, tokenizer, **changes):
    return Config(
        model=model,
        task=task,
        data=DataConfig(sources=(), tokenizer=str(tokenizer)),
        **changes,
    )


def make(workdir, model, task, tokenizer, **changes):
    """Makes the workdir of a run, with parameters that all differ."""
    config = run_of(model, task, tokenizer, **changes)
    loaded = tokenizers.load(tokenizer)
    workdir.mkdir()
    loaded.save(workdir / "tokenizer")
    for name, value in (
        ("config.json", workdir_lib.as_json(config)),
        ("versions.json", {}),
    ):
        (workdir / name).write_text(json.dumps(value))
    module = build_task(task, loaded).build_model(model)
    abstract = workdir_lib.placed_params(module, *mesh())
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract
    )
    workdir_lib.save_params(workdir, config, jax.device_put(drawn))
    return workdir


def mesh():
    config = sharding.MeshConfig()
    return sharding.build_mesh(config), config


def unloaded(model, task, tokenizer):
    """Returns a model without parameters."""
    made = build_task(task, tokenizers.load(tokenizer))
    module = made.build_model(model)
    config = run_of(model, task, tokenizer)
    return workdir_lib.Loaded(config, tokenizers.load(tokenizer), made, module, {}, 0)


def edited(name, folder, **changes):
    """Copies a case with another config.json."""
    source = folder / name
    shutil.copytree(FIXTURES / name, source)
    values = {**hf_cases.config_of(source), **changes}
    values = {key: value for key, value in values.items() if value is not ...}
    (source / "config.json").write_text(json.dumps(values))
    return source


def refused(*parts):
    return pytest.raises(UserError, match=".*".join(parts))


# --- What is replaced ---------------------------------------------------------------


def test_weights_of_others_and_runs_are_not_replaced(tokenizer, tmp_path):
    source = edited("bert-classify", tmp_path)
    with refused("would take the place of"):
        hf_cases.import_(source, source, tokenizer, "--overwrite")
    with refused("would take the place of"):
        hf_cases.import_(source, tmp_path, tokenizer, "--overwrite")
    other = edited("bert-tag", tmp_path)
    with refused("bert-tag has no huggingface"):
        hf_cases.import_(source, other, tokenizer, "--overwrite")
    run = tmp_path / "run"
    hf_cases.import_(source, run, tokenizer)
    for output in (run, other, tmp_path):
        with pytest.raises(UserError):
            hf_cases.export(run, output, "--overwrite")
    assert (run / "checkpoints").is_dir()
    assert (source / "model.safetensors").is_file()
    assert (other / "model.safetensors").is_file()
    trained = tmp_path / "trained"
    shutil.copytree(run, trained, ignore=lambda *_: ["huggingface"])
    with refused("trained has no huggingface"):
        hf_cases.import_(source, trained, tokenizer, "--overwrite")
    exported = tmp_path / "exported"
    for flags in ((), ("--overwrite",)):
        hf_cases.export(run, exported, *flags)
    for file in ("model.safetensors", "config.json"):
        mode = stat.S_IMODE((exported / file).stat().st_mode)
        assert mode == stat.S_IMODE(exported.stat().st_mode) & 0o666, file


# --- Classifiers --------------------------------------------------------------------


def test_a_decoders_classifier_has_no_bias(tokenizer):
    for name in ("gpt2", "llama", "gpt_neox"):
        task = FAMILIES[name].heads["ForSequenceClassification"].task({"max_len": 32})
        assert (task.pooling, task.head_bias) == ("last", False)
    loaded = unloaded(
        LLAMA, dataclasses.replace(task, labels=LABELS, head_bias=False), tokenizer
    )
    assert isinstance(loaded.model, PooledHead) and not loaded.model.use_bias


@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_decoders_classifier_with_a_bias_is_refused(tokenizer, model):
    task = classify.Config(length=32, labels=LABELS, pooling="last")
    family = FAMILIES["gpt2" if model is GPT2 else "llama"]
    with refused("task.head_bias=True", "train with .*task.head_bias=False"):
        configs.find(unloaded(model, task, tokenizer), {}, family.model_type)
    task = dataclasses.replace(task, head_bias=False)
    loaded = unloaded(model, task, tokenizer)
    found, name = configs.find(loaded, {}, family.model_type)
    assert (found, name) == (family, "ForSequenceClassification")
    assert configs.write(loaded, found, name, {})["pad_token_id"] == 0


def test_the_token_of_padding_never_ends_a_text(tokenizer, tmp_path):
    made = hf.Tokenizer(hf.models.BPE({"!": 0, "a": 1, "</s>": 2}, []))
    made.add_special_tokens(["</s>"])
    made.decoder = hf.decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    loaded = unloaded(
        LLAMA,
        classify.Config(length=32, labels=LABELS, pooling="last", head_bias=False),
        tokenizer,
    )
    for eos, pad in (("</s>", 0), (None, 2)):
        marks = {"eos_token": eos, "sep_token": None}
        other = tokenizers.load(tmp_path, marks)
        found = dataclasses.replace(loaded, tokenizer=other)
        values = configs.write(
            found, FAMILIES["llama"], "ForSequenceClassification", {}
        )
        assert values["pad_token_id"] == pad


@pytest.mark.parametrize(
    "begin, about, marks",
    [
        (False, {}, ["[CLS]", "[SEP]"]),
        (True, {}, ["[SEP]"]),
        (True, {"add_bos_token": False, "add_eos_token": True}, ["[CLS]"]),
        (False, {"kind": "wordpiece"}, []),
    ],
)
def test_marks_that_transformers_put_around_no_text(
    tokenizer, tmp_path, begin, about, marks
):
    tokenizers.load(tokenizer).save(tmp_path / "made")
    file = tmp_path / "made/tokenizer.json"
    made = hf.Tokenizer.from_file(str(file))
    if begin:
        made.post_processor = hf.processors.TemplateProcessing(
            "[CLS] $A", special_tokens=[("[CLS]", 2)]
        )
    made.save(str(file))
    (tmp_path / "made/tokenizer_config.json").write_text(json.dumps(about))
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    found = companions.marks_around(tmp_path / "made")
    assert [mark for name, mark in names.items() if name in found] == marks
    if not about:  # classifiers that are decoders read texts without them
        workdir = tmp_path / "workdir"
        hf_cases.import_(FIXTURES / "llama-classify", workdir, tmp_path / "made")
        loaded = workdir_lib.load(workdir)
        (inputs,) = loaded.task.encode_inputs([{"text": "ab"}])  # pyright: ignore
        wanted = made.encode("ab").ids
        assert inputs["tokens"].tolist() == wanted


def test_a_number_is_exported_in_its_units(tokenizer):
    task = classify.Config(length=16, kind="number", moments=(3.0, 2.0), hidden="tanh")
    head = {"kernel": np.ones((8, 1)), "bias": np.ones(1)}
    loaded = unloaded(BERT, task, tokenizer)
    loaded = dataclasses.replace(loaded, params={"backbone": {}, "head": head})
    made = params._in_units(loaded)["head"]
    assert (made["kernel"] == 2).all() and made["bias"].tolist() == [5]
    del head["bias"]
    with refused("without a bias", "mean is 3"):
        params._in_units(loaded)


def test_a_pair_is_classified_as_one_text(tokenizer):
    ends: Any = {"labels": LABELS, "hidden": "tanh", "length": 16}
    loaded = unloaded(BERT, pair.Config(**ends), tokenizer)
    family, name = configs.find(loaded, {}, "bert")
    assert family.class_prefix + name == "BertForSequenceClassification"
    loaded = unloaded(BERT, pair.Config(**ends | {"hidden": "none"}), tokenizer)
    with refused("task pair", "train with task.pooling=first task.hidden=tanh"):
        configs.find(loaded, {}, "bert")
    loaded = unloaded(
        BERT, rank.Config(length=24, query_length=8, kind="cross"), tokenizer
    )
    with refused("task.kind=cross", "train with task.kind=dual"):
        configs.find(loaded, {}, "bert")


def test_several_labels_and_numbers_are_said(tokenizer):
    for kind, said in (
        ("several", "multi_label_classification"),
        ("number", "regression"),
    ):
        labels: Any = {} if kind == "number" else {"labels": LABELS}
        task = classify.Config(length=16, kind=kind, hidden="tanh", **labels)
        loaded = unloaded(BERT, task, tokenizer)
        family = FAMILIES["bert"]
        values = configs.write(loaded, family, "ForSequenceClassification", {})
        assert values["problem_type"] == said
        assert len(values["id2label"]) == (1 if kind == "number" else 5)
        back = family.heads["ForSequenceClassification"].task({**values, "max_len": 9})
        assert back.kind == kind


# --- Tokenizers ---------------------------------------------------------------------


def test_an_export_marks_texts_as_we_do(tokenizer, tmp_path):
    task = pair.Config(length=16, labels=LABELS, hidden="tanh")
    workdir = make(tmp_path / "run", BERT, task, tokenizer)
    hf_cases.export(workdir, tmp_path / "exported")
    values = json.loads((tmp_path / "exported/tokenizer_config.json").read_text())
    marks = {key: value for key, value in values.items() if key.endswith("_token")}
    assert marks == {
        **{"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"},
        **{"bos_token": "[CLS]", "cls_token": "[CLS]"},
        **{"eos_token": "[SEP]", "sep_token": "[SEP]"},
    }
    assert values["model_max_length"] == 32
    assert "token_type_ids" in values["model_input_names"]
    made = hf.Tokenizer.from_file(str(tmp_path / "exported/tokenizer.json"))
    pairs = [{"text": "ab", "text_b": "c"}]
    loaded = workdir_lib.load(workdir)
    (wanted,) = loaded.task.encode_inputs(pairs)  # pyright: ignore
    found = made.encode("ab", "c")
    assert (found.ids, found.type_ids) == tuple(
        wanted[name].tolist() for name in ("tokens", "type_ids")
    )
    # A decoder that writes goes on from a text.
    other = dataclasses.replace(loaded, model=gpt.Model(LLAMA))
    file = workdir / "tokenizer/tokenizer.json"
    assert companions._write_tokenizer(file, tmp_path, other)
    made = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert made.encode("a").tokens == ["[CLS]", "a"]


@pytest.mark.parametrize("between", ["[SEP]", "[SEP] [SEP]"])
def test_a_pairs_tokenizer_is_theirs_if_it_joins_texts_as_we_do(
    tokenizer, tmp_path, between
):
    loaded = unloaded(BERT, pair.Config(length=16, labels=LABELS), tokenizer)
    loaded.tokenizer.save(tmp_path / "huggingface")
    file = tmp_path / "huggingface/tokenizer.json"
    made = hf.Tokenizer.from_file(str(file))
    made.post_processor = hf.processors.TemplateProcessing(
        "[CLS] $A [SEP]",
        f"[CLS] $A {between} $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.save(str(file))
    found = companions._joins_alike(file.parent, loaded)
    assert found == (between == "[SEP]")


def test_files_of_a_tokenizer_stay_with_what_is_trained_further(tokenizer, tmp_path):
    source = edited("bert-classify", tmp_path)
    (source / "tokenizer_config.json").write_text('{"mine": 1}')
    workdir = tmp_path / "imported"
    given = tmp_path / "given"
    shutil.copytree(tokenizer, given)
    (given / "tokenizer_config.json").write_text('{"model_max_length": 12}')
    hf_cases.import_(source, workdir, given)
    task = classify.Config(length=16, labels=LABELS, hidden="tanh")
    model = workdir_lib.load_config(workdir).model
    run = make(tmp_path / "run", model, task, tokenizer, init_from=str(workdir))
    for home, output in ((workdir, "exported"), (run, "further")):
        hf_cases.export(home, tmp_path / output)
        for file in ("vocab.txt", "tokenizer_config.json"):
            made = (tmp_path / output / file).read_bytes()
            assert made == (given / file).read_bytes()


def test_tokenizers_that_are_broken(tmp_path):
    source = edited("bert-mlm", tmp_path)
    cure = "fetch it again, or name another with --tokenizer"
    words = [f"--from={source}", f"--workdir={tmp_path / 'made'}"]
    args = import_hf.parser.parse_args(words)
    with refused("no tokenizer at", cure):
        import_hf.main(args)
    hf_cases.save_tokenizer(tmp_path / "tokenizer")
    shutil.copy(tmp_path / "tokenizer/vocab.txt", source)
    for text in ("{", "[]"):
        (source / "tokenizer_config.json").write_text(text)
        with refused("tokenizer_config.json cannot be read", cure):
            import_hf.main(args)
    (source / "tokenizer_config.json").unlink()
    (source / "config.json").write_text(
        json.dumps(hf_cases.config_of(source) | {"vocab_size": 20})
    )
    with refused(f"{source} has 57 tokens but by config.json vocab_size is 20", cure):
        import_hf.main(args)


# --- sentence-transformers ----------------------------------------------------------


def write_settings(folder, **files):
    for name, value in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))


def test_settings_of_sentence_transformers(tokenizer, tmp_path):
    modules = [{"type": f"a.b.{kind}"} for kind in ("Transformer", "Pooling")]
    write_settings(
        tmp_path, modules=modules, sentence_bert_config={"max_seq_length": 9}
    )
    found = companions.read_sentences(tmp_path)
    assert found == {"length": 9}
    task = common.vectors({"max_len": 32, **found})
    assert (task.length, task.query_length) == (9, 9)
    prompts = {"prompts": {"query": "find: "}}
    write_settings(tmp_path, config_sentence_transformers=prompts)
    assert companions.read_sentences(tmp_path) == {"length": 9}
    write_settings(
        tmp_path,
        config_sentence_transformers=prompts | {"default_prompt_name": "query"},
    )
    with refused("'find: '", "default_prompt_name"):
        companions.read_sentences(tmp_path)
    write_settings(tmp_path, modules=[*modules, {"type": "a.b.Dense"}])
    with refused("modules.json has a module Dense"):
        companions.read_sentences(tmp_path)
    write_settings(
        tmp_path,
        modules=modules,
        config_sentence_transformers={},
        sentence_bert_config={"do_lower_case": True},
    )
    with refused("makes texts lower case"):
        companions.read_sentences(tmp_path)


@pytest.mark.parametrize("mode, pooling", [("cls", "first"), ("lasttoken", "last")])
def test_settings_of_sentence_transformers_since_version_6(tmp_path, mode, pooling):
    files = {"modules": [], "tokenizer_config": {"model_max_length": 24}}
    write_settings(tmp_path, **files, **{"1_Pooling/config": {"pooling_mode": mode}})
    assert companions.read_sentences(tmp_path) == {"length": 24, "pooling": pooling}


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_exported_with_their_settings(tokenizer, tmp_path, pooling):
    task = rank.Config(length=24, query_length=8, pooling=pooling)
    companions._write_sentences(tmp_path, unloaded(BERT, task, tokenizer))
    found = companions.read_sentences(tmp_path)
    assert found == {"length": 24, "pooling": pooling}
    pooling = json.loads((tmp_path / "1_Pooling/config.json").read_text())
    assert pooling["word_embedding_dimension"] == 8


# --- Lengths ------------------------------------------------------------------------


def test_how_long_texts_may_be(tokenizer, tmp_path):
    assert common.causal({"max_len": 4096}).length == 2048
    assert common.causal({"max_len": 4096, "length": 3000}).length == 3000
    source = FIXTURES / "bert-tag"
    with refused("--length must be at least 8 and less than 38"):
        hf_cases.import_(source, tmp_path / "made", tokenizer, "--length=38")
    hf_cases.import_(source, tmp_path / "made", tokenizer, "--length=20")
    assert workdir_lib.load_config(tmp_path / "made").task.length == 20


def run(command, *flags):
    return command.main(command.parser.parse_args(list(flags)))


def test_a_long_prompt_is_not_cut_in_silence(tokenizer, tmp_path, capsys):
    task = chat.Config(length=30, max_new_tokens=4, opening="{role}")
    workdir = make(tmp_path / "run", GPT2, task, tokenizer)
    flags = [f"--workdir={workdir}", "--max-new-tokens=2"]
    with refused("the prompt 'a a", "needs [0-9]+ positions but the model has 32"):
        run(generate, *flags, f"--prompt={'a ' * 40}")
    # Nor is it repeated before the error.
    assert capsys.readouterr().out == ""


# --- What is said -------------------------------------------------------------------


def test_commands_that_are_not_for_a_task(tokenizer, tmp_path):
    task = rank.Config(length=24, query_length=8)
    workdir = make(tmp_path / "run", BERT, task, tokenizer)
    with refused("has the task rank, which writes no text", "lm.predict"):
        run(generate, f"--workdir={workdir}", "--prompt=a")
    workdir = tmp_path / "answers"
    hf_cases.import_(FIXTURES / "bert-answer", workdir, tokenizer)
    with refused("has no 'question'", "--field=NAME=VALUE"):
        run(predict, f"--workdir={workdir}", "--text=a", "--batch-size=8")


@pytest.mark.parametrize(
    "names, part",
    [
        ({"0": 1, "1": "b"}, "1 for a label"),
        ({"0": "a", "1": None}, "None for a label"),
        ({"0": "a", "1": "a"}, "'a' for a label"),
        ({"0": "a", "5": "b"}, "number the labels from 0"),
        (["a", "b"], "number the labels from 0"),
    ],
)
def test_names_of_labels(names, part):
    with refused(part):
        common.labels({"id2label": names})


def read_rules(**values):
    family: Family = FAMILIES["llama"]
    return rules.read(family.rules, family.defaults, family.adapt(values))


def test_keys_of_configs():
    harmless = {
        **{"output_past": True, "tie_weights_": True, "pruned_heads": {}, "name": "a"},
        **{"_num_labels": 3, "language": "en", "is_llama_config": True},
        **{"rope_interleaved": False, "transformers.js_config": {}},
    }
    assert read_rules(**harmless) == read_rules()
    with refused("first_odd = 1, second_odd = 2"):
        read_rules(first_odd=1, second_odd=2)
    with refused("rope_interleaved = True"):
        read_rules(rope_interleaved=True)
    with refused("vocab_size is 1000000000000"):
        read_rules(vocab_size=10**12)


@pytest.mark.parametrize(
    "name, changes, part",
    [
        (
            "bert-classify",
            {"architectures": ...},
            "names no class",
        ),
        ("llama3", {"architectures": ...}, "names no class .* LlamaForCausalLM"),
        ("bert-mlm", {"model_type": ...}, "has no model_type"),
    ],
)
def test_classes_that_are_not_said(tokenizer, tmp_path, name, changes, part):
    source = edited(name, tmp_path, **changes)
    with refused(part):
        hf_cases.import_(source, tmp_path / "made", tokenizer)


def test_sources_that_are_none(tmp_path):
    source = edited("bert-mlm", tmp_path)
    for given, part in (
        ("", "--from= is no folder"),
        ("bert-base-uncased", "under a name is not fetched"),
        (str(source / "config.json"), "name its folder"),
    ):
        with refused(part):
            run(import_hf, f"--from={given}", f"--workdir={tmp_path / 'made'}")


def test_a_checkpoint_is_no_workdir(tmp_path):
    source = edited("bert-mlm", tmp_path)
    with refused("is a checkpoint of transformers", "tools.import_hf"):
        workdir_lib.load_config(source)
    with refused("is a checkpoint of transformers", "tools.import_hf"):
        run(export_hf, f"--workdir={source}", f"--output={tmp_path / 'made'}")


def test_tasks_of_the_config_of_minilm():
    path = Path(__file__).parents[2] / "configs/minilm.py"
    with refused("unknown task 'nope'; choose from: bbc, imdb, wiki"):
        config_lib.load(f"{path}:nope")


def test_floats_that_are_no_weights_stay_refused(tokenizer, tmp_path):
    # A bias that their class lacks is named, and not dropped.
    source = edited("llama-classify", tmp_path)
    tensors = load_file(source / "model.safetensors")
    tensors["score.bias"] = np.ones(5, np.float32)
    save_file(tensors, source / "model.safetensors")
    with refused("score.bias", "no place"):
        hf_cases.import_(source, tmp_path / "made", tokenizer)
