"""MiniLM, pretrained by others, fine-tuned on a task of ours.

Wang et al. (2020), https://arxiv.org/abs/2002.10957; as all-MiniLM-L6-v2, which
sentence-transformers trained to make vectors of sentences: 6 layers x 384, 22.7 M
parameters. Behind the colon stands the task: bbc, imdb or wiki.

    python -m tools.fetch_data minilm bbc
    python -m tools.import_hf --from=data/minilm --workdir=runs/minilm
    python -m lm.train --config=configs/minilm.py:bbc --workdir=runs/minilm_bbc
    python -m lm.evaluate --workdir=runs/minilm_bbc --split=test

Expected of bbc: 95% of the test articles right, by their first 64 tokens, in 70 seconds
on 2 CPU cores.
"""

from lm.config import check_choice, to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import classify, rank
from lm.train.config import Config, EvalConfig
from lm.train.optim import OptimConfig

CLASSIFY = classify.Config(length=64, pooling="mean", dropout_rate=0.1)
RANK = rank.Config(length=64, query="description", query_length=24)
# The task, its steps, and the rows of a batch.
TASKS = {"bbc": (CLASSIFY, 60, 16), "imdb": (CLASSIFY, 80, 16), "wiki": (RANK, 40, 32)}


def get_config(name="bbc"):
    check_choice("task", name, tuple(TASKS))
    task, num_train_steps, batch_size = TASKS[name]
    return to_config_dict(
        Config(
            model=bert.Config(max_len=512, scan_unroll=6),
            task=task,
            data=DataConfig(sources=(f"tfds:{name}",), tokenizer="", bad_rows="skip"),
            optim=OptimConfig(
                learning_rate=1e-4,
                schedule="linear",
                final_fraction=0.0,
                b2=0.999,
                weight_decay=0.01,
                decay=("kernel$",),
            ),
            eval=EvalConfig(max_batches=1),
            init_from="runs/minilm",
            batch_size=batch_size,
            num_train_steps=num_train_steps,
            warmup_steps=num_train_steps // 10,
            checkpoint_every_steps=num_train_steps,
        )
    )
