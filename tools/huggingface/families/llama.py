"""Llama and its kin: Mistral, Qwen 2 and 3, Gemma 2 and 3; SmolLM is a Llama."""

import dataclasses
from typing import Any

from lm.models import gpt
from lm.types import UserError
from tools.huggingface.families import common
from tools.huggingface.family import Family, Head, Names, layers
from tools.huggingface.rules import Rule, Values, fixed, named, same

_FIELDS = {"position_encoding": "rotary", "norm": "rms", "norm_position": "pre"}
_COMMON = (
    same("vocab_size", "vocab_size"),
    same("emb_dim", "hidden_size"),
    same("num_layers", "num_hidden_layers"),
    same("num_heads", "num_attention_heads"),
    same("num_kv_heads", "num_key_value_heads", "kv_heads"),
    same("mlp_dim", "intermediate_size", "mlp_size"),
    same("max_len", "max_position_embeddings"),
    same("norm_eps", "rms_norm_eps"),
    same("attention_dropout_rate", "attention_dropout"),
    same("tie_embeddings", "tie_word_embeddings"),
)
_HEAD_DIM = same("head_dim", "head_dim", "head_size")
_ACTIVATION = named("activation", "hidden_act", common.GATED)
_NO_BIAS = fixed("attention_bias", False)
_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
}
_LAYER = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp/wi_gate": "mlp.gate_proj",
    "mlp/wi": "mlp.up_proj",
    "mlp/wo": "mlp.down_proj",
}
_FOUR_NORMS = {
    "attn_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}


def _names(layer: Names) -> Any:
    names = {"embedder/token": "embed_tokens", "decoder/final_norm": "norm"}
    names |= layers("decoder/layers", "layers.*", layer)
    return lambda config: names


def _family(model_type: str, class_prefix: str, *rules: Rule, **changes: Any) -> Family:
    """Returns a family that is as Llama but for what is said."""
    layer = changes.pop("layer", _LAYER)
    fields = _FIELDS | changes.pop("fields", {})
    defaults = _DEFAULTS | changes.pop("defaults", {})
    made = Family(
        model_type=model_type,
        class_prefix=class_prefix,
        model=gpt.Config,
        fields=fields,
        rules=(*_COMMON, *rules),
        defaults=defaults,
        prefix="model.",
        names=_names(layer),
        heads={
            "ForCausalLM": Head(
                common.causal, {"head/kernel": "lm_head.weight"}, wraps=False
            ),
            "ForSequenceClassification": common.scores(),
            "ForTokenClassification": Head(common.tags, {"head": "score"}),
        },
        tied=(r"lm_head\.weight",),
        buffers=(r".*rotary_emb\.inv_freq",),
        adapt=common.modern_rope,
    )
    return dataclasses.replace(made, **changes)


LLAMA = _family(
    "llama",
    "Llama",
    _HEAD_DIM,
    _ACTIVATION,
    _NO_BIAS,
    common.rope(),
    fixed("mlp_bias", False),
    # How the products are split, not what they are.
    fixed("pretraining_tp", 1, 2, 4, 8),
    defaults={"mlp_bias": False, "pretraining_tp": 1},
)

MISTRAL = _family(
    "mistral",
    "Mistral",
    _HEAD_DIM,
    _ACTIVATION,
    common.rope(),
    same("window", "sliding_window"),
    defaults={
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
)


def _read_windows(values: Values) -> dict[str, Any]:
    """Returns which layers have a window: all, none, or all but every so many."""
    window, L = values["sliding_window"] or 0, values["num_hidden_layers"]
    kinds = values["layer_types"]
    if not kinds:
        every = values.get("sliding_window_pattern") or 0
        return {"window": window, "global_every": every}
    if len(kinds) != L or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise UserError(
            f"config.json: layer_types are {', '.join(kinds)}; supported is "
            f"full_attention or sliding_attention for each of the {L} layers"
        )
    is_global = [kind == "full_attention" for kind in kinds]
    if all(is_global):
        return {"window": 0, "global_every": 0}
    if not any(is_global):
        return {"window": window, "global_every": 0}
    every = is_global.index(True) + 1
    if is_global != [(i + 1) % every == 0 for i in range(L)]:
        raise UserError(
            "config.json: layer_types are in no regular turn; supported are windows in "
            "all layers but every n-th"
        )
    return {"window": window, "global_every": every}


def _write_windows(config: Any) -> dict[str, Any]:
    every = config.global_every
    kinds = [
        "sliding_attention"
        if config.window and not (every and (i + 1) % every == 0)
        else "full_attention"
        for i in range(config.num_layers)
    ]
    return {"sliding_window": config.window or None, "layer_types": kinds}


def _read_qwen_windows(values: Values) -> dict[str, Any]:
    if not values["use_sliding_window"]:
        return {"window": 0, "global_every": 0}
    first = values["max_window_layers"]
    if not values["layer_types"] and 0 < first < values["num_hidden_layers"]:
        raise UserError(
            f"config.json: max_window_layers is {first}: windows in the last layers "
            "alone are not supported"
        )
    return _read_windows(values)


_QWEN_WINDOWS = Rule(
    ("sliding_window", "layer_types", "use_sliding_window", "max_window_layers"),
    _read_qwen_windows,
    lambda config: {
        **_write_windows(config),
        "use_sliding_window": bool(config.window),
        "max_window_layers": 0 if config.window else config.num_layers,
    },
)
_QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "sliding_window": 4096,
}

QWEN2 = _family(
    "qwen2",
    "Qwen2",
    _ACTIVATION,
    _QWEN_WINDOWS,
    common.rope(),
    fields={"qkv_bias": True},
    defaults=_QWEN | {"num_key_value_heads": 32},
)

QWEN3 = _family(
    "qwen3",
    "Qwen3",
    _HEAD_DIM,
    _ACTIVATION,
    _QWEN_WINDOWS,
    _NO_BIAS,
    common.rope(),
    fields={"qk_norm": True},
    defaults=_QWEN | {"num_key_value_heads": 32, "head_dim": 128},
)

_SCALE = Rule(
    ("query_pre_attn_scalar",),
    lambda values: {"attention_scale": values["query_pre_attn_scalar"] ** -0.5},
    lambda config: {
        "query_pre_attn_scalar": _whole(
            (config.attention_scale or config.head_size**-0.5) ** -2
        )
    },
)


def _whole(number: float) -> float | int:
    """Returns a number without the error of two roundings."""
    return round(number) if abs(number - round(number)) < 1e-6 * number else number


_GEMMA_FIELDS = {
    "norm_position": "both",
    "norm_offset": 1.0,
    "scale_embeddings": True,
}
_GEMMA = (
    _HEAD_DIM,
    named("activation", "hidden_activation", common.GATED),
    _NO_BIAS,
    _SCALE,
    same("attention_softcap", "attn_logit_softcapping"),
    same("logit_softcap", "final_logit_softcapping"),
    fixed("use_bidirectional_attention", None, False),
    # What once was read in the place of `hidden_activation`.
    fixed("hidden_act", None, "gelu_pytorch_tanh", "silu"),
)
_GEMMA_DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": None,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}

GEMMA2 = _family(
    "gemma2",
    "Gemma2",
    *_GEMMA,
    common.rope(),
    Rule(
        ("sliding_window", "layer_types"),
        lambda values: _read_windows({"sliding_window_pattern": 2, **values}),
        _write_windows,
    ),
    fields=_GEMMA_FIELDS,
    defaults=_GEMMA_DEFAULTS,
    layer=_LAYER | _FOUR_NORMS,
)


def _adapt_gemma3(values: dict[str, Any]) -> dict[str, Any]:
    """Gathers both kinds of rotary positions, as newer configs have them."""
    values = dict(values)
    values.pop("_sliding_window_pattern", None)
    local = values.pop("rope_local_base_freq", 10_000.0)
    if "rope_parameters" in values:
        return values
    values = common.modern_rope(values)
    full = {"rope_theta": 1_000_000.0} | values["rope_parameters"]
    sliding = {"rope_type": "default", "rope_theta": local}
    both = {"full_attention": full, "sliding_attention": sliding}
    return values | {"rope_parameters": both}


def _read_both_ropes(values: Values) -> dict[str, Any]:
    both = values["rope_parameters"] or {}
    fields = common.read_rope(both.get("full_attention", {}), 1_000_000.0)
    local = common.read_rope(both.get("sliding_attention", {}), 10_000.0)
    if local["rope_scaling"].kind != "none" or local["rope_fraction"] != 1:
        raise UserError(
            "config.json: rope_parameters of sliding_attention are scaled, which is "
            "not supported"
        )
    return fields | {"rope_local_theta": local["rope_theta"]}


def _write_both_ropes(config: Any) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": config.rope_local_theta}
    full = common.write_rope(config)
    return {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


GEMMA3 = _family(
    "gemma3_text",
    "Gemma3",
    *_GEMMA,
    Rule(("rope_parameters",), _read_both_ropes, _write_both_ropes),
    Rule(
        ("sliding_window", "layer_types", "sliding_window_pattern"),
        _read_windows,
        _write_windows,
    ),
    fields=_GEMMA_FIELDS | {"qk_norm": True},
    defaults=_GEMMA_DEFAULTS
    | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    layer=_LAYER | _FOUR_NORMS,
    adapt=_adapt_gemma3,
)

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)
