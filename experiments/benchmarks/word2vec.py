"""Learns word vectors beside gensim, from the same words.

    python -m tools.fetch_data wiki
    python -m tools.train_tokenizer --source=tfds:wiki --kind=words --min-count=5 \\
        --normalization=nfkc_cf --output=data/tokenizers/wiki_words
    python -m experiments.benchmarks.word2vec

gensim, which `make bench` installs, has the config's dimensions, window, negatives,
subsampling and epochs, its own learning rate, and as many workers as cores. Words are
all of the training split, those included that are too rare to have a vector: a second
has as many of them as both read of the texts, ours in the median of the run's lines of
metrics, gensim in all of `train`, without building its vocabulary. Ours also compile;
whole seconds are those of `lm.train`, from its start to its end. Both are scored by
gensim on WordSim-353. Runs take turns.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmarks.processes import last_line, run, steps_per_sec
from lm import cli
from lm import config as config_lib
from lm.config import check_range
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument("--config", default="configs/word2vec_wiki.py")
parser.add_argument("--seeds", type=int, default=3, help="runs of each")
parser.add_argument("--workers", type=int, default=2, help="of gensim")
parser.add_argument(
    "--peer-python", default=".venv-bench/bin/python", help="a Python that has gensim"
)

_PEER = str(Path(__file__).with_name("gensim_word2vec.py"))


def main(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    check_range("--seeds", args.seeds, 1)
    check_range("--workers", args.workers, 1)
    if not Path(args.peer_python).exists():
        raise UserError(f"no {args.peer_python}; run make bench")
    config: Any = config_lib.load(args.config, overrides)
    found: dict[str, list[dict[str, float]]] = {"lm": [], "gensim": []}
    with tempfile.TemporaryDirectory() as temporary:
        job, words, rows = _job(args, config, Path(temporary))
        for seed in range(args.seeds):
            workdir = Path(temporary, f"run-{seed}")
            train = [sys.executable, "-m", "lm.train", f"--config={args.config}"]
            train += [*overrides, f"--workdir={workdir}", f"--config.seed={seed}"]
            began = time.perf_counter()
            run([*train, "--config.log_every_steps=5"])
            seconds = time.perf_counter() - began
            per_step = words / rows * config.batch_size
            rate = statistics.median(steps_per_sec(workdir))
            ours = {"words_per_sec": rate * per_step, "seconds": seconds}
            file = Path(temporary, f"{seed}.txt")
            export = ["-m", "tools.export_vectors", f"--vectors={workdir}"]
            run([sys.executable, *export, f"--output={file}"])
            peer = [args.peer_python, _PEER]
            scores = last_line([*peer, json.dumps({"vectors": str(file)})])
            found["lm"].append(ours | scores)
            cli.say(f"lm, seed {seed}: {found['lm'][-1]}")
            found["gensim"].append(last_line([*peer, json.dumps(job | {"seed": seed})]))
            cli.say(f"gensim, seed {seed}: {found['gensim'][-1]}")
    return _show(found, words)


def _job(args: Namespace, config: Any, folder: Path) -> tuple[dict[str, Any], int, int]:
    """Writes the words for the peer.

    Returns:
        What it is to do, the words of an epoch, and our rows of them.
    """
    from lm.data.sources import open_source
    from lm.text import tokenizers
    from lm.train.config import Config
    from lm.train.loop import build, build_batches

    data = config.data
    tokenizer = tokenizers.load(Path(data.tokenizer))
    rows = build_batches(build(Config.of(config), tokenizer)).num_rows
    unknown = tokenizer.token(tokenizer.unk_id)
    lines, words = [], 0
    for spec in data.sources:
        examples = open_source(spec, data.data_dir).examples(data.train_split)
        for ids in tokenizer.encode_batch([row["text"] for row in examples]):
            # A rare word is told from others by its number, and is as rare to gensim.
            names = [
                f"{unknown}{words + place}"
                if id == tokenizer.unk_id
                else tokenizer.token(id)
                for place, id in enumerate(ids.tolist())
            ]
            lines.append(" ".join(names))
            words += len(ids)
    path = folder / "texts.txt"
    path.write_text("\n".join(lines))
    task = config.task
    job = {
        "texts": str(path),
        "size": config.model.emb_dim,
        "window": task.window,
        "negatives": task.negatives,
        "subsample": task.subsample,
        "kind": task.kind,
        # The tokenizer has chosen the words.
        "min_count": 2,
        "workers": args.workers,
        "epochs": round(config.num_train_steps * config.batch_size / rows),
    }
    return job, words, rows


def _show(found: dict[str, list[dict[str, float]]], words: int) -> dict[str, Any]:
    table = Table(
        *("", "words/s, median (min-max)", "WordSim-353, mean (min-max)"),
        *("pairs known", "whole seconds"),
        title=f"{words:,} words an epoch, {os.cpu_count()} cores",
    )
    for name, runs in found.items():
        rates = [run["words_per_sec"] for run in runs]
        scores = [run["wordsim"] for run in runs]
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})",
            f"{statistics.mean(scores):.3f} ({min(scores):.3f}-{max(scores):.3f})",
            f"{runs[0]['covered']:.0%}",
            f"{statistics.median(run['seconds'] for run in runs):.1f}",
        )
    Console().print(table)
    ratio = statistics.median(
        ours["words_per_sec"] / theirs["words_per_sec"]
        for ours, theirs in zip(found["lm"], found["gensim"])
    )
    print(f"words/s of lm / gensim, median of the turns: {ratio:.2f}")
    return found | {"ratio": ratio}


if __name__ == "__main__":
    cli.run(main, parser, extra_prefix="--config.")
