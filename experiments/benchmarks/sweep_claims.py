"""How long processes take to claim and end the trials of one sweep, training nothing.

python -m experiments.benchmarks.sweep_claims --trials=1000 --workers=8

With --storage, the URL of an empty database, each process has a folder of its own, as
on a machine of its own.
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


def claim_all(
    folder: Path, plan: Plan, queue: multiprocessing.Queue, storage: str = ""
) -> None:
    """Claims trials until none is left, and puts what each sets into the queue."""
    study, mine = Study(folder, plan, storage), []
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
    parser.add_argument("--storage", default="")
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
        folders = [Path(folder)] * args.workers
        if args.storage:
            folders = [Path(folder) / str(i) for i in range(args.workers)]
        workers = []
        for of_worker in folders:
            of_worker.mkdir(exist_ok=True)
            job = of_worker, plan, queue, args.storage
            workers.append(context.Process(target=claim_all, args=job))
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for _ in workers:
            claimed += queue.get()
        seconds = time.perf_counter() - began
        trials = Study(Path(folder), plan, args.storage).trials()
    once = sorted(number for number, _ in claimed) == list(range(args.trials))
    print(f"{len(claimed)} claims of {args.trials} trials in {seconds:.1f} s")
    print(f"each once: {once}; done: {sum(t.state == 'done' for t in trials)}")


if __name__ == "__main__":
    main()
