"""A decoder over the characters of Shakespeare's plays, as in nanoGPT's README.

The setting is that of https://github.com/karpathy/nanoGPT for a computer without a
GPU: 4 layers x 128, 64 characters of context, 12 rows a step, 2,000 steps. The text
differs: nanoGPT reads 1.1 M characters of dialogue alone, this all plays with their
stage directions.

    python -m tools.fetch_data shakespeare
    python -m tools.train_tokenizer --source=tfds:shakespeare --kind=chars \\
        --output=data/tokenizers/shakespeare_chars
    python -m lm.train --config=configs/gpt_char_shakespeare.py --workdir=runs/chars

Expected: a loss of 1.65 nats per character on the validation plays and 1.71 on the test
plays, in 100 s on 2 CPU cores.
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
                vocab_size=384, emb_dim=128, num_layers=4, num_heads=4, max_len=64
            ),
            task=causal_lm.Config(length=64),
            data=DataConfig(
                sources=("tfds:shakespeare",),
                tokenizer="data/tokenizers/shakespeare_chars",
            ),
            optim=OptimConfig(learning_rate=1e-3, b2=0.99),
            batch_size=12,
            num_train_steps=2000,
            warmup_steps=100,
            log_every_steps=50,
            checkpoint_every_steps=1000,
        )
    )
