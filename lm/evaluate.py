"""Scores a trained model on a whole split.

    python -m lm.evaluate --workdir=runs/gpt --split=test
    python -m lm.evaluate --workdir=runs/bbc --split=test

Rows are padded to full batches and padding weighs nothing.

A language model's every token is scored exactly once. A document longer than a row is
cut into windows; with --stride each window scores only that many new tokens and sees
the ones before as context.

Of a model that predicts, `report-SPLIT.html` and `.json` in the workdir (of another
--source, `report-SPLIT-SOURCE`) have scores with 95% intervals, the worst examples and
what there is to know of the run. Examples whose text is in the training split are
looked for first and left out of the scores.

With --tune-thresholds the least probability of each class that counts, where several
may be right, becomes the one with the best F1 on this split. The workdir keeps them;
score another split with them.

The checkpoint is the best one of a run that has `eval.patience`, else the latest.

Several hosts share the rows, as in `lm.train`; the scores are those of one.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm import cli, distributed, rendezvous, scorecard
from lm.config import check_range
from lm.text.overlap import find_overlap
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", required=True, help="the folder of a run of lm.train")
parser.add_argument("--split", default="", help="default: the config's eval_split")
parser.add_argument(
    "--source", action="append", default=[], help="other texts than the config's"
)
parser.add_argument(
    "--bad-rows",
    choices=["stop", "skip"],
    help="what is done about them; default: the config's data.bad_rows",
)
parser.add_argument("--step", default="", help="latest, best, or a step's number")
parser.add_argument("--stride", type=int, default=0, help="new tokens a window")
parser.add_argument("--batch-size", type=int, default=0, help="rows at a time")
parser.add_argument("--max-batches", type=int, default=0, help="0: the whole split")
parser.add_argument(
    "--keep-seen", action="store_true", help="score texts of the training split, too"
)
parser.add_argument(
    "--tune-thresholds", action="store_true", help="find and keep them; no report"
)
rendezvous.add_flags(parser)

# Resampling the examples may take this long, and so many times it is done at most.
RESAMPLING_SECONDS = 20.0
RESAMPLES = (100, 1000)

# Of texts that resemble one of the training split.
SAMPLES = 5


def main(args: Namespace) -> dict[str, Any]:
    """Evaluates and prints one metric a line."""
    for name in ("stride", "batch_size", "max_batches"):
        check_range(f"--{name.replace('_', '-')}", getattr(args, name), 0)
    with distributed.joined(args):
        return _evaluate(args)


def _evaluate(args: Namespace) -> dict[str, Any]:
    """Evaluates, as one of several processes or alone."""
    from lm import sharding
    from lm.completion import Writer
    from lm.tasks import Generative, Predictive, build_task
    from lm.train import workdir
    from lm.train.evaluation import Evaluator, read_examples

    loaded = workdir.load(Path(args.workdir), args.step)
    config, task, data = loaded.config, loaded.task, loaded.config.data
    if isinstance(task, Generative) and distributed.is_several():
        raise UserError(
            f"task {config.task.name} writes text, which one host does; leave out the "
            "flags of several hosts, or set --num-processes=1"
        )
    if args.stride:
        if not hasattr(config.task, "stride"):
            raise UserError(f"--stride: task {config.task.name} has no windows")
        task_config = dataclasses.replace(config.task, stride=args.stride)
        task = build_task(task_config, loaded.tokenizer)
    if args.source:
        data = dataclasses.replace(data, sources=tuple(args.source), weights=())
    data = dataclasses.replace(data, bad_rows=args.bad_rows or data.bad_rows)
    mesh = sharding.build_mesh(sharding.MeshConfig())
    shards = sharding.batch_shards(mesh)
    batch_size = args.batch_size or config.eval.batch_size or config.batch_size
    if batch_size % shards:
        raise UserError(
            f"--batch-size {batch_size} does not divide over {shards} devices"
        )
    split = args.split or data.eval_split
    if args.tune_thresholds and getattr(config.task, "kind", "") != "several":
        raise UserError("--tune-thresholds is for tasks with task.kind=several")
    evaluator = Evaluator(
        task,
        loaded.tokenizer,
        loaded.model,
        mesh,
        data,
        split=split,
        batch_size=batch_size,
        max_batches=args.max_batches,
        seed=config.seed,
    )
    predicts = isinstance(task, Predictive | Generative)
    examples, kinds, overlap = evaluator.examples, [], {}
    if isinstance(task, Generative):
        limit = args.max_batches * batch_size
        examples, _ = read_examples(task, data, split, limit)
    # What a model that was imported has seen is not known.
    if predicts and not args.keep_seen and config.data.sources:
        kinds, overlap = find_seen(task, examples, config.data, split)
        is_new = [kind != "exact" for kind in kinds]
        examples = list(itertools.compress(examples, is_new))
        kinds = list(itertools.compress(kinds, is_new))
        if isinstance(task, Predictive):
            evaluator.keep(is_new)
    with sharding.use(mesh, sharding.MeshConfig()):
        values = evaluator(loaded.params, cli.progress)
    if evaluator.nothing:
        raise UserError(evaluator.nothing)
    predictions = evaluator.predictions
    if isinstance(task, Generative):
        write = Writer(task, loaded.model, loaded.tokenizer, batch_size)
        predictions = write(loaded.params, examples, cli.progress)
        values |= task.score(examples, predictions)
    print(f"{args.workdir} at step {loaded.step}, {split}:")
    _show(values)
    if args.tune_thresholds:
        values = _tune(Path(args.workdir), config, task, examples, predictions)
    elif predicts and distributed.is_first():
        report = _report(args, loaded, split, examples, predictions)
        if overlap:
            without = _without_near(task, examples, predictions, kinds)
            report["overlap"] = {**overlap, **without}
        page = scorecard.write(
            report, Path(args.workdir), f"report-{_name(args, split)}"
        )
        print(f"report: {page}")
    named = {f"eval/{split}/{name}": value for name, value in values.items()}
    return {"step": loaded.step, **named}


def _show(values: Mapping[str, float]) -> None:
    """Prints one number a line."""
    for name, value in values.items():
        print(f"  {name:<18} {value:.4f}")


def _tune(
    workdir: Path, config: Any, task: Any, examples: Sequence[Any], predictions: Any
) -> dict[str, float]:
    """Finds thresholds and keeps them; returns scores on what they were found on."""
    from lm.tasks import build_task
    from lm.train.workdir import save_config

    tuned = task.tuned(examples, predictions)
    if distributed.is_first():
        save_config(workdir, dataclasses.replace(config, task=tuned))
    print("with the thresholds that are best here, kept in config.json:")
    _show(dict(zip(tuned.labels, tuned.thresholds)))
    tuned_task: Any = build_task(tuned, task.tokenizer)
    values = tuned_task.score(examples, predictions)
    _show(values)
    return values


def find_seen(
    task: Any, examples: Sequence[Any], data: Any, split: str
) -> tuple[list[str], dict[str, Any]]:
    """Compares examples with the training split.

    Returns:
        What each is there: `exact`, `near` or nothing; and what a report says of it.

    Raises:
        UserError: If all are.
    """
    from lm.data.sources import open_source

    def train() -> Iterator[str]:
        for spec in data.named_sources():
            source = open_source(spec, data.data_dir, data.bad_rows)
            for example in source.examples(data.train_split):
                # One that cannot be read was not trained on.
                with contextlib.suppress(UserError):
                    yield task.text_of(example)

    texts = [task.text_of(example) for example in examples]
    found = find_overlap(train(), texts)
    kinds = [""] * len(texts)
    for overlap in found:
        kinds[overlap.index] = overlap.kind
    exact, near = kinds.count("exact"), kinds.count("near")
    if exact == len(texts):
        raise UserError(
            f"every text of {split} is in {data.train_split}, which was trained on; "
            "choose another --split, or set --keep-seen"
        )
    print(
        f"of {len(texts):,} texts {exact:,} are in {data.train_split} and left out, "
        f"{near:,} resemble one there"
    )
    samples = [
        {
            "text": texts[overlap.index],
            "train_text": overlap.train_text,
            "similarity": overlap.similarity,
        }
        for overlap in itertools.islice(
            (overlap for overlap in found if overlap.kind == "near"), SAMPLES
        )
    ]
    return kinds, {
        "exact": exact,
        "near": near,
        "left_out": exact,
        "checked_against": data.train_split,
        "samples": samples,
    }


def _without_near(
    task: Any, examples: Sequence[Any], predictions: Sequence[Any], kinds: Sequence[str]
) -> dict[str, Any]:
    """Scores the examples that do not resemble one of training, if others do."""
    far = [index for index, kind in enumerate(kinds) if kind != "near"]
    if not 0 < len(far) < len(kinds):
        return {}
    pairs = [(examples[index], predictions[index]) for index in far]
    return {"scores_without": task.score(*zip(*pairs))}


def _name(args: Namespace, split: str) -> str:
    """Returns what a report is of, as part of a file's name."""
    others = (re.sub(r"\W+", "-", source[-40:]).strip("-") for source in args.source)
    return "-".join([split, *others])


def _report(
    args: Namespace,
    loaded: Any,
    split: str,
    examples: Sequence[Any],
    predictions: Sequence[Any],
) -> dict[str, Any]:
    """Gathers what there is to know; `lm.scorecard` has the form."""
    from lm.train.report import read_log

    task, workdir = loaded.task, Path(args.workdir)
    scores = task.score(examples, predictions)
    bounds = _intervals(task, examples, predictions)
    baseline = _baseline(workdir / f"baseline-{_name(args, split)}.json")
    rows = [
        {"name": name, "value": value}
        | dict(zip(("low", "high"), bounds.get(name, ())))
        | ({"baseline": baseline[name]} if name in baseline else {})
        for name, value in scores.items()
    ]
    curves: dict[str, list[list[float]]] = {}
    for line in read_log(workdir / "metrics.jsonl"):
        for name, value in line.items():
            if name.startswith(("train/", "eval/")):
                curves.setdefault(name, []).append([line["step"], value])
    return {
        "title": " ".join([f"{workdir.name}: {split}", *args.source]),
        "workdir": str(workdir),
        "split": split,
        "step": loaded.step,
        "task": loaded.config.task.name,
        "model": loaded.config.model.name,
        "examples": len(examples),
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "lm.evaluate", *sys.argv[1:]]),
        "scores": rows,
        "curves": curves,
        **task.details(examples, predictions),
        "config": dataclasses.asdict(loaded.config),
        "versions": json.loads((workdir / "versions.json").read_text()),
    }


def _intervals(
    task: Any, examples: Sequence[Any], predictions: Sequence[Any]
) -> dict[str, tuple[float, float]]:
    """Returns 95% bootstrap intervals of the scores, as exact as the time allows."""
    from lm.tasks.intervals import bootstrap

    def score(chosen: np.ndarray) -> dict[str, float]:
        pairs = [(examples[i], predictions[i]) for i in chosen]
        return task.score(*zip(*pairs))

    began = time.perf_counter()
    score(np.arange(len(examples)))
    seconds = time.perf_counter() - began
    samples = int(np.clip(RESAMPLING_SECONDS / seconds, *RESAMPLES))
    return bootstrap(score, len(examples), samples, watch=cli.progress)


def _baseline(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the scores of `experiments.baseline` where it was run."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    return {
        name: {"name": found["name"], "value": value}
        for name, value in found["scores"].items()
    }


if __name__ == "__main__":
    cli.run(main, parser)
