"""A decoder of the shape of Turing-NLG: 17,177,045,760 parameters, on C4.

Rosset (2020), https://www.microsoft.com/en-us/research/blog/turing-nlg-a-17-billion-parameter-language-model-by-microsoft:
78 layers of 4,256 with 28 heads, 300,000 steps of 512 rows of 1,024 tokens, a learning
rate of 1.5e-4 after 3,200 steps of warm-up, and a cosine over 500,000 steps, of which
the run takes 300,000; here it ends with the run. As GPT-2's, positions are learned, norms
are LayerNorms, and biases are everywhere; AdamW is as Megatron-LM's (Shoeybi et al. 2019,
https://arxiv.org/abs/1909.08053). It has not been trained.

4,256 is 2^5 · 7 · 19, so `mesh.fsdp` is 32 at most (or 7 times a power of 2), and 28
heads ask for a `mesh.tensor` of 2, 4, 7, 14 or 28. It is meant for 64 chips of v5e or
v5p (see experiments/tpu/plans.md); more of them are copies, `mesh.data`:

    python -m tools.train_tokenizer --source=tfds:c4/en --kind=byte_bpe \\
        --vocab-size=50257 --max-texts=1000000 --output=data/tokenizers/gpt2
    python -m tools.plan --config=configs/turing_nlg_17b.py --topology=v5e:8x8
    python -m lm.train --config=configs/turing_nlg_17b.py --workdir=runs/turing_nlg \\
        --distributed
"""  # noqa: E501

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
                vocab_size=50_304,  # 50,257 padded to a multiple of 128
                emb_dim=4256,
                num_layers=78,
                num_heads=28,
                max_len=1024,
                position_encoding="learned",
                norm="layer",
                norm_eps=1e-5,
                use_bias=True,
                init_stddev=0.02,
                dtype="bfloat16",
                remat="full",
            ),
            task=causal_lm.Config(length=1024),
            data=DataConfig(sources=("tfds:c4/en",), tokenizer="data/tokenizers/gpt2"),
            optim=OptimConfig(
                learning_rate=1.5e-4, b2=0.999, weight_decay=0.01, decay=("kernel$",)
            ),
            mesh=MeshConfig(fsdp=16, tensor=4),
            batch_size=512,
            grad_accum_steps=8,
            num_train_steps=300_000,
            warmup_steps=3200,
            log_every_steps=10,
            eval_every_steps=5000,
            checkpoint_every_steps=500,
        )
    )
