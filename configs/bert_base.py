"""BERT-base of 110 M parameters, on English Wikipedia.

Devlin et al. (2019), https://arxiv.org/abs/1810.04805, appendix A.2: one million steps
of 256 rows of 512 tokens. Without next-sentence prediction, which Liu et al. (2019),
https://arxiv.org/abs/1907.11692, found to be of no use. It has not been trained to its
end here.

    python -m tools.train_tokenizer --source=tfds:wiki40b/en --kind=wordpiece \\
        --vocab-size=30522 --max-texts=1000000 --output=data/tokenizers/bert
    python -m lm.train --config=configs/bert_base.py --workdir=runs/bert_base
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import masked_lm
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=bert.Config(
                vocab_size=30522,
                emb_dim=768,
                num_layers=12,
                num_heads=12,
                max_len=512,
                dtype="bfloat16",
            ),
            task=masked_lm.Config(length=512),
            data=DataConfig(
                sources=("tfds:wiki40b/en",), tokenizer="data/tokenizers/bert"
            ),
            optim=OptimConfig(
                learning_rate=1e-4,
                schedule="linear",
                final_fraction=0.0,
                b2=0.999,
                eps=1e-6,
                weight_decay=0.01,
                decay=("kernel$",),
            ),
            batch_size=256,
            num_train_steps=1_000_000,
            warmup_steps=10_000,
            log_every_steps=50,
            eval_every_steps=10_000,
            checkpoint_every_steps=1000,
        )
    )
