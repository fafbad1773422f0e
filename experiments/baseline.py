"""Fits a linear model to a config's data: the score that a network has to beat.

    python -m experiments.baseline --workdir=runs/bbc --split=test
    python -m experiments.baseline --config=configs/bbc.py --split=test --output=a.json

Examples and scores are those of `lm.evaluate`, which leaves out examples whose text is
in the training split. Of a few models it is the one with the best first score on the
config's `eval_split`:

    classify, pair, relation   tf-idf of words and pairs of words, or of one to three
                               characters where words are not spaced; logistic
                               regression, of a number ridge regression
    tag                        how a word is written, the words around it, and which
                               tags they have in training; logistic regression
    rank                       the cosine of tf-idf of words, or of parts of words

With --workdir the scores go to its `baseline-SPLIT.json`, which `lm.evaluate` puts into
its report.
"""

import contextlib
import dataclasses
import math
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.linear import MODELS, Candidate, Example, Split, targets
from lm import cli
from lm import config as config_lib
from lm.atomic import write_json
from lm.text.overlap import find_overlap
from lm.types import UserError

parser = cli.make_parser(__doc__)
given = parser.add_mutually_exclusive_group(required=True)
given.add_argument("--workdir", help="the folder of a run of lm.train")
given.add_argument("--config", help="a config file; --config.KEY=VALUE overrides")
parser.add_argument("--split", default="", help="default: the config's eval_split")
parser.add_argument("--output", help="a .json to write; default: in the workdir")


def main(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """Fits, prints the scores beside the model's, and writes them."""
    from lm.train import workdir
    from lm.train.config import Config

    if args.config is None and overrides:
        raise UserError(f"{overrides[0]} needs --config; a workdir has its own")
    if args.config is None:
        config = workdir.load_config(Path(args.workdir))
    else:
        config = Config.of(config_lib.load(args.config, overrides))
    split = args.split or config.data.eval_split
    report, output = {}, args.output
    if args.config is None:
        found = Path(args.workdir) / f"report-{split}.json"
        report = config_lib.read(found) if found.exists() else {}
        output = output or f"{args.workdir}/baseline-{split}.json"
    if output and not Path(output).parent.is_dir():
        raise UserError(
            f"there is no folder {Path(output).parent} for --output; make it"
        )
    result = fit(config, split)
    _print_scores(split, result, report)
    if output:
        write_json(Path(output), result)
        print(f"wrote {output}")
    return result


def fit(config: Any, split: str) -> dict[str, Any]:
    """Fits the models for a config's task and scores the best one.

    Returns:
        `name`, `scores`, `examples` (how many were scored) and `seconds`.

    Raises:
        UserError: If there is no model for the task, or the texts cannot be used.
    """
    from lm.tasks import TASKS
    from lm.text.tokenizer import ByteTokenizer

    began = time.perf_counter()
    name, data = config.task.name, config.data
    if name not in MODELS:
        raise UserError(
            f"task {name} has no baseline; those that have one: {', '.join(MODELS)}"
        )
    rows = _rows(data, data.train_split)
    task_class = TASKS[name][1]
    task_config = task_class.resolve(config.task, rows, data.bad_rows == "skip")
    # It checks examples and numbers their labels; the tokens play no part.
    task = task_class(_without_limits(task_config), ByteTokenizer(0))
    train = _usable(task, rows, data)
    held_out = _usable(task, _rows(data, split), data)
    if split == data.eval_split:
        cli.say(f"{split} also chooses the model, so the scores flatter it a little")
        chosen_on = held_out
    else:
        chosen_on = _usable(task, _rows(data, data.eval_split), data)
    examples = _unseen(task, rows, held_out.examples, split, data)
    best = _best(task, MODELS[name](task, train), chosen_on.examples)
    if getattr(task_config, "thresholds", ()):
        task = _with_thresholds(task, best, chosen_on)
    return {
        "name": best.name,
        "scores": task.score(examples, best.predict(examples)),
        "examples": len(examples),
        "seconds": time.perf_counter() - began,
    }


def _best(
    task: Any, candidates: Iterable[Candidate], examples: Sequence[Example]
) -> Candidate:
    """Returns the first candidate with the highest first score."""
    best, highest = None, -math.inf
    for candidate in candidates:
        scores = task.score(examples, candidate.predict(examples))
        metric, score = next(iter(scores.items()))
        cli.say(f"{candidate.name}: {metric} {score:.4f}")
        if best is None or score > highest:
            best, highest = candidate, score
    assert best is not None
    return best


def _rows(data: Any, split: str) -> list[Example]:
    """Reads a split.

    Raises:
        UserError: If nothing is in it.
    """
    from lm.data.sources import open_source

    rows = []
    for spec in data.sources:
        source = open_source(spec, data.data_dir, data.bad_rows)
        rows += source.examples(split)
        source.bad_rows.say(f"{spec} {split}")
    if not rows:
        raise UserError(f"{', '.join(data.sources)} {split} has no text")
    return rows


def _without_limits(task_config: Any) -> Any:
    """Returns a task's config without what is of its network alone."""
    from lm.tasks import classify

    if not isinstance(task_config, classify.Config):
        return task_config
    return dataclasses.replace(task_config, long_texts="cut", thresholds=())


def _usable(task: Any, rows: Sequence[Example], data: Any) -> Split:
    """Encodes examples, and raises or leaves out those that the task refuses."""
    pairs = list(zip(rows, task.encode(rows)))
    errors = [document for _, document in pairs if isinstance(document, UserError)]
    if errors and (data.bad_rows == "stop" or len(errors) == len(rows)):
        raise errors[0]
    return Split(*zip(*(pair for pair in pairs if not isinstance(pair[1], UserError))))


def _unseen(
    task: Any,
    rows: Iterable[Example],
    examples: Sequence[Example],
    split: str,
    data: Any,
) -> list[Example]:
    """Leaves out the examples that `lm.evaluate` leaves out."""

    def train() -> Iterator[str]:
        for row in rows:
            with contextlib.suppress(UserError):
                yield task.text_of(row)

    found = find_overlap(train(), [task.text_of(example) for example in examples])
    seen = {overlap.index for overlap in found if overlap.kind == "exact"}
    if len(seen) == len(examples):
        raise UserError(
            f"every text of {split} is in {data.train_split}; choose another --split"
        )
    return [e for index, e in enumerate(examples) if index not in seen]


def _with_thresholds(task: Any, model: Candidate, split: Split) -> Any:
    """Returns the task with the best thresholds of a model, as the network has its."""
    from lm.tasks.scores import best_thresholds

    names = task.config.labels
    rows = [p["probabilities"] for p in model.predict(split.examples)]
    probabilities = np.array([[row[name] for name in names] for row in rows])
    gold = targets(task.config, [d["label"] for d in split.documents]) > 0
    best = tuple(best_thresholds(gold, probabilities).tolist())
    return dataclasses.replace(
        task, config=dataclasses.replace(task.config, thresholds=best)
    )


def _print_scores(
    split: str, result: Mapping[str, Any], report: Mapping[str, Any]
) -> None:
    """Prints a score a line, beside the model's."""
    number = result["examples"]
    print(f"{split}, {number:,} examples, {result['seconds']:.0f} s: {result['name']}")
    of_model = {row["name"]: row["value"] for row in report.get("scores", ())}
    print(f"  {'':<20}{'baseline':>10}" + f"{'model':>10}" * bool(report))
    for name, value in result["scores"].items():
        found = of_model.get(name)
        beside = "" if found is None else f"{found:>10.4f}"
        print(f"  {name:<20}{value:>10.4f}{beside}")
    if (of_report := report.get("examples", number)) != number:
        cli.say(
            f"the report has {of_report:,} examples, the baseline {number:,}; they do "
            "not compare"
        )


if __name__ == "__main__":
    cli.run(main, parser, extra_prefix="--config.")
