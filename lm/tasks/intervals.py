"""How sure a score is: its 95% interval over examples, and over runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lm.tasks.scores import NO_EXAMPLES
from lm.types import UserError


def bootstrap(
    score: Callable[[np.ndarray], Mapping[str, float]],
    n: int,
    samples: int = 1000,
    seed: int = 0,
    watch: Callable[..., Iterable[int]] = lambda numbers, total: numbers,
) -> dict[str, tuple[float, float]]:
    """Returns the 95% interval of each score, from examples drawn again and again.

    The percentile interval of Efron and Tibshirani (1993), An Introduction to the
    Bootstrap, chapter 13: n examples are drawn with replacement, and 2.5% of the scores
    of such samples lie below the interval and 2.5% above. A score that grows with
    noise, such as ece, may itself lie below its interval. The time is that of
    `samples + 1` calls of `score`.

    Args:
        score: Scores the examples of these numbers, some of them several times [n].
        n: Number of examples.
        samples: How often to draw.
        seed: Of the draws; one seed gives one result.
        watch: Shows how far it is, as `lm.cli.progress` does.

    Returns:
        The low and high bound of each score of all examples; where some samples do not
        have it, of those that do.

    Raises:
        UserError: If there are no examples.
    """
    if not n:
        raise UserError(NO_EXAMPLES)
    rng = np.random.default_rng(seed)
    drawn = {name: [] for name in score(np.arange(n))}
    for _ in watch(range(samples), samples):
        for name, value in score(rng.integers(n, size=n)).items():
            if name in drawn:
                drawn[name].append(value)
    intervals = {}
    for name, values in drawn.items():
        if values:
            low, high = np.quantile(values, (0.025, 0.975)).tolist()
            intervals[name] = low, high
    return intervals


def interval_of_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean score of several runs, and the 95% interval of that mean.

    The interval is Student's t (https://doi.org/10.1093/biomet/6.1.1); its bounds are
    NaN for one run.

    Args:
        values: The score of each run.

    Raises:
        UserError: If there are no runs.

    >>> mean, low, high = interval_of_seeds([0.8, 0.9])
    >>> round(mean, 2), round(low, 2), round(high, 2)
    (0.85, 0.21, 1.49)
    """
    from scipy import stats

    if not len(values):
        raise UserError("there are no runs to take the mean of; name some")
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return mean, mean - half, mean + half
