"""T5 of 11 B parameters (11,307,321,344), on C4.

Raffel et al. (2020), https://arxiv.org/abs/1910.10683, section 3.7: 24 + 24 layers of
1,024 with 128 heads of 128 and MLPs of 65,536, spans of 3 tokens over 15% of the text,
a million steps of 2,048 rows of 512 tokens. It is version 1.0: MLPs of ReLUs and an
embedding that is the head too; there are no dropout and no supervised tasks in the
mixture here. It has not been trained.

It is meant for 64 chips of v5p (see experiments/tpu/plans.md), 16 parts of `mesh.fsdp`
by 4 of `mesh.tensor`:

    python -m tools.train_tokenizer --source=tfds:c4/en --kind=unigram \\
        --vocab-size=32100 --sentinels=100 --max-texts=1000000 \\
        --output=data/tokenizers/t5
    python -m tools.plan --config=configs/t5_11b.py --topology=v5p:4x4x4
    python -m lm.train --config=configs/t5_11b.py --workdir=runs/t5_11b --distributed
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import t5
from lm.sharding import MeshConfig
from lm.tasks import span_corruption
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=t5.Config(
                vocab_size=32_128,
                emb_dim=1024,
                num_layers=24,
                num_heads=128,
                head_dim=128,
                mlp_dim=65_536,
                max_len=512,
                activation="relu",
                tie_embeddings=True,
                scale_output=True,
                dropout_rate=0.0,
                dtype="bfloat16",
                remat="full",
            ),
            task=span_corruption.Config(length=512, targets_length=114),
            data=DataConfig(sources=("tfds:c4/en",), tokenizer="data/tokenizers/t5"),
            optim=OptimConfig(
                name="adafactor",
                learning_rate=1e-2,
                schedule="rsqrt",
                weight_decay=0.0,
            ),
            mesh=MeshConfig(fsdp=16, tensor=4),
            batch_size=2048,
            grad_accum_steps=8,
            num_train_steps=1_000_000,
            warmup_steps=10_000,
            log_every_steps=10,
            eval_every_steps=10_000,
            checkpoint_every_steps=1000,
        )
    )
