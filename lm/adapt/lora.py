"""Low-rank adaptation: kernels stay, and a small change to them is trained.

Hu et al. (2022), https://arxiv.org/abs/2106.09685, section 4.1: in the place of a
kernel W, of fan_in x fan_out, stands W + alpha / rank · A B. A is fan_in x rank and
begins at random, B is rank x fan_out and begins at zero, so that the model begins as
it was. Every layer has its own, in a scanned stack too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from lm import tree
from lm.adapt.kernels import in_out_axes
from lm.config import check_range
from lm.types import Array, Params, UserError

# What is not trained of the parameters of an adapted model.
FROZEN = "^base/"


@dataclass(frozen=True)
class LoraConfig:
    """What is adapted, and by how much.

    Attributes:
        rank: Of the change to a kernel; 0 leaves the model as it is.
        alpha: What the change is multiplied by, over the rank.
        targets: Regexes of the kernels that are adapted, by their names in the model.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = (r"(query|value)/kernel$",)

    def __post_init__(self):
        check_range("lora.rank", self.rank, 0)
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha must be above 0, not {self.alpha}")
        if not self.targets:
            raise UserError("lora.targets is empty; set lora.rank=0 for no adapters")


def adapt(model: nn.Module, config: LoraConfig) -> Any:
    """Returns the model with adapters, or as it is if the rank is 0."""
    return Adapted(model, config) if config.rank else model


@dataclass(frozen=True)
class Adapted:
    """A model with adapters, which is used as the model is.

    Its parameters are `base/…`, those of the model; `lora/…/a` and `lora/…/b` for each
    adapted kernel `base/…/kernel`. Of a model that is a head around a `backbone`, the
    backbone alone is adapted, and the head's parameters keep their names.
    """

    model: nn.Module
    config: LoraConfig

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns new variables, boxed with their logical axes; as `nn.Module.init`.

        Raises:
            UserError: If a target is invalid or matches no kernel.
        """
        variables = dict(self.model.init(rngs, *args, **kwargs))
        key = rngs["params"] if isinstance(rngs, Mapping) else rngs
        params = variables["params"]
        base = {k: v for k, v in params.items() if k == "backbone"} or params
        head = {k: v for k, v in params.items() if k not in base}
        factors = _init_factors(base, self.config, key)
        return variables | {"params": {**head, "base": base, "lora": factors}}

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the model with its merged parameters; as `nn.Module.apply`."""
        params = merge(variables["params"], self.config)
        return self.model.apply({**variables, "params": params}, *args, **kwargs)


def merge(params: Params, config: LoraConfig) -> Params:
    """Returns the parameters that the model itself takes, to the same effect."""
    if not config.rank:
        return params
    head = dict(nn.unbox(params))
    base = flatten_dict(head.pop("base"), sep="/")
    factors = flatten_dict(head.pop("lora"), sep="/")
    for name in base:
        module = name.removesuffix("kernel")
        if module + "a" in factors:
            change = _product(name, factors[module + "a"], factors[module + "b"])
            base[name] = base[name] + config.alpha / config.rank * change
    return head | unflatten_dict(base, sep="/")


def _init_factors(base: Params, config: LoraConfig, key: Array) -> dict[str, Any]:
    """Returns new A and B, boxed, of all targets."""
    boxes: dict[str, Any] = flatten_dict(base, sep="/")
    kernels = {name: box for name, box in boxes.items() if name.endswith("kernel")}
    rules = [(regex, True) for regex in config.targets]
    chosen = tree.first_match(dict.fromkeys(kernels, 0), rules, False, "lora.targets")
    factors = {}
    for number, (name, kernel) in enumerate(kernels.items()):
        if not chosen[name]:
            continue
        shape, module = kernel.value.shape, name.removesuffix("kernel")
        fan_in = math.prod(shape[axis] for axis in in_out_axes(name)[0])
        for factor, init, size, axes in zip(
            "ab",
            (nn.initializers.normal(fan_in**-0.5), nn.initializers.zeros),
            _factor_axes(name, shape, config.rank),
            _factor_axes(name, kernel.names, None),
        ):
            box = nn.with_logical_partitioning(init, axes)
            factors[module + factor] = box(jax.random.fold_in(key, number), size)
    return unflatten_dict(factors, sep="/")


def _factor_axes(name: str, axes: Sequence, rank: Any) -> tuple[tuple, tuple]:
    """Returns the axes of A and B, sizes or names, from those of their kernel.

    >>> _factor_axes("layers/mlp/wo/kernel", ("layers", "mlp", "embed"), None)
    (('layers', 'mlp', None), ('layers', None, 'embed'))
    """
    ins, outs = (len(some) for some in in_out_axes(name))
    layers = len(axes) - ins - outs
    return (*axes[:-outs], rank), (*axes[:layers], rank, *axes[-outs:])


def _product(name: str, a: Array, b: Array) -> Array:
    """Returns A B of each layer, in the shape of the kernel."""
    layers = a.ndim - len(in_out_axes(name)[0]) - 1
    each = tuple(range(layers))
    return jax.lax.dot_general(a, b, (((a.ndim - 1,), (layers,)), (each, each)))
