"""People, places and organisations in Chinese news.

The People's Daily of January 1998, tagged by Peking University: each character is a
word. 4 layers x 128 from scratch, with rotary positions, several paragraphs a row.

    python -m tools.fetch_data zh_ner
    python -m tools.train_tokenizer --source=tfds:zh_ner --kind=chars \\
        --output=data/tokenizers/zh_ner
    python -m lm.train --config=configs/zh_ner.py --workdir=runs/zh_ner
    python -m lm.evaluate --workdir=runs/zh_ner --split=test
    python -m lm.predict --workdir=runs/zh_ner --text="江泽民主席在北京会见了外宾。"

Expected: an F1 of 0.905 of the entities of the test split, in 7 minutes on 2 CPU cores;
logistic regression on characters and their neighbours (`experiments.baseline`) has
0.848.
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import tag
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=bert.Config(
                vocab_size=4201,
                emb_dim=128,
                num_layers=4,
                num_heads=4,
                max_len=192,
                position_encoding="rotary",
                norm="rms",
                norm_position="pre",
                norm_eps=1e-6,
                use_bias=False,
                dropout_rate=0.1,
                attention_dropout_rate=0.0,
                init_stddev=0.0,
                embed_stddev=0.1,
            ),
            task=tag.Config(length=192, scheme="bio", separator=""),
            data=DataConfig(
                sources=("tfds:zh_ner",), tokenizer="data/tokenizers/zh_ner"
            ),
            optim=OptimConfig(learning_rate=2e-3),
            checkpoint=CheckpointConfig(best_metric="f1_micro", best_mode="max"),
            batch_size=24,
            num_train_steps=1300,
            warmup_steps=100,
            eval_every_steps=325,
            checkpoint_every_steps=1300,
        )
    )
