"""Writes word vectors to a file that other programs read, gensim among them.

    python -m tools.export_vectors --vectors=runs/word2vec --output=vectors.bin
    python -m tools.export_vectors --vectors=glove.6B.100d.txt --output=glove.bin

Vectors are a workdir's, one for each token of its tokenizer that is no mark, or another
file's. A file that ends in .bin is in word2vec's binary format, any other is text; with
.gz after it, it is compressed.

    gensim.models.KeyedVectors.load_word2vec_format("vectors.bin", binary=True)
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm.atomic import make_folder
from lm.config import check_range
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument("--vectors", required=True, help="a workdir, or a file of vectors")
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument("--output", required=True, help="the file to write")
parser.add_argument(
    "--max-words", type=int, default=0, help="no more than the first; 0: all"
)
parser.add_argument("--overwrite", action="store_true", help="replace a file")


def main(args: Namespace) -> dict[str, Any]:
    """Reads, writes and says what it was."""
    check_range("--max-words", args.max_words, 0)
    path = Path(args.output)
    if path.exists() and not (args.overwrite and path.is_file()):
        raise UserError(f"{path} exists; set --overwrite, or another --output")

    from lm import vectors as vectors_lib
    from lm.train.word_vectors import open_vectors

    vectors = open_vectors(args.vectors, args.step, args.max_words)
    rows = [row for row, word in enumerate(vectors.words) if word.split() == [word]]
    if left := len(vectors.words) - len(rows):
        cli.say(f"left out {left:,} words with spaces, which such files cannot have")
        words = [vectors.words[row] for row in rows]
        vectors = vectors_lib.Vectors(words, vectors.table[rows])
    make_folder(path.parent)
    vectors_lib.write(vectors, path)
    words, size = vectors.table.shape
    print(f"wrote {words:,} vectors of {size} numbers to {path}")
    return {"output": str(path), "words": words, "size": size}


if __name__ == "__main__":
    cli.run(main, parser)
