"""T5 1.0 and 1.1, Flan-T5 and mT5."""

from typing import Any

from lm.models import t5
from lm.types import UserError
from tools.huggingface.families import common
from tools.huggingface.family import Family, Head, Names, layers
from tools.huggingface.rules import Rule, Values, fixed, named, same

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}


def _attention(ours: str, theirs: str) -> Names:
    return {f"{ours}/{a}": f"{theirs}.{b}" for a, b in _ATTENTION.items()}


def _mlp(place: int, gated: bool) -> Names:
    theirs = f"layer.{place}.DenseReluDense"
    names = {"mlp/wo": f"{theirs}.wo", "mlp_norm": f"layer.{place}.layer_norm"}
    if gated:
        return names | {"mlp/wi_gate": f"{theirs}.wi_0", "mlp/wi": f"{theirs}.wi_1"}
    return names | {"mlp/wi": f"{theirs}.wi"}


def _names(config: Any) -> Names:
    gated = config.activation == "geglu"
    names = {"embedder/token": "shared"}
    own = _attention("attention", "layer.0.SelfAttention")
    own = {**own, "attn_norm": "layer.0.layer_norm"}
    cross = _attention("cross_attention", "layer.1.EncDecAttention")
    cross = {**cross, "cross_attn_norm": "layer.1.layer_norm"}
    for side, layer in (
        ("encoder", {**own, **_mlp(1, gated)}),
        ("decoder", {**own, **cross, **_mlp(2, gated)}),
    ):
        names |= layers(f"{side}/layers", f"{side}.block.*", layer)
        first = f"{side}.block.0.layer.0.SelfAttention"
        names[f"{side}/relative_bias"] = f"{first}.relative_attention_bias"
        names[f"{side}/final_norm"] = f"{side}.final_layer_norm"
    return names


def _read_layers(values: Values) -> dict[str, Any]:
    L = values["num_layers"]
    decoder = (
        L if values["num_decoder_layers"] is None else values["num_decoder_layers"]
    )
    return {"num_layers": L, "num_decoder_layers": 0 if decoder == L else decoder}


def _read_tie(values: Values) -> dict[str, Any]:
    # Newer configs always say that the head is tied; whether it is, the file shows.
    scales = values["scale_decoder_outputs"]
    if scales is None:
        scales = values["tie_word_embeddings"] is not False
    return {"scale_output": scales}


def _read_start(values: Values) -> dict[str, Any]:
    start, pad = values["decoder_start_token_id"], values["pad_token_id"]
    if start not in (None, pad):
        raise UserError(
            f"config.json: decoder_start_token_id is {start}, which is not supported; "
            f"it must be pad_token_id, {pad}"
        )
    return {}


_RULES = (
    same("vocab_size", "vocab_size"),
    same("emb_dim", "d_model"),
    same("head_dim", "d_kv", "head_size"),
    same("mlp_dim", "d_ff", "mlp_size"),
    same("num_heads", "num_heads"),
    same("dropout_rate", "dropout_rate"),
    same("norm_eps", "layer_norm_epsilon"),
    same("relative_buckets", "relative_attention_num_buckets"),
    same("relative_max_distance", "relative_attention_max_distance"),
    Rule(
        ("num_layers", "num_decoder_layers"),
        _read_layers,
        lambda config: {
            "num_layers": config.encoder_layers,
            "num_decoder_layers": config.decoder_layers,
        },
    ),
    named(
        "activation",
        "feed_forward_proj",
        {"relu": "relu", "gated-gelu": "geglu", "gelu": "gelu", "gated-silu": "swiglu"},
    ),
    fixed("is_decoder", False),
    Rule(("decoder_start_token_id", "pad_token_id"), _read_start, lambda config: {}),
)
_FIELDS = {
    "position_encoding": "relative",
    "norm": "rms",
    "norm_position": "pre",
    "attention_scale": 1.0,
    # Where the file has a head of its own, it is not.
    "tie_embeddings": True,
    # Any length will do.
    "max_len": common.LENGTH,
}
_DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "is_decoder": False,
    "pad_token_id": 0,
}


def _adapt(values: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what follows from `feed_forward_proj`."""
    derived = ("dense_act_fn", "is_gated_act", "n_positions")
    return {key: value for key, value in values.items() if key not in derived}


def _family(model_type: str, class_prefix: str, *rules: Rule, **changes: Any) -> Family:
    return Family(
        model_type=model_type,
        class_prefix=class_prefix,
        model=t5.Config,
        fields=_FIELDS | changes.get("fields", {}),
        rules=(*_RULES, *rules),
        defaults=_DEFAULTS | changes.get("defaults", {}),
        prefix="",
        names=_names,
        heads={
            "ForConditionalGeneration": Head(
                common.texts, {"head/kernel": "lm_head.weight"}, wraps=False
            )
        },
        tied=(r"(encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight"),
        # Of the first checkpoints; no code ever read it.
        buffers=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_.*",),
        adapt=_adapt,
    )


T5 = _family(
    "t5",
    "T5",
    Rule(
        ("tie_word_embeddings", "scale_decoder_outputs"),
        _read_tie,
        lambda config: {"tie_word_embeddings": config.scale_output},
    ),
)
MT5 = _family(
    "mt5",
    "MT5",
    fixed("tie_word_embeddings", False, True, None),
    fields={"scale_output": False},
    defaults={
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
    },
)

FAMILIES = (T5, MT5)
