"""The topic of a news article, by a bidirectional LSTM small enough for 300 kB.

Graves & Schmidhuber (2005), https://doi.org/10.1016/j.neunet.2005.06.042, with the
largest of what each unit says anywhere in the text (Conneau et al. 2017,
https://arxiv.org/abs/1705.02364, section 3.2): 5,000 pieces x 32, 2 x 48 units.

    python -m tools.fetch_data bbc
    python -m tools.train_tokenizer --source=tfds:bbc --kind=wordpiece \\
        --normalization=nfkc_cf --vocab-size=5000 --output=data/tokenizers/bbc_5000
    python -m lm.train --config=configs/bbc_lstm.py --workdir=runs/bbc_lstm
    python -m lm.evaluate --workdir=runs/bbc_lstm --split=test
    python -m tools.export --workdir=runs/bbc_lstm --quantize=int8

Expected: 95% of the validation articles right and 91.9% of the 223 test articles, after
71 seconds of CPU time; it ends early, when it has learned the training articles by
heart. The TF Lite file has 209 kB and predicts the same class for all test articles.
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import birnn
from lm.tasks import classify
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config, EvalConfig
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=birnn.Config(
                vocab_size=5000,
                emb_dim=32,
                hidden_dim=48,
                max_len=256,
                dropout_rate=0.2,
                embed_stddev=0.3,
            ),
            task=classify.Config(
                length=256, pooling="max", dropout_rate=0.3, token_dropout_rate=0.3
            ),
            data=DataConfig(
                sources=("tfds:bbc",), tokenizer="data/tokenizers/bbc_5000"
            ),
            optim=OptimConfig(learning_rate=1e-2),
            eval=EvalConfig(patience=4),
            checkpoint=CheckpointConfig(best_metric="accuracy", best_mode="max"),
            batch_size=32,
            num_train_steps=500,
            warmup_steps=30,
            eval_every_steps=50,
            checkpoint_every_steps=500,
        )
    )
