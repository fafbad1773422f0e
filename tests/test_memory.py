import platform
import subprocess
import sys

import pytest

# Takes 256 MB and gives them back, five times; prints the pages that each time cost.
PROGRAM = """
import ctypes, resource, sys
from lm.memory import keep_freed

if sys.argv[1] == "keep":
    keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pointer = libc.malloc(1 << 28)
    ctypes.memset(pointer, 1, 1 << 28)
    libc.free(pointer)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_pages_are_taken_once():
    def pages(how):
        command = [sys.executable, "-c", PROGRAM, how]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(line) for line in made.stdout.split()]

    assert min(pages("leave")) > 100
    first, *later = pages("keep")
    assert first > 100
    assert max(later) < first / 10
