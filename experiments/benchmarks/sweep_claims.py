"""How long processes take to claim and end the trials of one sweep, training nothing.

python -m experiments.benchmarks.sweep_claims --trials=1000 --workers=8
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

from experiments.search import text
from experiments.search.plan import Plan
from experiments.search.results import Metric
from experiments.search.study import Study


def claim_all(folder: Path, plan: Plan, queue: multiprocessing.Queue) -> None:
    """Claims trials until none is left, and puts what each sets into the queue."""
    study, mine = Study(folder, plan), []
    while claimed := study.claim():
        mine.append(claimed)
        study.finish(claimed[0], "done", values=[1.0])
    queue.put(mine)


def main() -> None:
    """Runs the processes, and prints their time and what was claimed how often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--strategy", default="random")
    args = parser.parse_args()
    plan = Plan(
        command=("config.py",),
        config={},
        space=text.parse("a=uniform(0,1)"),
        seeds=(),
        metrics=(Metric("a/b", "max"),),
        strategy=args.strategy,
        pruner="none",
        num_points=args.trials,
        first_step=1,
        last_step=2,
    )
    context = multiprocessing.get_context("spawn")
    queue, claimed = context.Queue(), []
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder), plan, queue
        workers = [
            context.Process(target=claim_all, args=job) for _ in range(args.workers)
        ]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for _ in workers:
            claimed += queue.get()
        seconds = time.perf_counter() - began
        trials = Study(Path(folder), plan).trials()
    once = sorted(number for number, _ in claimed) == list(range(args.trials))
    print(f"{len(claimed)} claims of {args.trials} trials in {seconds:.1f} s")
    print(f"each once: {once}; done: {sum(t.state == 'done' for t in trials)}")


if __name__ == "__main__":
    main()
