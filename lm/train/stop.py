"""Ending a run cleanly when it is asked to end."""

import contextlib
import os
import signal
from collections.abc import Iterator

from jax.experimental import multihost_utils

from lm import distributed

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a signal asks the run to end.

    Attributes:
        signal: Its number, or 0.
    """

    def __init__(self):
        """Nothing was asked yet."""
        self.signal = 0
        self._several = distributed.is_several()

    def reached(self, step: int) -> bool:
        """Returns whether to save and end at this step, the same on all hosts."""
        if not self._several:
            return self.signal != 0
        # With several hosts, JAX's service agrees on a step that all will reach.
        is_due = multihost_utils.reached_preemption_sync_point(step)
        if is_due:
            self.signal = self.signal or signal.SIGTERM
        return is_due


@contextlib.contextmanager
def on_signal() -> Iterator[Stop]:
    """Catches SIGTERM and Ctrl-C once; a second one acts as if uncaught."""
    stop = Stop()
    before = {}

    def ask(number: int, _) -> None:
        stop.signal = number
        restore()
        if distributed.is_several():  # the preemption service of JAX hears it there
            os.kill(os.getpid(), signal.SIGTERM)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    distributed.catch_sigterm()
    for number in _SIGNALS[distributed.is_several() :]:
        # A script's background job ignores Ctrl-C, and so shall this.
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
