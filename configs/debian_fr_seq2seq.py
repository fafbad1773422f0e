"""Translates the descriptions of Debian's packages by LSTMs with attention.

Bahdanau et al. (2015), https://arxiv.org/abs/1409.0473, beside the T5 of `debian_fr`,
on the same 37,221 pairs, several to a row: one layer of 2 x 192 units reads, one of 192
writes.

    python -m tools.fetch_data debian_fr
    python -m tools.train_tokenizer --source=tfds:debian_fr \\
        --source="tfds:debian_fr?text=target" --vocab-size=4096 \\
        --output=data/tokenizers/debian_fr
    python -m lm.train --config=configs/debian_fr_seq2seq.py --workdir=runs/seq2seq
    python -m lm.evaluate --workdir=runs/seq2seq --split=test
    python -m lm.predict --workdir=runs/seq2seq \\
        --text="This package contains the documentation."

Expected: BLEU 19.0, chrF 42.9 and a loss of 2.56 nats a token on the test split, after
23 minutes of CPU time.
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import seq2seq
from lm.tasks import text_to_text
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=seq2seq.Config(
                vocab_size=4096,
                emb_dim=192,
                attention_dim=96,
                max_len=128,
                dropout_rate=0.1,
            ),
            task=text_to_text.Config(length=128, targets_length=128),
            data=DataConfig(
                sources=("tfds:debian_fr",), tokenizer="data/tokenizers/debian_fr"
            ),
            optim=OptimConfig(learning_rate=3e-3),
            batch_size=16,
            num_train_steps=1500,
            warmup_steps=100,
            eval_every_steps=500,
            checkpoint_every_steps=500,
        )
    )
