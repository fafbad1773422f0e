"""Parsers of the files in packages: they yield rows, which all have the same fields.

Lists of words and of tags are of one length.
"""

import csv
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.data.readers import Rows, read_squad
from lm.types import UserError

Row = dict[str, Any]
Members = Iterable[tuple[str, bytes]]
Parser = Callable[[Members], Iterator[Row]]

SENTIMENTS = ("negative", "positive")
ANSWERS = ("answer", "other")

# A paragraph of Chinese news is cut at the ends of sentences into parts of this many
# characters; a longer sentence stays whole.
LONGEST_PART = 200

_ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}


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


def parse_dialogues(members: Members) -> Iterator[Row]:
    r"""Yields what two speak by turns in a scene of a play; the second is to be learnt.

    >>> play = b"**A**  \nWho\nis it?\n\n_Enter B_\n\n**B**  \nI.\n\n**C**  \nHe.\n"
    >>> next(parse_dialogues([("plays/comedies/x.md", play)]))
    {'text': 'Who is it?\nI.',
     'messages': [{'role': 'user', 'content': 'Who is it?'},
                  {'role': 'assistant', 'content': 'I.'}],
     'title': 'x'}
    """
    for path, data in members:
        text = re.sub(r"\\(.)", r"\1", data.decode())
        # Directions are in italics or in brackets, and may go on over lines.
        italics = r"^([_*])(?!\*)(?:.|\n(?!\n))+?\1 *$"
        text = re.sub(rf"_*\[[^\]]*\]_*|{italics}", "", text, flags=re.M)
        for scene in re.split(r"^#.*$", text, flags=re.M):
            _, *parts = re.split(r"^\*\*(.+?)\*\* *$", scene, flags=re.M)
            speeches = [" ".join(re.findall(r"[^\s*]+", s)) for s in parts[1::2]]
            for turns in _exchanges(list(zip(parts[::2], speeches))):
                roles = itertools.cycle(["user", "assistant"])
                yield {
                    "text": "\n".join(turns),
                    "messages": [
                        {"role": role, "content": turn}
                        for role, turn in zip(roles, turns)
                    ],
                    "title": Path(path).stem,
                }


def _exchanges(speeches: list[tuple[str, str]]) -> Iterator[list[str]]:
    """Yields speeches of the same two by turns, an even number each time.

    >>> speeches = [("A", "a"), ("B", "b"), ("A", "c"), ("C", "d"), ("A", "e")]
    >>> list(_exchanges(speeches))
    [['a', 'b'], ['d', 'e']]
    """
    start = 0
    while start + 1 < len(speeches):
        pair = [speaker for speaker, _ in speeches[start : start + 2]]
        stop = start
        while stop < len(speeches) and speeches[stop][0] == pair[(stop - start) % 2]:
            stop += 1
        turns = [said for _, said in speeches[start:stop]]
        if len(turns) % 2:
            turns.pop()
        if len(set(pair)) == 2 and all(turns):
            yield turns
        start = stop


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


def parse_reviews(source: str) -> Parser:
    """Returns a parser of one source's reviews; `<br />` becomes the end of a line."""

    def parse(members: Members) -> Iterator[Row]:
        csv.field_size_limit(sys.maxsize)
        for _, data in members:
            for row in csv.DictReader(io.StringIO(data.decode(), newline="")):
                if row["source"] == source:
                    text = row["text"].replace("<br />", "\n").strip()
                    yield {"text": text, "label": SENTIMENTS[int(row["label"])]}

    return parse


def parse_with(read: Callable[[Iterable[bytes], str], Rows]) -> Parser:
    """Returns a parser of what a reader of `lm.data.readers` reads."""

    def parse(members: Members) -> Iterator[Row]:
        for path, data in members:
            for _, row in read(io.BytesIO(data), path):
                if isinstance(row, UserError):
                    raise row
                yield row

    return parse


def parse_topics(members: Members) -> Iterator[Row]:
    """Yields the leads of articles that have a topic, which is the label."""
    for row in parse_wiki(members):
        label = row.pop("topic")
        if label != "Uncategorized":
            yield {**row, "label": label}


def parse_lines(labels: Mapping[str, str]) -> Parser:
    """Returns a parser of lines; `labels` are those of the names of files.

    A line that is in two files says nothing about its label and is dropped.
    """

    def parse(members: Members) -> Iterator[Row]:
        files = {
            Path(path).stem: {line.strip() for line in data.decode().split("\n")}
            for path, data in members
        }
        counts = Counter(itertools.chain(*files.values()))
        for name, lines in files.items():
            for text in sorted(lines - {""}):
                if counts[text] == 1:
                    yield {"text": text, "label": labels[name]}

    return parse


def parse_brown(members: Members) -> Iterator[Row]:
    r"""Yields sentences of the Brown corpus, a `word/tag` each between spaces.

    What a tag says of headlines, titles and quoted words is dropped: `nn-tl` is `nn`.
    All foreign words are `fw`.

    >>> next(parse_brown([("ca01", b"\n\tHe'll/pps+md visit/vb the/at County/nn-tl")]))
    {'text': "He'll visit the County",
     'words': ["He'll", 'visit', 'the', 'County'],
     'tags': ['pps+md', 'vb', 'at', 'nn'],
     'document': 'ca01'}
    """
    for path, data in members:
        for line in data.decode().splitlines():
            pairs = [token.rpartition("/") for token in line.split()]
            if not pairs:
                continue
            words = [word for word, _, _ in pairs]
            yield {
                "text": " ".join(words),
                "words": words,
                "tags": [_brown_tag(tag) for _, _, tag in pairs],
                "document": Path(path).name,
            }


def _brown_tag(tag: str) -> str:
    # The longest tags are cut off in the package: `-n` was `-nc`.
    return "fw" if tag.startswith("fw-") else re.sub(r"(-(tl|hl|nc?))+$", "", tag)


def parse_news(members: Members) -> Iterator[Row]:
    """Yields parts of Chinese news, whose words are characters, with entities' tags.

    >>> line = "江/nr  泽民/nr  在/p  北京/ns  。/w"
    >>> next(parse_news([("199801.txt", line.encode())]))
    {'text': '江泽民在北京。',
     'words': ['江', '泽', '民', '在', '北', '京', '。'],
     'tags': ['B-PER', 'I-PER', 'I-PER', 'O', 'B-LOC', 'I-LOC', 'O']}
    """
    for _, data in members:
        for line in data.decode().splitlines():
            text, tags = "", []
            for word, kind in _entities(line.split()):
                text += word
                inner = [f"I-{kind}"] * (len(word) - 1)
                tags += [f"B-{kind}", *inner] if kind else ["O"] * len(word)
            for start, stop in _parts(text):
                part = text[start:stop]
                yield {"text": part, "words": list(part), "tags": tags[start:stop]}


def _entities(tokens: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields words and what they name, if anything; surnames and names are joined."""
    pairs = (token.rpartition("/") for token in tokens)
    for tag, group in itertools.groupby(pairs, lambda pair: pair[2]):
        words = [word for word, _, _ in group]
        while words:
            # Nearly all surnames have one character.
            is_surname = len(words[0]) == 1 or len(words) % 2 == 0
            size = 2 if tag == "nr" and is_surname else 1
            yield "".join(words[:size]), _ENTITIES.get(tag, "")
            del words[:size]


def _parts(text: str) -> Iterator[tuple[int, int]]:
    """Yields where the parts of a paragraph begin and end."""
    ends = [match.end() for match in re.finditer("[。！？；][”’』」）]*|$", text)]
    start = 0
    for end, following in itertools.pairwise([*ends, sys.maxsize]):
        if following - start > LONGEST_PART and end > start:
            yield start, end
            start = end


def parse_sentences(members: Members) -> Iterator[Row]:
    """Yields questions of SQuAD's, each with a sentence that answers it and the next.

    After the last sentence of a text comes its first. So GLUE's QNLI is made of SQuAD,
    though not with one sentence of each: Wang et al. (2019),
    https://arxiv.org/abs/1804.07461, section 3.3.

    >>> answers = [{"text": "B", "answer_start": 5}]
    >>> question = {"id": "1", "question": "Who?", "answers": answers}
    >>> text = {"context": "A. I, B. And C.", "qas": [question]}
    >>> squad = {"data": [{"title": "T", "paragraphs": [text]}]}
    >>> rows = list(parse_sentences([("squad.json", json.dumps(squad).encode())]))
    >>> [(row["text"], row["text_b"], row["label"]) for row in rows]
    [('Who?', 'I, B.', 'answer'), ('Who?', 'And C.', 'other')]
    """
    for row in parse_with(read_squad)(members):
        ends = [
            m.end()
            for m in re.finditer(r"[.!?]['\")]*\s+(?=\W?[A-Z0-9])|$", row["text"])
        ]
        sentences = [
            row["text"][a:b].strip() for a, b in itertools.pairwise([0, *ends])
        ]
        own = sum(end <= row["answers"][0]["start"] for end in ends)
        both = sentences[own], sentences[(own + 1) % len(sentences)]
        for label, sentence in zip(ANSWERS, both if len(sentences) > 1 else ()):
            yield {
                "text": row["question"],
                "text_b": sentence,
                "label": label,
                "title": row["title"],
            }


def parse_descriptions(language: str) -> Parser:
    """Returns a parser of Debian's descriptions of packages and their translations.

    A title, a paragraph or an item of a list is a text; where a description and its
    translation have other numbers of these, only the title is taken.
    """

    def parse(members: Members) -> Iterator[Row]:
        found: dict[str, dict[tuple[str, str], list[str]]] = {"en": {}, language: {}}
        for path, data in members:
            found[path.rpartition("-")[2]].update(_descriptions(data.decode()))
        for key, translated in found[language].items():
            original = found["en"].get(key, [])
            same = len(original) == len(translated)
            for text, target in zip(original, translated if same else translated[:1]):
                if text != target:
                    yield {"text": text, "target": target}

    return parse


def _descriptions(data: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
    r"""Yields the name and checksum of descriptions, and their texts.

    >>> data = "Package: a\nDescription-md5: 12\nDescription-en: small tool\n"
    >>> data += " It does one\n thing.\n .\n  * Well\n  * Fast\n"
    >>> next(_descriptions(data))
    (('a', '12'), ['small tool', 'It does one thing.', 'Well', 'Fast'])
    """
    pattern = (
        r"Package: (\S+)\nDescription-md5: (\S+)\n"
        r"Description-\w+: ?(.*)((?:\n .*)*)"
    )
    for name, checksum, title, body in re.findall(pattern, data):
        parts = re.split(r"\n \. *(?=\n|$)|\n(?= {2,}[-*+o•] )", body)
        items = (re.sub("^ {2,}[-*+o•] ", "", part) for part in [title, *parts])
        texts = (" ".join(item.split()) for item in items)
        yield (name, checksum), [text for text in texts if text]
