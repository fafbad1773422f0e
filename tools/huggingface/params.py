"""Parameters from the tensors of a checkpoint, and back.

One tensor at a time is read, and put into the place on the devices where it stays.
Axes: L layers; D, N, H as in `lm.nn.transformer`.
"""

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
from lm.nn.transformer import stack_layers
from lm.train.state import placed_params
from lm.train.workdir import Loaded
from lm.types import Params, PyTree, UserError
from tools.huggingface.family import Family, Head, Names, Part
from tools.huggingface.tensors import Tensor

_SUFFIXES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def read(
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
        UserError: If a tensor is missing, has another size or type, or has no place.
    """
    mesh = sharding.build_mesh(mesh_config)
    abstract = placed_params(model, mesh, mesh_config)
    prefix = family.prefix if any(n.startswith(family.prefix) for n in tensors) else ""
    found = _places(family, family.heads[name], config, abstract, prefix)
    leaves, structure = jax.tree.flatten(abstract)
    pairs = list(zip([found[n] for n in jax.tree.leaves(tree.names(abstract))], leaves))
    for place, leaf in pairs:
        _check(tensors, place, leaf)
    used = {tensor for place, leaf in pairs for tensor in place.names(leaf)}
    kept = _unclaimed(tensors, used, family, name)
    made = [
        _read(tensors, place, leaf) for place, leaf in cli.progress(pairs, len(pairs))
    ]
    return jax.tree.unflatten(structure, made), kept


def write(
    loaded: Loaded, family: Family, name: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a model's checkpoint by their names, one at a time."""
    head, params = family.heads[name], _in_units(loaded)
    prefix = "" if name == "Model" else family.prefix
    config: Any = loaded.config.model
    if not config.scan_layers:
        params = stack_layers(params)
    found = _places(family, head, config, params, prefix)
    groups: dict[str, list[tuple[Place, Any]]] = {}
    leaves = jax.tree.leaves(params)
    for leaf_name, leaf in zip(jax.tree.leaves(tree.names(params)), leaves):
        place = found[leaf_name]
        groups.setdefault(place.name, []).append((place, leaf))
    for members in groups.values():
        members.sort(key=lambda pair: pair[0].part.index if pair[0].part else 0)
        place, first = members[0]
        for i, theirs in enumerate(place.names(first)):
            parts = [
                np.asarray(leaf[i] if place.is_stacked else leaf) for _, leaf in members
            ]
            yield theirs, np.ascontiguousarray(give(parts, place))


def _in_units(loaded: Loaded) -> Params:
    """Returns parameters that make a number itself, where ours is standardised."""
    params = loaded.params
    mean, deviation = getattr(loaded.config.task, "moments", ()) or (0.0, 1.0)
    if (mean, deviation) == (0, 1):
        return params
    head = {name: deviation * leaf for name, leaf in params["head"].items()}
    if "bias" not in head:
        raise UserError(
            "without a bias the class of transformers makes no number whose mean is "
            f"{mean:g}; train on labels of task.moments=0,1"
        )
    return {**params, "head": head | {"bias": head["bias"] + mean}}


@dataclass(frozen=True)
class Place:
    """Where a parameter of ours is in a checkpoint.

    Attributes:
        name: Of the tensor; `*` stands for the layer.
        part: Which third it is, or None for all of it.
        is_matrix: Whether it is a matrix, of which ours may have more axes.
        num_inputs: Axes of ours that are the input's.
        transposed: Whether theirs is [out, in].
    """

    name: str
    part: Part | None = None
    is_matrix: bool = False
    num_inputs: int = 1
    transposed: bool = True

    @property
    def is_stacked(self) -> bool:
        """Whether ours has an axis L."""
        return "*" in self.name

    def names(self, leaf: Any) -> list[str]:
        """Returns the names of all the tensors that make up a parameter of ours."""
        if not self.is_stacked:
            return [self.name]
        return [self.name.replace("*", str(i)) for i in range(leaf.shape[0])]

    def shape_of_theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns what is theirs of one of ours of this shape, without L."""
        parts = 3 if self.part else 1
        if self.is_matrix:
            inputs = math.prod(shape[: self.num_inputs])
            outputs = parts * math.prod(shape[self.num_inputs :])
            return (outputs, inputs) if self.transposed else (inputs, outputs)
        if self.name.endswith(".bias"):
            return (parts * math.prod(shape),)
        return shape


def _places(
    family: Family, head: Head, config: Any, abstract: PyTree, prefix: str
) -> dict[str, Place]:
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

    def place(leaf: str) -> Place:
        is_heads = {leaf, leaf.rpartition("/")[0]} & head.names.keys()
        return _place(leaf, names, bool(is_heads) or family.transposed)

    return {leaf: place(leaf) for leaf in jax.tree.leaves(tree.names(abstract))}


def _with_prefix(prefix: str, name: str | Part) -> str | Part:
    if isinstance(name, Part):
        return Part(prefix + name.name, name.index, name.by_head)
    return prefix + name


def _place(leaf: str, names: Names, transposed: bool) -> Place:
    if leaf in names:
        return Place(str(names[leaf]))
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
        transposed,
    )


def take(x: np.ndarray, place: Place, shape: tuple[int, ...]) -> np.ndarray:
    """Returns what a tensor of theirs is in ours, of this shape, without L."""
    if place.is_matrix and place.transposed:
        x = x.T
    if place.part:
        *lead, heads, size = shape
        parts = (heads, 3, size) if place.part.by_head else (3, heads, size)
        axis = -2 if place.part.by_head else -3
        x = np.take(x.reshape(*lead, *parts), place.part.index, axis=axis)
    return x.reshape(shape)


def give(parts: list[np.ndarray], place: Place) -> np.ndarray:
    """Undoes `take`: one of ours, or three, to a tensor of theirs."""
    x = parts[0]
    if place.part:
        x = np.stack(parts, axis=-2 if place.part.by_head else -3)
    if place.is_matrix:
        inputs = math.prod(x.shape[: place.num_inputs])
        x = x.reshape(inputs, -1)
        return x.T if place.transposed else x
    # A table or a head has its two axes; a vector may have had heads.
    return x.reshape(-1) if place.name.endswith(".bias") else x


def _read(tensors: Mapping[str, Tensor], place: Place, leaf: Any) -> jax.Array:
    """Reads a parameter onto its devices, layer by layer."""

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = take(tensors[name].read(), place, shape)
        value = np.ascontiguousarray(value, np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{name} in {tensors[name].file} has a NaN or infinity")
        return value

    names = place.names(leaf)
    if not place.is_stacked:
        return jax.device_put(read(names[0], leaf.shape), leaf.sharding)
    make = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
    stack = jax.jit(make, out_shardings=leaf.sharding)()
    for i, name in enumerate(names):
        stack = _put(stack, jnp.int32(i), read(name, leaf.shape[1:]))
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, value, index, 0)


def _check(tensors: Mapping[str, Tensor], place: Place, leaf: Any) -> None:
    """Raises a UserError unless a parameter's tensors are there and fit."""
    shape = leaf.shape[1:] if place.is_stacked else leaf.shape
    expected = place.shape_of_theirs(shape)
    for name in place.names(leaf):
        if name not in tensors:
            raise UserError(f"the checkpoint has no tensor {name}; is it whole?")
        tensor = tensors[name]
        if tensor.shape != expected:
            raise UserError(
                f"{name} in {tensor.file} is {list(tensor.shape)}, and by config.json "
                f"it is {list(expected)}; they are not of the same model"
            )
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{name} in {tensor.file} is {tensor.dtype}, not a float")


def _unclaimed(
    tensors: Mapping[str, Tensor], used: set[str], family: Family, end: str
) -> dict[str, str]:
    """Returns which tensors have no use here but are kept, and why.

    Raises:
        UserError: If the family says nothing of one.
    """
    again = "|".join((*family.tied, *family.buffers)) or "(?!)"
    kept = {}
    for name in tensors:
        if name in used or re.fullmatch(again, name):
            continue
        why = [why for key, why in family.unused.items() if re.fullmatch(key, name)]
        if not why:
            unsaid = ", which is meant where config.json names no class"
            raise UserError(
                f"{name} in {tensors[name].file} has no place in a "
                f"{family.class_prefix}{end}{unsaid * (end == 'Model')}; the class in "
                "architectures may be another, or the layers more than config.json says"
            )
        kept[name] = why[0]
    return kept
