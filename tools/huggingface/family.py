"""What a family of models is: a mapping of configs, and a table of names.

Our module on the left, theirs on the right; `layers` there and `*` here are one for
each layer:

    "encoder/layers/mlp/wi": "encoder.layer.*.intermediate.dense"

What a module has follows from ours: a `kernel` is their `weight`, transposed; a `scale`
or an `embedding` is their `weight`; a `bias` their `bias`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.huggingface.rules import Rule, Values


@dataclass(frozen=True)
class Part:
    """A third of a matrix in which they keep queries, keys and values together.

    Attributes:
        name: Their module.
        index: 0, 1 or 2.
        by_head: Whether the three alternate from head to head.
    """

    name: str
    index: int
    by_head: bool = False


Names = Mapping[str, str | Part]


@dataclass(frozen=True)
class Head:
    """What a class of theirs puts on top, and the task that it is here.

    Attributes:
        task: From their config to a task's config.
        names: Its modules, as in a `Family`.
        wraps: Whether the model is the `backbone` of something.
    """

    task: Callable[[Values], Any]
    names: Names = field(default_factory=dict)
    wraps: bool = True


@dataclass(frozen=True)
class Family:
    """Models that one table describes.

    Attributes:
        model_type: As in `config.json`.
        class_prefix: What the names of their classes begin with.
        model: The class of our config.
        fields: Of ours, which are the same in the whole family.
        rules: Of the others.
        defaults: What transformers takes for keys that `config.json` lacks.
        prefix: Of their modules below a head.
        names: From a config of ours to the names of the model's modules.
        heads: By the ends of their classes' names, such as `ForMaskedLM`.
        transposed: Whether matrices of the model are [out, in], as those of heads are.
        tied: Patterns of tensors that are the embedding once more.
        buffers: Patterns of tensors that are no parameters.
        unused: Patterns of tensors that have no use here, and why. They are kept.
        adapt: What their config says in older forms, in the newest.
    """

    model_type: str
    class_prefix: str
    model: type
    fields: Mapping[str, Any]
    rules: tuple[Rule, ...]
    defaults: Values
    prefix: str
    names: Callable[[Any], Names]
    heads: Mapping[str, Head]
    transposed: bool = True
    tied: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict


def layers(ours: str, theirs: str, names: Names) -> dict[str, str | Part]:
    """Returns the names of a layer's modules with those of the layer before them.

    >>> layers("encoder/layers", "h.*", {"mlp/wi": "fc"})
    {'encoder/layers/mlp/wi': 'h.*.fc'}
    """

    def full(name: str | Part) -> str | Part:
        if isinstance(name, Part):
            return Part(f"{theirs}.{name.name}", name.index, name.by_head)
        return f"{theirs}.{name}"

    return {f"{ours}/{module}": full(name) for module, name in names.items()}
