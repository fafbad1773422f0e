import csv
import dataclasses
import doctest
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.search import charts, importance, page, results, view
from experiments.search.charts import NOT_SET, Axis
from experiments.search.importance import LEAST, importances
from experiments.search.results import Metric, Trial, fold
from experiments.search.view import Sweep
from lm.types import UserError
from tests.web_page import Parsed

ACCURACY = Metric("eval/validation/accuracy", "max")
LOSS = Metric("eval/validation/loss", "min")
EVIL = '<script>alert("&")</script><img src=x>\u202e\x07\ud800 $title </svg>\n'
finite = st.floats(-1e6, 1e6)
values = st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf]))


def trial(number=0, values=(0.5,), state="done", error="", **overrides):
    overrides = {k.replace("__", "."): v for k, v in overrides.items()}
    folder = f"trials/{number:04d}"
    return Trial(number, overrides, state, values, 2.5, 100, error, folder)


def grid(rates=(1e-5, 1e-4, 1e-3), layers=(2, 4, 6), seeds=(0, 1)):
    """A sweep whose accuracy is that of the rate, and a little of the seed."""
    cells = [(r, n, s) for r in rates for n in layers for s in seeds]
    return [
        trial(
            i,
            (0.9 + 0.1 * math.log10(rate) + 0.001 * seed, float(layers)),
            optim__learning_rate=rate,
            model__num_layers=layers,
            seed=seed,
        )
        for i, (rate, layers, seed) in enumerate(cells)
    ]


# Points.


def test_trials_that_differ_in_the_seed_alone_are_one_point():
    trials = [
        trial(3, (0.4,), rate=0.1, dims=[1, 2], seed=0),
        trial(1, (0.6,), rate=0.1, dims=(1, 2), seed=1),
        trial(2, (0.9,), rate=0.2, dims=[1, 2], seed=0),
        trial(0, (0.1,), rate=0.1, seed=0),
    ]
    points = fold(trials, [ACCURACY])
    assert [[t.number for t in p.trials] for p in points] == [[2], [1, 3], [0]]
    assert points[1].overrides == {"rate": 0.1, "dims": (1, 2)}
    assert [p.seeds for p in points] == [1, 2, 1]
    assert points[1].seconds == 5.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), values), max_size=20))
def test_every_trial_is_in_one_point_and_the_best_come_first(rows):
    trials = [trial(i, (v,), a=a, seed=s) for i, (a, s, v) in enumerate(rows)]
    for metric in (ACCURACY, Metric("loss", "min")):
        points = fold(trials, [metric])
        numbers = [t.number for p in points for t in p.trials]
        assert sorted(numbers) == list(range(len(rows)))
        assert len(points) == len({a for a, *_ in rows})
        means = [p.means[0] for p in points if math.isfinite(p.means[0])]
        # Those that lack a seed are behind the others, those without a value last.
        whole = [p.is_whole for p in points[: len(means)]]
        assert whole == sorted(whole, reverse=True)
        for part in (means[: sum(whole)], means[sum(whole) :]):
            assert part == sorted(part, reverse=metric.mode == "max")
        assert all(math.isfinite(p.means[0]) for p in points[: len(means)])
        best = results.best(points, [metric])
        assert best is (points[0] if means else None)


@given(st.lists(finite, min_size=2, max_size=8))
def test_the_interval_is_students(values):
    trials = [trial(i, (v,), seed=i) for i, v in enumerate(values)]
    (point,) = fold(trials, [ACCURACY])
    assert point.means[0] == pytest.approx(sum(values) / len(values), abs=1e-6)
    error = stats.sem(values)
    if error > 0:
        ends = stats.t.interval(0.95, len(values) - 1, point.means[0], error)
        assert (point.lows[0], point.highs[0]) == pytest.approx(ends)
    else:
        assert point.lows == point.means == point.highs


def test_one_seed_trained_twice_tells_nothing_of_chance():
    trials = [trial(0, (0.4,), a=1), trial(1, (0.6,), a=1)]
    (point,) = fold(trials, [ACCURACY])
    assert point.means == (0.5,) and point.seeds == 1
    assert math.isnan(point.lows[0])


def test_a_seed_that_is_not_finite_is_not_hidden():
    trials = [trial(0, (0.9,), a=1, seed=0), trial(1, (math.nan,), a=1, seed=1)]
    trials += [trial(2, (0.1,), a=2), trial(3, (), "failed", a=2, seed=4)]
    points = fold(trials, [ACCURACY])
    assert points[0].overrides == {"a": 2} and points[0].means == (0.1,)
    assert math.isnan(points[1].means[0])


def test_a_point_that_lost_a_seed_is_not_the_best():
    trials = [trial(0, (0.9,), a=1, seed=0), trial(1, (), "failed", a=1, seed=1)]
    trials += [trial(2, (0.5,), a=2, seed=0), trial(3, (0.7,), a=2, seed=1)]
    points = fold(trials, [ACCURACY])
    assert [point.overrides for point in points] == [{"a": 2}, {"a": 1}]
    assert results.best(points[::-1], [ACCURACY]) is points[0]


def test_equal_points_are_ordered_by_the_next_metric():
    trials = [trial(0, (0.5, 3.0), a=1), trial(1, (0.5, 2.0), a=2)]
    points = fold(trials, [ACCURACY, LOSS])
    assert results.best(points, [ACCURACY, LOSS]) is points[0]
    assert points[0].overrides == {"a": 2}


def test_a_mode_is_max_or_min():
    with pytest.raises(UserError, match="'best' is neither"):
        Metric("loss", "best")


@pytest.mark.parametrize("module", [charts, page, results, view])
def test_its_examples_are_true(module):
    ran = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert ran.attempted and not ran.failed


# The Pareto front.


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.tuples(
            st.lists(st.sampled_from(["max", "min"]), min_size=n, max_size=n),
            st.lists(st.tuples(*[st.integers(0, 4)] * n), max_size=15),
        )
    )
)
def test_the_front_is_what_nothing_beats(case):
    modes, rows = case

    def beats(one, other):
        gains = [a - b if m == "max" else b - a for a, b, m in zip(one, other, modes)]
        return min(gains) >= 0 and max(gains) > 0

    expected = [i for i, r in enumerate(rows) if not any(beats(o, r) for o in rows)]
    front = results.front(rows, modes)
    assert sorted(front) == expected
    firsts = [rows[i][0] for i in front]
    assert firsts == sorted(firsts, reverse=modes[0] == "max")


def test_what_has_no_value_is_not_on_the_front():
    trials = [trial(0, (0.5, 1.0), a=1), trial(1, (0.9, math.nan), a=2)]
    trials += [trial(2, (), "pruned", a=3), trial(3, (0.4, 2.0), a=4)]
    points = fold(trials, [ACCURACY, LOSS])
    front = results.pareto(points, [ACCURACY, LOSS])
    assert [p.overrides["a"] for p in front] == [1]


# Tables.

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    finite,
    st.text(max_size=4),
    st.lists(st.integers(0, 9), max_size=2),
)


# The first text of a fresh checkout takes Hypothesis seconds on a busy machine.
@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from("abc"), plain), values), max_size=5
    ),
)
def test_the_json_file_is_the_trials_again(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("sweep")
    trials = [
        dataclasses.replace(trial(i, (v,), error="ü\n"), overrides=o)
        for i, (o, v) in enumerate(rows)
    ]
    trials.append(trial(len(rows), (), "waiting"))
    results.write_tables(folder, trials, [ACCURACY])
    read, metrics = results.read_tables(folder)
    assert metrics == [ACCURACY]
    for before, after in zip(trials, read, strict=True):
        old, new = (dataclasses.replace(t, values=()) for t in (before, after))
        assert old == new
        is_finite = all(map(math.isfinite, before.values))
        assert after.values == before.values if is_finite else math.isnan(*after.values)


def test_the_csv_file_has_a_row_for_each_trial(tmp_path):
    trials = [
        trial(0, (0.1 + 0.2,), rate=1e-5, seed=3, kind='a,"b"\n'),
        trial(1, (), "failed", "no room", seed=4, dims=[1, 2], on=True),
    ]
    sheet, whole = results.write_tables(tmp_path, trials, [ACCURACY])
    with sheet.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == [
        *("number", "state", "rate", "kind", "dims", "on", "seed", ACCURACY.name),
        *("seconds", "step", "error", "workdir"),
    ]
    assert float(first[ACCURACY.name]) == 0.1 + 0.2 and float(first["rate"]) == 1e-5
    assert first["kind"] == 'a,"b"\n' and first["dims"] == ""
    assert json.loads(second["dims"]) == [1, 2] and second["on"] == "true"
    assert second[ACCURACY.name] == "" and second["error"] == "no room"
    points = json.loads(whole.read_text())["points"]
    assert [point["trials"] for point in points] == [[0], [1]]
    assert points[1]["means"] == [None]


def test_what_is_no_sweep_is_named(tmp_path):
    with pytest.raises(UserError, match="name a sweep's folder"):
        results.read_tables(tmp_path)
    (tmp_path / "results.json").write_text('{"metrics": 1}')
    with pytest.raises(UserError, match="is not a sweep's"):
        results.read_tables(tmp_path)


# Axes.


@given(st.lists(st.one_of(finite, plain), min_size=1, max_size=30))
def test_every_value_has_its_place(found):
    axis = Axis(found)
    places = {results.identity(v): axis.place(v) for v in found}
    assert all(0 <= place <= 1 for place in places.values())
    numbers = sorted(v for v in found if isinstance(v, int | float) and v not in (0, 1))
    at = [axis.place(v) for v in numbers]
    assert at == sorted(at)
    assert all(0 <= place <= 1 for place, _ in axis.ticks)


def test_an_axis_is_logarithmic_where_values_are():
    axis = Axis([1e-5, 1e-4, 1e-3])
    assert axis.is_log
    assert [place for place, _ in axis.ticks] == pytest.approx([0, 0.5, 1])
    assert [label for _, label in axis.ticks] == ["1e-05", "0.0001", "0.001"]
    assert not Axis([2, 4, 6]).is_log and not Axis([-1, 1e-3, 1e3]).is_log
    # Evenly drawn, the least of many is very small.
    assert not Axis([0.5 * i / 100 for i in range(1, 101)]).is_log


def test_what_is_no_number_stands_below_the_numbers():
    axis = Axis([NOT_SET, 0, 1e-4, 1e-1, 0.0])
    at = [axis.place(v) for v in (NOT_SET, 0, 1e-4, 1e-1)]
    assert at == sorted(set(at)) and axis.place(0.0) == at[1]
    assert Axis(["b", "a", [1, 2]]).ticks == [(0.0, "[1, 2]"), (0.5, "a"), (1.0, "b")]


# Importance.


def importance_of(trials, metric=0):
    sweep = Sweep(None, trials, [ACCURACY, LOSS], "", ())  # pyright: ignore
    return importances(sweep.points, sweep.axes, metric)


def test_what_a_value_owes_to_a_key_is_important():
    shares, why = importance_of(grid())
    assert not why and sum(shares.values()) == pytest.approx(1)
    assert list(shares)[0] == "optim.learning_rate"
    assert shares["optim.learning_rate"] > 0.95
    assert importance_of(grid(), 1)[0]["model.num_layers"] > 0.95


def test_importance_is_the_same_every_time(monkeypatch):
    assert importance_of(grid()) == importance_of(grid())
    monkeypatch.setattr(importance, "MOST", LEAST)
    assert importance_of(grid()) == importance_of(grid())
    assert len(importance_of(grid())[0]) == 2


def test_without_enough_to_learn_from_it_is_said_why():
    few = grid()[:4]
    assert importance_of(few) == (
        {},
        f"it takes {LEAST} points with a value; there are 2.",
    )
    equal = [dataclasses.replace(t, values=(0.5, 0.5)) for t in grid()]
    assert importance_of(equal)[1] == "all values are equal."
    one = [trial(i, (i / 9, 0.0), rate=i / 10) for i in range(LEAST)]
    assert importance_of(one)[1] == "one key has nothing to be compared with."


# The page.


def written(folder, trials, metrics=(ACCURACY,), **how):
    text = page.write_page(folder, trials, metrics, **how).read_text()
    parsed = Parsed(text, allowed="trials/")
    assert not parsed.outside and parsed.tags.count("script") == 1
    places = re.findall('(?:points|x|y|cx|cy|style)="([^"]*)"', text)
    assert not [at for at in places if "nan" in at or "inf" in at]
    return text, parsed


def headings(text):
    return re.findall("<h2>(.*?)</h2>", text)


def write_logs(folder, trials):
    for t in trials:
        (folder / t.workdir).mkdir(parents=True)
        rows = [
            {"step": step, "train/loss": 1 / step, ACCURACY.name: t.number / 99}
            for step in range(10, 60, 10)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / t.workdir / "metrics.jsonl").write_text(text)


def test_the_page_has_every_section_once(tmp_path):
    trials = [*grid(), trial(90, (), "failed", "no room", optim__learning_rate=1.0)]
    write_logs(tmp_path, trials)
    text, parsed = written(
        tmp_path,
        trials,
        [ACCURACY, LOSS],
        command="python -m experiments.sweep --sweep='a=1,2'",
        base=["--config=configs/bbc.py", "--config.batch_size=16"],
    )
    assert headings(text) == [
        *("Best point", "Parallel coordinates", "Importance", "Values", "Curves"),
        *("Pareto front", "Points", "Errors", "How it was made"),
    ]
    assert parsed.points == {None, *map(str, range(10))}
    assert "18 done, 1 failed" in text and "<b>1 of 19 trials failed</b>" in text
    best = fold(trials, [ACCURACY, LOSS])[0]
    assert f"<b>{best.means[0]:.3f}</b></div>" in text
    assert f"{best.means[0]:.3f} ± {best.highs[0] - best.means[0]:.3f}" in text
    # What all trials have in common is part of the command, too.
    command = "--config=configs/bbc.py --config.batch_size=16 "
    command += "--config.optim.learning_rate=0.001"
    assert command in text and "--sweep=&#x27;a=1,2&#x27;" in text


def test_curves_are_of_all_runs_and_the_best_points_are_bold(tmp_path):
    trials = grid()
    write_logs(tmp_path, trials[:12])
    (tmp_path / trials[0].workdir / "metrics.jsonl").write_text("broken\n")
    text, _ = written(tmp_path, trials, [ACCURACY, LOSS])
    curves = text[text.index("<h2>Curves") : text.index("<h2>Pareto")]
    assert curves.count("<figure>") == 2 and curves.count("11 trials") == 2
    assert len(re.findall('<polyline class="run (top|faint)"', curves)) == 22
    text, _ = written(tmp_path, trials[:12], [ACCURACY, LOSS])
    curves = text[text.index("<h2>Curves") : text.index("<h2>Pareto")]
    assert len(re.findall('<polyline class="run top"', curves)) == 4


LONG = "a very long text, " * 30
ODD = {
    "no trials": [],
    "none begun": [trial(0, (), "waiting", a=1), trial(1, (), "running", a=2)],
    "all failed": [trial(i, (), "failed", EVIL, a=i) for i in range(3)],
    "no message": [trial(0, (), "failed", a=1)],
    "one trial": [trial(0, (0.5,), a=1)],
    "no keys": [trial(0, (0.5,))],
    "only seeds": [trial(i, (0.5 + i / 9,), seed=i) for i in range(3)],
    "a NaN": [trial(0, (math.nan,), a=1), trial(1, (0.5,), a=2)],
    "only NaN": [trial(0, (math.nan,), a=1)],
    "infinities": [trial(0, (math.inf,), a=1), trial(1, (-math.inf,), a=1, seed=1)],
    "equal values": [trial(i, (0.5,), a=i, b=i % 2) for i in range(12)],
    "equal keys": [trial(i, (i / 9,), a=1, b="x") for i in range(12)],
    "other keys": [
        trial(i, (i / 9,), **({"a": i} if i % 2 else {"b": "x"}), c=i)
        for i in range(12)
    ],
    "long": [trial(i, (0.5,), a=LONG + str(i), **{"x" * 90: 1}) for i in range(3)],
    "evil": [trial(0, (0.5,), "failed", EVIL, **{EVIL: EVIL}), trial(1, **{EVIL: 1})],
    "lists": [trial(i, (i / 9,), a=[i % 3, ["b"]], b=(i % 2,)) for i in range(12)],
    "mixed": [
        trial(i, (i / 9,), a=v, b=i)
        for i, v in enumerate([None, True, False, 0, 1, 1e-9, "1", math.inf, math.nan])
    ],
    "many keys": [
        trial(i, (i / 9,), **{f"k{k}": i * k for k in range(40)}) for i in range(3)
    ],
    "great": [trial(i, (10.0 ** (3 * i),), a=10.0 ** (9 * i)) for i in range(-6, 6)],
}


@pytest.mark.parametrize("name", ODD)
def test_the_page_is_whole_whatever_the_trials(tmp_path, name):
    text, parsed = written(tmp_path, ODD[name])
    assert "img" not in parsed.tags and "\u202e" not in text
    is_done = any(t.values and math.isfinite(t.values[0]) for t in ODD[name])
    is_best = results.best(fold(ODD[name], [ACCURACY]), [ACCURACY]) is not None
    assert ("Best point" in headings(text)) == is_best <= is_done
    assert ("No point has a value yet." in text) == (not is_best)
    numbers = {str(i) for i in range(len(fold(ODD[name], [ACCURACY])))}
    assert parsed.points == {None, *numbers}


def test_one_metric_may_be_missing_where_another_is_not(tmp_path):
    trials = [trial(0, (0.5, math.nan), a=1), trial(1, (0.4, 2.0), a=2)]
    text, _ = written(tmp_path, trials, [ACCURACY, LOSS])
    assert "<b>1 point</b> not beaten" in text


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        page.write_page(tmp_path / "none", grid(), [ACCURACY, LOSS])
