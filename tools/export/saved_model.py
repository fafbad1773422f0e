"""A TensorFlow SavedModel, for TensorFlow Serving: text in, prediction out.

It has each function of the graph, tokens in. If TensorFlow can do what the tokenizer
does, `serving_default` takes text, and of what writes `generate` is the same; if not,
what writes has `generate_ids`, whose prompts are padded with -1. A batch is padded to
the shortest length that fits it.

To load one that takes text, import tensorflow_text first. XLA compiles for each length
and each number of rows, and TensorFlow Serving has that done for one row before it
serves, by the requests in `assets.extra`.

Axes: B batch, T time, N new tokens, S places of a cache, C classes.
"""

import contextlib
import functools
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.experimental import jax2tf

from lm import decoding
from lm.completion import writable
from lm.nn.layers import ACTIVATIONS
from lm.tasks import Generative
from lm.train.workdir import Loaded
from lm.types import Array, Batch, Params
from tools.export import text_ops
from tools.export.graph import Graph, Shapes
from tools.export.text_ops import Text

QUANTIZATIONS = {"none": "float32"}
REQUIRES = "tensorflow tensorflow-text numpy tokenizers sentencepiece"
NOTE = """
The SavedModel may also have `serving_default`, from texts to predictions, and of what
writes `generate`; then the function from tokens is named `ids`. Load it after
`import tensorflow_text`. On a CPU, start TensorFlow Serving with
`--xla_cpu_compilation_enabled=true`.
"""
BLOCKED = ("jax", "jaxlib", "flax", "lm", "tools")

GREEDY = decoding.Config(temperature=0.0)

# Of erf(x) / x as a quotient of polynomials of x², highest power first.
_ERF_OVER = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06),
    *(-5.69250639462346e-05, -7.34990630326855e-04, -2.95459980854025e-03),
    -1.60960333262415e-02,
)
_ERF_UNDER = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
    *(-7.37332916720468e-03, -1.42647390514189e-02),
)

Tensors = Mapping[str, Any]
Call = Callable[[Tensors], dict[str, Any]]


def write(folder: Path, graph: Graph, loaded: Loaded, options: Namespace) -> None:
    """Writes the folder `saved_model`; there are no options."""
    del options
    root: Any = tf.Module()
    writes = graph.architecture != "encoder"
    root.params = jax.tree.map(lambda x: tf.Variable(x, trainable=False), graph.params)
    root.text = text_ops.open_text(loaded.tokenizer, writes)
    served = Served(graph, loaded, root.params, root.text)
    path = folder / "saved_model"
    with tensorflow_target():
        tf.saved_model.save(root, str(path), served.signatures())
    (path / "assets.extra").mkdir()
    file = str(path / "assets.extra" / "tf_serving_warmup_requests")
    with tf.io.TFRecordWriter(file) as writer:
        for name, inputs in served.requests():
            writer.write(prediction_log(name, inputs))


@contextlib.contextmanager
def tensorflow_target(
    version: str = "1.8.0", calling_convention: int = 9
) -> Iterator[None]:
    """Has JAX write what TensorFlow from 2.18 on reads.

    JAX writes for what is a few weeks older than itself, and TensorFlow is older still.
    That this can be set is no promise of JAX's; a test holds that it works. GELU is in
    plain arithmetic.
    """
    from jax._src.export import _export

    hlo: Any = _export.hlo
    option = "jax_export_calling_convention_version"
    function = "get_version_from_compatibility_requirement"
    before = getattr(jax.config, option), getattr(hlo, function), ACTIVATIONS["gelu"]
    jax.config.update(option, calling_convention)
    setattr(hlo, function, lambda _: version)
    ACTIVATIONS["gelu"] = gelu
    try:
        yield
    finally:
        jax.config.update(option, before[0])
        setattr(hlo, function, before[1])
        ACTIVATIONS["gelu"] = before[2]


def gelu(x: Array) -> Array:
    """Returns `jax.nn.gelu(x, approximate=False)`, within 2e-6 of it.

    JAX from 0.12 on writes its erf so that TensorFlow cannot run it for another B than
    it was written with. This erf is Eigen's, as `MaterializeErfApproximationF32` of
    https://github.com/tensorflow/mlir-hlo has it.
    """
    z = jnp.clip(x * np.float32(0.5**0.5), -4, 4)
    square = jnp.square(z)
    over, under = (_polynomial(each, square) for each in (_ERF_OVER, _ERF_UNDER))
    return 0.5 * x * (1 + z * over / under)


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    return functools.reduce(lambda sum, c: sum * x + c, coefficients, jnp.zeros_like(x))


def prediction_log(signature: str, inputs: Tensors) -> bytes:
    """Returns a request as TensorFlow Serving logs it.

    That is a `PredictionLog` of https://github.com/tensorflow/serving, in
    `tensorflow_serving/apis`: `prediction_log.proto`, `predict.proto` and
    `model.proto` have the numbers. Their package would bring another TensorFlow.
    """
    tensors = b"".join(
        _field(2, _field(1, name.encode()) + _field(2, _tensor(value)))
        for name, value in sorted(inputs.items())
    )
    spec = _field(1, _field(3, signature.encode()))
    return _field(6, _field(1, spec + tensors))


def _tensor(value: Any) -> bytes:
    return tf.make_tensor_proto(value).SerializeToString()


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of a protocol buffer: tag, length in base 128, content.

    >>> _field(1, b"a" * 300)[:4].hex(" ")
    '0a ac 02 61'
    """
    size, digits = len(content), []
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *digits, size]) + content


# --- Signatures ---------------------------------------------------------------------


class Served:
    """The signatures of a SavedModel, and requests that warm them up."""

    def __init__(self, graph: Graph, loaded: Loaded, params: Any, text: Text | None):
        """Takes the parameters as variables, and the tokenizer if there is one."""
        self._graph, self._loaded = graph, loaded
        self._writes = graph.architecture != "encoder"
        self._layout = find_layout(graph, loaded, text) if text else None
        self._calls = {
            s.name: _converted(s.function, params, s.inputs) for s in graph.signatures
        }
        reading = [s for s in graph.signatures if not s.name.startswith("decode")]
        self._by_length = {s.length: self._calls[s.name] for s in reading}
        if self._writes:
            row = "inputs", "segment_ids"
            write = _converted(make_writer(graph, loaded), params, row)
            self._by_length = dict.fromkeys(self._by_length, write)

    def signatures(self) -> dict[str, Any]:
        """Returns functions of tensors by name."""
        made = {
            s.name: _function(self._calls[s.name], _specs(s.inputs))
            for s in self._graph.signatures
        }
        if self._layout:
            if "serving_default" in made:
                made["ids"] = made.pop("serving_default")
            names = self._layout.fields
            specs = {name: tf.TensorSpec([None], tf.string, name) for name in names}
            made["serving_default"] = _function(self._of_texts, specs)
            if self._writes:
                made["generate"] = made["serving_default"]
        elif self._writes:
            specs = {"inputs": tf.TensorSpec([None, None], tf.int32, "inputs")}
            made["generate_ids"] = _function(self._of_ids, specs)
        return made

    def requests(self) -> Iterator[tuple[str, Tensors]]:
        """Yields a signature and inputs for it, so that each length is met."""
        if self._layout:
            yield from self._text_requests(self._layout)
        elif self._writes:
            for length in self._by_length:
                tokens = np.zeros((1, min(length, self._most)), np.int32)
                yield "generate_ids", {"inputs": tokens}
        else:
            for signature in self._graph.signatures:
                shapes = signature.inputs.items()
                yield signature.name, {n: np.zeros(s.shape, s.dtype) for n, s in shapes}

    def _text_requests(self, layout: "Layout") -> Iterator[tuple[str, Tensors]]:
        number = self._graph.length
        texts = dict.fromkeys(layout.fields, tf.constant([""] * number))
        texts["text"] = tf.constant(["a " * n for n in range(number)])
        sizes = layout.rows(texts)["inputs"].row_lengths().numpy()
        shortest = 0
        for length in sorted(self._by_length):
            fits = (sizes > shortest) & (sizes <= min(length, self._most))
            shortest = length
            for row in np.flatnonzero(fits)[:1]:
                inputs = {name: values[row, None] for name, values in texts.items()}
                yield "serving_default", inputs
                if self._writes:
                    yield "generate", inputs

    def _of_texts(self, texts: Tensors) -> dict[str, Any]:
        """Predicts of texts [B]."""
        assert self._layout
        rows = self._layout.rows(texts)
        outputs = self._run(rows)
        if not self._writes:
            return prediction(self._loaded.config.task, outputs)
        has_encoder = self._graph.architecture == "encoder_decoder"
        decode = text_ops.make_decode(self._loaded.tokenizer, has_encoder)
        before = rows["inputs"][:, -1:].to_tensor()[:, int(has_encoder) :]
        return {"prediction": decode(before, outputs["tokens"])}

    def _of_ids(self, inputs: Tensors) -> dict[str, Any]:
        """Continues prompts [B, T]."""
        ragged: Any = tf.RaggedTensor
        return self._run({"inputs": ragged.from_tensor(inputs["inputs"], padding=-1)})

    @property
    def _most(self) -> int:
        """The most tokens of a row; a decoder has to write one at least."""
        return self._graph.length - (self._graph.architecture == "decoder")

    def _run(self, rows: Tensors) -> dict[str, Any]:
        """Runs the function of the shortest length that fits ragged rows [B, T]."""
        sizes = rows["inputs"].row_lengths()
        longest = tf.reduce_max(sizes)
        tf.debugging.assert_less_equal(
            longest,
            tf.constant(self._most, tf.int64),
            f"a text has more than {self._most} tokens; shorten it",
        )

        def run(length: int) -> dict[str, Any]:
            fill = {"inputs": max(self._loaded.tokenizer.pad_id, 0)}
            row = {
                name: values.to_tensor(fill.get(name, 0), shape=[None, length])
                for name, values in rows.items()
            }
            row["segment_ids"] = tf.sequence_mask(sizes, length, tf.int32)
            return self._by_length[length](row)

        lengths = sorted(self._by_length)
        which = tf.searchsorted(tf.constant(lengths, tf.int64), longest[None])[0]
        return tf.switch_case(which, [functools.partial(run, n) for n in lengths])


def _specs(shapes: Shapes) -> dict[str, Any]:
    """Returns what goes into a function of the graph, of any B."""
    specs = {}
    for name, each in shapes.items():
        shape = each.shape if name == "input_pos" else (None, *each.shape[1:])
        specs[name] = tf.TensorSpec(shape, each.dtype, name)
    return specs


def _function(call: Call, specs: Mapping[str, Any]) -> Any:
    return tf.function(call, input_signature=[specs], autograph=False)


def _converted(
    function: Callable[[Params, Batch], Batch], params: Any, names: Iterable[str]
) -> Call:
    """Returns a function of JAX as one of tensors, which ignores other inputs."""
    shapes: Any = {name: None if name == "input_pos" else "b, ..." for name in names}
    run = jax2tf.convert(
        function,
        polymorphic_shapes=[None, shapes],
        with_gradient=False,
        native_serialization_platforms=("cpu", "cuda"),
    )
    return lambda inputs: run(params, {name: inputs[name] for name in shapes})


# --- What is read -------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How texts become a row: marks, text, marks; of two texts with marks after each.

    Attributes:
        text: What encodes.
        fields: Those of an example that have the texts.
        before: Ids before the first text.
        after: Ids after each.
        room: Tokens of all texts; what is too much is cut off, of two from the longer.
        prefix: Text that is put before.
    """

    text: Text
    fields: tuple[str, ...]
    before: Sequence[int]
    after: Sequence[int]
    room: int
    prefix: str = ""

    def rows(self, texts: Tensors) -> dict[str, Any]:
        """Returns `inputs` and `type_ids`, ragged [B, T], of fields [B]."""
        ragged: Any = tf.RaggedTensor
        parts = [
            self.text.encode(self.prefix + text_ops.valid(texts[name]))
            for name in self.fields
        ]
        room = tf.constant(self.room, tf.int64)
        most = [room]
        if len(parts) == 2:
            a, b = (part.row_lengths() for part in parts)
            of_b = tf.minimum(b, tf.maximum(room - a, room // 2))
            most = [room - of_b, of_b]
        columns = [self._column(self.before, parts[0])]
        for part, size in zip(parts, most):
            sizes = tf.minimum(part.row_lengths(), size)
            columns.append(ragged.from_tensor(part.to_tensor(), lengths=sizes))
            columns.append(self._column(self.after, part))
        inputs = tf.concat(columns, axis=1)
        of_first = tf.concat(columns[:3], axis=1).row_lengths()[:, None]
        is_second = tf.ragged.range(inputs.row_lengths()) >= of_first
        return {"inputs": inputs, "type_ids": tf.cast(is_second, tf.int32)}

    def _column(self, ids: Sequence[int], part: Any) -> Any:
        return tf.tile(tf.constant([list(ids)], tf.int32), [part.nrows(), 1])


def find_layout(graph: Graph, loaded: Loaded, text: Text) -> Layout | None:
    """Returns how a task makes a row, or None if it makes that of more than texts."""
    task: Any = loaded.task
    config, tokenizer, longest = task.config, loaded.tokenizer, graph.length
    bos, eos = ([i] if i >= 0 else [] for i in (tokenizer.bos_id, tokenizer.eos_id))
    match config.name:
        case "classify" | "rank" if getattr(config, "kind", "") != "cross":
            return Layout(text, ("text",), bos, eos, longest - 2)
        case "pair":
            return Layout(text, ("text", config.text_b), bos, eos, longest - 3)
        case "causal_lm" if bos:  # one that is too long is not cut, but refused
            return Layout(text, ("text",), bos, [], longest)
        case "text_to_text":
            before = bos if config.prefix_lm else []
            room = min(config.length, longest) - len(before) - 1
            return Layout(text, ("text",), before, eos, room, config.prefix)
        case "chat" if not config.strip:  # a turn of the user's
            before = [*bos, *task.first, *task.openings["user"]]
            after = [*eos, *task.closing, *task.openings["assistant"]]
            room = min(config.length, longest) - config.max_new_tokens
            room -= len(before) + len(after)
            return Layout(text, ("text",), before, after, max(room, 0))
    return None


# --- What is predicted --------------------------------------------------------------


def prediction(config: Any, outputs: Tensors) -> dict[str, Any]:
    """Returns what a task's `decode` makes of outputs, as tensors.

    Classes have `probabilities` [B, C] and `label` [B], or `labels` [B, C], empty
    where a class is not predicted.
    """
    if "value" in outputs:
        mean, deviation = config.moments or (0.0, 1.0)
        return {"value": mean + deviation * tf.cast(outputs["value"], tf.float64)}
    if "probabilities" not in outputs:
        return dict(outputs)
    shares, names = outputs["probabilities"], tf.constant(config.labels)
    if config.kind == "one":
        return {**outputs, "label": tf.gather(names, tf.argmax(shares, axis=1))}
    least = config.thresholds or (0.5,) * len(config.labels)
    is_found = tf.cast(shares, tf.float64) >= tf.constant(least, tf.float64)
    return {**outputs, "labels": tf.where(is_found, names, "")}


def make_writer(graph: Graph, loaded: Loaded) -> Callable[[Params, Batch], Batch]:
    """Returns a function that writes `tokens` [B, N], each the likeliest.

    It writes as `lm.completion` does, up to the end mark, as many as the task asks for
    or as the cache has places; then come -1.
    """
    task, tokenizer = loaded.task, loaded.tokenizer
    has_encoder = graph.architecture == "encoder_decoder"
    sentinels = tokenizer.sentinel_ids if has_encoder else ()
    allowed = writable(tokenizer, loaded.config.model.vocab_size, sentinels)
    vocabulary = decoding.Vocabulary(allowed, np.int32(tokenizer.eos_id))
    # An encoder-decoder reads a start of its own, besides what it writes.
    N = S = graph.places
    S += has_encoder
    if isinstance(task, Generative):
        N = min(N, task.decoding["max_new_tokens"])

    def write(params: Params, batch: Batch) -> Batch:
        batch = dict(batch)
        if has_encoder:
            batch = {f"encoder_{name}": value for name, value in batch.items()}
            start = jnp.full_like(
                batch["encoder_inputs"][:, :1], max(tokenizer.pad_id, 0)
            )
            batch |= {"inputs": start, "segment_ids": jnp.ones_like(start)}
        elif graph.prefix_lm:
            batch["prefix_mask"] = batch["segment_ids"] > 0
        context = decoding.prefill(graph.model, params, batch, GREEDY, S)
        left = jnp.where(context.length > 0, jnp.minimum(N, S - context.length), 0)

        def step(carry: Any) -> Any:
            i, context, grows, tokens = carry
            scores = context.log_probs(vocabulary, GREEDY)
            token = scores.argmax(axis=-1).astype(jnp.int32)
            tokens = tokens.at[i].set(jnp.where(grows, token, -1))
            grows &= (token != vocabulary.end) & (i + 1 < left)
            return (
                i + 1,
                decoding.read(graph.model, params, context, token),
                grows,
                tokens,
            )

        *_, tokens = jax.lax.while_loop(
            lambda carry: carry[2].any(),
            step,
            (0, context, left > 0, jnp.full((N, *left.shape), -1, jnp.int32)),
        )
        return {"tokens": tokens.T}

    return write
