import json
import math
import re

import pytest

from lm.page import heat
from lm.scorecard import MAX_LABELS, SHOWN_EXAMPLES, SHOWN_ROWS, render, write
from lm.types import UserError
from tests.web_page import Parsed

EVIL = '<script>alert("&")</script><img src=x>\u202e\x07\ud800 $title'


def labelled():
    return {
        "title": "Topics",
        "workdir": "runs/topics",
        "step": 1200,
        "split": "test",
        "task": "classify",
        "model": "bert",
        "examples": 1500,
        "created": "2025-11-24T12:16:05+00:00",
        "command": "python -m lm.evaluate --workdir=runs/topics",
        "scores": [
            {
                "name": "accuracy",
                "value": 0.95,
                "low": 0.94,
                "high": 0.96,
                "baseline": {"name": "tf-idf", "value": 0.931},
            },
            {"name": "loss", "value": 0.125},
        ],
        "overlap": {"exact": 0, "near": 0, "checked_against": "train"},
        "curves": {
            "train/loss": [[10, 2.0], [20, 1.0]],
            "eval/validation/loss": [[20, 1.5]],
            "eval/validation/accuracy": [[20, 0.75]],
        },
        "confusion": {"labels": ["sports", "tech"], "matrix": [[90, 10], [0, 50]]},
        "per_class": [
            {"label": "sports", "precision": 1.0, "recall": 0.9, "f1": 0.947},
            {
                "label": "tech",
                "precision": 0.8,
                "recall": 1.0,
                "f1": 0.9,
                "support": 50,
            },
        ],
        "calibration": [
            {"confidence": 0.5, "accuracy": 0.7, "count": 10},
            {"confidence": 0.9, "accuracy": 0.8, "count": 30},
        ],
        "roc": {"points": [[0, 0], [0.1, 0.9], [1, 1]], "auc": 0.96},
        "seeds": {
            "values": {"0": 0.95, "1": 0.94},
            "mean": 0.945,
            "low": 0.93,
            "high": 0.96,
        },
        "worst": [
            {
                "text": "A ball",
                "gold": "sports",
                "predicted": "tech",
                "probability": 0.9,
            }
        ],
        "config": {"optim": {"b1": 0.9}, "seed": 0},
        "versions": {"jax": "0.10.2"},
    }


TITLES = {
    "scores": "Scores",
    "seeds": "Seeds",
    "per_class": "Labels",
    "confusion": "Confusion",
    "curves": "Training",
    "worst": "Worst examples",
}


def headings(page):
    return re.findall("<h2>(.*?)</h2>", page)


def without(report, *keys):
    return {key: value for key, value in report.items() if key not in keys}


def test_the_page_has_every_section_once_and_nothing_from_outside():
    page = render(labelled())
    parsed = Parsed(page)
    assert headings(page) == [
        *("Scores", "Seeds", "Labels", "Confusion", "Probabilities", "Training"),
        *("Worst examples", "How it was made"),
    ]
    assert not parsed.outside and "script" not in parsed.tags
    assert "url(" not in page and "@import" not in page
    for text in ("1,500", "24 Nov 2025, 12:16 UTC", "optim.b1", "0.10.2", "--workdir"):
        assert text in page


@pytest.mark.parametrize("key", TITLES)
def test_a_section_that_is_missing_is_left_out(key):
    page = render(without(labelled(), key))
    Parsed(page)
    assert headings(page) == [
        t for t in headings(render(labelled())) if t != TITLES[key]
    ]


def test_sections_of_two_parts_are_left_out_when_both_are_missing():
    for parts, title in (
        (("calibration", "roc"), "Probabilities"),
        (("command", "config", "versions"), "How it was made"),
    ):
        report = labelled()
        for part in parts:
            assert title in headings(render(report))
            del report[part]
        assert title not in headings(render(report))


def test_a_title_is_enough():
    page = render({"title": "Bare"})
    Parsed(page)
    assert "<h1>Bare</h1>" in page and not headings(page)


def test_the_headline_says_where_the_baseline_is():
    report = labelled()
    for value, where in ((0.93, "below"), (0.94, "inside"), (0.97, "above")):
        report["scores"][0]["baseline"]["value"] = value
        assert f"<b>{value:.3f}</b>, {where} the interval" in render(report)


def test_overlap_is_told_before_the_scores():
    report = labelled()
    page = render(report)
    assert page.index('"verdict good">No example of <b>test</b>') < page.index("<h2>")
    report["overlap"] |= {
        "exact": 2,
        "near": 1,
        "samples": [{"text": "a b c", "train_text": "a b d", "similarity": 0.8123}],
        "scores_without": {"accuracy": 0.9412},
    }
    page = render(report)
    assert (
        "verdict bad" in page
        and "3 of 1,500 examples of test are also in train" in page
    )
    assert "2 the same, 1 nearly" in page and "accuracy is <b>0.941</b>" in page
    assert "similarity 0.812" in page and "without overlap" in page
    report["overlap"]["left_out"] = 2
    assert "3 of 1,502 examples" in (page := render(report)) and "verdict bad" in page
    report["overlap"] |= {"near": 0}
    assert "verdict good" in (page := render(report)) and "2 of them are not" in page


def test_nothing_that_is_shown_can_run_or_turn_the_page():
    report = labelled()

    def poison(value):
        if isinstance(value, dict):
            return {
                key if key in KEYS else EVIL + key: poison(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [poison(item) for item in value]
        return EVIL if isinstance(value, str) else value

    report["overlap"] |= {
        "near": 1,
        "samples": [{"text": EVIL, "train_text": EVIL * 99, "similarity": 1.0}],
    }
    page = render(poison(without(report, "created")))
    parsed = Parsed(page)
    assert "script" not in parsed.tags and not parsed.outside
    assert not set("\u202e\x07\ud800") & set(page)
    assert "&lt;script&gt;alert(&quot;&amp;&quot;)" in page
    assert "\\u202e\\x07\\ud800 $title" in page
    page.encode()


KEYS = set(labelled()) | {
    *("name", "value", "low", "high", "baseline", "exact", "near", "checked_against"),
    *(
        "labels",
        "matrix",
        "label",
        "precision",
        "recall",
        "f1",
        "support",
        "confidence",
    ),
    *("accuracy", "count", "points", "auc", "values", "mean", "text", "gold"),
    *("predicted", "probability", "samples", "train_text", "similarity"),
}


def test_numbers_that_are_missing_are_dashes():
    report = labelled()
    report["scores"] = [
        {"name": "accuracy", "value": math.nan, "low": None, "high": math.nan},
        {
            "name": "f1",
            "value": None,
            "baseline": {"name": "tf-idf", "value": math.inf},
        },
    ]
    report["per_class"][0]["f1"] = None
    report["seeds"] = {"values": {"0": math.nan}, "mean": None}
    report["roc"]["auc"] = math.nan
    report["calibration"][0]["accuracy"] = math.nan
    report["curves"] = {"train/loss": [[1, math.nan], [2, None]]}
    page = render(report)
    Parsed(page)
    assert not re.search(r"\b(nan|inf|None)\b", page.split("</style>")[1])
    assert "Training" not in headings(page) and "Seeds" not in headings(page)
    assert "(ECE) 0.100" in page


def test_the_calibration_error_is_weighted_by_the_examples():
    # (10 * 0.2 + 30 * 0.1) / 40
    assert "(ECE) 0.125" in render(labelled())


def test_losses_share_axes_and_so_do_shares():
    report = labelled()
    report["curves"]["train/loss"] = [[10, 0.5], [20, 0.25]]
    report["curves"]["eval/validation/loss"] = [[20, 0.5]]
    report["curves"]["train/perplexity"] = [[10, 9.0]]
    report["curves"]["optim/learning_rate"] = [[10, 0.001]]
    captions = re.findall("<figcaption>(.*?)</figcaption>", render(report))[2:]
    assert [re.findall(r"[a-z_0-9]+/[a-z_/0-9]+(?= <)", c) for c in captions] == [
        ["train/loss", "eval/validation/loss"],
        ["eval/validation/accuracy"],
        ["train/perplexity"],
        ["optim/learning_rate"],
    ]


def test_the_matrix_shows_counts_and_shares_of_rows():
    page = render(labelled())
    assert re.search(r"<div class=s0 [^>]*>90<small>90%", page)
    assert re.search(r"<div class=s1 [^>]*>10<small>10%", page)
    assert "sports as tech (10)" in page and "<td>100</td>" in page
    assert heat(0, 10, 1) == ""


def test_a_big_matrix_keeps_the_labels_that_are_mistaken():
    names = [f"label{i:02}" for i in range(MAX_LABELS + 2)]
    matrix = [
        [9 if i == j else 1 for j in range(len(names))] for i in range(len(names))
    ]
    for other in range(len(names)):
        for right in (4, 7):
            matrix[right][other] = matrix[other][right] = 0
    report = {"title": "", "confusion": {"labels": names, "matrix": matrix}}
    heads = re.findall("<th><span>(.*?)</span>", render(report))
    assert heads == [name for name in names if name not in ("label04", "label07")]


def test_labels_come_weakest_first_and_the_others_on_a_click():
    rows = [{"label": f"x{i}", "f1": 1 - i / 100} for i in range(SHOWN_ROWS + 3)]
    page = render({"title": "", "per_class": rows})
    assert "3 more" in page
    names = re.findall(r"<th>(x\d+)</th>", page)
    assert names == [row["label"] for row in rows[::-1]]


def test_examples_show_answers_of_every_task():
    worst = [
        {"text": "t", "gold": "sports", "predicted": "tech", "loss": 4.25},
        {"text": "t", "gold": ["B-PER", "O"], "predicted": []},
        {"text": "t", "gold": 3.5, "predicted": 4.25},
        {"text": "t", "gold": None},
        {"text": "t", "gold": "une longue phrase " * 4, "predicted": ""},
        {"text": ""},
    ] + [{"text": "t"}] * SHOWN_EXAMPLES
    page = render({"title": "", "worst": worst})
    Parsed(page)
    for answer in ("sports", "B-PER, O", "3.500", "4.250"):
        assert f">{answer}<" in page
    assert page.count("<dl class=block>") == 1 and "6 more" in page


def test_one_more_column_for_what_only_some_scores_have():
    page = render({"title": "", "scores": [{"name": "em", "value": 71.2}]})
    assert (
        "71.20" in page and "interval</span>" not in page and "strip" not in body(page)
    )
    page = render(labelled())
    assert "difference" in page and "+0.019" in page
    # A loss of 0.125 has no place on the axis of an accuracy of 0.95.
    assert body(page).count("<svg class=strip>") == 2


def body(page):
    return page.split("</style>")[1]


def test_a_written_report_is_its_json_and_its_page(tmp_path):
    report = labelled() | {"seeds": {"values": {"0": math.nan}, "mean": math.inf}}
    page = write(report, tmp_path, "report-test.v1")
    assert page == tmp_path / "report-test.v1.html"
    assert page.read_text(encoding="utf-8") == render(report)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report-test.v1.html", "report-test.v1.json")
    }
    read = json.loads((tmp_path / "report-test.v1.json").read_text())
    assert read["seeds"] == {"values": {"0": None}, "mean": None}
    assert without(read, "seeds") == without(report, "seeds")
    assert render(read) == render(report)


def test_a_report_that_cannot_be_shown_leaves_no_file(tmp_path):
    with pytest.raises(KeyError):
        write(without(labelled(), "title"), tmp_path, "report")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot write .*missing/report.json: No such"):
        write(labelled(), tmp_path / "missing", "report")
