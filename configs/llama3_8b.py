"""A decoder of the shape of Llama 3 8B: 8,030,261,248 parameters, on C4.

Dubey et al. (2024), https://arxiv.org/abs/2407.21783, table 3: 32 layers of 4,096, 32
heads that share 8 of keys and values, gated MLPs of 14,336, a vocabulary of 128,256, a
context of 8,192, rotary positions of base 500,000, a peak learning rate of 3e-4. Here
batches are 4 M tokens from the first step, and 15 T tokens would be 3.6 M steps; the
number below is what Hoffmann et al. (2022), https://arxiv.org/abs/2203.15556, give a
model of this size, 20 tokens a parameter. It has not been trained.

It is meant for 64 chips of v6e or v5p (see experiments/tpu/plans.md), split by
`mesh.fsdp` alone:

    python -m tools.train_tokenizer --source=tfds:c4/en --kind=byte_bpe \\
        --vocab-size=128256 --max-texts=1000000 --output=data/tokenizers/llama3
    python -m tools.plan --config=configs/llama3_8b.py --topology=v6e:8x8
    python -m lm.train --config=configs/llama3_8b.py --workdir=runs/llama3_8b \\
        --distributed
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import gpt
from lm.sharding import MeshConfig
from lm.tasks import causal_lm
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=gpt.Config(
                vocab_size=128_256,
                emb_dim=4096,
                num_layers=32,
                num_heads=32,
                num_kv_heads=8,
                mlp_dim=14_336,
                max_len=8192,
                activation="swiglu",
                norm_eps=1e-5,
                rope_theta=500_000.0,
                tie_embeddings=False,
                init_stddev=0.02,
                dtype="bfloat16",
                remat="full",
            ),
            task=causal_lm.Config(length=8192),
            data=DataConfig(
                sources=("tfds:c4/en",), tokenizer="data/tokenizers/llama3"
            ),
            optim=OptimConfig(learning_rate=3e-4, weight_decay=0.1),
            mesh=MeshConfig(data=1, fsdp=-1),
            batch_size=512,
            grad_accum_steps=2,
            num_train_steps=38_000,
            warmup_steps=2000,
            log_every_steps=10,
            eval_every_steps=1000,
            checkpoint_every_steps=500,
        )
    )
