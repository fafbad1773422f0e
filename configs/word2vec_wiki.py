"""Word vectors of Wikipedia's summaries by skip-gram with negative sampling.

Word2Vec (Mikolov et al. 2013, https://arxiv.org/abs/1310.4546): 100 dimensions, windows
of up to 5 words, 5 negatives, 5 epochs over 725,534 words, of which the 10,729 that are
there 5 times have a vector. Noise words are shared by a row and a step is a batch of
24,576 words, so that the work is products of matrices (Ji et al. 2016,
https://arxiv.org/abs/1604.04661); Adam takes the place of a pair at a time.

    python -m tools.fetch_data wiki
    python -m tools.train_tokenizer --source=tfds:wiki --kind=words --min-count=5 \\
        --normalization=nfkc_cf --output=data/tokenizers/wiki_words
    python -m lm.train --config=configs/word2vec_wiki.py --workdir=runs/word2vec_wiki
    python -m tools.evaluate_vectors --vectors=runs/word2vec_wiki

Expected: a loss of 2.3 to 2.4 on the validation split, and a correlation of 0.44 with
WordSim-353 (three seeds: 0.38 to 0.49; gensim, from the same words: 0.35), on the 240
of its 353 pairs whose words are known. With `--config.task.kind=cbow` 0.37.
`experiments.benchmarks.word2vec` measures it beside gensim.

`--config.task.output=hierarchical_softmax` takes some 20 times as long, reaches 0.54;
`--config.model.ngram_buckets=100000` makes n-grams part of the words, as in fastText,
takes about 5 times as long and reaches 0.37 (one seed each).
"""

from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import word2vec as model
from lm.tasks import word2vec
from lm.train.config import Config
from lm.train.optim import OptimConfig


def get_config():
    return to_config_dict(
        Config(
            model=model.Config(vocab_size=10_734, emb_dim=100, max_len=512),
            task=word2vec.Config(length=512, shared_negatives=64),
            data=DataConfig(
                sources=("tfds:wiki",), tokenizer="data/tokenizers/wiki_words"
            ),
            optim=OptimConfig(
                learning_rate=0.12,
                schedule="linear",
                final_fraction=0.0,
                b2=0.999,
                weight_decay=0.0,
                grad_clip_norm=0.0,
            ),
            batch_size=48,
            num_train_steps=98,  # 5 epochs
            warmup_steps=0,
            checkpoint_every_steps=98,
        )
    )
