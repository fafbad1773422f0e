"""GloVe vectors of words, from the leads of 10,000 Wikipedia articles."""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import glove
from lm.tasks import glove as task
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config, EvalConfig
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=glove.Config(vocab_size=12_462, emb_dim=100),
            task=task.Config(length=1024),
            data=DataConfig(
                sources=("data/cooccurrences/wiki/cells.parquet?text=",),
                tokenizer="data/tokenizers/wiki_words",
                train_split="all",
                eval_split="all",
            ),
            optim=OptimConfig(
                name="adagrad",
                learning_rate=0.05,
                schedule="constant",
                weight_decay=0.0,
                grad_clip_norm=0.0,
            ),
            eval=EvalConfig(max_batches=8),
            checkpoint=CheckpointConfig(keep_last=1),
            batch_size=16,
            num_train_steps=4_800,
            warmup_steps=0,
            log_every_steps=100,
            checkpoint_every_steps=2_400,
        )
    )
