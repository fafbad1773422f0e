"""Teaches the small decoder of configs/gpt_tiny.py to converse, as in Shakespeare.

What two speak by turns in his plays; the loss is on the second's turns alone.

    python -m lm.train --config=configs/gpt_tiny.py --workdir=runs/gpt_tiny
    python -m tools.fetch_data dialogues
    python -m lm.train --config=configs/chat_tiny.py --workdir=runs/chat_tiny
    python -m lm.evaluate --workdir=runs/chat_tiny --split=test
    python -m lm.generate --workdir=runs/chat_tiny --temperature=0.8

Expected: a perplexity of 58 on the answers of plays that it has not seen, in 2 minutes
on 2 CPU cores (54 on validation, from 64 after 100 steps). It has the tone and not the
sense: a million parameters are few.

Your own conversations are JSON lines, one each: {"messages": [{"role": "user",
"content": "Hello"}, {"role": "assistant", "content": "Hi"}]}, read by
--config.data.sources='my/*.jsonl?text=' (which says that they have no `text`).
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import gpt
from lm.tasks import chat
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
                max_len=256,
                dropout_rate=0.1,
            ),
            task=chat.Config(length=256, max_new_tokens=64),
            data=DataConfig(
                sources=("tfds:dialogues",),
                tokenizer="data/tokenizers/kjv",
                bad_rows="skip",  # whose first answer does not fit into a row
            ),
            optim=OptimConfig(learning_rate=1e-3),
            init_from="runs/gpt_tiny",
            batch_size=16,
            num_train_steps=300,
            warmup_steps=30,
            eval_every_steps=100,
            checkpoint_every_steps=300,
        )
    )
