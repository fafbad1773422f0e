"""T5 1.1 small of 77 M parameters, on C4.

Raffel et al. (2020), https://arxiv.org/abs/1910.10683, section 3.1, with the changes of
version 1.1 (gated GELU, untied head, no dropout in pretraining): 524,288 steps of 128
rows, spans of 3 tokens over 15% of the text. It has not been trained to its end here.

    python -m tools.train_tokenizer --source=tfds:c4/en --kind=unigram \\
        --vocab-size=32100 --sentinels=100 --max-texts=1000000 \\
        --output=data/tokenizers/t5
    python -m lm.train --config=configs/t5_small.py --workdir=runs/t5_small
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import t5
from lm.tasks import span_corruption
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=t5.Config(
                vocab_size=32128,
                emb_dim=512,
                num_layers=8,
                num_heads=6,
                head_dim=64,
                mlp_dim=1024,
                max_len=512,
                dropout_rate=0.0,
                dtype="bfloat16",
            ),
            task=span_corruption.Config(length=512, targets_length=114),
            data=DataConfig(sources=("tfds:c4/en",), tokenizer="data/tokenizers/t5"),
            optim=OptimConfig(
                name="adafactor",
                learning_rate=1e-2,
                schedule="rsqrt",
                weight_decay=0.0,
            ),
            batch_size=128,
            num_train_steps=524_288,
            warmup_steps=10_000,
            log_every_steps=50,
            eval_every_steps=10_000,
            checkpoint_every_steps=1000,
        )
    )
