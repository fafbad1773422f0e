"""What every command shares, in processes of their own: signals and odd terminals."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import gc, os, signal, time
from lm import cli

def main(args):
    {body}

# A background job has it ignored, and hands that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run(main, cli.make_parser("A command."))
"""


def run(body, *words, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body), *words],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "name, status, word", [("INT", 130, "interrupted"), ("TERM", 143, "terminated")]
)
def test_a_signal_ends_what_is_open_and_then_the_command(name, status, word):
    body = f"""
    try:
        os.kill(os.getpid(), signal.SIG{name})
        time.sleep(60)
    finally:
        print("closed", end="")
    """
    assert run(body) == (status, "closed", f"error: {word}\n")


def test_a_signal_is_not_lost_in_a_callback_of_the_garbage_collector():
    body = """
    def callback(phase, info):
        if phase == "start":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
    gc.callbacks[:] = [callback]
    gc.collect()
    time.sleep(60)
    """
    assert run(body) == (130, "", "error: interrupted\n")


def test_json_has_no_nan():
    status, out, error = run('return {"f1": [0.5, float("nan")]}', "--json")
    assert (status, error) == (0, "") and json.loads(out) == {"f1": [0.5, None]}


def test_what_a_terminal_cannot_show_is_spelled():
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert run("print('caf\\xe9')", **ascii_only) == (0, "caf\\xe9\n", "")
