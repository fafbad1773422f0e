"""Ten kinds of entities in 1,863 tweets of 2010, by a model that knows no English.

Ritter et al. (2011), https://aclanthology.org/D11-1141. So few examples teach names
but not what one looks like: set `init_from` to a pretrained workdir for a better score.

    python -m tools.fetch_data tweet_ner
    python -m tools.train_tokenizer --source=tfds:tweet_ner --kind=wordpiece \\
        --vocab-size=4096 --output=data/tokenizers/tweet_ner
    python -m lm.train --config=configs/tweet_ner.py --workdir=runs/tweet_ner
    python -m lm.evaluate --workdir=runs/tweet_ner --split=test
    python -m lm.predict --workdir=runs/tweet_ner --text="New iPhone in London today"

Expected: entity F1 0.177 on test, in 3 minutes on 2 CPU cores; a linear model that sees
how words are written has 0.335.
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import tag
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config, EvalConfig
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=bert.Config(
                vocab_size=4096,
                emb_dim=128,
                num_layers=2,
                num_heads=4,
                max_len=128,
                position_encoding="rotary",
                norm="rms",
                norm_position="pre",
                norm_eps=1e-6,
                use_bias=False,
                dropout_rate=0.3,
                attention_dropout_rate=0.0,
                init_stddev=0.0,
                embed_stddev=0.1,
            ),
            task=tag.Config(length=128, scheme="bio", dropout_rate=0.3),
            data=DataConfig(
                sources=("tfds:tweet_ner",), tokenizer="data/tokenizers/tweet_ner"
            ),
            optim=OptimConfig(learning_rate=2e-3),
            eval=EvalConfig(patience=5),
            checkpoint=CheckpointConfig(best_metric="f1_micro", best_mode="max"),
            batch_size=16,
            num_train_steps=600,
            warmup_steps=40,
            eval_every_steps=40,
            checkpoint_every_steps=600,
        )
    )
