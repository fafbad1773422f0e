"""Trains a tokenizer on texts and tells how well it fits them.

    python -m tools.train_tokenizer --source=tfds:kjv --kind=unigram \\
        --vocab-size=2048 --output=data/tokenizers/kjv

Kinds: unigram, bpe and chars are SentencePiece's, with bytes for the characters that
have no token; wordpiece is BERT's, byte_bpe GPT-2's; words, and punctuation apart from
them, are counted, for vectors of words (`--kind=words --normalization=nfkc_cf
--min-count=5`); bytes need no training. Without --normalization all but wordpiece and
words give every text back as it was. For Chinese or Japanese take unigram or bpe. The
same texts and flags make the same tokenizer.
"""

import itertools
import signal
import time
from argparse import Namespace
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm import cli
from lm.data.sources import open_source
from lm.text import tokenizers
from lm.text.tokenizer import check_free
from lm.text.tokenizers import Reservoir, Tokenizer
from lm.types import UserError

SAMPLE_TEXTS = 1000
SAMPLE_CHARS = 10_000
EXAMPLES = 5
EXAMPLE_TOKENS = 40
SHOW_EVERY_TEXTS = 1000

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--source",
    action="append",
    required=True,
    help="files or a data set, see lm.data.sources; may be given several times",
)
parser.add_argument(
    "--kind", default="unigram", help=f"{', '.join(tokenizers.KINDS)}; default: unigram"
)
parser.add_argument(
    "--vocab-size",
    type=int,
    default=0,
    help="number of tokens; may be left out for chars and words (all) and bytes",
)
parser.add_argument("--output", required=True, help="the folder to write")
parser.add_argument("--split", default="train", help="of the sources; default: train")
parser.add_argument("--data-dir", default="data", help="default: data")
parser.add_argument(
    "--sentinels",
    type=int,
    default=0,
    metavar="N",
    help="marks <extra_id_0> to N-1, for T5; default: 0",
)
parser.add_argument(
    "--normalization",
    default="identity",
    help="identity (the default), nfkc, or nfkc_cf: nfkc in lower case",
)
parser.add_argument(
    "--character-coverage",
    type=float,
    default=0.9995,
    metavar="SHARE",
    help="of characters to have a token of their own; default: 0.9995",
)
parser.add_argument(
    "--split-digits", action="store_true", help="never two digits in a token"
)
parser.add_argument(
    "--max-texts", type=int, default=0, help="read no more texts; 0 (the default): all"
)
parser.add_argument(
    "--max-sentences",
    type=int,
    default=1_000_000,
    help="learn from a random sample of so many lines (SentencePiece) or texts, which "
    "bounds the memory; default: 1000000",
)
parser.add_argument(
    "--min-count",
    type=int,
    default=1,
    metavar="N",
    help="words: those that are there so often have a token; default: 1",
)
parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer")


def main(args: Namespace) -> dict[str, Any]:
    """Trains, saves and reports."""
    began = time.monotonic()
    output = Path(args.output)
    if args.max_texts < 0:
        raise UserError(f"--max-texts is {args.max_texts}; it must be at least 0")
    check_free(output, overwrite=args.overwrite)
    sources = [open_source(spec, args.data_dir) for spec in args.source]
    rows = itertools.chain.from_iterable(s.examples(args.split) for s in sources)
    texts = (row["text"] for row in itertools.islice(rows, args.max_texts or None))
    sample = Reservoir(SAMPLE_TEXTS)
    read = _read(texts, sample)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        tokenizer = tokenizers.train(
            args.kind,
            read,
            args.vocab_size,
            num_sentinels=args.sentinels,
            normalization=args.normalization,
            character_coverage=args.character_coverage,
            split_digits=args.split_digits,
            max_sentences=args.max_sentences,
            min_count=args.min_count,
        )
        # Bytes did not have to be trained: nothing is read yet.
        for _ in itertools.islice(read, SAMPLE_TEXTS):
            pass
        read.close()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    result = measure(tokenizer, sample.items)
    try:
        tokenizer.save(output, overwrite=args.overwrite)
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror}; choose another --output"
        ) from error
    result["seconds"] = round(time.monotonic() - began, 2)
    print(_table(result))
    print(f"wrote {output} in {result['seconds']:.1f} s")
    return {"output": str(output), **result}


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """Returns how a tokenizer fits texts, and how the first of them are cut.

    Of the tokens of all texts together; `unknown_share` is from 0 to 1.

    >>> from lm.text.tokenizer import ByteTokenizer
    >>> measure(ByteTokenizer(), ["né"])["bytes_per_token"]
    1.0
    """
    encoded = tokenizer.encode_batch(texts)
    ids = np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
    total = max(len(ids), 1)
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.lossless,
        "fingerprint": tokenizer.fingerprint,
        "sample_texts": len(texts),
        "bytes_per_token": sum(len(text.encode()) for text in texts) / total,
        "chars_per_token": sum(map(len, texts)) / total,
        "tokens_used": len(np.unique(ids)),
        "unknown_share": float(np.mean(ids == tokenizer.unk_id)) if len(ids) else 0.0,
        "examples": [
            [tokenizer.token(id) for id in ids[:EXAMPLE_TOKENS].tolist()]
            for ids in encoded[:EXAMPLES]
        ],
    }


def _table(result: dict[str, Any]) -> str:
    """Renders the result for a terminal."""
    lines = [
        f"{result['kind']}, {result['vocab_size']:,} tokens, "
        + ("lossless" if result["lossless"] else "not lossless"),
        f"on {result['sample_texts']:,} of the texts:",
        f"  {result['bytes_per_token']:.3f} bytes a token",
        f"  {result['chars_per_token']:.3f} characters a token",
        f"  {result['tokens_used']:,} tokens used",
        f"  {result['unknown_share']:.3%} unknown",
    ]
    for tokens in result["examples"]:
        words = " ".join(tokens)
        lines.append(f"  | {words[:76]}{'…' * (len(words) > 76)}")
    return "\n".join(lines)


def _read(texts: Iterable[str], sample: Reservoir) -> Generator[str, None, None]:
    """Yields the texts, offers each one's beginning to the sample, and says how many.

    What follows the last text is one call of native code, which Ctrl-C could not end:
    from there on the signal ends the program itself.
    """
    began = time.monotonic()
    count = 0
    with cli.Status("reading") as status:
        for count, text in enumerate(texts, 1):
            sample.add(text[:SAMPLE_CHARS])
            yield text
            if count % SHOW_EVERY_TEXTS == 0:
                status.update(f"read {count:,} texts")
    cli.say(f"read {count:,} texts in {time.monotonic() - began:.1f} s")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    cli.run(main, parser)
