"""People, places and organisations in Chinese news, by a BiLSTM with a CRF.

The tags of a text are predicted together: Huang et al. (2015),
https://arxiv.org/abs/1508.01991. The data is that of `zh_ner`, where each character is
a word. One layer of 2 x 128 units from scratch, several paragraphs a row.

    python -m tools.fetch_data zh_ner
    python -m tools.train_tokenizer --source=tfds:zh_ner --kind=chars \\
        --output=data/tokenizers/zh_ner
    python -m lm.train --config=configs/zh_ner_bilstm_crf.py --workdir=runs/bilstm_crf
    python -m lm.evaluate --workdir=runs/bilstm_crf --split=test
    python -m lm.predict --workdir=runs/bilstm_crf --text="江泽民主席在北京会见了外宾。"

Expected: an F1 of 0.888 of the entities of the test split, after 220 seconds of CPU
time; the transformer of `zh_ner` has 0.905. As a TF Lite file of 0.85 MB
(`tools.export --quantize=int8`) it finds the same tags in all of 200 test paragraphs.
Without the CRF, --config.task.crf=false, the F1 is 0.832.
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import birnn
from lm.tasks import tag
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=birnn.Config(
                vocab_size=4201, emb_dim=128, max_len=128, dropout_rate=0.3
            ),
            task=tag.Config(length=128, scheme="bio", separator="", crf=True),
            data=DataConfig(
                sources=("tfds:zh_ner",), tokenizer="data/tokenizers/zh_ner"
            ),
            optim=OptimConfig(learning_rate=5e-3),
            checkpoint=CheckpointConfig(best_metric="f1_micro", best_mode="max"),
            batch_size=32,
            num_train_steps=800,
            warmup_steps=50,
            checkpoint_every_steps=800,
        )
    )
