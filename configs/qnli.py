"""Whether a sentence answers a question: pairs of texts.

Made of SQuAD's development set as GLUE's QNLI is (Wang et al. 2019,
https://arxiv.org/abs/1804.07461, section 3.3): 12,526 pairs to train on, none of whose
articles is in another split.

    python -m tools.fetch_data squad_sentences
    python -m tools.train_tokenizer --source=tfds:squad_sentences \\
        --source="tfds:squad_sentences?text=text_b" --kind=wordpiece \\
        --normalization=nfkc_cf --vocab-size=8192 --output=data/tokenizers/qnli
    python -m lm.train --config=configs/qnli.py --workdir=runs/qnli
    python -m lm.evaluate --workdir=runs/qnli --split=test
    python -m lm.predict --workdir=runs/qnli --text="Who won?" \\
        --field=text_b="The Broncos won by 24 to 10."

Expected: 56% of the test pairs right, in 6 minutes on 2 CPU cores, little more than
chance: without pretraining 12,526 pairs do not teach to compare two texts. A linear
model that is given the words that both share has 80%; set `init_from` to a pretrained
workdir.
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import pair
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=bert.Config(
                vocab_size=8192,
                emb_dim=128,
                num_layers=2,
                num_heads=4,
                max_len=128,
                position_encoding="rotary",
                norm="rms",
                norm_position="pre",
                norm_eps=1e-6,
                use_bias=False,
                dropout_rate=0.1,
                attention_dropout_rate=0.0,
                embed_stddev=0.1,
            ),
            task=pair.Config(
                length=96, pooling="mean", dropout_rate=0.3, token_dropout_rate=0.1
            ),
            data=DataConfig(
                sources=("tfds:squad_sentences",),
                tokenizer="data/tokenizers/qnli",
            ),
            optim=OptimConfig(learning_rate=1e-3),
            checkpoint=CheckpointConfig(best_metric="accuracy", best_mode="max"),
            batch_size=64,
            num_train_steps=1000,
            warmup_steps=100,
            eval_every_steps=200,
            checkpoint_every_steps=1000,
        )
    )
