"""Whether a Chinese review is positive.

    python -m tools.fetch_data zh_sentiment
    python -m tools.train_tokenizer --source=tfds:zh_sentiment --kind=bpe \\
        --vocab-size=8192 --output=data/tokenizers/zh_sentiment
    python -m lm.train --config=configs/zh_sentiment.py --workdir=runs/zh_sentiment
    python -m lm.evaluate --workdir=runs/zh_sentiment --split=test
    python -m lm.predict --workdir=runs/zh_sentiment --text="很好看"

Expected: 85.1% of the test reviews right, in 2 minutes on 2 CPU cores; tf-idf with
logistic regression has 84.7%. An average of the parameters is what is evaluated: it
overfits less (without it 84.7%).
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import classify
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=bert.Config(
                vocab_size=8192,
                emb_dim=128,
                num_layers=1,
                num_heads=4,
                head_dim=16,
                mlp_dim=256,
                max_len=128,
                position_encoding="rotary",
                norm="rms",
                norm_position="pre",
                norm_eps=1e-6,
                embed_stddev=0.1,
                use_bias=False,
                dropout_rate=0.1,
                attention_dropout_rate=0.0,
            ),
            task=classify.Config(
                length=128,
                pooling="mean",
                dropout_rate=0.3,
                token_dropout_rate=0.3,
            ),
            data=DataConfig(
                sources=("tfds:zh_sentiment",), tokenizer="data/tokenizers/zh_sentiment"
            ),
            optim=OptimConfig(learning_rate=2e-3, ema_decay=0.995),
            checkpoint=CheckpointConfig(best_metric="accuracy", best_mode="max"),
            batch_size=64,
            num_train_steps=1200,
            warmup_steps=50,
            eval_every_steps=200,
            checkpoint_every_steps=1200,
        )
    )
