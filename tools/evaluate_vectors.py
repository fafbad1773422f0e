"""Scores word vectors: similarity as people see it, analogies; and shows neighbours.

    python -m tools.fetch_data word_tests
    python -m tools.evaluate_vectors --vectors=runs/word2vec
    python -m tools.evaluate_vectors --vectors=vectors.bin --word=king --word=paris

Vectors are a workdir's or a file's, of word2vec or GloVe. Similarity is Spearman's
correlation with people's judgements, of WordSim-353 and SimLex-999. An analogy is right
if its fourth word is the nearest of all (3CosAdd, 3CosMul) but the other three.

A question with a word that has no vector is left out. Of two vocabularies that cover
not the same, compare what --max-words leaves of both.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lm import cli
from lm.config import check_range
from lm.types import UserError
from lm.vectors import row_of

PAIRS = {"WordSim-353": "wordsim353.tsv", "SimLex-999": "simlex999.txt"}
ANALOGIES = "questions-words.txt"

parser = cli.make_parser(__doc__)
parser.add_argument("--vectors", required=True, help="a workdir, or a file of vectors")
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument(
    "--tests",
    default="data/word_tests",
    help="the folder of the test sets; default: data/word_tests",
)
parser.add_argument(
    "--pairs", action="append", default=[], help="yours instead; may be repeated"
)
parser.add_argument("--analogies", default="", help="yours instead")
parser.add_argument(
    "--word", action="append", default=[], help="whose neighbours to show instead"
)
parser.add_argument("--nearest", type=int, default=10, metavar="K", help="default: 10")
parser.add_argument(
    "--max-words", type=int, default=0, help="of the first only; 0: of all"
)


def main(args: Namespace) -> dict[str, Any]:
    """Scores, or shows neighbours."""
    check_range("--max-words", args.max_words, 0)
    check_range("--nearest", args.nearest, 1)
    # Read first: a mistake is told before a large file is.
    from lm import vector_scores

    pairs, analogies = {}, {}
    if not args.word:
        files, questions = _tests(args)
        pairs = {name: vector_scores.read_pairs(path) for name, path in files.items()}
        analogies = vector_scores.read_analogies(questions) if questions else {}

    from lm.train.word_vectors import open_vectors

    vectors = open_vectors(args.vectors, args.step, args.max_words)
    words, size = vectors.table.shape
    result: dict[str, Any] = {"words": words, "size": size}
    print(f"{words:,} vectors of {size} numbers")
    if args.word:
        result["nearest"] = {word: _nearest(vectors, word, args) for word in args.word}
        return result
    result["similarity"] = {
        name: vector_scores.score_pairs(vectors, some) for name, some in pairs.items()
    }
    if pairs:
        Console().print(_similarities(result["similarity"]))
    if analogies:
        result["analogies"] = vector_scores.score_analogies(vectors, analogies)
        Console().print(_answers(result["analogies"]))
    scores = (*result["similarity"].values(), *result.get("analogies", {}).values())
    if not any(score["found"] for score in scores):
        raise UserError(
            f"{args.vectors} has no word of these tests; choose vectors of their "
            "language, or other tests"
        )
    return result


def _tests(args: Namespace) -> tuple[dict[str, Path], Path | None]:
    """Returns the test sets of similarity, by their names, and that of analogies."""
    if args.pairs or args.analogies:
        questions = Path(args.analogies) if args.analogies else None
        return {path: Path(path) for path in args.pairs}, questions
    files = {name: _test(args.tests, file) for name, file in PAIRS.items()}
    return files, _test(args.tests, ANALOGIES)


def _test(folder: str, file: str) -> Path:
    path = Path(folder, file)
    if not path.is_file():
        raise UserError(
            f"{path} is missing; run: python -m tools.fetch_data word_tests, or set "
            "--tests"
        )
    return path


def _nearest(vectors: Any, word: str, args: Namespace) -> list[tuple[str, float]]:
    """Shows a word's neighbours."""
    row = row_of(vectors, word, args.vectors)
    found = vectors.nearest(vectors.table[row], args.nearest, [row])
    print(word)
    for other, cosine in found:
        print(f"  {cosine:.3f}  {other}")
    return found


def _similarities(scores: dict[str, Any]) -> Table:
    table = Table("similarity", "Spearman", "pairs found", title=None)
    for name, score in scores.items():
        covered = f"{score['found']:,} of {score['pairs']:,}"
        table.add_row(name, _shown(score["spearman"]), covered)
    return table


def _answers(scores: dict[str, Any]) -> Table:
    table = Table("analogies", "3CosAdd", "3CosMul", "questions found", title=None)
    for name, score in scores.items():
        covered = f"{score['found']:,} of {score['questions']:,}"
        shares = _shown(score["3cosadd"]), _shown(score["3cosmul"])
        table.add_row(name, *shares, covered, end_section=name == list(scores)[-4])
    return table


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


if __name__ == "__main__":
    cli.run(main, parser)
