"""A task's prediction as functions of fixed shapes: what every format is made of.

What is exported is the model that was trained, in float32, its layers one by one
instead of scanned. An encoder's functions are `Task.predict` for each length of a row.
A decoder's are `prefill` and `decode`, with the cache of keys and values as inputs and
outputs, named as LiteRT-LM names them; an encoder-decoder's are `encode` and `decode`.
A model of another kind has a state in the place of these caches, whatever it has read.

Axes: B batch (1), T time, S places of a cache, K key/value heads, H head_dim, V vocab.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.models import t5
from lm.nn.base import replace_known
from lm.nn.transformer import Cache, TransformerConfig, unstack_layers
from lm.tasks import Predictive
from lm.tasks.base import apply
from lm.train.state import abstract_params
from lm.train.workdir import Loaded
from lm.types import Array, Batch, Params, PyTree, UserError

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Signature:
    """A function that an artefact has.

    Attributes:
        name: Its name there.
        length: T of its rows; of `decode`, S.
        function: From parameters and inputs to outputs. All outputs have B first, and
            all inputs but `input_pos`; any B will do.
        inputs: The shape and type of each input, for B = 1.
        outputs: Those of each output.
    """

    name: str
    length: int
    function: Callable[[Params, Batch], Batch]
    inputs: Shapes
    outputs: Shapes


@dataclass(frozen=True)
class Graph:
    """A model as functions of the same parameters.

    Attributes:
        architecture: `encoder`, `decoder` or `encoder_decoder`: how it is run.
        model: What the functions are of.
        prefix_lm: Whether a decoder reads its prompt in both directions.
        params: In NumPy, float32.
        signatures: At least one.
        places: S, of what writes; else 0.
    """

    architecture: str
    model: Any
    prefix_lm: bool
    params: Params
    signatures: tuple[Signature, ...]
    places: int = 0

    @property
    def length(self) -> int:
        """Of the longest row."""
        return max(signature.length for signature in self.signatures)


@flax.struct.dataclass
class Consecutive(Cache):
    """A cache whose rows write at the same places, one behind the other.

    A slice is one operation everywhere; what `Cache` writes is a scatter. Outside the
    functions an array is [B, K, S, H], as attention reads it: the transposes here undo
    those there, so a step moves no more than a token's.
    """

    def write(self, key: Array, value: Array, index: Array) -> "Consecutive":
        """See `Cache`."""
        place = (0, 0, index[0, 0], 0)

        def write(to: Array, new: Array) -> Array:
            to, new = to.swapaxes(1, 2), new.swapaxes(1, 2)
            put = functools.partial(
                jax.lax.dynamic_update_slice, allow_negative_indices=False
            )
            return put(to, new, place).swapaxes(1, 2)

        key, value = write(self.key, key), write(self.value, value)
        return dataclasses.replace(self, key=key, value=value)


def build(loaded: Loaded, lengths: Sequence[int] = ()) -> Graph:
    """Returns the functions of a workdir's model.

    Args:
        loaded: The model.
        lengths: Of rows, in tokens; a decoder's are those of prompts, and the longest
            is S. By default what the task was trained with.

    Raises:
        UserError: If the task predicts nothing that can be exported, or a length is
            more than the model's.
    """
    task: Any = loaded.task
    config = replace_known(
        loaded.config.model,
        scan_layers=False,
        pipeline_microbatches=0,
        remat="none",
        dtype="float32",
    )
    if getattr(config, "num_experts", 0):
        raise UserError(
            "a mixture of experts is not exported; train a model with "
            "model.num_experts=0"
        )
    model: Any = task.build_model(config)
    prefix_lm = getattr(task, "prefix_lm", getattr(task.config, "prefix_lm", False))
    params = unstack_layers(jax.tree.map(np.asarray, jax.device_get(loaded.params)))
    if isinstance(task, Predictive):
        architecture, made = "encoder", _encoder(task, model, lengths)
    elif model.architecture == "decoder":
        architecture, made = "decoder", _decoder(task, model, lengths, prefix_lm)
    elif model.architecture == "encoder_decoder":
        architecture, made = "encoder_decoder", _encoder_decoder(task, model, lengths)
    else:
        raise UserError(
            f"task {task.config.name} predicts nothing that can be exported; "
            f"{task.instead}"
        )
    signatures = tuple(_signatures(made, params))
    places = {
        "encoder": 0,
        "decoder": signatures[-1].length,
        "encoder_decoder": _written(task.config),
    }[architecture]
    return Graph(architecture, model, prefix_lm, params, signatures, places)


# A name, a length, a function, and inputs.
_Made = Iterator[tuple[str, int, Callable[[Params, Batch], Batch], Shapes]]


def _signatures(made: _Made, params: Params) -> Iterator[Signature]:
    """Yields functions with those inputs on which their outputs depend."""
    found: dict[Any, list[str]] = {}
    for name, length, function, inputs in made:
        kind = name.partition("_")[0], *inputs
        if kind not in found:
            found[kind] = _used(function, params, inputs)
        used = {name: inputs[name] for name in found[kind]}
        outputs = jax.eval_shape(function, params, used)
        yield Signature(name, length, function, used, outputs)


def _used(
    function: Callable[[Params, Batch], Batch], params: Params, inputs: Shapes
) -> list[str]:
    exported = jax.export.export(jax.jit(function))(params, dict(inputs))
    first = len(jax.tree.leaves(params))
    kept = {index - first for index in exported.module_kept_var_idx}
    return [name for i, name in enumerate(sorted(inputs)) if i in kept]


def _encoder(task: Any, model: Any, lengths: Sequence[int]) -> _Made:
    """Makes `serving_default`, or of several lengths `length_32`, …."""
    config = task.config

    def predict(params: Params, batch: Batch) -> Batch:
        # One type for all tokens, or else T vectors of it become a table of their own.
        batch = {"type_ids": jnp.zeros((1, 1), jnp.int32)} | dict(batch)
        if config.name != "rank":
            return task.predict(model, params, batch)
        # A query is read as a text is; a pair is one row already, so none is made.
        found = apply(model, params, batch, None)
        return (
            {"text_vector": found} if config.kind == "dual" else {"score": found[:, 0]}
        )

    for length in _checked(lengths or [config.length], config.length, "task.length"):
        # An option may be too much for a shorter row.
        dataclasses.replace(config, length=length)
        capacity = (length, 0, 0) if config.name == "rank" else (length,)
        row = task.features([], capacity, np.random.default_rng(0))
        if getattr(config, "kind", "") == "cross":
            row["type_ids"] = row["inputs"]
        inputs = {
            name: jax.ShapeDtypeStruct((1, *value.shape), value.dtype)
            for name, value in row.items()
        }
        name = "serving_default" if len(lengths) < 2 else f"length_{length}"
        yield name, length, predict, inputs


def _decoder(task: Any, model: Any, lengths: Sequence[int], prefix_lm: bool) -> _Made:
    """Makes `prefill_16`, … and `decode`.

    A prompt is read by `prefill`, whose padding repeats the last token's place. Then
    the prompt's last token is read once more by `decode`, at its place, which returns
    the logits of what follows.
    """
    config, task_config = model.config, task.config
    size = task_config.length + getattr(task_config, "targets_length", 0)
    lengths = _checked(
        lengths or [n for n in (16, 128, 1024) if n < size] + [size],
        config.position_limit or 1 << 20,
        "model.max_len",
    )
    S = lengths[-1]
    if not isinstance(config, TransformerConfig):
        yield from _recurrent_decoder(model, lengths)
        return

    def prefill(params: Params, inputs: Batch) -> Batch:
        index = _index(inputs)
        end = index.max(axis=1, keepdims=True)
        prefix = jnp.arange(S)[None] <= end if prefix_lm else None
        _, cache = model.apply(
            {"params": params},
            inputs["tokens"],
            index,
            index,
            _layers(inputs, config.num_layers),
            prefix,
            method="extend",
        )
        return _flat(cache)

    def decode(params: Params, inputs: Batch) -> Batch:
        logits, cache = model.apply(
            {"params": params},
            inputs["tokens"][:, 0],
            _index(inputs)[:, 0],
            _layers(inputs, config.num_layers),
            method="step",
        )
        return {"logits": logits[:, None], **_flat(cache)}

    cache = _cache_shapes("kv_cache", config, config.num_layers, S)
    for length in lengths:
        yield f"prefill_{length}", length, prefill, _read(length) | cache
    yield "decode", S, decode, _read(1) | cache


def _recurrent_decoder(model: Any, lengths: Sequence[int]) -> _Made:
    """Makes `prefill_16`, … and `decode` of a model with a state.

    A state cannot read a token twice: `prefill` leaves out the prompt's last one, and
    the padding, which has its place. Places are of no use to such a model.
    """

    def read(params: Params, inputs: Batch) -> PyTree:
        place = inputs["input_pos"]
        real = (place < place.max())[None].astype(jnp.int32)
        real = jnp.broadcast_to(real, inputs["tokens"].shape)
        batch = {"inputs": inputs["tokens"], "segment_ids": real}
        found = model.apply({"params": params}, batch, lengths[-1], method="prefill")
        return found[1]

    states = _shapes_of(model, read, _read(lengths[0]))

    def prefill(params: Params, inputs: Batch) -> Batch:
        return _outputs("state", read(params, inputs))

    def decode(params: Params, inputs: Batch) -> Batch:
        logits, new = model.apply(
            {"params": params},
            inputs["tokens"][:, 0],
            None,
            _inputs("state", states, inputs),
            method="step",
        )
        return {"logits": logits[:, None], **_outputs("state", new)}

    for length in lengths:
        yield f"prefill_{length}", length, prefill, _read(length)
    yield "decode", lengths[-1], decode, _read(1) | _outputs("state", states)


def _recurrent_encoder_decoder(model: Any, lengths: Sequence[int]) -> _Made:
    """Makes `encode` and `decode` of a model with a state and a memory of its source.

    The memory is what `encode` returns; a state begins with zeros.
    """

    def read(params: Params, inputs: Batch) -> PyTree:
        batch = {f"encoder_{name}": value for name, value in inputs.items()}
        start = jnp.zeros_like(inputs["inputs"][:, :1])
        batch |= {"inputs": start, "segment_ids": start}
        return model.apply({"params": params}, batch, 1, method="prefill")[1]

    def encode(params: Params, inputs: Batch) -> Batch:
        return _outputs("memory", read(params, inputs)[1])

    for length in lengths:
        row = jax.ShapeDtypeStruct((1, length), jnp.int32)
        source = {"inputs": row, "segment_ids": row}
        cache = _shapes_of(model, read, source)

        def decode(params: Params, inputs: Batch, cache: PyTree = cache) -> Batch:
            memory = _inputs("memory", cache[1], inputs)
            logits, (state, _) = model.apply(
                {"params": params},
                inputs["tokens"][:, 0],
                None,
                (_inputs("state", cache[0], inputs), memory),
                method="step",
            )
            return {"logits": logits[:, None], **_outputs("state", state)}

        suffix = "" if len(lengths) < 2 else f"_{length}"
        yield f"encode{suffix}", length, encode, source
        inputs = _read(1) | _outputs("state", cache[0]) | _outputs("memory", cache[1])
        yield f"decode{suffix}", length, decode, inputs


def _shapes_of(
    model: Any, read: Callable[[Params, Batch], PyTree], inputs: Shapes
) -> PyTree:
    """Returns the shapes of a cache."""
    return jax.eval_shape(read, nn.unbox(abstract_params(model)), dict(inputs))


def _outputs(name: str, cache: PyTree) -> dict[str, Any]:
    """Returns a cache's arrays, or their shapes, by name, with rows as the first axis.

    In a cache they are the second.
    """

    def turned(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.swapaxes(0, 1)
        return jax.ShapeDtypeStruct(
            (leaf.shape[1], leaf.shape[0], *leaf.shape[2:]), leaf.dtype
        )

    return {f"{name}_{i}": turned(x) for i, x in enumerate(jax.tree.leaves(cache))}


def _inputs(name: str, like: PyTree, inputs: Batch) -> PyTree:
    """Undoes `_outputs`."""
    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten(
        [inputs[f"{name}_{i}"].swapaxes(0, 1) for i in range(len(leaves))]
    )


def _written(config: Any) -> int:
    """Returns the tokens that an encoder-decoder's task writes at most."""
    return getattr(config, "targets_length", config.length)


def _encoder_decoder(task: Any, model: Any, lengths: Sequence[int]) -> _Made:
    """Makes `encode` and `decode`, or of several lengths `encode_32`, …."""
    config: Any = model.config
    lengths = _checked(
        lengths or [task.config.length],
        config.position_limit or 1 << 20,
        "model.max_len",
    )
    if not isinstance(config, t5.Config):
        yield from _recurrent_encoder_decoder(model, lengths)
        return
    S, L = _written(task.config), config.decoder_layers

    def encode(params: Params, inputs: Batch) -> Batch:
        read = {f"encoder_{name}": value for name, value in inputs.items()}
        start = jnp.zeros_like(inputs["inputs"][:, :1])
        read |= {"inputs": start, "segment_ids": start + 1}
        _, (cache, _) = model.apply({"params": params}, read, 1, method="prefill")
        cross = cache["cross_attention"]
        return {
            f"cross_cache_{kind}_{i}": getattr(cross, name)[i].swapaxes(1, 2)
            for kind, name in (("k", "key"), ("v", "value"))
            for i in range(L)
        }

    def decode(params: Params, inputs: Batch) -> Batch:
        layers = _layers(inputs, L)
        for i, layer in enumerate(layers):
            layer["cross_attention"] = _cache(Cache, inputs, "cross_cache", i)
        logits, (cache, _) = model.apply(
            {"params": params},
            inputs["tokens"][:, 0],
            _index(inputs)[:, 0],
            (layers, inputs["segment_ids"][None]),
            method="step",
        )
        return {"logits": logits[:, None], **_flat(cache)}

    for length in lengths:
        suffix = "" if len(lengths) < 2 else f"_{length}"
        row = jax.ShapeDtypeStruct((1, length), jnp.int32)
        source = {"inputs": row, "segment_ids": row}
        yield f"encode{suffix}", length, encode, source
        inputs = {
            **_read(1),
            "segment_ids": row,
            **_cache_shapes("kv_cache", config, L, S),
            **_cache_shapes("cross_cache", config, L, length),
        }
        yield f"decode{suffix}", length, decode, inputs


def _checked(lengths: Sequence[int], longest: int, name: str) -> list[int]:
    """Returns lengths in order.

    Raises:
        UserError: If one is out of range.
    """
    for length in lengths:
        if not 3 <= length <= longest:
            raise UserError(f"--max-len {length} is not from 3 to {name}, {longest}")
    return sorted(set(lengths))


def _read(length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns inputs of tokens and of the places that they have, whatever the row."""
    return {
        "tokens": jax.ShapeDtypeStruct((1, length), jnp.int32),
        "input_pos": jax.ShapeDtypeStruct((length,), jnp.int32),
    }


def _index(inputs: Batch) -> Array:
    return jnp.broadcast_to(inputs["input_pos"][None], inputs["tokens"].shape)


def _cache_shapes(
    name: str, config: Any, num_layers: int, size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (1, config.kv_heads, size, config.head_size)
    return {
        f"{name}_{kind}_{i}": jax.ShapeDtypeStruct(shape, jnp.float32)
        for kind in "kv"
        for i in range(num_layers)
    }


def _cache(kind: type[Cache], inputs: Batch, name: str, i: int) -> Cache:
    key, value = inputs[f"{name}_k_{i}"], inputs[f"{name}_v_{i}"]
    return kind(key.swapaxes(1, 2), value.swapaxes(1, 2))


def _layers(inputs: Batch, num_layers: int) -> list[dict[str, Cache]]:
    """Returns each layer's cache of self-attention."""
    return [
        {"attention": _cache(Consecutive, inputs, "kv_cache", i)}
        for i in range(num_layers)
    ]


def _flat(layers: Sequence[Mapping[str, Cache]]) -> dict[str, Array]:
    """Returns the caches of self-attention as outputs."""
    return {
        f"kv_cache_{kind}_{i}": getattr(layer["attention"], name).swapaxes(1, 2)
        for i, layer in enumerate(layers)
        for kind, name in (("k", "key"), ("v", "value"))
    }
