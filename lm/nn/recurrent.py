"""Recurrent layers: a state that goes from token to token.

The products of inputs are one matmul over all tokens; only those of states are in the
scan. Axes: B batch, T time, D features that come in, R units, G gates, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import check_choice, check_range
from lm.nn.base import ModelConfig
from lm.nn.dropout import Dropout, drop
from lm.nn.layers import Einsum, Norm, declare, standardise
from lm.sharding import constrain
from lm.types import Array, Batch

# Of layer norms.
EPS = 1e-5

# The state of a layer, arrays [B, R]; the first is what the layer says.
State = tuple[Array, ...]
# (products of inputs, products of states, state, norm) -> next state, of one token.
Step = Callable[[Array, Array, State, Callable[[Array], Array]], State]


class Cell(NamedTuple):
    """What a state becomes.

    Attributes:
        step: From products [B, G R] and a state.
        num_gates: G.
        num_states: Arrays of a state.
    """

    step: Step
    num_gates: int
    num_states: int


def elman(x: Array, u: Array, state: State, norm: Callable) -> State:
    """Returns h' = tanh(W x + U h + b): Elman (1990).

    https://doi.org/10.1207/s15516709cog1402_1.
    """
    del state, norm
    return (jnp.tanh(x + u),)


def lstm(x: Array, u: Array, state: State, norm: Callable) -> State:
    """Returns h' and c': Hochreiter & Schmidhuber (1997), with a forget gate.

    https://doi.org/10.1162/neco.1997.9.8.1735; the gate is that of Gers et al. (2000),
    https://doi.org/10.1162/089976600300015015, and 1 more than its bias, so that it
    begins open (Jozefowicz et al. 2015, https://proceedings.mlr.press/v37, section
    2.2):

        i, f, g, o = W x + U h + b
        c' = σ(f + 1) c + σ(i) tanh(g)
        h' = σ(o) tanh(c')
    """
    _, c = state
    i, f, g, o = jnp.split(x + u, 4, axis=-1)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(norm(c)), c


def gru(x: Array, u: Array, state: State, norm: Callable) -> State:
    """Returns h': Cho et al. (2014), https://arxiv.org/abs/1406.1078, equations 5 to 8.

    The reset gate acts on the product, as in the paper's first version and in cuDNN,
    so that there is one matmul:

        r, z = σ(W x + U h + b) of each
        n = tanh(W x + b + r (U h))
        h' = z h + (1 - z) n
    """
    del norm
    (h,) = state
    x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
    u_r, u_z, u_n = jnp.split(u, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + u_r), jax.nn.sigmoid(x_z + u_z)
    return (z * h + (1 - z) * jnp.tanh(x_n + r * u_n),)


CELLS = {"rnn": Cell(elman, 1, 1), "lstm": Cell(lstm, 4, 2), "gru": Cell(gru, 3, 1)}


@dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """What every recurrent model has.

    Attributes:
        cell: `lstm`, `gru` or `rnn`.
        num_layers: L.
        hidden_dim: R, units of a layer in each direction; 0 means D.
        layer_norm: Whether products, and the memory that an `lstm` shows, are
            normalised (Ba et al. 2016, https://arxiv.org/abs/1607.06450, equations 20
            to 22).
        dropout_rate: Of embeddings, and of what each layer says.
        recurrent_dropout_rate: Of the states that are multiplied.
        variational: Whether `dropout_rate` leaves out the same units of all tokens of a
            row, as `recurrent_dropout_rate` always does (Gal & Ghahramani 2016,
            https://arxiv.org/abs/1512.05287, section 4).
    """

    cell: str = "lstm"
    num_layers: int = 1
    hidden_dim: int = 0
    layer_norm: bool = False
    recurrent_dropout_rate: float = 0.0
    embed_stddev: float = 0.1
    variational: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_choice("model.cell", self.cell, tuple(CELLS))
        check_range("model.num_layers", self.num_layers, 1)
        check_range("model.hidden_dim", self.hidden_dim, 0)
        check_range("model.recurrent_dropout_rate", self.recurrent_dropout_rate, 0, 1)

    @property
    def units(self) -> int:
        """R."""
        return self.hidden_dim or self.emb_dim


def document_starts(batch: Batch, prefix: str = "") -> Array | None:
    """Returns where a document or the padding begins, bool [B, T].

    Args:
        batch: `positions` and `segment_ids` [B, T], if it has them, tell.
        prefix: Of their names.

    Returns:
        None if each row is a document.
    """
    positions = batch.get(f"{prefix}positions")
    segments = batch.get(f"{prefix}segment_ids")
    if segments is None:
        return None if positions is None else positions == 0
    none = jnp.zeros_like(segments[:, :1])
    before = jnp.concatenate([none, segments[:, :-1]], axis=1)
    starts = segments != before
    return starts if positions is None else starts | (positions == 0)


class Reads(NamedTuple):
    """What a layer reads besides what comes in, such as by attention.

    Attributes:
        read: Maps h [B, R] and what is known of the token to [B, M].
        size: M.
        about: What is known of the tokens, [T, B, …].
    """

    read: Callable[[Array, Any], Array]
    size: int
    about: Any


class Context(NamedTuple):
    """What the layers of a stack share.

    Attributes:
        starts: [T, B, 1] bool, where the state before is forgotten; or None.
        real: [T, B, 1] bool, False where the state stays as it is; or None.
        deterministic: Whether dropout is off.
        reads: What the first layer also reads, [T, B, M], and then says as well; or
            None.
    """

    starts: Array | None
    real: Array | None
    deterministic: bool
    reads: Reads | None = None


class Direction(nn.Module):
    """One layer in one direction.

    Attributes:
        config: The model's.
        reverse: Whether the last token is read first.
    """

    config: RecurrentConfig
    reverse: bool = False

    @nn.compact
    def __call__(self, x: Array, state: State, context: Context) -> tuple[Array, State]:
        """Maps [T, B, D] to [T, B, R], and a state to that behind the last token.

        With something to read it says [T, B, R + M].
        """
        config, reads = self.config, context.reads
        cell, R = CELLS[config.cell], config.units
        size, axes = cell.num_gates * R, ("embed", "mlp")
        inputs = Einsum(
            (x.shape[-1],),
            (size,),
            axes,
            not config.layer_norm,
            config.init_stddev,
            config.dtype,
            name="input",
        )(x).astype(jnp.float32)
        inputs = constrain(inputs, "length", "batch", None)

        def declare_kernel(name: str, fan_in: int) -> Array:
            stddev = config.init_stddev or fan_in**-0.5
            init = nn.initializers.truncated_normal(stddev)
            kernel = declare(self, name, init, axes, (fan_in, size))
            # Devices collect it once, not at every token.
            return constrain(kernel.astype(config.dtype), None, None)

        kernel = declare_kernel("kernel", R)
        kept, norms = None, [lambda u: u, lambda c: c]
        if config.recurrent_dropout_rate and not context.deterministic:
            ones = jnp.ones((x.shape[1], R))
            rng = self.make_rng("dropout")
            kept = drop(rng, config.recurrent_dropout_rate, ones)
        if config.layer_norm:
            inputs = Norm("layer", True, EPS, name="input_norm")(inputs)
            norms[0] = self._norm("product_scale", size)
        if config.layer_norm and config.cell == "lstm":
            norms[1] = self._norm("memory_scale", R)

        if reads is not None:
            of_read = declare_kernel("read_kernel", reads.size)

        def step(state: State, now: Any) -> tuple[State, Array]:
            inputs, start, is_real, about = now
            if start is not None:
                state = tuple(jnp.where(start, 0, each) for each in state)
            h = state[0] if kept is None else state[0] * kept
            said = []
            if reads is not None:
                said = [reads.read(h, about)]
                inputs += jnp.dot(said[0].astype(config.dtype), of_read)
            u = jnp.dot(h.astype(config.dtype), kernel)
            new = cell.step(inputs, norms[0](u.astype(jnp.float32)), state, norms[1])
            if is_real is not None:
                new = tuple(jnp.where(is_real, *each) for each in zip(new, state))
            said = jnp.concatenate([new[0], *said], axis=-1)
            return new, said.astype(config.dtype)

        about = None if reads is None else reads.about
        now = (inputs, context.starts, context.real, about)
        state, y = jax.lax.scan(step, state, now, reverse=self.reverse)
        return constrain(y, "length", "batch", "act_embed"), state

    def _norm(self, name: str, size: int) -> Callable[[Array], Array]:
        """Returns a layer norm [B, size]; in a scan there can be no module."""
        scale = declare(self, name, nn.initializers.ones, ("norm",), (size,))
        return lambda x: standardise(x, "layer", EPS) * scale[None]


class Layer(nn.Module):
    """One layer, in one direction or in both.

    Attributes:
        config: The model's.
        both: Whether it also reads backwards.
    """

    config: RecurrentConfig
    both: bool = False

    @nn.compact
    def __call__(self, x: Array, state: State, context: Context) -> tuple[Array, State]:
        """Maps as `Direction`; of both, x to [T, B, 2 R], and the state forwards."""
        y, after = Direction(self.config, name="forward")(x, state, context)
        if not self.both:
            return y, after
        ends = context.starts
        if ends is not None:  # backwards a document begins where it ends
            ends = jnp.concatenate([ends[1:], jnp.ones_like(ends[:1])])
        backward = Direction(self.config, reverse=True, name="backward")
        zeros = jax.tree.map(jnp.zeros_like, state)
        z, _ = backward(x, zeros, context._replace(starts=ends, reads=None))
        return jnp.concatenate([y, z], axis=-1), after


class Stack(nn.Module):
    """Layers on top of each other, of one direction or of both.

    Attributes:
        config: The model's.
        both: Whether each layer reads in both directions, and says both.
    """

    config: RecurrentConfig
    both: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        starts: Array | None,
        deterministic: bool,
        state: State | None = None,
        real: Array | None = None,
        reads: Reads | None = None,
    ) -> tuple[Array, State]:
        """Maps [B, T, D] to [B, T, R] or [B, T, 2 R], and the state to the next one.

        Args:
            x: Embeddings.
            starts: Of `document_starts`.
            deterministic: Whether dropout is off.
            state: [L, B, R] each, before the first token; zeros if it is None. That of
                `both` directions is of no use.
            real: [B, T] bool, False where the state stays as it is.
            reads: What the first layer also reads; if it is the only one, [B, T, R + M]
                is said.
        """
        config = self.config
        if state is None:
            state = init_state(config, x.shape[0])
        dropout = Dropout(config.dropout_rate, 0 if config.variational else None)
        x = dropout(x.swapaxes(0, 1), deterministic)
        starts, real = (
            None if each is None else each.T[:, :, None] for each in (starts, real)
        )
        context = Context(starts, real, deterministic, reads)
        after = []
        for i in range(config.num_layers):
            before = tuple(each[i] for each in state)
            layer = Layer(config, self.both, name=f"layers_{i}")
            x, new = layer(x, before, context)
            context = context._replace(reads=None)
            x = dropout(x, deterministic)
            after.append(new)
        return x.swapaxes(0, 1), tuple(jnp.stack(each) for each in zip(*after))


def init_state(config: RecurrentConfig, rows: int) -> State:
    """Returns the state of a stack that has read nothing, [L, B, R] each."""
    shape = (config.num_layers, rows, config.units)
    return (jnp.zeros(shape),) * CELLS[config.cell].num_states
