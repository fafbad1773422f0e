"""What several families share: activations, rotary positions, tasks."""

from collections.abc import Callable
from typing import Any

from lm.nn.positions import RopeScaling
from lm.tasks import answer, causal_lm, classify, masked_lm, rank, tag, text_to_text
from lm.types import UserError
from tools.huggingface.family import Head
from tools.huggingface.rules import Rule, Values

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Of layers with a gate.
GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}

# Of classifiers, by their `problem_type`.
KINDS = {
    "regression": "number",
    "single_label_classification": "one",
    "multi_label_classification": "several",
}

# Tokens of a row, where a model reads further than most texts are long.
LENGTH = 2048


def labels(values: Values) -> tuple[str, ...]:
    """Returns the names of classes, in order.

    Raises:
        UserError: If they are not numbered from 0, or are not names that differ.
    """
    names = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        found = tuple(names[str(i)] for i in range(len(names)))
    except (KeyError, TypeError):
        raise UserError(
            f"config.json: id2label is {names!r:.200}, which does not number the "
            "labels from 0; mend it"
        ) from None
    odd = [name for name in found if not (isinstance(name, str) and name)]
    odd += [name for i, name in enumerate(found) if name in found[:i]]
    if odd:
        raise UserError(
            f"config.json: id2label has {odd[0]!r} for a label, which must be a name "
            "that no other has; mend it"
        )
    return found


def masked(values: Values) -> Any:
    return masked_lm.Config(length=_length(values))


def causal(values: Values) -> Any:
    return causal_lm.Config(length=_length(values))


def vectors(values: Values) -> Any:
    """Texts to vectors: what a model without a head is good for."""
    length = _length(values)
    pooling = values.get("pooling", "mean")
    return rank.Config(length=length, query_length=min(64, length), pooling=pooling)


def classes(
    hidden: str, pooling: str = "first", head_bias: bool = True
) -> Callable[[Values], Any]:
    """Returns what makes a classifier's task.

    Args:
        hidden: The activation of the layer before its outputs, or `none`.
        pooling: Which state it reads.
        head_bias: Whether its outputs have one.
    """

    def task(values: Values) -> Any:
        names = labels(values)
        said = values.get("problem_type")
        if said and said not in KINDS:
            raise UserError(
                f"config.json: problem_type is {said!r}, which is not supported; "
                f"supported are {', '.join(KINDS)}"
            )
        kind = KINDS[said] if said else "number" if len(names) == 1 else "one"
        return classify.Config(
            length=_length(values),
            kind=kind,
            labels=() if kind == "number" else names,
            moments=(0.0, 1.0) if kind == "number" else (),
            hidden=hidden,
            pooling=pooling,
            head_bias=head_bias,
        )

    return task


def scores() -> Head:
    """Returns the head of decoders that are classifiers."""
    return Head(classes("none", "last", head_bias=False), {"head": "score"})


def tags(values: Values) -> Any:
    names = labels(values)
    scheme = "bio" if all(n == "O" or n[:2] in ("B-", "I-") for n in names) else "none"
    return tag.Config(length=_length(values), labels=names, scheme=scheme)


def spans(values: Values) -> Any:
    length = _length(values, 384)
    question = min(64, length // 4)
    stride = min(128, length // 4)
    answer_tokens = max(1, min(30, length - 3 - question - stride + 1))
    return answer.Config(
        length=length,
        stride=stride,
        max_question_tokens=question,
        max_answer_tokens=answer_tokens,
    )


def texts(values: Values) -> Any:
    return text_to_text.Config(length=_length(values, 512), targets_length=128)


def _length(values: Values, default: int = LENGTH) -> int:
    """Returns how long rows are to be, from the longest that the model reads."""
    return min(values["max_len"], values.get("length", default))


def modern_rope(values: dict[str, Any]) -> dict[str, Any]:
    """Gathers what older configs say of rotary positions in `rope_parameters`."""
    if "rope_parameters" in values:
        return values
    values = dict(values)
    scaling = dict(values.pop("rope_scaling", None) or {})
    scaling = {"rope_type": scaling.pop("type", "default"), **scaling}
    for old, new in (
        ("rope_theta", "rope_theta"),
        ("rotary_emb_base", "rope_theta"),
        ("rotary_pct", "partial_rotary_factor"),
        ("partial_rotary_factor", "partial_rotary_factor"),
    ):
        if old in values:
            scaling[new] = values.pop(old)
    return values | {"rope_parameters": scaling}


def read_rope(given: Values, theta: float, fraction: float = 1.0) -> dict[str, Any]:
    """Returns our fields for one set of `rope_parameters`.

    Args:
        given: Theirs.
        theta: Where they have none.
        fraction: Likewise.

    Raises:
        UserError: If they are scaled in another way.
    """
    known = {
        *("rope_type", "rope_theta", "partial_rotary_factor", "factor"),
        *("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "type",
    }
    kind = given.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3") or given.keys() - known:
        what = ", ".join(sorted(given.keys() - known)) or f"rope_type {kind!r}"
        raise UserError(
            f"config.json: rope_parameters have {what}, which is not supported; "
            "supported are default, linear and llama3"
        )
    scaling = RopeScaling()
    if kind == "linear":
        scaling = RopeScaling("linear", float(given["factor"]))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            float(given["factor"]),
            float(given["low_freq_factor"]),
            float(given["high_freq_factor"]),
            int(given["original_max_position_embeddings"]),
        )
    return {
        "rope_theta": float(given.get("rope_theta", theta)),
        "rope_fraction": float(given.get("partial_rotary_factor", fraction)),
        "rope_scaling": scaling,
    }


def write_rope(config: Any) -> dict[str, Any]:
    """Undoes `read_rope`."""
    made: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_fraction != 1:
        made["partial_rotary_factor"] = config.rope_fraction
    scaling = config.rope_scaling
    if scaling.kind != "none":
        made |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        made |= {
            "low_freq_factor": scaling.low_turns,
            "high_freq_factor": scaling.high_turns,
            "original_max_position_embeddings": scaling.original_len,
        }
    return made


def rope(theta: float = 10_000.0, fraction: float = 1.0) -> Rule:
    """The rule of `rope_parameters`, alike in all layers."""
    return Rule(
        ("rope_parameters",),
        lambda values: read_rope(values["rope_parameters"] or {}, theta, fraction),
        lambda config: {"rope_parameters": write_rope(config)},
    )
