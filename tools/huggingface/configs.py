"""From a `config.json` to a model's config, and back; which family a model is of."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.cli import suggest
from lm.config import from_config_dict
from lm.nn.positions import RopeScaling
from lm.tasks import causal_lm, chat, classify, pair, rank
from lm.text.tokenizers import Tokenizer
from lm.train.workdir import Loaded
from lm.types import UserError
from tools.huggingface import rules
from tools.huggingface.families import FAMILIES
from tools.huggingface.families.common import KINDS
from tools.huggingface.family import Family
from tools.huggingface.tensors import Tensor

# Fields that say how a model is trained or run, or of which transformers has no word.
OWN = (
    *("name", "dropout_rate", "attention_dropout_rate", "attention", "dtype", "remat"),
    *("scan_layers", "init_stddev", "embed_stddev", "max_len", "tie_embeddings"),
    *("embedding_from", "scan_unroll", "pipeline_microbatches"),
)


def read(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Family, str, Any]:
    """Returns the family of a `config.json`, its class's end, and our model's config.

    Args:
        values: The `config.json`.
        tensors: Of the checkpoint, which tell whether the head is the embedding.

    Raises:
        UserError: If the family, the class or something of the config is not supported.
    """
    if not values.get("model_type"):
        raise UserError(
            "config.json has no model_type, so it is no model of transformers; fetch "
            "it again, or add that"
        )
    kind = str(values["model_type"])
    if kind not in FAMILIES:
        near = suggest(kind, sorted(FAMILIES))
        raise UserError(f"config.json: model_type {kind!r} is not supported{near}")
    family = FAMILIES[kind]
    name = _end(values, family)
    found = rules.read(family.rules, family.defaults, family.adapt(dict(values)))
    fields = {
        key: dataclasses.asdict(value) if isinstance(value, RopeScaling) else value
        for key, value in {**family.fields, **found}.items()
    }
    config = from_config_dict(family.model, fields, where="model")
    if config.tie_embeddings and _has_own_head(family, name, config, tensors):
        config = dataclasses.replace(config, tie_embeddings=False)
    return family, name, config


def _end(values: Mapping[str, Any], family: Family) -> str:
    """Returns what a `config.json`'s class is called without its family's name."""
    classes = values.get("architectures") or ["Model"]
    if not (isinstance(classes, list) and isinstance(classes[0], str)):
        raise UserError(
            f"config.json: architectures is {classes!r}, not a list of names"
        )
    class_name = classes[0]
    for end in sorted(family.heads, key=len, reverse=True):
        if class_name.endswith(end):
            return end
    ends = ", ".join(f"{family.class_prefix}{end}" for end in family.heads)
    if not values.get("architectures"):
        raise UserError(
            f"config.json names no class in architectures; of {family.model_type} "
            f"there are {ends}"
        )
    raise UserError(
        f"config.json: {class_name} is not supported; of {family.model_type} there are "
        f"{ends}"
    )


def _has_own_head(
    family: Family, end: str, config: Any, tensors: Mapping[str, Tensor]
) -> bool:
    """Returns whether there is a head that is not the embedding, whatever is said.

    Configs of T5 1.1 are written as if there were none; old files of other families
    have the embedding twice.
    """
    head = tensors.get(str(family.heads[end].names.get("head/kernel")))
    table = tensors.get(
        f"{family.prefix}{family.names(config)['embedder/token']}.weight"
    )
    if head is None or table is None or head.shape != table.shape:
        return head is not None
    return not np.array_equal(head.read(), table.read())


def find(loaded: Loaded, base: Mapping[str, Any], chosen: str) -> tuple[Family, str]:
    """Returns a family, and the end of a class's name, that can say a model.

    Args:
        loaded: The model.
        base: The `config.json` that it was imported with, or nothing.
        chosen: A model_type; by default that of `base`, or the first that will do.

    Raises:
        UserError: If there is none.
    """
    chosen = chosen or base.get("model_type", "")
    if chosen and chosen not in FAMILIES:
        raise UserError(f"unknown --family {chosen!r}{suggest(chosen, list(FAMILIES))}")
    model = loaded.config.model
    families = [FAMILIES[chosen]] if chosen else FAMILIES.values()
    kin = [family for family in families if isinstance(model, family.model)]
    if not kin:
        raise UserError(f"a {model.name} is no {chosen or 'model of transformers'}")
    found = [(_differences(model, family), family) for family in kin]
    differences, family = min(found, key=lambda pair: len(pair[0]))
    if differences:
        raise UserError(
            f"transformers has no such model: a {family.model_type} has "
            f"{', '.join(differences)}"
        )
    return family, _find_head(loaded, family, base)


def _differences(config: Any, family: Family) -> list[str]:
    """Returns what a family's `config.json` cannot say of a model."""
    said: dict[str, Any] = {}
    for rule in family.rules:
        # Where it has no word, its default differs.
        with contextlib.suppress(UserError):
            said |= rule.write(config)
    read = rules.read(family.rules, family.defaults, said)
    other = family.model(**{**family.fields, **read})
    pairs = [
        (field.name, _meant(config, field.name), _meant(other, field.name))
        for field in dataclasses.fields(config)
        if field.name not in OWN
    ]
    return [
        f"model.{name} {theirs}, not {ours}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]


def _meant(config: Any, name: str) -> Any:
    """Returns a field with what 0 stands for."""
    sizes = {"num_kv_heads": "kv_heads", "head_dim": "head_size", "mlp_dim": "mlp_size"}
    value = getattr(config, sizes.get(name, name))
    if name == "attention_scale":
        value = value or config.head_size**-0.5
    return round(value, 9) if isinstance(value, float) else value


def _find_head(loaded: Loaded, family: Family, base: Mapping[str, Any]) -> str:
    """Returns the end of the name of a class that is for a model's task."""
    task = loaded.config.task
    probe = {"max_len": loaded.config.model.max_len}

    made = {name: head.task(probe) for name, head in family.heads.items()}
    # A pair of texts is classified as one text is, and a turn written as any text.
    kin = {pair.Config: classify.Config, chat.Config: causal_lm.Config}
    kind = kin.get(type(task), type(task))
    fitting = [name for name, theirs in made.items() if type(theirs) is kind]
    if not fitting:
        raise UserError(f"a {family.model_type} has no class for a task {task.name}")
    ours, theirs = _ends(task), _ends(task, made[fitting[0]])
    if ours != theirs:
        raise UserError(
            f"a {family.model_type} has no class for a task {task.name} that ends as "
            f"{ours}; train with {theirs}, as {family.class_prefix}{fitting[0]} ends"
        )
    before = _end(base, family) if base else ""
    return before if before in fitting else fitting[0]


def _ends(task: Any, other: Any = None) -> str:
    """Returns what a class of theirs decides of a task, of the task or of another."""
    names: tuple[str, ...] = ()
    if isinstance(task, classify.Config):
        names = ("pooling", "hidden", "hidden_layers", "head_bias")
    elif isinstance(task, rank.Config):
        # Whatever else pools states is said beside the model.
        names = ("kind", "pooling") if task.pooling == "attention" else ("kind",)
    return " ".join(f"task.{name}={getattr(other or task, name)}" for name in names)


def write(
    loaded: Loaded, family: Family, name: str, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the `config.json` of a model.

    What the one says that it was imported with, and still holds, stays as it is.
    """
    config, task, tokenizer = loaded.config.model, loaded.config.task, loaded.tokenizer
    values: dict[str, Any] = family.adapt(dict(base))
    changes: dict[str, Any] = {}
    for rule in family.rules:
        before = {**dict.fromkeys(rule.keys), **family.defaults, **values}
        made = rule.write(config)
        if not base or rule.read(before) != rule.read({**before, **made}):
            changes |= made
    # An older form stays as it is unless something in it is to change.
    values = values | changes if changes else dict(base)
    if not base.get("architectures") or _end(base, family) != name:
        values["architectures"] = [family.class_prefix + name]
    values["model_type"] = family.model_type
    marks = {"pad": tokenizer.pad_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    for mark, number in marks.items() if not base else ():
        values[f"{mark}_token_id"] = number if number >= 0 else None
    if isinstance(task, classify.Config) and not base:
        values |= _write_classes(task, tokenizer)
    if getattr(task, "labels", ()):
        values["id2label"] = {str(i): label for i, label in enumerate(task.labels)}
        values["label2id"] = {label: i for i, label in enumerate(task.labels)}
    return values


def _write_classes(task: classify.Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what their classifiers ask of a `config.json` besides names.

    Those of decoders read the last token that is not `pad_token_id`, so that must be
    one that no text ends with.
    """
    kinds = {kind: name for name, kind in KINDS.items()}
    values: dict[str, Any] = {"problem_type": kinds[task.kind]}
    if task.kind == "number":
        values["id2label"] = {"0": task.label}
        values["label2id"] = {task.label: 0}
    if task.pooling == "last":
        marks = [tokenizer.pad_id, *np.flatnonzero(tokenizer.is_special).tolist(), 0]
        ends = (-1, tokenizer.eos_id, tokenizer.unk_id)
        values["pad_token_id"] = next(id for id in marks if id not in ends)
    return values
