"""Ending a run cleanly when it is asked to end."""

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a signal asks the run to end.

    Attributes:
        signal: Its number, or 0.
    """

    def __init__(self):
        """Nothing was asked yet."""
        self.signal = 0

    def reached(self, step: int) -> bool:
        """Returns whether to save and end at this step, the same on all hosts."""
        # With several hosts, JAX's service agrees on a step that all will reach.
        several = jax.process_count() > 1
        if several and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal != 0


@contextlib.contextmanager
def on_signal() -> Iterator[Stop]:
    """Catches SIGTERM and Ctrl-C once; a second one acts as if uncaught."""
    stop = Stop()
    before = {}

    def ask(number: int, _) -> None:
        stop.signal = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # With several hosts the preemption service of JAX listens instead.
    if jax.process_count() == 1:
        for number in _SIGNALS:
            # A script's background job ignores Ctrl-C, and so shall this.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
