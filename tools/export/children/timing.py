"""What both children of a proof tell of their process; needs nothing of ours."""

import re
import time
from pathlib import Path


def measured(run, repeats, warm_up):
    """Returns `latency_ms`, a median, of a function, and `peak_mb` of the process.

    The memory is None off Linux.
    """
    seconds = []
    for _ in range(warm_up + repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+)", status.read_text() if status.exists() else "")
    return {
        "latency_ms": 1e3 * sorted(seconds[warm_up:])[repeats // 2],
        "peak_mb": int(peak[1]) / 1024 if peak else None,
    }
