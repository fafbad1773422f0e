"""How the process keeps its memory."""

import ctypes

# Options of mallopt(3), in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed() -> None:
    """Makes malloc keep what is freed, where it is glibc's; to be called first of all.

    A compiled step on a CPU takes its temporary memory from malloc and gives it back.
    By default that goes on to the system, which clears every page before the next step
    gets it again. Threads that are there already keep to arenas of their own.

    It takes memory for time: 60 steps of `configs/gpt_tiny.py` need 60 s of CPU time, 2
    of which are the system's, and 2.2 GB; else 74 s, of which 20 are, and 1.4 GB.
    """
    # Windows has no main program to look in, macOS no mallopt.
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in (
        (_TRIM_THRESHOLD, _NEVER),
        (_MMAP_MAX, 0),
        (_ARENA_MAX, 1),
    ):
        mallopt(option, value)
