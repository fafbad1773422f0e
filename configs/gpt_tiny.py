"""A small modern decoder on the King James Bible.

Radford et al. (2019), with what decoders took over since: rotary positions (Su et al.
2021), RMSNorm (Zhang & Sennrich 2019), no biases. 4 layers x 128.

    python -m tools.fetch_data kjv
    python -m tools.train_tokenizer --source=tfds:kjv --vocab-size=2048 \\
        --output=data/tokenizers/kjv
    python -m lm.train --config=configs/gpt_tiny.py --workdir=runs/gpt_tiny

Expected: 1.47 bits per character on validation and test verses (perplexity 37 a token),
in two minutes on 2 CPU cores; with --config.num_train_steps=600 1.37, in three.
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
                vocab_size=2048, emb_dim=128, num_layers=4, num_heads=4, max_len=128
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
