"""GPT-NeoX and Pythia."""

from lm.models import gpt
from tools.huggingface.families import common
from tools.huggingface.family import Family, Head, Part, layers
from tools.huggingface.rules import fixed, named, same

NEOX = Family(
    model_type="gpt_neox",
    class_prefix="GPTNeoX",
    model=gpt.Config,
    fields={
        "position_encoding": "rotary",
        "norm": "layer",
        "norm_position": "pre",
        "use_bias": True,
    },
    rules=(
        same("vocab_size", "vocab_size"),
        same("emb_dim", "hidden_size"),
        same("num_layers", "num_hidden_layers"),
        same("num_heads", "num_attention_heads"),
        same("mlp_dim", "intermediate_size", "mlp_size"),
        same("max_len", "max_position_embeddings"),
        same("norm_eps", "layer_norm_eps"),
        same("dropout_rate", "hidden_dropout"),
        same("attention_dropout_rate", "attention_dropout"),
        same("parallel", "use_parallel_residual"),
        same("tie_embeddings", "tie_word_embeddings"),
        named("activation", "hidden_act", common.ACTIVATIONS),
        common.rope(fraction=0.25),
        fixed("attention_bias", True),
        fixed("is_decoder", False, True),
    ),
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "hidden_act": "gelu",
        "attention_bias": True,
        "is_decoder": False,
    },
    prefix="gpt_neox.",
    names=lambda config: (
        {
            "embedder/token": "embed_in",
            "decoder/final_norm": "final_layer_norm",
        }
        | layers(
            "decoder/layers",
            "layers.*",
            {
                "attention/query": Part("attention.query_key_value", 0, True),
                "attention/key": Part("attention.query_key_value", 1, True),
                "attention/value": Part("attention.query_key_value", 2, True),
                "attention/out": "attention.dense",
                "attn_norm": "input_layernorm",
                "mlp/wi": "mlp.dense_h_to_4h",
                "mlp/wo": "mlp.dense_4h_to_h",
                "mlp_norm": "post_attention_layernorm",
            },
        )
    ),
    heads={
        "ForCausalLM": Head(
            common.causal, {"head/kernel": "embed_out.weight"}, wraps=False
        ),
        "ForSequenceClassification": common.scores(),
    },
    tied=(r"embed_out\.weight",),
    buffers=(r".*attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
    adapt=common.modern_rope,
)

FAMILIES = (NEOX,)
