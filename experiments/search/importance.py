"""How much each swept key matters: fANOVA, as Optuna computes it."""

import random
from collections.abc import Mapping, Sequence

from experiments.search.charts import NOT_SET, Axis
from experiments.search.results import Point, identity
from lm.page import is_number

# With fewer points a forest finds what is not there.
LEAST = 8
# With more it takes longer than anyone waits for the page.
MOST, TREES = 200, 32


def importances(
    points: Sequence[Point], axes: Mapping[str, Axis], metric: int, seed: int = 0
) -> tuple[dict[str, float], str]:
    """Returns how much of a metric's variance each key alone explains.

    Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html: a forest learns
    the metric from the keys, and its variance over all that was swept is divided among
    them. A key counts by its place on its axis, so one on a log scale by its logarithm.
    What only several keys together explain is nobody's.

    Args:
        points: The means that are finite are learned from.
        axes: Of each key.
        metric: Which of a point's means.
        seed: Of the forest, and of the `MOST` points that are drawn from more.

    Returns:
        Shares of what the keys explain, which sum to 1, the greatest first; and "". Or
        nothing, and why.
    """
    rows = [point for point in points if is_number(point.means[metric])]
    if len(rows) < LEAST:
        return {}, f"it takes {LEAST} points with a value; there are {len(rows)}."
    if len(axes) < 2:
        return {}, "one key has nothing to be compared with."
    if len({point.means[metric] for point in rows}) == 1:
        return {}, "all values are equal."
    try:
        import optuna
    except ImportError:
        return {}, "it takes Optuna; pip install optuna."
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    if len(rows) > MOST:
        rows = random.Random(seed).sample(rows, MOST)
    spaces, columns = {}, {}
    for key, axis in axes.items():
        found = [point.overrides.get(key, NOT_SET) for point in rows]
        if axis.is_numeric:
            columns[key] = list(map(axis.place, found))
            spaces[key] = FloatDistribution(0.0, 1.0)
        else:
            columns[key] = list(map(identity, found))
            spaces[key] = CategoricalDistribution(sorted(set(columns[key])))
    study = _quiet_study()
    for i, point in enumerate(rows):
        params = {key: column[i] for key, column in columns.items()}
        value = point.means[metric]
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=spaces, value=value)
        )
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=seed)
    try:
        shares = get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # no tree has a branch
        return {}, "no key alone explains anything."
    return dict(sorted(shares.items(), key=lambda item: -item[1])), ""


def _quiet_study():
    """Returns a study in memory, of which Optuna says nothing."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study()
    finally:
        optuna.logging.set_verbosity(before)
