"""Counts how often words stand near each other, which GloVe learns from.

    python -m tools.count_cooccurrences --source=tfds:wiki \\
        --tokenizer=data/tokenizers/wiki_words --output=data/cooccurrences/wiki

Two words of a text that are d words apart add 1/d to their counts, up to the window,
or with --distance-power=P 1/d^P. Words that the tokenizer does not know are left out
first, and so are marks. With --subsample each count is the one to expect if frequent
words were left out as Word2Vec does: `lm.data.cooccurrence.kept_share`. Of a small
corpus --window=20 --distance-power=0 --subsample=1e-4 is better.

Memory does not grow with the texts: counts that do not fit are written to disk and
merged. The folder appears when it is complete. It has `cells.parquet`, blocks of counts
in random order, for `data.sources`, and `about.json`.
"""

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lm import cli
from lm.atomic import make_folder, new_folder
from lm.config import check_range
from lm.data import cooccurrence
from lm.data.sources import open_source
from lm.data.store import encode_chunks
from lm.text import tokenizers
from lm.text.tokenizers import Tokenizer
from lm.types import UserError

# Cells of a row of the file, and such rows that are written at once.
BLOCK, BLOCKS = 4096, 256
SEED = 0

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--source",
    action="append",
    required=True,
    help="files or a data set, see lm.data.sources; may be given several times",
)
parser.add_argument("--split", default="train", help="of the sources; default: train")
parser.add_argument("--data-dir", default="data", help="default: data")
parser.add_argument("--tokenizer", required=True, help="its folder or file")
parser.add_argument("--output", required=True, help="the folder to write")
parser.add_argument(
    "--window", type=int, default=10, help="words to each side; default: 10"
)
parser.add_argument(
    "--distance-power",
    type=float,
    default=1.0,
    metavar="P",
    help="0: each word of the window counts alike; below 5; default: 1",
)
parser.add_argument(
    "--subsample",
    type=float,
    default=0.0,
    metavar="T",
    help="the share of the text above which words count less; default: 0, none",
)
parser.add_argument(
    "--memory-mb", type=int, default=1024, help="for counts, about; default: 1024"
)
parser.add_argument("--overwrite", action="store_true", help="replace such a folder")


def main(args: Namespace) -> dict[str, Any]:
    """Counts and writes."""
    check_range("--window", args.window, 1)
    # No count of a float32 may become 0.
    check_range("--distance-power", args.distance_power, 0, 5)
    if args.subsample and not 1e-9 <= args.subsample <= 1:
        raise UserError(
            f"--subsample must be 0, or between 1e-9 and 1, not {args.subsample}"
        )
    check_range("--memory-mb", args.memory_mb, 1)
    tokenizer = tokenizers.load(Path(args.tokenizer))
    sources = [open_source(spec, args.data_dir) for spec in args.source]
    texts = (row for source in sources for row in source.examples(args.split))
    output = Path(args.output)
    with new_folder(output, args.overwrite, "about.json", "--output") as folder:
        found = _count(texts, tokenizer, args, folder)
        about = {
            "source": args.source,
            "split": args.split,
            "tokenizer": tokenizer.fingerprint,
            "window": args.window,
            "distance_power": args.distance_power,
            "subsample": args.subsample,
            **found,
        }
        (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    print(
        f"{about['words']:,} words of {about['texts']:,} texts make {about['cells']:,} "
        f"counts of {about['different_words']:,} different words"
    )
    print(f"wrote {output}")
    return {"output": str(output), **about}


def _count(
    texts: Iterable[Any], tokenizer: Tokenizer, args: Namespace, folder: Path
) -> dict[str, int]:
    """Writes `cells.parquet` and tells what is in it."""
    import pyarrow
    from pyarrow import parquet

    memory, size = args.memory_mb << 20, tokenizer.vocab_size
    scratch = folder / "scratch"
    make_folder(scratch)
    counter = cooccurrence.Counter(scratch, memory)
    counts = np.zeros(size, np.int64)  # of each word
    numbers = {"texts": 0, "words": 0, "cells": 0}
    leaves_out = tokenizer.is_special

    def encode(examples: Iterable[Any]) -> list[dict[str, np.ndarray]]:
        encoded = tokenizer.encode_batch([example["text"] for example in examples])
        return [{"tokens": ids[~leaves_out[ids]]} for ids in encoded]

    with cli.Status("counting") as status:
        for documents in encode_chunks(texts, encode):
            tokens = [document["tokens"] for document in documents]
            counter.add(tokens, args.window, size, args.distance_power)
            counts += np.bincount(np.concatenate(tokens), minlength=size)
            numbers["texts"] += len(tokens)
            numbers["words"] = int(counts.sum())
            status.update(
                f"counted {numbers['words']:,} words of {numbers['texts']:,} texts; "
                f"{len(counter.spilled)} runs on disk"
            )
        if not numbers["words"]:
            raise UserError(
                f"{', '.join(args.source)} {args.split} has no word that the tokenizer "
                "knows; choose another of them"
            )
        kept = cooccurrence.kept_share(counts, args.subsample)
        merged = (cooccurrence.mirrored(part, size, kept) for part in counter.merged())
        total = 2 * counter.most_pairs
        parts = cooccurrence.shuffled(merged, total, scratch, memory, SEED)
        columns = {"cells": pyarrow.binary(), "tokenizer": pyarrow.string()}
        schema = pyarrow.schema(columns)
        with parquet.ParquetWriter(folder / "cells.parquet", schema) as writer:
            for part in cooccurrence.in_blocks(parts, BLOCKS * BLOCK):
                starts = range(0, len(part), BLOCK)
                blocks = [part[i : i + BLOCK].tobytes() for i in starts]
                names = [tokenizer.fingerprint] * len(blocks)
                writer.write_table(pyarrow.table([blocks, names], schema=schema))
                numbers["cells"] += len(part)
                status.update(f"wrote {numbers['cells']:,} counts")
    if not numbers["cells"]:
        raise UserError(
            f"{', '.join(args.source)} {args.split} has no two words beside each "
            "other; choose other texts"
        )
    for path in counter.spilled:
        path.unlink()
    scratch.rmdir()
    different = int((counts > 0).sum())
    return {"vocab_size": size, "different_words": different, **numbers}


if __name__ == "__main__":
    cli.run(main, parser)
