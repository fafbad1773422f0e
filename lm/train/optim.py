"""The optimizer and its learning rate, from Optax; parameters chosen by regex.

A scanned stack keeps all its layers in one leaf. Optimizers that look at a whole
parameter (Adafactor, LAMB, Muon) see each layer of it alone, so that training does
not depend on `model.scan_layers`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm import tree
from lm.adapt.kernels import in_out_axes
from lm.config import check_choice, check_range
from lm.types import Array, Params, PyTree, UserError

OPTIMIZERS = ("adamw", "lion", "adafactor", "muon", "lamb", "adagrad", "sgd")
SCHEDULES = ("cosine", "linear", "rsqrt", "wsd", "constant")


@dataclass(frozen=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        name: `adamw` (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101),
            `lion` (Chen et al. 2023, https://arxiv.org/abs/2302.06675), `adafactor`
            (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235), `muon` (Jordan
            2024, scaled as in Liu et al. 2025, https://arxiv.org/abs/2502.16982),
            `lamb` (You et al. 2020, https://arxiv.org/abs/1904.00962), `adagrad` (Duchi
            et al. 2011, https://jmlr.org/papers/v12/duchi11a.html) or `sgd`.
        learning_rate: At its peak, after the warm-up.
        schedule: What follows the warm-up: `cosine` or `linear` to the end, `rsqrt`
            (1 / √step), `wsd` (constant, then linear; Hu et al. 2024,
            https://arxiv.org/abs/2404.06395) or `constant`.
        final_fraction: Where `cosine`, `linear` and `wsd` end, relative to the peak.
        decay_fraction: The last share of the steps, in which `wsd` falls.
        b1: Decay of the first moment; momentum of `muon` and `sgd`. `adafactor` and
            `adagrad` have none.
        b2: Decay of the second moment of `adamw`, `lamb`, `lion` and of what `muon`
            leaves to Adam; `adafactor` has the paper's own.
        eps: Added to the root of the second moment of `adamw`, `lamb` and `muon`, and
            of the sum of squares of `adagrad`.
        weight_decay: Decoupled from the gradient, times the learning rate.
        decay: Regexes of the parameters that weight decay acts on.
        freeze: Regexes of the parameters that stay as they are.
        train: Regexes of the parameters that are trained though `freeze` has them.
        layer_decay: Layer l = 0, …, L - 1 of L learns at layer_decay^(L - l) of the
            rate, and embeddings, T5's relative positions too, at
            layer_decay^(L + 1) of it, with the L of the deepest stack; heads, final
            norms and all else at the rate itself (Clark et al. 2020,
            https://arxiv.org/abs/2003.10555, after Howard & Ruder 2018,
            https://arxiv.org/abs/1801.06146).
        lr_scales: `regex=factor` pairs; the first that matches a parameter multiplies
            its learning rate.
        grad_clip_norm: If positive, longer gradients are cut to this norm.
        ema_decay: If positive, an average of the parameters with this decay is kept,
            evaluated and used.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: tuple[str, ...] = (r"(kernel|embedding)$",)
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    layer_decay: float = 1.0
    lr_scales: tuple[str, ...] = ()
    grad_clip_norm: float = 1.0
    ema_decay: float = 0.0

    def __post_init__(self):
        check_choice("optim.name", self.name, OPTIMIZERS)
        check_choice("optim.schedule", self.schedule, SCHEDULES)
        for name in ("b1", "b2", "ema_decay"):
            check_range(f"optim.{name}", getattr(self, name), 0, 1)
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optim.{name} must be from 0 to 1")
        if not 0 < self.layer_decay <= 1:
            raise UserError(
                f"optim.layer_decay must be above 0 and at most 1, not "
                f"{self.layer_decay}; optim.freeze keeps parameters as they are"
            )
        for name in ("learning_rate", "eps", "weight_decay", "grad_clip_norm"):
            check_range(f"optim.{name}", getattr(self, name), 0)
        parse_scales(self.lr_scales)


def parse_scales(pairs: tuple[str, ...]) -> list[tuple[str, float]]:
    """Splits `regex=factor` pairs.

    >>> parse_scales(("embedder/.*=0.1",))
    [('embedder/.*', 0.1)]
    """
    parsed = []
    for pair in pairs:
        regex, _, factor = pair.rpartition("=")
        try:
            parsed.append((regex, float(factor)))
        except ValueError:
            regex = ""
        if not regex:
            raise UserError(f"optim.lr_scales: {pair!r} is not 'regex=factor'")
        check_range(f"optim.lr_scales: the factor of {pair!r}", parsed[-1][1], 0)
    return parsed


class Numbers(NamedTuple):
    """What a compiled step takes as an argument: one program serves all values.

    Attributes:
        learning_rate: As in `OptimConfig`.
        weight_decay: As in `OptimConfig`.
        final_fraction: As in `OptimConfig`.
        warmup_steps: Steps over which the learning rate rises.
        num_train_steps: Steps of the run.
        seed: Of dropout.
    """

    learning_rate: Array
    weight_decay: Array
    final_fraction: Array
    warmup_steps: Array
    num_train_steps: Array
    seed: Array

    @classmethod
    def of(
        cls,
        config: OptimConfig,
        num_train_steps: int = 1,
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> "Numbers":
        """Returns those of a run."""
        return cls(
            learning_rate=np.float32(config.learning_rate),
            weight_decay=np.float32(config.weight_decay),
            final_fraction=np.float32(config.final_fraction),
            warmup_steps=np.float32(warmup_steps),
            num_train_steps=np.float32(num_train_steps),
            seed=np.uint32(seed),
        )


def make_schedule(config: OptimConfig, numbers: Numbers) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates before.

    It rises linearly over the warm-up and is at the peak in the last step of it.
    """

    def schedule(count: Array) -> Array:
        count = jnp.asarray(count, jnp.float32)
        warmup = jnp.maximum(numbers.warmup_steps, 1)
        rise = jnp.minimum((count + 1) / warmup, 1)
        after = jnp.maximum(numbers.num_train_steps - numbers.warmup_steps, 1)
        progress = jnp.clip((count - numbers.warmup_steps) / after, 0, 1)
        end = numbers.final_fraction
        match config.schedule:
            case "cosine":
                shape = end + (1 - end) * (1 + jnp.cos(jnp.pi * progress)) / 2
            case "linear":
                shape = 1 + (end - 1) * progress
            case "rsqrt":
                shape = jnp.sqrt(warmup / jnp.maximum(count + 1, warmup))
            case "wsd":
                share = max(config.decay_fraction, 1e-9)
                shape = 1 + (end - 1) * jnp.clip((progress - 1 + share) / share, 0, 1)
            case _:
                shape = 1.0
        return numbers.learning_rate * rise * shape

    return schedule


def make_optimizer(
    config: OptimConfig, numbers: Numbers, params: Params
) -> optax.GradientTransformation:
    """Returns the optimizer of these parameters (shapes are enough).

    Raises:
        UserError: If a regex is invalid or matches no parameter, or none is trained.
    """
    stays = frozen(config, params)
    trained = jax.tree.map(lambda x, stay: None if stay else x, params, stays)
    rules = [(regex, True) for regex in config.decay]
    decays = _by_name(params, tree.first_match(params, rules, False, "optim.decay"))
    decay = optax.add_decayed_weights(numbers.weight_decay, decays)
    parts = [optax.clip_by_global_norm(config.grad_clip_norm or jnp.inf)]
    match config.name:
        case "adamw":
            parts += [optax.scale_by_adam(config.b1, config.b2, config.eps), decay]
        case "lion":
            parts += [optax.scale_by_lion(config.b1, config.b2), decay]
        case "adagrad":
            parts += [_scale_by_adagrad(config.eps), decay]
        case "sgd":
            parts += [optax.trace(config.b1), decay]
        case "adafactor":
            scale = optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
            parts += [_per_layer(scale, trained), decay]
        case "lamb":
            parts += [optax.scale_by_adam(config.b1, config.b2, config.eps), decay]
            parts.append(_per_layer(optax.scale_by_trust_ratio(), trained))
        case "muon":
            parts += [_muon(config), decay]
    if config.lr_scales or config.layer_decay < 1:
        factors = _by_name(params, _rate_factors(config, params))
        parts.append(
            optax.stateless(
                lambda updates, _: jax.tree.map(jnp.multiply, updates, factors(updates))
            )
        )
    parts.append(optax.scale_by_learning_rate(make_schedule(config, numbers)))
    optimizer = optax.chain(*parts)
    if not any(jax.tree.leaves(stays)):
        return optimizer
    labels = jax.tree.map(lambda stay: "frozen" if stay else "trained", stays)
    return optax.partition(
        {"trained": optimizer, "frozen": optax.set_to_zero()}, labels
    )


def _scale_by_adagrad(eps: float) -> optax.GradientTransformation:
    """Divides gradients by the root of the sum of their squares, this one's included.

    Duchi et al. (2011), figure 1, with diagonal matrices: g_t / (δ + ‖g_1…t‖). Optax
    has its δ below the root, where it outweighs the small gradients of rare words.
    """

    def update(updates: PyTree, state: PyTree, params: Any = None) -> tuple:
        del params
        state = jax.tree.map(lambda s, g: s + g * g, state, updates)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, state), state

    def init(params: Any) -> PyTree:
        return jax.tree.map(jnp.zeros_like, params)

    return optax.GradientTransformation(init, update)


def frozen(config: OptimConfig, params: Params) -> PyTree:
    """Returns for each parameter whether it stays as it is; shapes are enough.

    Raises:
        UserError: If a regex is invalid or matches no parameter, or none is trained.
    """
    freeze, train = (
        tree.first_match(params, [(r, True) for r in regexes], False, f"optim.{name}")
        for name, regexes in (("freeze", config.freeze), ("train", config.train))
    )
    stays = jax.tree.map(lambda a, b: a and not b, freeze, train)
    if all(jax.tree.leaves(stays)):
        raise UserError("optim.freeze leaves no parameter to train; set optim.train")
    return stays


def _by_name(params: Params, values: PyTree) -> Callable[[PyTree], PyTree]:
    """Returns a function from a tree, some leaves perhaps masked, to their values."""
    of = dict(zip(jax.tree.leaves(tree.names(params)), jax.tree.leaves(values)))
    return lambda masked: tree.map_with_names(lambda name, _: of[name], masked)


def _rate_factors(config: OptimConfig, params: Params) -> PyTree:
    """Returns what each parameter's rate is multiplied by, [L, 1, …] of a stack."""
    depths = {"": 0}
    for name, leaf in zip(jax.tree.leaves(tree.names(params)), jax.tree.leaves(params)):
        stack, layer = _stack_of(name)
        if stack:
            depth = leaf.shape[0] if layer is None else layer + 1
            depths[stack] = max(depth, depths.get(stack, 0))

    def factor(name: str, leaf: Array, scale: float) -> Array | float:
        stack, layer = _stack_of(name)
        if stack:
            layers = np.arange(depths[stack]) if layer is None else np.array([layer])
            decay = config.layer_decay ** (depths[stack] - layers)
            return np.float32(scale * decay).reshape(-1, *(1,) * (leaf.ndim - 1))
        if re.search(r"(^|/)embedder/|embedding$", name):
            return scale * config.layer_decay ** (max(depths.values()) + 1)
        return scale

    rules = parse_scales(config.lr_scales)
    scales = tree.first_match(params, rules, 1.0, "optim.lr_scales")
    return tree.map_with_names(factor, params, scales)


def _stack_of(name: str) -> tuple[str, int | None]:
    """Returns the stack that a parameter is of, or "", and its layer, or None for all.

    Adapters are of the stack that they adapt.

    >>> _stack_of("base/decoder/layers/mlp/wi/kernel"), _stack_of("head/kernel")
    (('decoder/layers', None), ('', None))
    >>> _stack_of("lora/decoder/layers_1/attention/query/a")
    ('decoder/layers', 1)
    """
    match = re.match(r"(?:base/|lora/)?((?:.*/)?layers)(?:_(\d+))?/", name)
    if not match:
        return "", None
    stack, layer = match.groups()
    return stack, int(layer) if layer else None


def _per_layer(
    transform: optax.GradientTransformation, params: Params
) -> optax.GradientTransformation:
    """Applies `transform` to each layer of a stacked parameter alone."""

    def init(params: Any) -> PyTree:
        return jax.vmap(transform.init)(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[PyTree, PyTree]:
        return jax.vmap(transform.update)(updates, state, params)

    # Stacks of different depth (T5's) cannot share a vmap.
    def scanned(name: str, _: Array) -> str:
        stack, layer = _stack_of(name)
        return stack if layer is None else ""

    def stacks(masked: PyTree) -> PyTree:
        return tree.map_with_names(scanned, masked)

    each = optax.GradientTransformation(init, update)
    return optax.partition(
        {s: each if s else transform for s in jax.tree.leaves(stacks(params))}, stacks
    )


def _muon(config: OptimConfig) -> optax.GradientTransformation:
    """Muon for the stacks' kernels, Adam for all else; steps of Adam's size."""

    def dimensions(name: str, _: Array) -> Any:
        is_kernel = _stack_of(name)[0] and name.endswith("kernel")
        if not is_kernel:
            return None
        return optax.contrib.MuonDimensionNumbers(*in_out_axes(name))

    return optax.contrib.muon(
        learning_rate=-1.0,  # the sign and the schedule come after
        beta=config.b1,
        eps=config.eps,
        adam_b1=config.b1,
        adam_b2=config.b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: tree.map_with_names(
            dimensions, params
        ),
    )
