"""The launch on TPUs and under SLURM: what is printed, what is run, what is refused."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TPU = ROOT / "experiments/tpu"
SBATCH = ROOT / "experiments/slurm/train.sbatch"
SCRIPTS = sorted(path.stem for path in TPU.glob("*.sh") if path.stem != "common")
PLACE = ["--name=gpt", "--zone=us-west4-a"]
TRAIN = ["--config=configs/gpt_1_3b.py", "--workdir=shared/runs/gpt"]
# What each needs beside a name and a zone.
NEEDS = {
    "create": ["--type=v5litepod-16"],
    "start": ["--", *TRAIN],
    "resume": ["--type=v5litepod-16", "--", *TRAIN],
}
SETTINGS = (
    *("TPU_NAME", "ZONE", "PROJECT_ID", "ACCELERATOR_TYPE", "RUNTIME_VERSION"),
    *("NUM_SLICES", "SPOT", "QUEUED", "MOUNT", "RUN"),
)


def call(script, *words, path=None, **env):
    """Runs a script in an environment that sets nothing of its own."""
    clean = {name: v for name, v in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [
            "bash",
            str(script if Path(script).exists() else TPU / f"{script}.sh"),
            *words,
        ],
        env=clean | ({"PATH": path} if path else {}) | env,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def commands(done):
    """Returns the words of each command that a dry run printed, as a shell has them."""
    assert done.returncode == 0, done.stderr
    found, open_line = [], ""
    for line in done.stdout.splitlines(keepends=True):
        if not open_line and line.startswith("#"):
            continue
        open_line += line
        try:
            found.append(shlex.split(open_line))
        except ValueError:  # a quote goes on in the next line
            continue
        open_line = ""
    assert not open_line
    return found


@pytest.fixture
def cloud(tmp_path):
    """A PATH of tools that note their words; what gcloud's ssh starts, is run here."""
    tools = tmp_path / "bin"
    tools.mkdir()
    note = 'printf "%s\\n" "$(basename "$0")" "$@" "" >> "$NOTES"\n'
    answer = """
for word in "$@"; do
  case $word in
    describe) cat "$STATE"; exit ;;
    --command=*system*) HOME=$THERE bash -c "${word#--command=}"; exit ;;
  esac
done
"""
    unit = '[ "$HOW" = "${1#is-}" ]'
    for name, text in {
        "gcloud": note + answer,
        "sudo": note,
        "systemctl": unit,
    }.items():
        (tools / name).write_text("#!/usr/bin/env bash\n" + text)
        (tools / name).chmod(0o755)
    there, notes, state = (tmp_path / name for name in ("there", "notes", "state"))
    (there / "lm").mkdir(parents=True)
    notes.write_text("")
    state.write_text("READY\n")

    def run(script, *words, now="READY", how="none"):
        state.write_text(f"{now}\n")
        notes.write_text("")
        done = call(
            script,
            *words,
            path=f"{tools}:{os.environ['PATH']}",
            NOTES=str(notes),
            STATE=str(state),
            THERE=str(there),
            HOW=how,
        )
        return done, [part.split("\n") for part in notes.read_text().split("\n\n")[:-1]]

    return run


def test_shellcheck_finds_nothing():
    checker = Path(sys.executable).with_name("shellcheck")
    scripts = [*TPU.glob("*.sh"), SBATCH, *(ROOT / "experiments/recipes").glob("*.sh")]
    done = subprocess.run(
        [checker, "--external-sources", *map(str, scripts)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "words, expected",
    [
        (
            ["--type=v5litepod-16"],
            "tpu-vm create gpt --zone=us-west4-a --accelerator-type=v5litepod-16 "
            "--version=v2-alpha-tpuv5-lite",
        ),
        (
            ["--type", "v5p-128", "--spot", "--project=p"],
            "tpu-vm create gpt --zone=us-west4-a --project=p "
            "--accelerator-type=v5p-128 --version=v2-alpha-tpuv5 --spot",
        ),
        (
            ["--type=v6e-64", "--queued"],
            "queued-resources create gpt --zone=us-west4-a --accelerator-type=v6e-64 "
            "--runtime-version=v2-alpha-tpuv6e --node-id=gpt",
        ),
        (
            ["--type=v4-32", "--slices=2", "--spot", "--runtime=other"],
            "queued-resources create gpt --zone=us-west4-a --accelerator-type=v4-32 "
            "--runtime-version=other --spot --node-count=2 --node-prefix=gpt",
        ),
    ],
)
def test_create_asks_for_what_is_wanted(words, expected):
    dry = commands(call("create", *PLACE, *words, "--dry_run"))
    assert dry == [["gcloud", "compute", "tpus", *expected.split()]]


def test_settings_come_from_the_environment_and_flags_win():
    env = {"TPU_NAME": "a", "ZONE": "us-east1-d", "PROJECT_ID": "p"}
    (first, *_) = commands(call("delete", "--dry-run", "--name=b", **env))
    expected = "gcloud compute tpus tpu-vm delete b --zone=us-east1-d --project=p"
    assert first == expected.split()


def test_install_sends_the_commit_to_all_workers_of_all_slices():
    done = call("install", *PLACE, "--slices=2", "--mount=10.0.0.2:/share", "--dry_run")
    archive, first, second, *remote = commands(done)
    assert archive[:2] == ["git", "-C"] and archive[3:5] == [
        "archive",
        "--format=tar.gz",
    ]
    for node, words in zip(("gpt-0", "gpt-1"), (first, second)):
        assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
        assert words[6:] == [f"{node}:lm.tar.gz", "--zone=us-west4-a", "--worker=all"]
    assert [words[5] for words in remote] == ["gpt-0", "gpt-1"] * 3
    assert all("--worker=all" in words for words in remote)
    assert "mount -t nfs -o hard,noatime 10.0.0.2:/share" in remote[2][-1]
    for words in remote:  # what a worker's shell gets is a script
        script = words[-1].removeprefix("--command=")
        subprocess.run(["bash", "-n", "-c", script], check=True)


def test_start_gives_every_word_to_the_worker_as_it_is(cloud):
    odd = ['--config.task.x=it\'s $HOME "two" `id`', "--config.data.weights=(3,1)"]
    done, notes = cloud("start", *PLACE, "--run=one", "--", *TRAIN, *odd)
    assert done.returncode == 0, done.stderr
    gcloud, reset, unit = notes
    assert reset == ["sudo", "systemctl", "reset-failed", "lm-one"]
    assert gcloud[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "gpt"]
    assert "--worker=all" in gcloud
    assert unit[:2] == ["sudo", "systemd-run"] and "--unit=lm-one" in unit
    command = unit[unit.index(".venv/bin/python") :]
    assert command[1:] == ["-m", "lm.train", "--distributed", *TRAIN, *odd]
    (log,) = {word for word in unit if "StandardOutput" in word}
    assert log.endswith("/there/lm/logs/one.log")


def test_a_dry_run_prints_what_is_run(cloud):
    words = [*PLACE, "--slices=2", "--", *TRAIN]
    printed = commands(call("start", "--dry_run", *words))
    _, notes = cloud("start", *words)
    run = [note for note in notes if note[0] == "gcloud"]
    assert ["\n".join(words) for words in printed] == ["\n".join(note) for note in run]


def test_logs_and_stop_ask_the_unit(cloud):
    (tail,) = commands(call("logs", *PLACE, "--dry_run", "--worker=3", "--follow"))
    assert tail[-2:] == ["--worker=3", "--command=tail -n 20 -F ~/lm/logs/train.log"]
    _, notes = cloud("stop", *PLACE)
    assert notes[1][1:] == ["systemctl", "stop", "--no-block", "lm-train"]


@pytest.mark.parametrize(
    "now, how, deletes, creates, starts",
    [
        ("PREEMPTED", "none", 1, 1, 1),
        ("READY", "none", 0, 0, 1),  # it was never started
        ("READY", "failed", 0, 0, 1),
        ("READY", "active", 0, 0, 0),
        ("CREATING", "none", 0, 0, 0),
    ],
)
def test_resume_brings_back_what_is_gone(cloud, now, how, deletes, creates, starts):
    done, notes = cloud("resume", *PLACE, *NEEDS["resume"], now=now, how=how)
    assert done.returncode == 0, done.stderr
    verbs = [note[4] for note in notes if note[0] == "gcloud"]
    assert (verbs.count("delete"), verbs.count("create")) == (deletes, creates)
    assert sum("systemd-run" in note for note in notes) == starts
    if now == "PREEMPTED":
        assert verbs.index("delete") < verbs.index("create") < verbs.index("scp")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--type=v5e-16", "--", *TRAIN], "Cloud TPU writes v5litepod-16"),
        (["--type=v4-8", "--", "--config=c.py", "--workdir=runs/x"], "own disk"),
        (["--type=v4-8", "--mount=share", "--", *TRAIN], "is not HOST:/SHARE"),
    ],
)
def test_a_mistake_ends_resume_before_anything_costs_money(cloud, words, said):
    done, notes = cloud("resume", *PLACE, "--watch", *words, now="PREEMPTED")
    refuses(done, said, 2)
    assert not notes


def test_resume_starts_nothing_on_a_tpu_that_could_not_be_had(cloud, tmp_path):
    tool = tmp_path / "bin/gcloud"
    tool.write_text(tool.read_text() + 'case "$*" in *create*) exit 1 ;; esac\n')
    done, notes = cloud("resume", *PLACE, *NEEDS["resume"], now="PREEMPTED")
    assert done.returncode == 1
    assert [note[4] for note in notes if note[4] in ("scp", "ssh")] == []


def test_resume_knows_a_run_that_has_ended(cloud, tmp_path):
    (tmp_path / "there/lm/logs").mkdir()
    (tmp_path / "there/lm/logs/train.log").write_text("done")
    done, notes = cloud("resume", *PLACE, "--watch", *NEEDS["resume"])
    assert "the run has ended" in done.stdout
    assert not any("systemd-run" in note for note in notes)


def test_resume_touches_nothing_when_the_state_cannot_be_told(cloud, tmp_path):
    tool = tmp_path / "bin/gcloud"
    tool.write_text(
        '#!/bin/sh\necho "$*" >> "$NOTES"; echo "no\nnetwork" >&2; exit 1\n'
    )
    done, _ = cloud("resume", *PLACE, *NEEDS["resume"])
    assert done.returncode == 1
    assert done.stderr == "error: gcloud cannot tell the state of gpt: no network\n"
    asked = (tmp_path / "notes").read_text().splitlines()
    assert len(asked) == 1 and "describe" in asked[0]


def test_delete_asks_unless_told_and_shows_what_is_left():
    first, *left = commands(call("delete", *PLACE, "--queued", "--dry_run"))
    expected = "gcloud compute tpus queued-resources delete gpt --zone=us-west4-a"
    assert first == [*expected.split(), "--force"]
    assert [words[3:5] for words in left] == [
        ["tpu-vm", "list"],
        ["queued-resources", "list"],
    ]
    (quiet, *_) = commands(call("delete", *PLACE, "--yes", "--dry_run"))
    assert quiet[-1] == "--quiet"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_what_it_lacks(script, tmp_path):
    needs = NEEDS.get(script, [])
    for words, said in [
        (["--zone=us-west4-a"], "which TPU?"),
        (["--name=gpt"], "in which zone?"),
        ([*PLACE, "--nmae=x"], "unknown argument '--nmae=x'"),
        (["--name=My_TPU", "--zone=us-west4-a"], "'My_TPU'"),
        (["--name=gpt", "--zone=mars"], "'mars' is no zone"),
        ([*PLACE, "--slices=0"], "--slices: '0'"),
        ([*PLACE, "--zone="], "--zone needs a value"),
        ([*PLACE, "--queued=1"], "--queued takes no value"),
    ]:
        refuses(call(script, *words, "--dry_run"), said, 2)
    bare = tmp_path / "bare"  # all but gcloud
    bare.mkdir()
    for tool in ("bash", "dirname", "sed", "tr", "tail", "head", "git"):
        found = subprocess.run(["which", tool], capture_output=True, text=True)
        (bare / tool).symlink_to(found.stdout.strip())
    refuses(call(script, *PLACE, *needs, path=str(bare)), "no gcloud here; install", 1)
    assert "--dry_run" in call(script, "--help").stdout


def refuses(done, said, status):
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "script, words, said",
    [
        ("create", [], "of which type?"),
        ("create", ["--type=v5e-16"], "Cloud TPU writes v5litepod-16"),
        ("create", ["--type=v5e:4x4"], "is a topology"),
        ("create", ["--type=tpu7x-128"], "GKE alone"),
        ("create", ["--type=h100-8"], "is none of v2-"),
        ("install", ["--mount=share"], "'share' is not HOST:/SHARE"),
        ("start", [], "train what?"),
        ("start", ["--", "--workdir=shared/x"], "no --config"),
        ("start", ["--", "--config=c.py"], "no --workdir"),
        ("start", ["--", "--config=c.py", "--workdir", "gs://b/x"], "is no folder"),
        ("start", ["--", "--config", "c.py", "--workdir=runs/x"], "own disk"),
        ("start", ["--run=a b", "--", *TRAIN], "'a b'"),
        ("logs", ["--worker=one"], "'one' is no number"),
        ("logs", ["--lines=0"], "'0' is no number"),
        ("logs", ["--follow", "--slices=2"], "--follow is of one slice"),
        ("logs", ["--follow", "--output=logs"], "give one of them"),
        ("create", ["--type=v4-8", "--", *TRAIN], "nothing comes after --"),
        ("resume", ["--type=v4-8"], "resume what?"),
    ],
)
def test_a_mistake_is_one_line(script, words, said):
    refuses(call(script, *PLACE, "--dry_run", *words), said, 2)


def test_slurm_runs_a_process_for_each_gpu():
    dry = call(SBATCH, "--dry_run", *TRAIN, "--config.task.x=it's $5")
    (words,) = commands(dry)
    assert words[0] == "srun"
    command = words[words.index(".venv/bin/python") :]
    expected = ["-m", "lm.train", "--distributed", *TRAIN, "--config.task.x=it's $5"]
    assert command[1:] == expected
    options = [x for x in SBATCH.read_text().splitlines() if x.startswith("#SBATCH")]
    assert "#SBATCH --ntasks-per-node=8" in options
    refuses(call(SBATCH, "--dry_run", "--config=a"), "--workdir", 2)
    refuses(call(SBATCH, *TRAIN), "this is for sbatch", 1)


@pytest.mark.parametrize("status, requeues", [(143, True), (0, False), (1, False)])
def test_slurm_queues_again_what_was_told_to_end(tmp_path, status, requeues):
    for name, text in {
        "srun": f"exit {status}",
        "scontrol": f'echo "$@" > {tmp_path}/asked',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = call(SBATCH, *TRAIN, path=path, SLURM_JOB_ID="7")
    assert done.returncode == status
    asked = tmp_path / "asked"
    assert asked.exists() == requeues
    if requeues:
        assert asked.read_text() == "requeue 7\n"
