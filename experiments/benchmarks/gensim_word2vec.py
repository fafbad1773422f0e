"""The peer of `word2vec`: the same words in gensim, and the score of both.

It runs in an environment of its own, so it imports nothing of `lm`. Its argument is a
JSON object; what it measures is its last line, another.
"""

import json
import sys
import time
from pathlib import Path

import gensim
from gensim.models import KeyedVectors, Word2Vec
from gensim.test.utils import datapath


def score(vectors):
    """Returns Spearman's correlation on WordSim-353, and the share of its pairs."""
    found = vectors.evaluate_word_pairs(datapath("wordsim353.tsv"))
    return {"wordsim": float(found[1][0]), "covered": 1 - found[2] / 100}


def main():
    job = json.loads(sys.argv[1])
    if "vectors" in job:
        print(json.dumps(score(KeyedVectors.load_word2vec_format(job["vectors"]))))
        return
    lines = Path(job["texts"]).read_text().splitlines()
    texts = [line.split(" ") for line in lines]
    model = Word2Vec(
        vector_size=job["size"],
        window=job["window"],
        negative=job["negatives"],
        sample=job["subsample"],
        sg=int(job["kind"] == "skip_gram"),
        min_count=job["min_count"],
        workers=job["workers"],
        seed=job["seed"] + 1,
    )
    model.build_vocab(texts)
    began, cpu = time.perf_counter(), time.process_time()
    model.train(texts, total_examples=model.corpus_count, epochs=job["epochs"])
    seconds = time.perf_counter() - began
    result = {
        "words_per_sec": job["epochs"] * sum(map(len, texts)) / seconds,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "vocab_size": len(model.wv),
        "version": gensim.__version__,
    }
    print(json.dumps(result | score(model.wv)))


if __name__ == "__main__":
    main()
