"""Makes vectors of texts: one of length 1 for each, of any model.

    python -m lm.embed --workdir=runs/wiki_rank --text="Birds that cannot fly"
    python -m lm.embed --workdir=runs/bert --input=new.jsonl --output=vectors.npz
    python -m lm.embed --workdir=runs/wiki_rank --text="Birds that cannot fly" \\
        --nearest=5 --corpus=tfds:wiki

A vector is the pooled last states of the model's encoder, or of its decoder if it has
no other. The product of two vectors is their cosine. An .npz has the `vectors` [n, D]
in the order of the input; a .jsonl has each text's fields and its `vector`.

With --nearest a text's line has the texts of a corpus whose vectors are nearest, and
their cosines. The vectors of the whole corpus are in memory.

The checkpoint is the best one of a run that has `eval.patience`, else the latest.
"""

import contextlib
import itertools
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm import cli
from lm.atomic import replacing
from lm.config import check_choice, check_range
from lm.types import UserError

Example = Mapping[str, Any]
Embed = Callable[[Sequence[Example]], np.ndarray]
Write = Callable[[Sequence[Mapping[str, Any]], np.ndarray], None]

# Texts that are in memory at once.
CHUNK = 1024

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", required=True, help="the folder of a run of lm.train")
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument("--text", action="append", default=[], help="may be repeated")
parser.add_argument("--input", default="", help="a source of texts")
parser.add_argument("--split", default="all", help="of --input")
parser.add_argument("--output", default="", help="an .npz or .jsonl; default: stdout")
parser.add_argument(
    "--pooling",
    default="",
    help="first, last, mean or max; default: the task's, or mean",
)
parser.add_argument("--batch-size", type=int, default=32, help="rows at a time")
parser.add_argument("--nearest", type=int, default=0, metavar="K", help="neighbours")
parser.add_argument("--corpus", default="", help="a source of texts to find them in")
parser.add_argument("--corpus-split", default="all", help="of --corpus")


def main(args: Namespace) -> dict[str, Any]:
    """Embeds chunk by chunk, so that memory does not grow with the input."""
    _check(args)
    from lm.data.sources import open_source
    from lm.train import workdir

    loaded = workdir.load(Path(args.workdir), args.step)
    data_dir = loaded.config.data.data_dir
    embed = _make_embed(loaded, args.pooling, args.batch_size)
    if args.input:
        source = open_source(args.input, data_dir)
        examples = source.examples(args.split, keep_blank=True)
    else:
        examples = ({"text": text} for text in args.text)
    name, describe = "vector", np.ndarray.tolist
    if args.nearest:
        corpus = open_source(args.corpus, data_dir).examples(args.corpus_split)
        name, describe = "nearest", _make_find(corpus, embed, args.nearest)
    count, kept = 0, []
    with _writer(args.output) as write:
        for chunk in _chunks(examples):
            vectors = embed(chunk)
            found = [{name: describe(vector)} for vector in vectors]
            write([{**e, **f} for e, f in zip(chunk, found)], vectors)
            kept += found if args.json and not args.output else []
            count += len(chunk)
        if not count:
            raise UserError("--input has no text; check --split")
    return {"step": loaded.step, "count": count, "predictions": kept}


def _check(args: Namespace) -> None:
    """Raises a UserError unless the flags go together."""
    check_range("--batch-size", args.batch_size, 1)
    check_range("--nearest", args.nearest, 0)
    if bool(args.text) == bool(args.input):
        raise UserError("there is no text to embed; give either --text or --input")
    if bool(args.nearest) != bool(args.corpus):
        raise UserError("--nearest=K and --corpus=SOURCE go together; give both")
    if args.output:
        suffix = Path(args.output).suffix
        kinds = (".jsonl",) if args.nearest else (".jsonl", ".npz")
        if suffix not in kinds:
            raise UserError(
                f"--output must end in {' or '.join(kinds)}, not {suffix!r}"
            )


def _make_embed(loaded: Any, pooling: str, batch_size: int) -> Embed:
    """Returns a function from examples to vectors [n, D], float32."""
    from lm import sharding
    from lm.models import build_model
    from lm.nn.heads import POOLINGS
    from lm.nn.ranking import Encoder
    from lm.tasks import rank
    from lm.train.evaluation import Predictor

    config = loaded.config
    is_dual = isinstance(config.task, rank.Config) and config.task.kind == "dual"
    if is_dual and pooling in ("", config.task.pooling):
        task, model, params = loaded.task, loaded.model, loaded.params
    else:
        pooling = pooling or getattr(config.task, "pooling", "mean")
        check_choice("--pooling", pooling, POOLINGS)
        length = config.task.length
        options = rank.Config(length=length, query_length=length, pooling=pooling)
        task = rank.Rank(options, loaded.tokenizer)
        model = Encoder(build_model(config.model), pooling)
        params = {"backbone": loaded.params.get("backbone", loaded.params)}
    mesh = sharding.build_mesh(sharding.MeshConfig())
    shards = sharding.batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"--batch-size {batch_size} does not divide over {shards} devices"
        )
    predict = Predictor(task, model, mesh, batch_size)

    def embed(examples: Sequence[Example]) -> np.ndarray:
        texts = [{"text": example["text"]} for example in examples]
        vectors = [found["text_vector"] for found in predict(params, texts)]
        return np.array(vectors, np.float32)

    return embed


def _make_find(
    corpus: Iterable[Example], embed: Embed, number: int
) -> Callable[[np.ndarray], list[dict[str, Any]]]:
    """Returns a function from a vector to the texts of a corpus nearest to it."""
    texts, parts = [], []
    with cli.Status("embedding the corpus") as status:
        for chunk in _chunks(iter(corpus)):
            texts += [example["text"] for example in chunk]
            parts.append(embed(chunk))
            status.update(f"embedded {len(texts):,} texts of the corpus")
    if not texts:
        raise UserError("--corpus has no text; check --corpus-split")
    vectors = np.concatenate(parts)

    def find(query: np.ndarray) -> list[dict[str, Any]]:
        cosines = vectors @ query
        best = np.argsort(-cosines, kind="stable")[:number]
        return [{"text": texts[i], "cosine": float(cosines[i])} for i in best]

    return find


def _chunks(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(itertools.islice(examples, CHUNK)):
        yield chunk


@contextlib.contextmanager
def _writer(output: str) -> Iterator[Write]:
    """Yields a function that writes lines or vectors; a file appears when complete."""
    if not output:
        yield lambda lines, _: print(*map(cli.json_line, lines), sep="\n", flush=True)
        return
    path = Path(output)
    shape = (0, 0)
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        tempfile.TemporaryFile(dir=path.parent) as raw,
        cli.Status("embedding") as status,
    ):

        def write(lines: Sequence[Example], vectors: np.ndarray) -> None:
            nonlocal shape
            shape = (shape[0] + len(lines), vectors.shape[1])
            if path.suffix == ".npz":
                raw.write(vectors.tobytes())
            else:
                file.writelines(f"{cli.json_line(line)}\n".encode() for line in lines)
            status.update(f"embedded {shape[0]:,} texts")

        yield write
        if path.suffix == ".npz":
            raw.flush()
            np.savez(file, vectors=np.memmap(raw, np.float32, "r", shape=shape))
    cli.say(f"wrote {shape[0]:,} texts to {path}")


if __name__ == "__main__":
    cli.run(main, parser)
