"""Runs of several processes: equal to one, killed, slow, asked to end."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.benchmarks.processes import free_port
from lm.sharding import MeshConfig
from lm.train.loop import train

# Batches of one process take so long to read.
SLOW = """
import sys, time, runpy
from lm.data.pipeline import Pipeline
batch = Pipeline.batch
Pipeline.batch = lambda self, number: (time.sleep(0.3), batch(self, number))[1]
sys.argv = ["lm.train", *sys.argv[1:]]
runpy.run_module("lm.train", run_name="__main__", alter_sys=True)
"""


def rows_of(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses_of(workdir):
    rows = rows_of(workdir)
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.fixture
def start(tmp_path):
    """Starts processes that train together; ends those that are left."""
    started = []

    def start(config, workdir, count, devices, slow=-1, flags=lambda index: []):
        file = tmp_path / "config.py"
        values = json.dumps(dataclasses.asdict(config))
        file.write_text(
            "import json\n"
            "from lm.config import to_config_dict\n"
            "from lm.train.config import Config\n"
            "def get_config():\n"
            f"    return to_config_dict(Config.of(json.loads({values!r})))\n"
        )
        port = free_port()
        xla = os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
        env = {"PYTHONPATH": str(Path.cwd()), "XLA_FLAGS": xla}
        for i in range(count):
            program = ("-c", SLOW) if i == slow else ("-m", "lm.train")
            with (tmp_path / f"err{i}").open("w") as err:
                process = subprocess.Popen(
                    [sys.executable, *program]
                    + [f"--config={file}", f"--workdir={workdir}", "--json"]
                    + [f"--coordinator=127.0.0.1:{port}", f"--num-processes={count}"]
                    + [f"--process-id={i}", "--start-timeout=300", *flags(i)],
                    stdout=subprocess.PIPE,
                    stderr=err,
                    text=True,
                    env=os.environ | env,
                )
            started.append(process)
        return started[-count:]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(step, workdir, processes):
    deadline = time.monotonic() + 300
    while max(losses_of(workdir), default=0) < step:
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_hosts_train_as_one_and_one_goes_on_from_their_checkpoint(
    start, make_config, tmp_path
):
    config = make_config(eval_every_steps=3, mesh=MeshConfig(fsdp=2, tensor=2))
    together, alone = tmp_path / "together", tmp_path / "alone"
    processes = start(config, together, 2, 4)
    expected = train(config, alone)
    results = [json.loads(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0] == results[1] == pytest.approx(expected, rel=1e-5)
    assert losses_of(together) == pytest.approx(losses_of(alone), rel=1e-5)
    assert [row["step"] for row in rows_of(together)] == [
        row["step"] for row in rows_of(alone)
    ]
    assert len(list(together.glob("events*"))) == 1
    assert json.loads((together / "versions.json").read_text())["process_count"] == 2
    said = (tmp_path / "err1").read_text()
    assert "step 1/6" not in said and "step 1/6" in (tmp_path / "err0").read_text()
    # Another mesh, another number of hosts.
    other = dataclasses.replace(config, mesh=MeshConfig(), num_train_steps=9)
    for folder in (together, alone):
        assert train(other, folder)["step"] == 9
    assert losses_of(together) == pytest.approx(losses_of(alone), rel=1e-5)


def test_a_run_whose_host_is_killed_or_asked_to_end_goes_on_bit_equal(
    start, make_config, tmp_path
):
    config = make_config(num_train_steps=10**5, checkpoint_every_steps=7)
    data = dataclasses.replace(config.data, prefetch=1, num_workers=1)
    config = dataclasses.replace(config, data=data, warmup_steps=10)
    workdir = tmp_path / "run"
    processes = start(config, workdir, 2, 1, slow=1)
    wait_for(17, workdir, processes)
    processes[1].kill()
    assert processes[0].wait(120) == 1
    said = (tmp_path / "err0").read_text()
    host = socket.gethostname()
    assert f"step 17/100000  loss {losses_of(workdir)[17]:.4f}" in said
    assert f"process 1 ({host}) is slow: 0." in said
    last = said.splitlines()[-1]
    assert last.startswith(f"error: process 1 ({host}) is gone: no sign of life for")
    kept = max(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*[0-9]"))
    assert f"checkpoint of step {kept} is kept; start all processes again" in last
    assert "Traceback" not in said and kept >= 14
    assert rows_of(workdir)[-1]["perf/slowest_process"] == 1

    before = losses_of(workdir)
    processes = start(config, workdir, 2, 1)
    wait_for(max(before) + 5, workdir, processes)
    processes[1].send_signal(signal.SIGTERM)
    results = [json.loads(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    assert f"resumed at step {kept}" in (tmp_path / "err0").read_text()
    after = losses_of(workdir)
    assert {step: after[step] for step in before} == before
    stopped = max(after)
    assert results == [{"step": stopped, "signal": signal.SIGTERM}] * 2
    assert (workdir / "checkpoints" / str(stopped) / "files.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="finds a child in /proc")
def test_the_end_of_process_0_with_its_coordination_service_is_said(
    start, make_config, tmp_path
):
    workdir = tmp_path / "run"
    processes = start(make_config(num_train_steps=10**5), workdir, 2, 1)
    wait_for(3, workdir, processes)
    first = processes[0].pid
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    for pid in (first, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    assert processes[1].wait(120) == 1
    last = (tmp_path / "err1").read_text().splitlines()[-1]
    said = f"error: process 0 ({socket.gethostname()}) is gone, or the coordination"
    assert last.startswith(said) and last.endswith("; start all processes again")


def test_a_host_with_another_config_ends_all(start, make_config, tmp_path):
    processes = start(
        make_config(), tmp_path / "run", 2, 1, flags=lambda i: [f"--config.seed={i}"]
    )
    for process in processes:
        assert process.wait(120) == 1
    for name in ("err0", "err1"):
        said = (tmp_path / name).read_text()
        assert "seed is 0 on process 0 and 1 on this one; give all the same" in said
        assert "Traceback" not in said
