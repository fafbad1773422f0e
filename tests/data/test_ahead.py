import itertools
import threading
import time

import pytest

from lm.data.ahead import read_ahead


def test_reading_ahead_changes_neither_items_nor_errors():
    def items():
        yield from range(20)
        raise KeyError("broken")

    found = read_ahead(items(), 3)
    assert list(itertools.islice(found, 20)) == list(range(20))
    with pytest.raises(KeyError, match="broken"):
        next(found)
    assert list(read_ahead(range(20), 3)) == list(range(20))


def test_reading_ahead_goes_so_far_and_ends_with_its_reader():
    taken = []
    before = set(threading.enumerate())
    found = read_ahead(map(taken.append, itertools.count()), 8)
    next(found)
    until = time.monotonic() + 10
    # Four are read, four wait, and the thread holds four that have no room yet.
    while len(taken) < 12 and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(taken) == 12
    found.close()
    assert set(threading.enumerate()) <= before
