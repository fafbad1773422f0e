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

import jax
import jax.numpy as jnp
import numpy as np

from lm import cli, tree
from lm.types import Params, PyTree, UserError
from tools.huggingface.family import Family, Head, Names, Part
from tools.huggingface.files import Tensor

_SUFFIXES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


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
