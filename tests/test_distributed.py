"""How processes meet, and how each watches over the others; runs are in train/."""

import argparse
import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from experiments.benchmarks.processes import free_port
from lm import cli, distributed, rendezvous
from lm.types import UserError


def parse(*flags):
    parser = argparse.ArgumentParser()
    rendezvous.add_flags(parser)
    return parser.parse_args(flags)


@pytest.fixture
def port():
    return free_port()


FLAGS = ("--coordinator=h:1", "--num-processes=2", "--process-id=1")
SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "node[003-004,9]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_flags_say_which_process_this_is():
    assert rendezvous.find_place(parse(*FLAGS)) == rendezvous.Place("h:1", 2, 1)
    six = rendezvous.Place("[fe80::1]:80", 2, 0)
    assert six.address == ("fe80::1", 80)
    assert rendezvous.find_place(parse()) is None
    assert rendezvous.find_place(parse("--num-processes=1")) is None


def test_slurm_says_which_process_this_is(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = rendezvous.find_place(parse())
    assert place == rendezvous.Place("node003:61443", 4, 3)
    assert rendezvous.find_place(parse("--num-processes=1")) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert rendezvous.find_place(parse()) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (FLAGS[:1], "--num-processes and --process-id must go with --coordinator"),
        ((*FLAGS[:2], "--process-id=2"), "=2 is not one of --num-processes=2; they co"),
        (("--coordinator=h", *FLAGS[1:]), "--coordinator=h is not HOST:PORT, for exam"),
        ((*FLAGS, "--step-timeout=0"), "--step-timeout must be at least 1 second"),
        (("--distributed",), "--distributed finds no cluster .* leave it out on one"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        rendezvous.find_place(parse(*flags))


def meet(port, *places, timeout=10.0):
    """Lets processes meet; returns what each is told."""

    def one(place):
        try:
            return rendezvous.meet(place, timeout)
        except UserError as error:
            assert "\n" not in str(error)
            return str(error)

    where = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, [rendezvous.Place(where, *p) for p in places]))


def test_all_meet_whoever_comes_first(port):
    host = socket.gethostname()
    assert meet(port, (3, 2), (3, 0), (3, 1)) == [[host] * 3] * 3


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(3, 0), (3, 1), (3, 1)], "process 1 is there twice ("),
        ([(3, 0), (2, 1)], "--num-processes is 3 on process 0 ("),
        ([(3, 0), (3, 1)], "process 2 of 3 did not come within 1 s; start all"),
    ],
)
def test_all_are_told_what_is_wrong(port, places, message):
    for told in meet(port, *places, timeout=1.0):
        assert message in told


def test_a_start_does_not_hang(port):
    began = time.monotonic()
    (told,) = meet(port, (2, 1), timeout=1.0)
    assert f"cannot reach process 0 at 127.0.0.1:{port} within 1 s" in told
    with socket.create_server(("127.0.0.1", port)):
        (told,) = meet(port, (2, 0), timeout=1.0)
    assert f"cannot listen at port {port}: Address already in use; choose" in told
    assert time.monotonic() - began < 30


class Store:
    """The coordination service's store, for processes that are threads here."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [pair for pair in self.values.items() if pair[0].startswith(folder)]


@pytest.fixture
def watch(monkeypatch, capfd):
    """Lets process 0 of 3 watch the others until it ends; returns what it says."""
    ended, watches = threading.Event(), []
    monkeypatch.setattr(distributed, "_INTERVAL", 0.05)

    def end(_):
        ended.set()
        watches[0]._stopped.set()

    monkeypatch.setattr(distributed, "_end", end)

    def run(beats, during=lambda watch: None, **timeouts):
        args = parse()
        vars(args).update(timeouts)
        store = Store()
        monkeypatch.setattr(distributed, "_client", lambda: store)
        place = rendezvous.Place("h:1", 3, 0)
        watch = distributed.Watch(place, ["a", "b", "c"], args)
        watches.append(watch)
        watch.kept = lambda: "the checkpoint of step 7 is kept"
        during(watch)
        deadline = time.monotonic() + 20
        number = 0
        while not ended.wait(0.05) and time.monotonic() < deadline:
            number += 1
            for index, beat in beats.items():
                if number < beat.get("until", 10**6):
                    value = f"{number} {beat['marks']} {beat['step']}"
                    store.values[f"lm/beat/{index}"] = value
        assert ended.is_set()
        return capfd.readouterr().err, store.values

    yield run
    for each in watches:
        each._stopped.set()


ALIVE = {"marks": 1, "step": 8}


def test_one_that_falls_silent_is_named(watch):
    beats = {1: ALIVE, 2: {**ALIVE, "until": 3}}
    said, values = watch(beats, heartbeat_timeout=1)
    assert said == (
        "error: process 2 (c) is gone: no sign of life for 1 s; the checkpoint of step "
        "7 is kept; start all processes again\n"
    )
    assert values["lm/end/0"].startswith("process 2 (c) is gone")


def test_one_that_holds_up_a_step_is_named(watch):
    beats = {1: {"marks": 0, "step": 7}, 2: ALIVE}
    said, _ = watch(beats, lambda watch: watch.mark(8), step_timeout=1)
    assert said.startswith("error: process 1 (b) at step 7 holds up the others, which")


def test_a_failure_ends_the_others(watch):
    def fail(watch):
        watch._client.values["lm/end/1"] = "process 1 (b) failed: OSError: no disk"

    said, _ = watch({1: ALIVE, 2: ALIVE}, fail)
    assert said.startswith("error: process 1 (b) failed: OSError: no disk; the check")


def test_a_failure_is_told_and_ends_even_what_does_not_close(watch, monkeypatch):
    monkeypatch.setattr(distributed, "_CLOSING", 0.2)

    def fail(watch):
        watch.tell(UserError("no space left"))

    said, values = watch({1: ALIVE, 2: ALIVE}, fail)
    assert values["lm/end/0"] == "process 0 (a): no space left"
    assert said.startswith("error: process 0 (a): no space left; the checkpoint of")


def test_alone_nothing_is_waited_for():
    with distributed.joined(parse()), distributed.telling():
        assert distributed.is_first() and not distributed.is_several()
        assert distributed.from_first(lambda: 5) == 5
        assert distributed.pace(1.0, 2.0) == ({}, "")
        distributed.mark(1)
        distributed.together()
    with contextlib.suppress(cli.Ended), distributed.joined(parse()):
        raise cli.Ended({}, 1)
