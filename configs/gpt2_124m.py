"""GPT-2 of 124 M parameters, on C4.

Radford et al. (2019), "Language models are unsupervised multitask learners"; the
optimizer's settings are those of https://github.com/karpathy/nanoGPT, which reports a
held-out loss of 2.85 on OpenWebText after 300 B tokens, four days on eight A100s. This
config has not been trained to its end here.

C4 comes from the TFDS catalogue; any other text is one name away. The tokenizer is
GPT-2's, `vocab.json` and `merges.txt` in one folder, or one of your own:

    python -m tools.train_tokenizer --source=tfds:c4/en --kind=byte_bpe \\
        --vocab-size=50257 --max-texts=1000000 --output=data/tokenizers/gpt2
    python -m lm.train --config=configs/gpt2_124m.py --workdir=runs/gpt2_124m
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import gpt
from lm.tasks import causal_lm
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=gpt.Config(
                vocab_size=50304,  # 50,257 padded to a multiple of 128
                emb_dim=768,
                num_layers=12,
                num_heads=12,
                max_len=1024,
                position_encoding="learned",
                norm="layer",
                norm_eps=1e-5,
                use_bias=True,
                init_stddev=0.02,
                dtype="bfloat16",
            ),
            task=causal_lm.Config(length=1024),
            data=DataConfig(sources=("tfds:c4/en",), tokenizer="data/tokenizers/gpt2"),
            optim=OptimConfig(learning_rate=6e-4, weight_decay=0.1),
            batch_size=480,
            num_train_steps=600_000,
            warmup_steps=2000,
            log_every_steps=50,
            eval_every_steps=5000,
            checkpoint_every_steps=1000,
        )
    )
