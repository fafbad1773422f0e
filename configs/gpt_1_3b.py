"""GPT-3 of 1.3 billion parameters ("XL"), on C4.

Brown et al. (2020), https://arxiv.org/abs/2005.14165, table 2.1: 24 layers of 2,048,
heads of 128, a context of 2,048, batches of a million tokens, a learning rate of 2e-4.
There are 16 heads, as many as make 2,048; the paper's 24 do not. One H200 takes 16 rows
at a time with 53 GB, 54,000 tokens a second (60,000 as `experiments.benchmarks.gpu`
sets it); more devices share them, and the state, with `mesh.fsdp`. It has not been
trained to its end here.

On 16 chips of v5e with 4 rows each, full remat (compiled by the second command; nothing
was run): 3.18 of 15.75 GiB a chip, of which 2.23 are temporary, and 9.12e8 cycles.

    python -m tools.train_tokenizer --source=tfds:c4/en --kind=byte_bpe \\
        --vocab-size=50257 --max-texts=1000000 --output=data/tokenizers/gpt2
    python -m tools.plan --config=configs/gpt_1_3b.py --topology=v5e:4x4 \\
        --config.mesh.data=1 --config.mesh.fsdp=16 --config.model.remat=full \\
        --config.batch_size=64 --config.grad_accum_steps=1
    python -m lm.train --config=configs/gpt_1_3b.py --workdir=runs/gpt_1_3b
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
                emb_dim=2048,
                num_layers=24,
                num_heads=16,
                max_len=2048,
                init_stddev=0.02,
                dtype="bfloat16",
                remat="dots_no_batch",
            ),
            task=causal_lm.Config(length=2048),
            data=DataConfig(sources=("tfds:c4/en",), tokenizer="data/tokenizers/gpt2"),
            optim=OptimConfig(learning_rate=2e-4, weight_decay=0.1),
            batch_size=512,
            grad_accum_steps=32,
            num_train_steps=300_000,
            warmup_steps=375,
            log_every_steps=10,
            eval_every_steps=5000,
            checkpoint_every_steps=1000,
        )
    )
