"""GPT-2."""

from lm.models import gpt
from tools.huggingface.families import common
from tools.huggingface.family import Family, Head, Part, layers
from tools.huggingface.rules import Rule, fixed, named, same

GPT2 = Family(
    model_type="gpt2",
    class_prefix="GPT2",
    model=gpt.Config,
    fields={
        "position_encoding": "learned",
        "norm": "layer",
        "norm_position": "pre",
        "use_bias": True,
    },
    rules=(
        same("vocab_size", "vocab_size"),
        same("emb_dim", "n_embd"),
        same("num_layers", "n_layer"),
        same("num_heads", "n_head"),
        same("mlp_dim", "n_inner", "mlp_size"),
        same("max_len", "n_positions"),
        same("norm_eps", "layer_norm_epsilon"),
        same("attention_dropout_rate", "attn_pdrop"),
        named("activation", "activation_function", common.ACTIVATIONS),
        same("tie_embeddings", "tie_word_embeddings"),
        # One rate here, two of theirs.
        Rule(
            ("resid_pdrop", "embd_pdrop"),
            lambda values: {"dropout_rate": values["resid_pdrop"]},
            lambda config: {
                "resid_pdrop": config.dropout_rate,
                "embd_pdrop": config.dropout_rate,
            },
        ),
        fixed("scale_attn_weights", True),
        fixed("scale_attn_by_inverse_layer_idx", False),
        # How it is computed in half precision.
        fixed("reorder_and_upcast_attn", False, True),
        fixed("add_cross_attention", False),
    ),
    defaults={
        "vocab_size": 50257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    prefix="transformer.",
    names=lambda config: (
        {
            "embedder/token": "wte",
            "embedder/position": "wpe",
            "decoder/final_norm": "ln_f",
        }
        | layers(
            "decoder/layers",
            "h.*",
            {
                "attention/query": Part("attn.c_attn", 0),
                "attention/key": Part("attn.c_attn", 1),
                "attention/value": Part("attn.c_attn", 2),
                "attention/out": "attn.c_proj",
                "attn_norm": "ln_1",
                "mlp/wi": "mlp.c_fc",
                "mlp/wo": "mlp.c_proj",
                "mlp_norm": "ln_2",
            },
        )
    ),
    heads={
        "LMHeadModel": Head(
            common.causal, {"head/kernel": "lm_head.weight"}, wraps=False
        ),
        "ForSequenceClassification": common.scores(),
        "ForTokenClassification": Head(common.tags, {"head": "classifier"}),
        "Model": Head(common.causal, wraps=False),
    },
    transposed=False,
    tied=(r"lm_head\.weight",),
    buffers=(r"(.*\.)?attn\.(masked_)?bias",),
)

FAMILIES = (GPT2,)
