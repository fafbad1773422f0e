"""Reads a page strictly."""

from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input"}


class Parsed(HTMLParser):
    """Checks that all is closed, and notes what a page has and would run or load.

    Links that begin with `allowed` may stand in it.
    """

    def __init__(self, page, allowed=None):
        super().__init__()
        self.open, self.outside, self.tags, self.texts = [], [], [], []
        self.points, self._allowed = set(), allowed
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            is_allowed = self._allowed and str(value).startswith(self._allowed)
            if name == "src" or name[:2] == "on" or (name == "href" and not is_allowed):
                self.outside.append(name)
        self.points.add(dict(attrs).get("data-p"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)
