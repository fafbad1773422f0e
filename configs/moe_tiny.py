"""gpt_tiny with eight MLPs of half the size in each layer, of which a token meets two.

Fedus et al. (2021), "Switch Transformers", with two experts for a token as in Mixtral
(Jiang et al. 2024): as much arithmetic for a token as gpt_tiny, and four times its MLP
parameters.

    python -m tools.fetch_data kjv
    python -m tools.train_tokenizer --source=tfds:kjv --vocab-size=2048 \\
        --output=data/tokenizers/kjv
    python -m lm.train --config=configs/moe_tiny.py --workdir=runs/moe_tiny

Expected: 1.43 bits per character on validation and test verses (gpt_tiny: 1.47), no
token dropped, in 7 minutes of CPU time. Over devices, the experts on four of them:
--config.mesh.expert=4.
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import gpt
from lm.tasks import causal_lm
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=gpt.Config(
                vocab_size=2048,
                emb_dim=128,
                num_layers=4,
                num_heads=4,
                mlp_dim=256,
                max_len=128,
                num_experts=8,
                experts_per_token=2,
            ),
            task=causal_lm.Config(length=128),
            data=DataConfig(sources=("tfds:kjv",), tokenizer="data/tokenizers/kjv"),
            optim=OptimConfig(learning_rate=3e-3),
            batch_size=32,
            num_train_steps=400,
            warmup_steps=40,
            checkpoint_every_steps=200,
        )
    )
