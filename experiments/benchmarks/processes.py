"""What benchmarks of whole processes share: running them, and reading what they say."""

import json
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.train.report import read_log
from lm.types import UserError


def free_port() -> int:
    """Returns a port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def run(command: list[str], env: Mapping[str, str] | None = None) -> str:
    """Runs a command with more variables; returns what it prints.

    Raises:
        UserError: If it fails.
    """
    environment = {**os.environ, **(env or {})}
    made = subprocess.run(command, capture_output=True, text=True, env=environment)
    if made.returncode:
        line = made.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{' '.join(command[1:3])} failed: {line}")
    return made.stdout


def last_line(command: list[str]) -> dict[str, Any]:
    """Runs a command; returns the JSON object that is the last line it prints."""
    return json.loads(run(command).strip().rpartition("\n")[2])


def steps_per_sec(workdir: Path) -> list[float]:
    """Returns the rates in a run's lines of metrics."""
    rates = [
        line.get("perf/steps_per_sec") for line in read_log(workdir / "metrics.jsonl")
    ]
    return [rate for rate in rates if rate]
