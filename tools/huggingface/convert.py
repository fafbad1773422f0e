"""Parameters from the tensors of a checkpoint, and back.

One tensor at a time is read, and put into the place on the devices where it stays.
Axes: L layers; D, N, H as in `lm.nn.transformer`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import cli, sharding, tree
from lm.cli import suggest
from lm.nn.transformer import stack_layers
from lm.train.state import placed_params
from lm.train.workdir import Loaded
from lm.types import Params, PyTree, UserError
from tools.huggingface import rules
from tools.huggingface.families import FAMILIES
from tools.huggingface.family import Family, Head, Names, Part
from tools.huggingface.files import Tensor

_SUFFIXES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def read_config(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Family, str, Any]:
    """Returns the family of a `config.json`, its class's end, and our model's config.

    Args:
        values: The `config.json`.
        tensors: Of the checkpoint, which tell whether the head is the embedding.

    Raises:
        UserError: If the family, the class or something of the config is not supported.
    """
    kind = str(values.get("model_type"))
    if kind not in FAMILIES:
        near = suggest(kind, sorted(FAMILIES))
        raise UserError(f"config.json: model_type {kind!r} is not supported{near}")
    family = FAMILIES[kind]
    classes = values.get("architectures") or ["Model"]
    name = _end(classes[0], family)
    found = rules.read(family.rules, family.defaults, family.adapt(dict(values)))
    config = family.model(**{**family.fields, **found})
    own = family.heads[name].names.get("head/kernel")
    if isinstance(own, str) and not family.heads[name].wraps:
        config = dataclasses.replace(config, tie_embeddings=own not in tensors)
    return family, name, config


def _end(class_name: str, family: Family) -> str:
    for end in sorted(family.heads, key=len, reverse=True):
        if class_name.endswith(end):
            return end
    ends = ", ".join(f"…{end}" for end in family.heads)
    raise UserError(
        f"config.json: {class_name} is not supported; of {family.model_type} there are "
        f"{ends}"
    )


def read_params(
    tensors: Mapping[str, Tensor],
    family: Family,
    name: str,
    config: Any,
    model: nn.Module,
    mesh_config: sharding.MeshConfig,
) -> tuple[Params, dict[str, str]]:
    """Reads a model's parameters onto the devices.

    Args:
        tensors: Of the checkpoint.
        family: The model's.
        name: The end of its class's name.
        config: Of the model, without its head.
        model: With its head.
        mesh_config: How parameters are laid over the devices.

    Returns:
        The parameters; and the tensors without a use here, each with the reason.

    Raises:
        UserError: If a tensor is missing, does not fit, or has no place.
    """
    mesh = sharding.build_mesh(mesh_config)
    abstract = placed_params(model, mesh, mesh_config)
    prefix = family.prefix if any(n.startswith(family.prefix) for n in tensors) else ""
    found = places(family, family.heads[name], config, abstract, prefix)
    kept = unclaimed(tensors, found, abstract, family)
    return load(tensors, found, abstract, family), kept


def find_family(
    loaded: Loaded, base: Mapping[str, Any], chosen: str
) -> tuple[Family, str]:
    """Returns a family, and the end of a class's name, that can say a model.

    Args:
        loaded: The model.
        base: The `config.json` that it was imported with, or nothing.
        chosen: A model_type, or nothing.

    Raises:
        UserError: If there is none.
    """
    names = [chosen or base.get("model_type", "")]
    if names[0] and names[0] not in FAMILIES:
        raise UserError(f"unknown --family {chosen!r}{suggest(chosen, list(FAMILIES))}")
    trouble = ""
    for family in [FAMILIES[n] for n in names if n] or FAMILIES.values():
        try:
            _check_said(loaded, family)
            return family, _find_head(loaded, family, base)
        except UserError as error:
            trouble = trouble or str(error)
    raise UserError(f"no family of transformers has such a model: {trouble}")


# Fields that say how a model is trained or run, or that transformers has no word for.
_OWN = (
    *("name", "dropout_rate", "attention_dropout_rate", "attention", "dtype", "remat"),
    *("scan_layers", "init_stddev", "embed_stddev", "max_len"),
)


def _check_said(loaded: Loaded, family: Family) -> None:
    """Raises a UserError unless a family's `config.json` says all of a model."""
    config = loaded.config.model
    if not isinstance(config, family.model):
        raise UserError(f"a {family.model_type} is no {config.name}")
    read = rules.read(family.rules, family.defaults, rules.write(family.rules, config))
    other = family.model(**{**family.fields, **read})
    for field in dataclasses.fields(config):
        ours, theirs = (_meant(each, field.name) for each in (config, other))
        if field.name not in _OWN and ours != theirs and field.name != "tie_embeddings":
            raise UserError(
                f"model.{field.name} is {ours}, and a {family.model_type} has {theirs}"
            )


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
    fitting = [
        name
        for name, head in family.heads.items()
        if type(head.task(probe)) is type(task)
        and getattr(head.task(probe), "hidden", "") == getattr(task, "hidden", "")
    ]
    before = [
        n for n in fitting if base and n == _end(base["architectures"][0], family)
    ]
    if not fitting:
        raise UserError(f"a {family.model_type} has no class for the task {task.name}")
    return (before or fitting)[0]


def write_config(
    loaded: Loaded, family: Family, name: str, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the `config.json` of a model.

    What the one says that it was imported with, and still holds, stays as it is.
    """
    config, task, tokenizer = loaded.config.model, loaded.config.task, loaded.tokenizer
    values: dict[str, Any] = family.adapt(dict(base))
    for rule in family.rules:
        said = {**dict.fromkeys(rule.keys), **family.defaults, **values}
        made = rule.write(config)
        if not base or rule.read(said) != rule.read(
            {**family.defaults, **said, **made}
        ):
            values |= made
    first = _CLASSES.get(family.model_type, family.model_type.title())
    same = base and _end(base["architectures"][0], family) == name
    classes = base["architectures"] if same else [f"{first}{name}"]
    values |= {"model_type": family.model_type, "architectures": classes}
    marks = {"pad": tokenizer.pad_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    for mark, number in marks.items() if not base else ():
        values[f"{mark}_token_id"] = number if number >= 0 else None
    if getattr(task, "labels", ()):
        values["id2label"] = {str(i): label for i, label in enumerate(task.labels)}
        values["label2id"] = {label: i for i, label in enumerate(task.labels)}
    return values


_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "albert": "Albert",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
    "gemma3_text": "Gemma3",
    "t5": "T5",
    "mt5": "MT5",
}


def write_params(
    loaded: Loaded, family: Family, name: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a model's checkpoint."""
    head, params = family.heads[name], loaded.params
    prefix = "" if name == "Model" else family.prefix
    if not loaded.config.model.scan_layers:
        params = stack_layers(params)
    found = places(family, head, loaded.config.model, params, prefix)
    yield from dump(params, found, family)


@dataclass(frozen=True)
class Place:
    """Where a parameter of ours is in a checkpoint.

    Attributes:
        name: Of the tensor; `*` stands for the layer.
        part: Which third it is, or None for all of it.
        is_matrix: Whether axes are turned.
        num_inputs: Axes of ours that are the input's.
    """

    name: str
    part: Part | None
    is_matrix: bool
    num_inputs: int

    @property
    def is_stacked(self) -> bool:
        """Whether ours has an axis L."""
        return "*" in self.name

    def names(self, leaf: Any) -> list[str]:
        """Returns the names of all the tensors that make up a parameter of ours."""
        if not self.is_stacked:
            return [self.name]
        return [self.name.replace("*", str(i)) for i in range(leaf.shape[0])]


def places(family: Family, head: Head, config: Any, abstract: PyTree, prefix: str):
    """Returns the `Place` of each of our parameters by its name.

    Args:
        family: The model's.
        head: Of their class.
        config: Of our model.
        abstract: The shapes of our parameters.
        prefix: Before the names of the family's modules.

    Raises:
        ValueError: If one has no place.
    """
    names = {
        ("backbone/" if head.wraps else "") + module: _with_prefix(prefix, name)
        for module, name in family.names(config).items()
    }
    names |= head.names
    leaves = jax.tree.leaves(tree.names(abstract))
    return {leaf: _place(leaf, names) for leaf in leaves}


def _with_prefix(prefix: str, name: str | Part) -> str | Part:
    if isinstance(name, Part):
        return Part(prefix + name.name, name.index, name.by_head)
    return prefix + name


def _place(leaf: str, names: Names) -> Place:
    if leaf in names:
        return Place(str(names[leaf]), None, False, 0)
    module, _, kind = leaf.rpartition("/")
    if module not in names:
        raise ValueError(f"{leaf} has no place among the names of this family")
    name = names[module]
    part = name if isinstance(name, Part) else None
    module_name = name.name if isinstance(name, Part) else name
    num_inputs = 2 if module.endswith("attention/out") else 1
    return Place(
        f"{module_name}.{_SUFFIXES.get(kind, kind)}",
        part,
        kind == "kernel",
        num_inputs,
    )


def take(x: np.ndarray, place: Place, shape: tuple[int, ...], family: Family):
    """Returns what a tensor of theirs is in ours, of this shape, without L."""
    if place.is_matrix and family.transposed:
        x = x.T
    if place.part:
        *lead, heads, size = shape
        parts = (heads, 3, size) if place.part.by_head else (3, heads, size)
        axis = -2 if place.part.by_head else -3
        x = np.take(x.reshape(*lead, *parts), place.part.index, axis=axis)
    return x.reshape(shape)


def give(parts: list[np.ndarray], place: Place, family: Family) -> np.ndarray:
    """Undoes `take`: one of ours, or three, to a tensor of theirs."""
    x = parts[0]
    if place.part:
        x = np.stack(parts, axis=-2 if place.part.by_head else -3)
    if place.is_matrix:
        inputs = math.prod(x.shape[: place.num_inputs])
        x = x.reshape(inputs, -1)
        return x.T if family.transposed else x
    # A table or a head has its two axes; a vector may have had heads.
    return x.reshape(-1) if place.name.endswith(".bias") else x


def load(
    tensors: Mapping[str, Tensor],
    found: Mapping[str, Place],
    abstract: PyTree,
    family: Family,
) -> Params:
    """Reads parameters onto their devices.

    Args:
        tensors: Of the checkpoint.
        found: Of `places`.
        abstract: Shapes of ours and where they go.
        family: The model's.

    Raises:
        UserError: If a tensor is missing, or has another size or type.
    """

    def read(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        place = found[name]
        if not place.is_stacked:
            value = _read(tensors, place.name, place, leaf.shape, family)
            return jax.device_put(value, leaf.sharding)
        made = _zeros(leaf)()
        for i, theirs in enumerate(place.names(leaf)):
            value = _read(tensors, theirs, place, leaf.shape[1:], family)
            made = _put(made, jnp.int32(i), value)
        return made

    leaves, structure = jax.tree.flatten(abstract)
    pairs = list(zip(jax.tree.leaves(tree.names(abstract)), leaves, strict=True))
    made = [read(name, leaf) for name, leaf in cli.progress(pairs, len(pairs))]
    return jax.tree.unflatten(structure, made)


def _zeros(leaf: jax.ShapeDtypeStruct):
    return jax.jit(
        functools.partial(jnp.zeros, leaf.shape, leaf.dtype),
        out_shardings=leaf.sharding,
    )


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, value, index, 0)


def _read(
    tensors: Mapping[str, Tensor],
    name: str,
    place: Place,
    shape: tuple[int, ...],
    family: Family,
) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"the checkpoint has no tensor {name}; is it whole?")
    tensor = tensors[name]
    size = math.prod(shape) * (3 if place.part else 1)
    if math.prod(tensor.shape) != size:
        raise UserError(
            f"{name} in {tensor.file} is {list(tensor.shape)}, {size} numbers "
            "would fit config.json; is it of this model?"
        )
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(f"{name} in {tensor.file} is {tensor.dtype}, not a float")
    value = take(tensor.read(), place, shape, family)
    return np.ascontiguousarray(value, np.float32)


def dump(
    params: Params, found: Mapping[str, Place], family: Family
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a checkpoint, one at a time; undoes `load`."""
    groups: dict[str, list[tuple[Place, Any]]] = {}
    leaves = jax.tree.leaves(params)
    for name, leaf in zip(jax.tree.leaves(tree.names(params)), leaves, strict=True):
        groups.setdefault(found[name].name, []).append((found[name], leaf))
    for name, members in groups.items():
        members.sort(key=lambda pair: pair[0].part.index if pair[0].part else 0)
        place = members[0][0]
        for i, theirs in enumerate(place.names(members[0][1])):
            parts = [
                np.asarray(leaf[i] if place.is_stacked else leaf) for _, leaf in members
            ]
            yield theirs, np.ascontiguousarray(give(parts, place, family))


def unclaimed(
    tensors: Mapping[str, Tensor],
    found: Mapping[str, Place],
    abstract: PyTree,
    family: Family,
) -> dict[str, str]:
    """Returns which tensors have no use here but are kept, and why.

    Raises:
        UserError: If the family says nothing of one.
    """
    used: set[str] = set()
    tree.map_with_names(
        lambda name, leaf: used.update(found[name].names(leaf)), abstract
    )
    kept = {}
    for name in tensors:
        if name in used or _matches(name, family.tied + family.buffers):
            continue
        why = [why for key, why in family.unused.items() if re.fullmatch(key, name)]
        if not why:
            raise UserError(
                f"{name} in {tensors[name].file} has no place in a {family.model_type} "
                "here; it may be of another class, or its layers more than config.json "
                "says"
            )
        kept[name] = why[0]
    return kept


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
