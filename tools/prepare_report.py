"""What `tools.prepare_data` tells of a data set: a table, report.json, report.html."""

import difflib
import json
import os.path
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from lm.text.dedup import Duplicate, shingles

SAMPLES = 5
SAMPLE_CHARS = 200
# What a sample shows of two similar texts before they differ.
CONTEXT_CHARS = 60


@dataclass
class Tally:
    """A number of documents and of their characters."""

    documents: int = 0
    characters: int = 0

    def add(self, text: str) -> None:
        """Counts a document."""
        self.documents += 1
        self.characters += len(text)


class Report:
    """Counts documents, and keeps `SAMPLES` of the texts dropped for each reason.

    Attributes:
        read: All documents.
        kept: Those that are in the data set.
        dropped: The others, for each reason.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], splits: Sequence[str]):
        """Starts the clock.

        Args:
            name: Of the data set.
            settings: The command's flags.
            splits: Names of the splits, 256 at most.
        """
        self.read = Tally()
        self.kept = Tally()
        self.dropped: dict[str, Tally] = {}
        self._name = name
        self._settings = dict(settings)
        self._splits = {split: Tally() for split in splits}
        self._samples: dict[str, list[str]] = {}
        self._pairs: list[tuple[int, str]] = []
        self._languages: Counter[str] = Counter()
        # Documents by the bit length of their number of characters.
        self._lengths_read: Counter[int] = Counter()
        self._lengths_kept: Counter[int] = Counter()
        # The split of every kept document: one byte each.
        self._split_of = bytearray()
        self._began = time.monotonic()

    def add_read(self, text: str, language: str) -> None:
        """Counts a raw text, whose clean language is known or ""."""
        self.read.add(text)
        self._lengths_read[len(text).bit_length()] += 1
        if language:
            self._languages[language] += 1

    def add_kept(self, split: str, text: str) -> None:
        """Counts a clean text."""
        self.kept.add(text)
        self._splits[split].add(text)
        self._lengths_kept[len(text).bit_length()] += 1
        self._split_of.append(list(self._splits).index(split))

    def add_dropped(self, reason: str, text: str) -> None:
        """Counts a text and perhaps remembers its beginning."""
        self.dropped.setdefault(reason, Tally()).add(text)
        samples = self._samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append(text[:SAMPLE_CHARS])

    def add_duplicate(self, duplicate: Duplicate, text: str) -> None:
        """Counts a duplicate and perhaps remembers of what."""
        if duplicate.kept is None:
            self.add_dropped("exact duplicate", text)
            return
        self.add_dropped("near duplicate", text)
        if len(self._pairs) < SAMPLES:
            self._pairs.append((duplicate.kept, text))

    def line(self) -> str:
        """Returns how far it is."""
        rate = self.read.documents / (time.monotonic() - self._began)
        return (
            f"{self.read.documents:,} documents, {self.kept.documents:,} kept, "
            f"{self.read.characters / 1e6:,.1f} M characters, {rate:,.0f} documents/s"
        )

    def finish(self, read_kept: Callable[[str, int], str]) -> dict[str, Any]:
        """Returns the report as JSON values.

        Args:
            read_kept: Reads a text of the data set by its split and its place in it.
        """
        seconds = time.monotonic() - self._began
        sizes = sorted(self._lengths_read | self._lengths_kept)
        return {
            "name": self._name,
            "documents": {"read": self.read.documents, "kept": self.kept.documents},
            "characters": {"read": self.read.characters, "kept": self.kept.characters},
            "splits": {split: asdict(tally) for split, tally in self._splits.items()},
            "dropped": {
                reason: {**asdict(tally), "samples": self._samples[reason]}
                for reason, tally in self._by_size()
            },
            "near_duplicates": [self._pair(*p, read_kept) for p in self._pairs],
            "languages": dict(self._languages.most_common()),
            "lengths": [
                {
                    "from": 1 << (size - 1) if size else 0,
                    "to": (1 << size) - 1,
                    "read": self._lengths_read[size],
                    "kept": self._lengths_kept[size],
                }
                for size in range(sizes[0], sizes[-1] + 1)
            ],
            "seconds": round(seconds, 2),
            "documents_per_second": round(self.read.documents / seconds, 1),
            "characters_per_second": round(self.read.characters / seconds),
            "settings": self._settings,
        }

    def table(self) -> str:
        """Returns a line for what was read, for each reason, and for what was kept."""
        rows = [
            ("read", self.read),
            *((f"- {reason}", tally) for reason, tally in self._by_size()),
            ("kept", self.kept),
            *((f"  {split}", tally) for split, tally in self._splits.items()),
        ]
        lines = [f"{'':<20} {'documents':>12} {'':>6} {'characters':>15}"]
        for label, tally in rows:
            share = tally.documents / self.read.documents
            lines.append(
                f"{label:<20} {tally.documents:>12,} {share:>6.1%} "
                f"{tally.characters:>15,}"
            )
        return "\n".join(lines)

    def _by_size(self) -> list[tuple[str, Tally]]:
        """Returns the reasons, commonest first."""
        return sorted(self.dropped.items(), key=lambda item: -item[1].documents)

    def _pair(
        self, number: int, dropped: str, read_kept: Callable[[str, int], str]
    ) -> dict[str, Any]:
        """Describes a near duplicate of the kept document of that number."""
        split = self._split_of[number]
        place = self._split_of[:number].count(split)
        name = list(self._splits)[split]
        kept = read_kept(name, place)
        a, b = set(shingles(kept)), set(shingles(dropped))
        start = max(len(os.path.commonprefix([kept, dropped])) - CONTEXT_CHARS, 0)
        part = slice(start, start + SAMPLE_CHARS)
        return {
            "kept_as": f"{name}[{place}]",
            "similarity": round(len(a & b) / len(a | b), 3),
            "kept": kept[part],
            "dropped": dropped[part],
        }


def render(report: Mapping[str, Any]) -> str:
    """Returns a report, from `Report.finish`, as a web page without outside parts."""
    read, kept = report["documents"]["read"], report["documents"]["kept"]
    template = string.Template(
        (Path(__file__).parent / "prepare_report.html").read_text()
    )
    return template.substitute(
        name=escape(report["name"]),
        read=f"{read:,}",
        kept=f"{kept:,}",
        share=f"{kept / read:.1%}",
        characters=f"{report['characters']['kept'] / 1e6:,.1f} M",
        rate=f"{report['characters_per_second'] / 1e6:.1f} M",
        splits=_bars(
            (split, _share(row["documents"], kept), [row["documents"]])
            for split, row in report["splits"].items()
        ),
        reasons=_bars(
            (reason, _share(row["documents"], read), [row["documents"]])
            for reason, row in report["dropped"].items()
        ),
        samples="".join(
            f"<details><summary>{escape(reason)}</summary>"
            + "".join(f"<pre>{_visible(sample)}</pre>" for sample in row["samples"])
            + "</details>"
            for reason, row in report["dropped"].items()
        ),
        pairs="".join(map(_pair, report["near_duplicates"])) or "<p>None.</p>",
        languages=_bars(
            (language, f"{count:,}", [count])
            for language, count in report["languages"].items()
        ),
        lengths=_bars(
            (
                f"{row['from']:,} – {row['to']:,}",
                f"{row['read']:,} → {row['kept']:,}",
                [row["read"], row["kept"]],
            )
            for row in report["lengths"]
        ),
        settings="".join(
            f"<tr><th>{escape(key)}</th><td>{escape(json.dumps(value))}</td></tr>"
            for key, value in report["settings"].items()
        ),
    )


def _bars(rows: Iterable[tuple[str, str, list[int]]]) -> str:
    """Draws a table of labels, bars and numbers; all bars are on one scale."""
    rows = list(rows)
    longest = max((max(values) for _, _, values in rows), default=0) or 1
    lines = []
    for label, number, values in rows:
        height = 12 // len(values)
        bars = "".join(
            f'<rect class="bar{i}" y="{i * height}" height="{height}" '
            f'width="{100 * value / longest:.2f}"/>'
            for i, value in enumerate(values)
        )
        lines.append(
            f"<tr><th>{escape(label)}</th><td class=chart>"
            f'<svg viewBox="0 0 100 12" preserveAspectRatio="none">{bars}</svg></td>'
            f"<td class=number>{number}</td></tr>"
        )
    return f"<table>{''.join(lines)}</table>" if lines else "<p>None.</p>"


def _share(part: int, whole: int) -> str:
    """Returns a number and what share it is.

    >>> _share(1234, 10_000)
    '1,234 · 12.3%'
    """
    return f"{part:,} · {part / whole:.1%}"


def _pair(pair: Mapping[str, Any]) -> str:
    """Shows two similar texts, with what differs marked."""
    a, b = (re.findall(r"\s+|\S+", pair[side]) for side in ("kept", "dropped"))
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    texts = ["", ""]
    for kind, *ends in matcher.get_opcodes():
        for side, (units, low, high) in enumerate([(a, *ends[:2]), (b, *ends[2:])]):
            part = _visible("".join(units[low:high]))
            texts[side] += (
                part if kind == "equal" or not part else f"<mark>{part}</mark>"
            )
    titles = (
        f"kept as {pair['kept_as']}",
        f"dropped, similarity {pair['similarity']:.2f}",
    )
    columns = (f"<pre><b>{t}</b>\n{text}</pre>" for t, text in zip(titles, texts))
    return f"<div class=pair>{''.join(columns)}</div>"


def _visible(text: str) -> str:
    """Escapes a text; what has no shape is shown by its number.

    >>> _visible("a<b\\x00")
    'a&lt;b\\\\x00'
    """
    shown = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return escape("".join(shown))
