"""Draws a map of word vectors, as a web page or a picture.

    python -m tools.plot_vectors --vectors=runs/word2vec --output=map.html
    python -m tools.plot_vectors --vectors=vectors.bin --output=map.svg \\
        --word=king --word=paris --nearest=40 --method=pca

Vectors are a workdir's or a file's. Shown are the first words of letters, which are the
most frequent of a tokenizer of words, in colours of six clusters; or the neighbours of
--word, in a colour each. The page can be moved and come nearer to, finds words, and
shows the neighbours of each. t-SNE keeps together what is near, PCA keeps directions.
"""

import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm.atomic import make_folder, write_text
from lm.config import check_choice, check_range
from lm.types import UserError
from lm.vectors import row_of

parser = cli.make_parser(__doc__)
parser.add_argument("--vectors", required=True, help="a workdir, or a file of vectors")
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument("--output", required=True, help="an .html or an .svg file")
parser.add_argument("--method", default="tsne", help="tsne (the default) or pca")
parser.add_argument("--num-words", type=int, default=400, help="to show; default: 400")
parser.add_argument(
    "--word", action="append", default=[], help="whose neighbours to show instead"
)
parser.add_argument(
    "--nearest", type=int, default=30, metavar="K", help="of each --word; default: 30"
)
parser.add_argument("--seed", type=int, default=0, help="of t-SNE and the clusters")


def main(args: Namespace) -> dict[str, Any]:
    """Draws and writes."""
    from tools import vector_map

    check_choice("--method", args.method, vector_map.METHODS)
    check_range("--num-words", args.num_words, 3)
    check_range("--nearest", args.nearest, 2)
    check_range("--seed", args.seed, 0, 2**32)
    path = Path(args.output)
    if path.suffix not in (".html", ".svg"):
        raise UserError(f"--output must end in .html or .svg, not {path.suffix!r}")

    from lm.train.word_vectors import open_vectors

    vectors = open_vectors(args.vectors, args.step)
    rows, heads = _rows(vectors, args)
    made = vector_map.make_map(vectors, rows, heads, args.method, args.seed)
    if path.suffix == ".svg":
        text = vector_map.picture(made)
    else:
        command = shlex.join(["python", "-m", "tools.plot_vectors", *sys.argv[1:]])
        text = vector_map.page(made, args.vectors, vectors.table.shape[1], command)
    make_folder(path.parent)
    write_text(path, text)
    print(f"wrote a map of {len(rows):,} words to {path}")
    return {"output": str(path), "words": list(made.words), "about": made.about}


def _rows(vectors: Any, args: Namespace) -> tuple[list[int], list[int]]:
    """Returns the words to show, and those of them that a colour each is for."""
    found = [row_of(vectors, word, args.vectors) for word in args.word]
    heads = list(dict.fromkeys(found))
    rows = list(heads)
    index = {word: row for row, word in enumerate(vectors.words)} if heads else {}
    for head in heads:
        near = vectors.nearest(vectors.table[head], args.nearest, [head])
        rows += [index[word] for word, _ in near]
    if not heads:
        # Subwords' names begin with a sign.
        letters = (
            r for r, w in enumerate(vectors.words) if w.strip("\u2581").isalpha()
        )
        rows = [row for row, _ in zip(letters, range(args.num_words))]
    rows = list(dict.fromkeys(rows))
    if len(rows) < 3:
        raise UserError(f"{args.vectors} has fewer than 3 words to show; name others")
    return rows, heads


if __name__ == "__main__":
    cli.run(main, parser)
