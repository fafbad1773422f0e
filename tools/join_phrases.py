"""Joins the words of phrases, such as New_York, which then have vectors of their own.

    python -m tools.join_phrases --source=tfds:wiki --name=wiki_phrases
    python -m tools.train_tokenizer --source=tfds:wiki_phrases --kind=words ...

Two words are a phrase if they stand together much more often than by chance in the
training split; see lm.text.phrases. Every split of the sources is written, as a data
set of its texts. Each pass counts what the one before has joined.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm import cli
from lm.config import check_range
from lm.data.sources import SPLITS, open_source
from lm.data.write import check_free, write_dataset
from lm.text.phrases import Phrases
from lm.types import UserError

VERSION = "1.0.0"
SHOW_EVERY_TEXTS = 1000

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--source",
    action="append",
    required=True,
    help="files or a data set, see lm.data.sources; may be given several times",
)
parser.add_argument("--name", required=True, help="of the data set: a-z, 0-9 and _")
parser.add_argument("--data-dir", default="data", help="default: data")
parser.add_argument(
    "--passes", type=int, default=2, help="phrases of up to 2^N words; default: 2"
)
parser.add_argument(
    "--discount", type=int, default=5, help="pairs as rare are no phrase; default: 5"
)
parser.add_argument(
    "--threshold", type=float, default=100.0, help="higher: fewer; default: 100"
)
parser.add_argument("--overwrite", action="store_true", help="replace a data set")


def main(args: Namespace) -> dict[str, Any]:
    """Counts, joins and writes."""
    check_range("--passes", args.passes, 1)
    check_range("--discount", args.discount, 0)
    check_range("--threshold", args.threshold, 0)
    folder = Path(args.data_dir)
    check_free(folder, args.name, VERSION, args.overwrite)
    sources = [open_source(spec, args.data_dir) for spec in args.source]
    learned: list[Phrases] = []

    def texts(split: str, doing: str) -> Iterator[str]:
        rows = (row for source in sources for row in source.examples(split))
        with cli.Status(doing) as status:
            for number, row in enumerate(rows, 1):
                text = row["text"]
                for phrases in learned:
                    text = phrases.join(text)
                yield text
                if number % SHOW_EVERY_TEXTS == 0:
                    status.update(f"{doing}: {number:,} texts")

    for number in range(args.passes):
        counted = texts("train", f"pass {number + 1}")
        learned.append(Phrases(counted, args.discount, args.threshold))
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Text()}
    numbers: dict[str, int] = {}
    with write_dataset(
        folder, args.name, features, version=VERSION, overwrite=args.overwrite
    ) as writer:
        for split in SPLITS:
            for text in texts(split, f"joining {split}"):
                writer.add(split, {"text": text})
                numbers[split] = numbers.get(split, 0) + 1
        if not numbers:
            raise UserError("there is no text to join; name another source")
    said = ", ".join(f"{number:,} {split}" for split, number in numbers.items())
    print(f"wrote {folder / args.name}: {said}")
    return {"output": str(folder / args.name), "texts": numbers}


if __name__ == "__main__":
    cli.run(main, parser)
