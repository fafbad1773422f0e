"""Phrases: pairs of words that are found together more often than by chance.

Mikolov et al. (2013b), https://arxiv.org/abs/1310.4546, section 4. Two words that have
only white space between them become one with _ in its place, and keep their capitals;
what has been joined is a word to the next pass, so phrases grow.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

# Where there are more different words and pairs than this, the rarest are forgotten.
MAX_COUNTED = 20_000_000

_PAIR = re.compile(r"\w+")


def _words(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """Yields where each word begins and ends, it, and whether it follows another."""
    last = -1
    for match in _PAIR.finditer(text):
        start, end = match.span()
        yield start, end, match[0].lower(), last >= 0 and text[last:start].isspace()
        last = end


class Phrases:
    """What one pass has learned.

    Attributes:
        discount: δ of (2013b), equation 6: pairs must be there more often than this.
        threshold: What the score of a phrase exceeds.
    """

    def __init__(
        self,
        texts: Iterable[str],
        discount: int = 5,
        threshold: float = 100.0,
        max_counted: int = MAX_COUNTED,
    ):
        """Counts words and pairs; capitals are small letters here.

        Args:
            texts: What to count in.
            discount: See the class.
            threshold: See the class.
            max_counted: Different words and pairs to keep.
        """
        self.discount, self.threshold = discount, threshold
        self._words: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        least = 1
        for text in texts:
            before = ""
            for _, _, word, follows in _words(text):
                self._words[word] += 1
                if follows:
                    self._pairs[before, word] += 1
                before = word
            while len(self._words) + len(self._pairs) > max_counted:
                least += 1
                for counts in (self._words, self._pairs):
                    for rare in [key for key, n in counts.items() if n < least]:
                        del counts[rare]
        self._total = self._words.total()

    def score(self, first: str, second: str) -> float:
        """Returns (2013b), equation 6, times the number of all words.

        So the threshold does not depend on the size of the corpus, as in
        https://github.com/tmikolov/word2vec, `word2phrase.c`.

        >>> phrases = Phrases(["New York", "new york is new"], discount=1)
        >>> phrases.score("new", "york") == (2 - 1) / (3 * 2) * 6
        True
        """
        pair = self._pairs[first, second]
        if pair <= self.discount or not (self._words[first] and self._words[second]):
            return 0.0
        product = self._words[first] * self._words[second]
        return (pair - self.discount) / product * self._total

    def join(self, text: str) -> str:
        """Returns a text with its phrases joined, from left to right.

        >>> phrases = Phrases(["New York", "new york is new"], 1, threshold=0.9)
        >>> phrases.join("The New  York, New York Times; new: York")
        'The New_York, New_York Times; new: York'
        """
        parts, done, before = [], 0, ""
        for start, end, word, follows in _words(text):
            if follows and before and self.score(before, word) > self.threshold:
                parts[-1] += "_" + text[start:end]
                before = ""
            else:
                parts += [text[done:start], text[start:end]]
                before = word
            done = end
        return "".join(parts) + text[done:]
