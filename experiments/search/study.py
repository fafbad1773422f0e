"""The trials of a sweep, in a database that processes and machines share.

Optuna keeps them (Akiba et al. 2019, https://arxiv.org/abs/1907.10902). The database
numbers trials one after another, and by its number a plan says what a trial is. So none
is made twice; and none is lost with the process that had it: another takes it over.
"""

import contextlib
import fcntl
import math
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.search.plan import Params, Plan, choices, name_of, workdir_of
from experiments.search.results import Trial
from experiments.search.space import Factor, Row, Table
from lm.types import UserError

NAME = "sweep"

# After so many seconds without a sign of life a trial of another machine is taken over.
GRACE = 300.0
# What another machine that takes the same trial over needs to say so.
PAUSE = 1.0

_STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
}


def _suggest(trial: optuna.Trial, factor: Factor) -> None:
    """Draws a parameter, unless the trial has it."""
    name = name_of(factor)
    if isinstance(factor, Table):
        trial.suggest_categorical(name, choices(factor))
    elif factor.is_integer:
        low, high = int(factor.low), int(factor.high)
        trial.suggest_int(name, low, high, log=factor.is_log)
    else:
        trial.suggest_float(name, factor.low, factor.high, log=factor.is_log)


_DIRECTIONS = {
    "max": optuna.study.StudyDirection.MAXIMIZE,
    "min": optuna.study.StudyDirection.MINIMIZE,
}


class _Given(optuna.samplers.BaseSampler):
    """Takes parameters that are known."""

    def __init__(self, params: Params):
        self._params = params

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self._params[param_name]


class Study:
    """The trials of a plan; each is claimed by one process at a time."""

    def __init__(self, folder: Path, plan: Plan, storage: str = ""):
        """Opens the database, or makes it.

        Args:
            folder: The sweep's; there must be one on every machine.
            plan: What is tried.
            storage: A database's URL; by default a SQLite file in the folder.

        Raises:
            UserError: If it cannot be opened, or is of another plan.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self._folder = plan, folder
        self.url = storage or f"sqlite:///{folder / 'study.db'}"
        self._owner = f"{socket.gethostname()}/{uuid.uuid4().hex}"
        self._sign = _hold(self._owner_file(self._owner))
        self._mine: dict[int, optuna.Trial] = {}
        with self._locked():
            self._study = self._open()
            self._check()

    def _open(self) -> optuna.Study:
        is_file = self.url.startswith("sqlite")
        wait = {"connect_args": {"timeout": 100}} if is_file else {}
        try:
            return optuna.create_study(
                storage=optuna.storages.RDBStorage(self.url, engine_kwargs=wait),
                study_name=NAME,
                directions=[_DIRECTIONS[m.mode] for m in self.plan.metrics],
                pruner=_pruner(self.plan),
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's and each driver's own
            line = " ".join(str(error).split())[:160]
            raise UserError(
                f"cannot open the database {self.url}: {line}; set another --storage"
            ) from error

    def _check(self) -> None:
        """Claims the database for the plan."""
        signature = self.plan.signature()
        before = self._study.user_attrs.get("plan")
        if before is None:
            self._study.set_user_attr("plan", signature)
            return
        for name, value in signature.items():
            if before.get(name) != value:
                raise UserError(
                    f"{self._folder} is of another sweep: its {name} is "
                    f"{before.get(name)}, not {value}; choose another --workdir"
                )

    def claim(self) -> tuple[int, Row] | None:
        """Returns a trial that is now this process's, or None if none is left.

        It is one whose process is gone, or else a new one.
        """
        with self._locked():
            trials = self._study.get_trials(deepcopy=False)
            trial = self._take_over(trials)
            if trial is None and len(trials) < self.plan.num_trials:
                trial = self._new(len(trials))
            if trial is None:
                return None
            params = self._draw(trial)
            self._mine[trial.number] = trial
        return trial.number, self.plan.row(trial.number, params)

    def _take_over(self, trials: Sequence[FrozenTrial]) -> optuna.Trial | None:
        for frozen in trials:
            if frozen.state == TrialState.RUNNING and not self._lives(frozen):
                trial = optuna.Trial(self._study, frozen._trial_id)
                trial.set_user_attr("owner", self._owner)
                trial.set_user_attr("beat", time.time())
                if not self._is_local(frozen.user_attrs.get("owner", "")):
                    time.sleep(PAUSE)
                    if trial.user_attrs["owner"] != self._owner:
                        continue
                return trial
        return None

    def _new(self, number: int) -> optuna.Trial | None:
        self._study.sampler = _sampler(self.plan, number)
        trial = self._study.ask()
        trial.set_user_attr("owner", self._owner)
        trial.set_user_attr("beat", time.time())
        if trial.number < self.plan.num_trials:
            return trial
        self._study.tell(trial, state=TrialState.FAIL)  # another machine had the last
        return None

    def _draw(self, trial: optuna.Trial) -> Params:
        """Returns a trial's parameters; what it has already stays."""
        params = self.plan.params(trial.number)
        first = trial.number - trial.number % self.plan.seeds_each
        if params is None and trial.number > first:
            params = self._params_of(first)
        if params is not None:
            self._study.sampler = _Given(params)
        for factor in self.plan.space.factors:
            _suggest(trial, factor)
        return trial.params

    def _params_of(self, number: int) -> Params:
        """Returns the parameters of another trial, which may be about to get them."""
        names = len(self.plan.space.factors)
        for _ in range(100):
            trial = self._study.get_trials(deepcopy=False)[number]
            if len(trial.params) == names:
                break
            time.sleep(0.1)
        return trial.params

    def _lives(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get("owner", "")
        if owner == self._owner:
            return trial.number in self._mine
        if not self._is_local(owner):
            return time.time() - trial.user_attrs.get("beat", 0) < GRACE
        sign = _hold(self._owner_file(owner))
        if sign is None:
            return True
        sign.close()
        return False

    def _is_local(self, owner: str) -> bool:
        return owner.partition("/")[0] == socket.gethostname()

    def _owner_file(self, owner: str) -> Path:
        folder = self._folder / ".owners"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / owner.rpartition("/")[2]

    def beat(self) -> None:
        """Tells other machines that this process lives; needed every minute or so."""
        for trial in self._mine.values():
            trial.set_user_attr("beat", time.time())

    def report(self, number: int, step: int, value: float) -> bool:
        """Takes in a value of the first metric; returns whether to prune the trial."""
        trial = self._mine[number]
        if len(self.plan.metrics) > 1 or not math.isfinite(value):
            return False
        trial.report(value, step)
        return trial.should_prune()

    def note(self, number: int, seconds: float = 0.0, **found: Any) -> None:
        """Keeps what is known of a trial of this process; seconds add up."""
        trial = self._mine[number]
        trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0.0) + seconds)
        for name, value in found.items():
            trial.set_user_attr(name, value)

    def finish(self, number: int, state: str, **found: Any) -> None:
        """Ends a trial of this process.

        Args:
            number: The trial's.
            state: `done`, `pruned` or `failed`.
            **found: `values` of a done one, `error` of a failed one; `seconds`, `step`.
        """
        values = found.pop("values", None)
        self.note(number, **found)
        trial = self._mine.pop(number)
        states = {name: state for state, name in _STATES.items()}
        self._study.tell(trial, values, states[state], skip_if_finished=True)

    def trials(self) -> list[Trial]:
        """Returns all trials, those too that nobody has begun."""
        found = self._study.get_trials(deepcopy=False)[: self.plan.num_trials]
        names = len(self.plan.space.factors)
        begun = {t.number for t in found if len(t.params) == names}
        return [
            self._trial(found[number])
            if number in begun
            else waiting(self.plan, number)
            for number in range(self.plan.num_trials)
        ]

    def _trial(self, frozen: FrozenTrial) -> Trial:
        attrs, number = frozen.user_attrs, frozen.number
        is_done = frozen.state == TrialState.COMPLETE
        return Trial(
            number=number,
            overrides=self.plan.row(number, frozen.params),
            state=_STATES[frozen.state],
            values=tuple(frozen.values) if is_done else (),
            seconds=attrs.get("seconds", 0.0),
            step=attrs.get("step", 0),
            error=attrs.get("error", ""),
            workdir=workdir_of(number),
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps out this machine's processes: SQLite does not lock what it reads."""
        with (self._folder / ".study.lock").open("w") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def waiting(plan: Plan, number: int) -> Trial:
    """Returns a trial that nobody has begun."""
    overrides = plan.overrides(number) or {}
    return Trial(number, overrides, "waiting", (), 0.0, 0, "", workdir_of(number))


def _hold(path: Path):
    """Locks a file for as long as the process lives; None if another one has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """Returns what draws a point: the same one however often a sweep was ended."""
    seed = plan.seed + number
    if plan.strategy == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed)
    if plan.strategy in ("tpe", "hyperband"):
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=plan.first_step)
    if plan.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=max(plan.first_step, 1), max_resource=plan.last_step
        )
    return optuna.pruners.NopPruner()
