import csv
import dataclasses
import doctest
import errno
import gc
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import optuna
import pytest
from sqlalchemy.exc import ProgrammingError

from experiments import sweep
from experiments.benchmarks.sweep_claims import claim_all
from experiments.search import plan as plan_lib
from experiments.search import scheduler, space, study, text, worker
from experiments.search.plan import Plan
from experiments.search.results import Metric
from experiments.search.study import Study
from lm.config import load
from lm.train import __main__ as train_main
from lm.train.config import Config
from lm.types import UserError

ACCURACY = Metric("eval/validation/accuracy", "max")
CONFIG = """
import json
from pathlib import Path

from experiments.search.space import choice, product
from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import classify
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import Config
from lm.train.optim import OptimConfig

HERE = Path(__file__).parent


def get_config():
    return to_config_dict(
        Config(
            bert.Config(
                vocab_size=280, emb_dim=8, num_layers=1, num_heads=2, max_len=16
            ),
            classify.Config(length=16, pooling="mean"),
            DataConfig((str(HERE / "{split}.jsonl"),), str(HERE / "bytes")),
            OptimConfig(learning_rate=1e-2),
            checkpoint=CheckpointConfig(keep_best=0),
            batch_size=8,
            num_train_steps=4,
            warmup_steps=0,
            eval_every_steps=2,
            checkpoint_every_steps=2,
        )
    )


def get_sweep():
    return product(choice("optim.learning_rate", 1e-3, 1e-2), choice("seed", 0, 1))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config file of a model that trains in no time."""
    from lm.text import tokenizers

    folder = tmp_path_factory.mktemp("config")
    for split, size in (("train", 18), ("validation", 6)):
        rows = (
            {"text": f"{split}{i} {label}", "label": label}
            for i in range(size)
            for label in [("good", "bad")[i % 2]]
        )
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizers.train("bytes", []).save(folder / "bytes")
    (folder / "tiny.py").write_text(CONFIG)
    return folder / "tiny.py"


def make_plan(words="optim.learning_rate=log(1e-4,1e-2)", strategy="random", **fields):
    found, seeds = space.split_seed(text.parse(words))
    seeds = tuple(map(int, seeds))
    base = {"first_step": 2, "last_step": 4, "pruner": "none", "num_points": 6}
    base |= {"metrics": (ACCURACY,), "seeds": seeds, "space": found, "config": {}}
    return Plan(command=("c.py",), strategy=strategy, **(base | fields))


def flags(config, root, *words):
    base = {"--config": config, "--workdir": root, "--metric": ACCURACY.name}
    given = {word.partition("=")[0] for word in words}
    return [f"{k}={v}" for k, v in base.items() if k not in given] + list(words)


def run(config, root, *words):
    """Runs the command in this process; trials are in others."""
    words = flags(config, root, *words)
    args, overrides = sweep.cli.parse(sweep.parser, words, "--config.")
    return sweep.main(args, overrides)


def start(config, root, *words, **options):
    command = [sys.executable, "-m", "experiments.sweep", *flags(config, root, *words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def wait_for(found, seconds=120):
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


def rows_of(root):
    """Rows of results.csv, without times."""
    rows = list(csv.DictReader((root / "results.csv").open()))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# Plans.


def test_a_grid_is_the_rows_of_its_space_with_each_seed():
    words = "a=1,2; b=true,false & c=(1,2),(3,4); seed=5,6"
    plan = make_plan(words, "grid", num_points=4)
    found = [plan.overrides(n) for n in range(plan.num_trials)]
    rows = space.rows(plan.space)
    assert found == [row | {"seed": seed} for row in rows for seed in plan.seeds]
    params = [plan.params(n) for n in range(plan.num_trials)]
    assert [plan.row(n, params[n]) for n in range(plan.num_trials)] == found


@pytest.mark.parametrize("words", ["a=0..6; b=x,y", "a=0..199; b=0..199"])
def test_a_random_row_is_tried_once_and_stays_if_there_are_more(words):
    size = int(text.parse(words).size)
    whole = make_plan(words, num_points=min(size, 99))
    rows = [tuple(whole.overrides(n).items()) for n in range(whole.num_points)]
    assert len(set(rows)) == len(rows)
    some = make_plan(words, num_points=5)
    assert [tuple(some.overrides(n).items()) for n in range(5)] == rows[:5]
    other = make_plan(words, num_points=5, seed=1)
    assert [tuple(other.overrides(n).items()) for n in range(5)] != rows[:5]


def test_random_numbers_are_within_their_bounds_and_stay_if_there_are_more():
    words = "a=uniform(-1,1); b=log(1e-5,1e-1); c=int(2,4); d=logint(1,1000)"
    plan, more = (make_plan(words, num_points=n) for n in (200, 300))
    rows = [plan.overrides(n) for n in range(200)]
    assert rows == [more.overrides(n) for n in range(200)]
    assert all(-1 <= r["a"] <= 1 and 1e-5 <= r["b"] <= 1e-1 for r in rows)
    assert {r["c"] for r in rows} == {2, 3, 4} and {type(r["d"]) for r in rows} == {int}
    assert 60 < sum(r["b"] < 1e-3 for r in rows) < 140
    assert 60 < sum(r["d"] < 32 for r in rows) < 140


def test_a_plan_may_grow_and_change_nothing_else():
    signature = make_plan().signature()
    assert signature == make_plan(num_points=9).signature()
    assert signature == json.loads(json.dumps(signature))
    for other in (
        {"strategy": "tpe"},
        {"words": "optim.learning_rate=log(1e-4,1e-1)"},
        {"words": "a=0..999"},
        {"seed": 1},
        {"config": {"a": 1}},
        {"metrics": (Metric("eval/validation/loss", "min"),)},
    ):
        assert make_plan(**other).signature() != signature
    many, more = (make_plan(f"a=0..{last}").signature() for last in (8999, 9000))
    assert many != more and len(str(more)) < 2000


def test_examples_in_docstrings():
    for module in (sweep, plan_lib, study):
        assert doctest.testmod(module).failed == 0


# Studies.


def test_processes_share_no_trial(tmp_path):
    """Of one folder, and of two with one database."""
    url, folders = f"sqlite:///{tmp_path}/shared.db", [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    plan = make_plan("a=uniform(0,1); seed=0..1", "tpe", num_points=20)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=claim_all, args=(folder, plan, queue, url))
        for folder in folders * 2
    ]
    for process in processes:
        process.start()
    claimed = sorted(sum((queue.get(timeout=120) for _ in processes), []))
    assert [number for number, _ in claimed] == list(range(40))
    for (_, one), (_, two) in zip(claimed[::2], claimed[1::2]):
        assert one == two | {"seed": 0} and two["seed"] == 1
    assert len({row["a"] for _, row in claimed}) == 20
    assert {t.state for t in Study(folders[0], plan, url).trials()} == {"done"}


def test_a_trial_is_taken_over_when_its_process_is_gone(tmp_path):
    plan = make_plan(num_points=2)
    one, two = Study(tmp_path, plan), Study(tmp_path, plan)
    first = one.claim()
    one.report(0, 2, 0.5)
    assert two.claim()[0] == 1 and two.claim() is None
    one._sign.close()  # as the kernel does
    assert two.claim() == first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not two.report(0, 2, 0.5)
    two.finish(0, "done", values=[0.5], step=4, seconds=2.0)
    found = two.trials()
    assert [t.state for t in found] == ["done", "running"]
    assert found[0].values == (0.5,) and found[0].step == 4


def test_a_study_closes_its_owners_file(tmp_path):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        Study(tmp_path, make_plan())
        gc.collect()
    assert not [w for w in found if ".owners" in str(w.message)]


@pytest.mark.parametrize("strategy", ["random", "tpe", "cmaes"])
def test_a_kill_between_a_trials_making_and_its_parameters(tmp_path, strategy):
    words = "a=uniform(0,1); b=log(1,10); c=x,y"
    plan = make_plan(words, strategy, num_points=4)

    def tell(found):
        number, row = found.claim()
        found.finish(number, "done", values=[row["a"]])
        return row

    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = Study(tmp_path / "whole", plan)
    rows = [tell(whole) for _ in range(4)]
    for made in (0, 1, 2, 3):  # parameters that it had
        killed, made_now = Study(tmp_path / "killed", plan), iter(range(made))
        suggest = study._suggest

        def end(*args, made_now=made_now, suggest=suggest):
            if next(made_now, None) is None:
                raise KeyboardInterrupt
            suggest(*args)

        study._suggest = end
        try:
            killed.claim()
        except KeyboardInterrupt:
            pass
        finally:
            study._suggest = suggest
        killed._sign.close()
        assert tell(Study(tmp_path / "killed", plan)) == rows[made]


def test_another_machines_trial_is_taken_over_after_its_grace(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "PAUSE", 0.0)
    plan = make_plan(num_points=1)
    one = Study(tmp_path, plan)
    one._owner = "elsewhere/1"
    one.claim()
    two = Study(tmp_path, plan)
    assert two.claim() is None
    one._mine[0].set_user_attr("beat", time.time() - study.GRACE - 1)
    one.beat()
    assert two.claim() is None
    one._mine[0].set_user_attr("beat", time.time() - study.GRACE - 1)

    # A third one, which writes its name later, has it.
    def sleep(_):
        monkeypatch.undo()
        one._mine[0].set_user_attr("owner", "third/1")
        one.beat()

    monkeypatch.setattr(study.time, "sleep", sleep)
    assert two.claim() is None
    one._mine[0].set_user_attr("owner", "elsewhere/1")
    one._mine[0].set_user_attr("beat", 0)
    monkeypatch.setattr(study, "PAUSE", 0.0)
    assert two.claim()[0] == 0


def test_another_workdir_of_this_machine_is_as_another_machine(tmp_path):
    """Whose owners' files cannot be asked."""
    plan, url = make_plan(num_points=2), f"sqlite:///{tmp_path}/shared.db"
    for name in "ab":
        (tmp_path / name).mkdir()
    one, two = (Study(tmp_path / name, plan, url) for name in "ab")
    assert one.claim()[0] == 0 and two.claim()[0] == 1
    assert one.claim() is None and two.claim() is None
    one._mine[0].set_user_attr("beat", time.time() - study.GRACE - 1)
    assert two.claim()[0] == 0


def test_tables_that_another_machine_makes_meanwhile_are_found(tmp_path, monkeypatch):
    make, left = optuna.storages.RDBStorage.__init__, ["studies", "trials"]

    def make_or_fail(*args, **options):
        if left:
            error = ValueError(f"table {left.pop()} already exists")
            raise ProgrammingError("CREATE TABLE", {}, error)
        make(*args, **options)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", make_or_fail)
    monkeypatch.setattr(study.time, "sleep", lambda _: None)
    assert Study(tmp_path, make_plan()).claim()[0] == 0


def test_more_trials_than_wanted_wait_until_they_are(tmp_path):
    few, many = make_plan(num_points=1), make_plan(num_points=2)
    one, two = Study(tmp_path, few), Study(tmp_path, many)
    assert one.claim()[0] == 0 and two.claim()[0] == 1 and one.claim() is None
    two._sign.close()
    assert one.claim() is None and len(one.trials()) == 1
    assert Study(tmp_path, many).claim()[0] == 1


@pytest.mark.parametrize("strategy", ["tpe", "cmaes"])
def test_points_are_the_same_if_it_ends_after_every_trial(tmp_path, strategy):
    words = "a=uniform(0,1); b=log(1e-3,1); c=x,y"
    plan = make_plan(words, strategy, num_points=14)

    def points(folder, reopened):
        folder.mkdir()
        found, rows = Study(folder, plan), []
        for _ in range(14):
            found = Study(folder, plan) if reopened else found
            number, row = found.claim()
            rows.append(row)
            found.finish(number, "done", values=[-((row["a"] - 0.3) ** 2)])
        return rows

    rows = points(tmp_path / "a", False)
    assert rows == points(tmp_path / "b", True)
    assert len({row["a"] for row in rows}) == 14


def test_another_plan_is_refused_in_one_line(tmp_path):
    one = Study(tmp_path, make_plan())
    one.claim()
    for fields, name in (
        ({"strategy": "tpe"}, "strategy is random, not tpe"),
        ({"words": "a=uniform(0,1)"}, "space is "),
        ({"seed": 1}, "seed is 0, not 1"),
        ({"metrics": (Metric("x/y", "max"),)}, "metrics is "),
    ):
        with pytest.raises(UserError, match=f"its {name}") as caught:
            Study(tmp_path, make_plan(**fields))
        assert "\n" not in str(caught.value)
    one._sign.close()  # nothing has a value: another metric will do
    assert Study(tmp_path, make_plan(metrics=(Metric("x/y", "min"),))).claim()[0] == 0


def test_so_is_a_config_file_that_was_edited(tmp_path):
    kept = {"eval_every_steps": 2, "optim": {"b1": 0.9}}
    Study(tmp_path, make_plan(config=kept))
    Study(tmp_path, make_plan(config=kept | {"eval_every_steps": 3}))
    with pytest.raises(UserError, match="optim.b1 is 0.9 there and 0.8 here"):
        Study(tmp_path, make_plan(config=kept | {"optim": {"b1": 0.8}}, last_step=9))


def test_a_trial_that_another_process_has_ended_stays_so(tmp_path):
    plan = make_plan(num_points=1)
    one, two = Study(tmp_path, plan), Study(tmp_path, plan)
    one.claim()
    one._sign.close()
    two.claim()
    two.finish(0, "done", values=[0.5], step=4, seconds=1.0)
    one.beat()
    one.report(0, 2, 0.1)
    one.finish(0, "failed", error="late", step=1, seconds=1.0)
    (trial,) = two.trials()
    assert (trial.state, trial.step, trial.error) == ("done", 4, "")


def test_a_study_all_of_which_failed_is_made_anew(tmp_path):
    plan, found = make_plan(num_points=2), None
    for state in ("failed", "done"):
        found = Study(tmp_path, plan)
        for _ in range(2):
            number, _ = found.claim()
            kept = {"error": "no"} if state == "failed" else {"values": [1.0]}
            found.finish(number, state, **kept)
    assert Study(tmp_path, plan).claim() is None


def test_median_pruning_of_a_bad_trial(tmp_path):
    found = Study(tmp_path, make_plan(num_points=9, pruner="median"))
    pruned = []
    for value in (0.9, 0.8, 0.7, 0.8, 0.9, 0.1, 0.95):
        number, _ = found.claim()
        pruned.append(any(found.report(number, step, value) for step in (2, 4)))
        state = "pruned" if pruned[-1] else "done"
        kept = {} if pruned[-1] else {"values": [value]}
        found.finish(number, state, **kept)
    assert pruned == [False] * 5 + [True, False]
    assert found.trials()[5].state == "pruned" and found.trials()[5].values == ()


def test_hyperband_ends_what_is_bad_however_often_the_sweep_ends(tmp_path):
    steps = {"first_step": 1, "last_step": 9}
    plan = make_plan("a=uniform(0,1)", "hyperband", pruner="hyperband", **steps)
    plan = dataclasses.replace(plan, num_points=12)
    for _ in range(12):
        found = Study(tmp_path, plan)
        number, row = found.claim()
        ended = next((s for s in range(1, 10) if found.report(number, s, row["a"])), 9)
        kept = {"values": [row["a"]]} if ended == 9 else {}
        state = "done" if kept else "pruned"
        found.finish(number, state, step=ended, **kept)
    trials = Study(tmp_path, plan).trials()
    reached = {s: [t for t in trials if t.state == s] for s in ("done", "pruned")}
    assert min(map(len, reached.values())) > 1
    assert {t.step for t in reached["pruned"]} <= {1, 3}
    best = max(trials, key=lambda t: t.overrides["a"])
    assert best.state == "done"


def test_a_database_that_fails_is_one_line(tmp_path):
    found = Study(tmp_path, make_plan())
    with optuna.storages.RDBStorage(found.url).engine.connect() as connection:
        connection.exec_driver_sql("drop table trials")
        connection.commit()
    with pytest.raises(UserError, match="study.db fails: .*; mend that"):
        found.claim()
    (tmp_path / "study.db").write_text("no database at all " * 99)
    with pytest.raises(UserError, match="cannot open the database"):
        Study(tmp_path, make_plan())


# The command.

GRID = "--sweep=optim.learning_rate=0.001,0.01; seed=0..1"


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A sweep that nothing disturbed."""
    root = tmp_path_factory.mktemp("sweep") / "grid"
    result = run(config, root, GRID, "--parallel=2")
    return root, result


def test_a_sweep_leaves_tables_a_page_and_a_config(config, finished):
    root, result = finished
    assert result["trials"] == {"done": 4}
    rows = rows_of(root)
    assert [r["seed"] for r in rows] == ["0", "1"] * 2
    assert {(r["state"], r["step"], r["error"]) for r in rows} == {("done", "4", "")}
    for row in rows:
        lines = (root / row["workdir"] / "metrics.jsonl").read_text().splitlines()
        values = [json.loads(x) for x in lines if ACCURACY.name in x]
        assert float(row[ACCURACY.name]) == values[-1][ACCURACY.name]
        kept = json.loads((root / row["workdir"] / "config.json").read_text())
        assert kept["seed"] == int(row["seed"])
        assert kept["optim"]["learning_rate"] == float(row["optim.learning_rate"])
    assert (root / "index.html").exists() and (root / "results.json").exists()
    best = load(str(root / "best.py")).to_dict()
    base = load(str(config)).to_dict()
    rate = best["optim"].pop("learning_rate")
    assert rate == result["best"]["optim.learning_rate"]
    del base["optim"]["learning_rate"]
    assert best == base and Config.of(load(str(root / "best.py")))


def test_a_sweep_that_is_done_trains_nothing(config, finished, monkeypatch):
    root, result = finished
    before = rows_of(root)
    monkeypatch.setattr(worker.Worker, "train", None)
    assert run(config, root, GRID, "--parallel=2") == result
    assert rows_of(root) == before


def test_commands_that_lm_train_takes(config, finished, tmp_path, capsys):
    _, result = finished
    run(config, tmp_path / "s", GRID, "--emit=shell")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and not (tmp_path / "s").exists()
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "lm.train"]
        parsed = train_main.cli.parse(train_main.parser, words[3:], "--config.")
        if line in lines[:2]:
            train_main.main(*parsed)
    files = [tmp_path / f"s/trials/000{i}/metrics.jsonl" for i in range(2)]
    before = [path.read_text() for path in files]
    assert run(config, tmp_path / "s", GRID)["trials"] == {"done": 4}
    assert [path.read_text() for path in files] == before
    assert "nothing is left to do" in (tmp_path / "s/logs/0000.txt").read_text()
    assert rows_of(tmp_path / "s") == rows_of(finished[0])
    run(config, tmp_path / "s", GRID, "--dry-run")
    assert "4 trials" in capsys.readouterr().out


def test_what_fails_is_named_and_the_others_go_on(config, tmp_path):
    words = "model.emb_dim=int(8,10); optim.learning_rate=0.01,1e38"
    plan = [f"--sweep={words}", "--strategy=random", "--trials=4", "--seed=8"]
    plan += ["--config.guard.max_skipped=2", "--config.log_every_steps=1"]
    run(config, tmp_path / "s", *plan, "--metric=model/parameters,train/loss")
    rows = rows_of(tmp_path / "s")
    assert {row["state"] for row in rows} == {"done", "failed"}
    for row in rows:
        is_wrong = row["model.emb_dim"] == "9" or row["optim.learning_rate"] == "1e+38"
        assert is_wrong == (row["state"] == "failed") == bool(row["error"])
    done = [row for row in rows if row["state"] == "done"]
    assert float(done[0]["model/parameters"]) > 1000


def test_get_sweep_pruning_and_a_metric_that_no_run_has(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "report", lambda self, number, *_: number == 1)
    longer = ["--config.num_train_steps=200", "--config.eval_every_steps=20"]
    longer += ["--config.checkpoint_every_steps=200"]
    with pytest.raises(UserError, match="no metric 'eval/validation/acuracy'; did you"):
        run(config, tmp_path / "s", *longer, "--metric=eval/validation/acuracy")
    assert not list((tmp_path / "s/trials").glob("0001"))
    words = "--metric=eval/validation/loss", "--trials=1"
    result = run(config, tmp_path / "s", *longer, *words)
    assert result["trials"] == {"done": 1, "pruned": 1}
    pruned = rows_of(tmp_path / "s")[1]
    assert 20 <= int(pruned["step"]) < 200 and not pruned["eval/validation/loss"]
    assert result["best"] == {"optim.learning_rate": 0.001}


def children(process):
    """Processes of a sweep that train."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [
        int(pid)
        for pid in found.split()
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def is_gone(pid):
    path = Path(f"/proc/{pid}/stat")
    return not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z"


def test_kills_change_nothing(config, finished, tmp_path):
    root = tmp_path / "s"
    process = start(config, root, GRID)
    wait_for((root / "trials/0000/metrics.jsonl").exists)
    os.kill(children(process)[0], signal.SIGKILL)  # the worker goes on
    wait_for((root / "trials/0001/metrics.jsonl").exists)
    pids = children(process)
    process.kill()
    process.wait()
    assert "trial 0 goes on: its process ended by signal 9" in process.stderr.read()
    wait_for(lambda: all(map(is_gone, pids)), 10)

    process = start(config, root, GRID)
    wait_for(lambda: children(process))  # trials of this size may end any moment later
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    error = process.stderr.read()
    assert error.splitlines()[-1] == "error: terminated" and "Traceback" not in error
    assert run(config, root, GRID)["trials"] == {"done": 4}
    assert rows_of(root) == rows_of(finished[0])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--strategy=gird"], "unknown --strategy 'gird'; did you mean 'grid'"),
        (["--pruner=meden"], "unknown --pruner 'meden'; did you mean 'median'"),
        (["--sweep=optim.b1=uniform(0.1,0.9)"], "has no end; .* would be 5 points"),
        (["--sweep=optim.larning_rate=1,2"], "unknown key config.optim.larning_rate"),
        (["--sweep=model.num_heads=2,3"], "with num_heads=3: "),
        (["--strategy=random"], "--strategy=random needs --trials=N"),
        (["--parallel=0"], "--parallel must be at least 1"),
        (["--pruner=median", "--config.eval_every_steps=0"], "set --config.eval_every"),
        (["--pruner=median", "--config.eval_every_steps=4"], "set --config.eval_every"),
        (["--pruner=median", "--metric=model/parameters"], "and model/parameters is n"),
        (["--metric=accuracy"], "did you mean 'eval/validation/accuracy'"),
        (["--metric=eval/test/loss"], "did you mean 'eval/validation/loss'"),
        (["--metric=model/latency"], "did you mean 'model/latency_ms'"),
        (["--metric=train/loss,train/loss"], "train/loss twice"),
        (["--metric=train/loss:mix"], "'mix'"),
        (["--metric=train/loss,x/y", "--strategy=cmaes", "--trials=1"], "cmaes goes"),
        (["--sweep=seed=0..200; optim.b1=0.1,0.2; optim.b2=uniform(0,0.9,99)"], "more"),
        (["--workdir="], "--workdir is empty"),
        (["--workdir=HERE/file"], "cannot write to HERE/file"),
        (["--workdir=HERE/run"], "HERE/run is a workdir of lm.train"),
        (["--best=HERE/file/best.py"], "cannot write to HERE/file"),
        (["--best=HERE/run"], "--best=HERE/run is no config file"),
        (["--best=HERE/own.py"], "own.py exists, and no sweep wrote it"),
        (["--sweep=optim.b1=0.9,0.90"], "optim.b1 has equal values"),
        (["--storage=sqlite://"], "--storage=sqlite:// keeps nothing"),
        (["--storage=no url"], "cannot open the database no url"),
        (["--storage=sqlite:////no/such/folder/a.db"], "set another --storage"),
        (["--storage=postgresql+psycopg2cffi://a/b"], "'psycopg2cffi'; pip install 'p"),
        (["--storage=postgresql://a:secret@127.0.0.1:1/b"], "a:\\*\\*\\*@127"),
        (["--strategy=tpe", "--trials=2", "--dry-run"], "chooses while it runs"),
    ],
)
def test_mistakes_are_one_line(config, tmp_path, words, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "own.py").write_text("def get_config(): ...")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    words = [word.replace("HERE", str(tmp_path)) for word in words]
    with pytest.raises(UserError, match=message.replace("HERE", str(tmp_path))) as e:
        run(config, tmp_path / "s", *words)
    assert "\n" not in str(e.value) and not (tmp_path / "s/trials").exists()


def test_a_folder_has_one_sweep(tmp_path):
    Study(tmp_path, make_plan(), "")
    said = "is of another sweep: its space is another; choose another --workdir$"
    with pytest.raises(UserError, match=said):
        Study(tmp_path, make_plan("optim.learning_rate=log(1e-5,1e-2)"), "")
    with pytest.raises(UserError, match="its strategy is random, not tpe; choose"):
        Study(tmp_path, make_plan(strategy="tpe"), "")


def test_what_get_sweep_returns_is_a_space(config, tmp_path):
    body = CONFIG.partition("def get_sweep")[0]
    other = config.with_name("no_space.py")
    other.write_text(body + "def get_sweep():\n    return {'seed': [0, 1]}\n")
    with pytest.raises(UserError, match="returned dict, not a Space; build one with"):
        run(other, tmp_path / "s", "--dry-run")


# Workers and schedules.


@pytest.mark.parametrize(
    "error, state",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events"), "refused"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "refused"),
        (UserError("no space for a checkpoint of 1 MB; free some"), "refused"),
        (UserError("cannot write a: No space left on device; make room"), "refused"),
        (worker.NoMetricError("a run has no metric"), "refused"),
        (UserError("the loss is NaN"), "failed"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "events"), "failed"),
        (ValueError("a bug"), "failed"),
    ],
)
def test_a_trial_fails_by_its_own_fault_only(error, state, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setattr(worker, "_run", fail)
    found = worker.outcome(worker.Job("c.py", (), "w", "log", (ACCURACY,)))
    assert found["state"] == state and str(error) in found["error"]


def test_a_metric_is_the_best_one_only_if_its_checkpoint_is_kept(tmp_path, monkeypatch):
    from types import SimpleNamespace as Space

    values = [0.5, None, 0.9, 0.7]
    lines = [json.dumps({"step": i, ACCURACY.name: v}) for i, v in enumerate(values)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for keep_best, name, value in ((1, "accuracy", 0.9), (1, "f1", 0.7), (0, "", 0.7)):
        kept = Space(keep_best=keep_best, best_metric=name, best_mode="max")
        monkeypatch.setattr(
            "lm.train.workdir.load_config", lambda _, kept=kept: Space(checkpoint=kept)
        )
        assert worker.measure(tmp_path, ACCURACY, {}) == value
    with pytest.raises(worker.NoMetricError, match="'a/b'; choose from: eval/"):
        worker.measure(tmp_path, Metric("a/b", "max"), {"step": 1})


def test_lines_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = scheduler._Tail(path)
    assert not list(tail.read())
    path.write_text('{"step": 1}\n{"step"')
    assert list(tail.read()) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert list(tail.read()) == [{"step": 2}] and not list(tail.read())
    path.write_text('{"step": 0}\n')  # a resumed run took lines away
    assert list(tail.read()) == [{"step": 0}]


def test_shares_are_disjoint(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    env = [share["env"]["CUDA_VISIBLE_DEVICES"] for share in worker.shares(2)]
    assert env == ["0,2", "1"]
    with pytest.raises(UserError, match="more than the 3 devices"):
        worker.shares(4)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert [share["env"] for share in worker.shares(4)] == [{}] * 4
