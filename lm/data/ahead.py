"""Takes items ahead of time, in a thread."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], number: int) -> Generator[T, None, None]:
    """Yields items that a thread has taken up to `number` of ahead of time.

    One that is there is handed over at once; the iterator of `tf.data` would wake
    another thread and wait for it. The thread works in bursts of `number / 2` items, so
    that it seldom holds Python's lock when the loop wants it.
    """
    size = max(1, number // 2)
    ready: queue.Queue[tuple[list[T], Exception | None]] = queue.Queue(1)
    is_over = threading.Event()

    def fill() -> None:
        burst: list[T] = []
        try:
            for item in items:
                burst.append(item)
                if len(burst) == size:
                    ready.put((burst, None))
                    burst = []
                if is_over.is_set():
                    return
            ready.put((burst, StopIteration()))
        except Exception as error:
            ready.put((burst, error))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        end = None
        while end is None:
            burst, end = ready.get()
            yield from burst
        if not isinstance(end, StopIteration):
            raise end
    finally:
        is_over.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.01)
