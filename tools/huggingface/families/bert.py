"""BERT, RoBERTa, DistilBERT, ELECTRA and ALBERT."""

from typing import Any

from lm.models import bert
from tools.huggingface.families import common
from tools.huggingface.family import Family, Head, Part, layers
from tools.huggingface.rules import Rule, Values, fixed, named, same

_FIELDS = {
    "position_encoding": "learned",
    "norm": "layer",
    "norm_position": "post",
    "use_bias": True,
}
_COMMON = (
    same("vocab_size", "vocab_size"),
    same("emb_dim", "hidden_size"),
    same("num_layers", "num_hidden_layers"),
    same("num_heads", "num_attention_heads"),
    same("mlp_dim", "intermediate_size", "mlp_size"),
    same("dropout_rate", "hidden_dropout_prob"),
    same("attention_dropout_rate", "attention_probs_dropout_prob"),
    same("num_types", "type_vocab_size"),
    same("norm_eps", "layer_norm_eps"),
    same("tie_embeddings", "tie_word_embeddings"),
    fixed("position_embedding_type", "absolute"),
    fixed("is_decoder", False),
    fixed("add_cross_attention", False),
)
_ACTIVATION = named("activation", "hidden_act", common.ACTIVATIONS)
# Those whose masked-token head has the activation of the layers only if it is this.
_GELU = named("activation", "hidden_act", {"gelu": "gelu"})
_MAX_LEN = same("max_len", "max_position_embeddings")
_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "mlp/wi": "intermediate.dense",
    "mlp/wo": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_NAMES = {
    "embedder/token": "embeddings.word_embeddings",
    "embedder/position": "embeddings.position_embeddings",
    "embedder/norm": "embeddings.LayerNorm",
    "type": "embeddings.token_type_embeddings",
}
_BUFFERS = (r".*embeddings\.(position|token_type)_ids",)
_POOLER = {r"(.*\.)?pooler\..*": "states are pooled by the task"}


def _names(config: Any) -> dict[str, str | Part]:
    return _NAMES | layers("encoder/layers", "encoder.layer.*", _LAYER)


def _token_heads(name: str = "classifier", answers: str = "qa_outputs"):
    return {
        "ForTokenClassification": Head(common.tags, {"head": name}),
        "ForQuestionAnswering": Head(common.spans, {"head": answers}),
        "Model": Head(common.vectors),
    }


_MASKED = {
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions",
    "head/kernel": "cls.predictions.decoder.weight",
}

BERT = Family(
    model_type="bert",
    class_prefix="Bert",
    model=bert.Config,
    fields=_FIELDS,
    rules=(*_COMMON, _ACTIVATION, _MAX_LEN),
    defaults=_DEFAULTS,
    prefix="bert.",
    names=_names,
    heads={
        "ForMaskedLM": Head(common.masked, _MASKED, wraps=False),
        "ForPreTraining": Head(common.masked, _MASKED, wraps=False),
        "ForSequenceClassification": Head(
            common.classes("tanh"), {"dense": "bert.pooler.dense", "head": "classifier"}
        ),
        **_token_heads(),
    },
    tied=(r"cls\.predictions\.decoder\.(weight|bias)",),
    buffers=_BUFFERS,
    unused=_POOLER
    | {r"cls\.seq_relationship\..*": "no task here predicts the next sentence"},
)


def _read_offset(values: Values) -> dict[str, Any]:
    offset = (1 if values["pad_token_id"] is None else values["pad_token_id"]) + 1
    return {
        "position_offset": offset,
        "max_len": values["max_position_embeddings"] - offset,
    }


_OFFSET = Rule(
    ("max_position_embeddings", "pad_token_id"),
    _read_offset,
    lambda config: {
        "max_position_embeddings": config.max_len + config.position_offset,
        "pad_token_id": config.position_offset - 1,
    },
)
_TWO_LAYERS = {"dense": "classifier.dense", "head": "classifier.out_proj"}

ROBERTA = Family(
    model_type="roberta",
    class_prefix="Roberta",
    model=bert.Config,
    fields=_FIELDS,
    rules=(*_COMMON, _GELU, _OFFSET),
    defaults=_DEFAULTS | {"vocab_size": 50265, "pad_token_id": 1},
    prefix="roberta.",
    names=_names,
    heads={
        "ForMaskedLM": Head(
            common.masked,
            {
                "transform": "lm_head.dense",
                "transform_norm": "lm_head.layer_norm",
                "head": "lm_head",
                "head/kernel": "lm_head.decoder.weight",
            },
            wraps=False,
        ),
        "ForSequenceClassification": Head(common.classes("tanh"), _TWO_LAYERS),
        **_token_heads(),
    },
    tied=(r"lm_head\.decoder\.(weight|bias)",),
    buffers=_BUFFERS,
    unused=_POOLER,
)

DISTILBERT = Family(
    model_type="distilbert",
    class_prefix="DistilBert",
    model=bert.Config,
    fields=_FIELDS | {"num_types": 0, "norm_eps": 1e-12},
    rules=(
        same("vocab_size", "vocab_size"),
        same("emb_dim", "dim"),
        same("num_layers", "n_layers"),
        same("num_heads", "n_heads"),
        same("mlp_dim", "hidden_dim", "mlp_size"),
        same("dropout_rate", "dropout"),
        same("attention_dropout_rate", "attention_dropout"),
        same("tie_embeddings", "tie_word_embeddings"),
        named("activation", "activation", common.ACTIVATIONS),
        _MAX_LEN,
        # The table is in the checkpoint, whatever it was made by.
        fixed("sinusoidal_pos_embds", False, True),
    ),
    defaults={
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation": "gelu",
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "sinusoidal_pos_embds": False,
    },
    prefix="distilbert.",
    names=lambda config: (
        _NAMES
        | layers(
            "encoder/layers",
            "transformer.layer.*",
            {
                "attention/query": "attention.q_lin",
                "attention/key": "attention.k_lin",
                "attention/value": "attention.v_lin",
                "attention/out": "attention.out_lin",
                "attn_norm": "sa_layer_norm",
                "mlp/wi": "ffn.lin1",
                "mlp/wo": "ffn.lin2",
                "mlp_norm": "output_layer_norm",
            },
        )
    ),
    heads={
        "ForMaskedLM": Head(
            common.masked,
            {
                "transform": "vocab_transform",
                "transform_norm": "vocab_layer_norm",
                "head": "vocab_projector",
                "head/kernel": "vocab_projector.weight",
            },
            wraps=False,
        ),
        "ForSequenceClassification": Head(
            common.classes("relu"), {"dense": "pre_classifier", "head": "classifier"}
        ),
        **_token_heads(),
    },
    tied=(r"vocab_projector\.weight",),
    buffers=_BUFFERS,
)

_TOKEN_DIM = Rule(
    ("embedding_size",),
    lambda values: {
        "token_dim": 0
        if values["embedding_size"] == values["hidden_size"]
        else values["embedding_size"]
    },
    lambda config: {"embedding_size": config.token_dim or config.emb_dim},
)

ELECTRA = Family(
    model_type="electra",
    class_prefix="Electra",
    model=bert.Config,
    fields=_FIELDS,
    rules=(*_COMMON, _GELU, _MAX_LEN, _TOKEN_DIM),
    defaults=_DEFAULTS
    | {
        "embedding_size": 128,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    prefix="electra.",
    names=lambda config: _names(config) | {"embedder/project": "embeddings_project"},
    heads={
        "ForMaskedLM": Head(
            common.masked,
            {
                "transform": "generator_predictions.dense",
                "transform_norm": "generator_predictions.LayerNorm",
                "head": "generator_lm_head",
                "head/kernel": "generator_lm_head.weight",
            },
            wraps=False,
        ),
        "ForPreTraining": Head(common.vectors),
        "ForSequenceClassification": Head(common.classes("gelu"), _TWO_LAYERS),
        **_token_heads(),
    },
    tied=(r"generator_lm_head\.weight",),
    buffers=_BUFFERS,
    unused={
        r"discriminator_predictions\..*": "no task here finds tokens that were replaced"
    },
)

ALBERT = Family(
    model_type="albert",
    class_prefix="Albert",
    model=bert.Config,
    fields=_FIELDS | {"share_layers": True},
    rules=(
        *_COMMON,
        _ACTIVATION,
        _MAX_LEN,
        _TOKEN_DIM,
        fixed("num_hidden_groups", 1),
        fixed("inner_group_num", 1),
        fixed("down_scale_factor", 1),
        fixed("gap_size", 0),
        fixed("net_structure_type", 0),
        fixed("num_memory_blocks", 0),
    ),
    defaults=_DEFAULTS
    | {
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "down_scale_factor": 1,
        "gap_size": 0,
        "net_structure_type": 0,
        "num_memory_blocks": 0,
    },
    prefix="albert.",
    names=lambda config: (
        _NAMES
        | {"embedder/project": "encoder.embedding_hidden_mapping_in"}
        | layers(
            "encoder/layer",
            "encoder.albert_layer_groups.0.albert_layers.0",
            {
                "attention/query": "attention.query",
                "attention/key": "attention.key",
                "attention/value": "attention.value",
                "attention/out": "attention.dense",
                "attn_norm": "attention.LayerNorm",
                "mlp/wi": "ffn",
                "mlp/wo": "ffn_output",
                "mlp_norm": "full_layer_layer_norm",
            },
        )
    ),
    heads={
        "ForMaskedLM": Head(
            common.masked,
            {
                "transform": "predictions.dense",
                "transform_norm": "predictions.LayerNorm",
                "head": "predictions",
                "head/kernel": "predictions.decoder.weight",
            },
            wraps=False,
        ),
        "ForSequenceClassification": Head(
            common.classes("tanh"), {"dense": "albert.pooler", "head": "classifier"}
        ),
        **_token_heads(),
    },
    tied=(r"predictions\.decoder\.(weight|bias)",),
    buffers=_BUFFERS,
    unused=_POOLER
    | {r"sop_classifier\..*": "no task here tells the order of sentences"},
)

FAMILIES = (BERT, ROBERTA, DISTILBERT, ELECTRA, ALBERT)
