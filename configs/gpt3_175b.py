"""GPT-3 of 175 B parameters (174,604,836,864), on C4.

Brown et al. (2020), https://arxiv.org/abs/2005.14165, table 2.1 and appendix B: 96
layers of 12,288 with 96 heads of 128, a context of 2,048, batches of 3.2 M tokens, a
learning rate of 0.6e-4, 300 B tokens. Half of its layers had sparse attention; here all
is dense. Batches are as large from the first step. It has not been trained.

It is meant for 512 chips of v5p, or 4,096 (see experiments/tpu/plans.md); `mesh.fsdp`
takes what `mesh.tensor` leaves:

    python -m tools.train_tokenizer --source=tfds:c4/en --kind=byte_bpe \\
        --vocab-size=50257 --max-texts=1000000 --output=data/tokenizers/gpt2
    python -m tools.plan --config=configs/gpt3_175b.py --topology=v5p:8x8x8
    python -m lm.train --config=configs/gpt3_175b.py --workdir=runs/gpt3 --distributed
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
                vocab_size=50_304,  # 50,257 padded to a multiple of 128
                emb_dim=12_288,
                num_layers=96,
                num_heads=96,
                max_len=2048,
                position_encoding="learned",
                norm="layer",
                norm_eps=1e-5,
                use_bias=True,
                init_stddev=0.02,
                dtype="bfloat16",
                remat="full",
            ),
            task=causal_lm.Config(length=2048),
            data=DataConfig(sources=("tfds:c4/en",), tokenizer="data/tokenizers/gpt2"),
            optim=OptimConfig(learning_rate=6e-5, weight_decay=0.1),
            mesh=MeshConfig(data=1, fsdp=-1, tensor=8),
            batch_size=1536,
            grad_accum_steps=3,
            num_train_steps=95_000,
            warmup_steps=120,
            log_every_steps=1,
            eval_every_steps=1000,
            checkpoint_every_steps=200,
        )
    )
