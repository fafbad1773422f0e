"""The trials of a sweep, in a database that processes and machines share.

Optuna keeps them (Akiba et al. 2019, https://arxiv.org/abs/1907.10902). The database
numbers trials one after another, and by its number a plan says what a trial is. So none
is made twice; and none is lost with the process that had it: another takes it over.
"""

import contextlib
import fcntl
import math
import random
import re
import socket
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from experiments.search.plan import Params, Plan, choices, name_of, workdir_of
from experiments.search.results import Trial
from experiments.search.space import Factor, Row, Table
from lm.atomic import make_folder
from lm.types import UserError

NAME = "sweep"

# What is said where the module that talks with a server is missing.
DRIVERS = (
    "pip install 'psycopg[binary]' 'pymysql[rsa]', and begin --storage with "
    "postgresql+psycopg:// or mysql+pymysql://"
)

# How often the tables of an empty database are tried to be made.
TRIES = 20

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

_DIRECTIONS = {
    "max": optuna.study.StudyDirection.MAXIMIZE,
    "min": optuna.study.StudyDirection.MINIMIZE,
}

# A process that was long suspended may find that another has ended its trial.
_UNLESS_ENDED = contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError)


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
        self._is_shared = bool(storage)
        self.url = storage or f"sqlite:///{folder / 'study.db'}"
        if self.url.endswith(("sqlite://", ":memory:")):
            raise UserError(f"--storage={storage} keeps nothing; name a file, or none")
        self._owner = f"{socket.gethostname()}/{uuid.uuid4().hex}"
        self._sign = _hold(self._owner_file(self._owner))
        assert self._sign  # no other has its name
        weakref.finalize(self, self._sign.close)
        self._mine: dict[int, optuna.Trial] = {}
        self._reported: dict[int, set[int]] = {}
        with self._locked():
            self._storage = self._connect()
            self._study = self._open()
            self._check()

    def _connect(self) -> optuna.storages.BaseStorage:
        is_file = self.url.startswith("sqlite")
        # A server may end a connection that is not used for hours.
        kept: dict[str, Any] = {"pool_pre_ping": True}
        if is_file:
            kept = {"connect_args": {"timeout": 100}}
        try:
            return optuna.storages.get_storage(_made(self.url, kept))
        except Exception as error:  # SQLAlchemy's and each driver's own
            is_missing = isinstance(error, ImportError)
            cure = DRIVERS if is_missing else "set another --storage"
            raise UserError(
                f"cannot open the database {masked(self.url)}: {_said(error)}; {cure}"
            ) from error

    def _open(self) -> optuna.Study:
        return optuna.create_study(
            storage=self._storage,
            study_name=NAME,
            directions=[_DIRECTIONS[m.mode] for m in self.plan.metrics],
            pruner=_pruner(self.plan),
            load_if_exists=True,
        )

    def _check(self) -> None:
        """Claims the database for the plan.

        One in which all trials failed has nothing to lose and is made anew; another
        metric will do, too, where none has a value.
        """
        now = self.plan.signature()
        before = self._study.user_attrs.get("plan", now)
        other = [name for name in now if before.get(name) != now[name]]
        if "config" in other and "command" not in other:  # the file has changed
            from lm.train.workdir import check_same

            check_same(self._folder, before["config"], now["config"])
            other.remove("config")
        trials = self._all()
        is_failed = len(trials) >= self.plan.num_trials and all(
            trial.state == TrialState.FAIL for trial in trials
        )
        has_value = any(
            trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            or (trial.state == TrialState.RUNNING and self._lives(trial))
            for trial in trials
        )
        if (is_failed and not other) or (other == ["metrics"] and not has_value):
            optuna.delete_study(study_name=NAME, storage=self._storage)
            self._study, other = self._open(), []
        if other:
            name = other[0]
            texts = [str(plan.get(name)) for plan in (before, now)]
            values = f" is {texts[0]}, not {texts[1]}"
            raise UserError(
                f"{self._folder} is of another sweep: its {name}"
                + (values if max(map(len, texts)) < 40 else " is another")
                + "; choose another --workdir"
                + (" and --storage" if self._is_shared else "")
            )
        self._study.set_user_attr("plan", now)

    def claim(self) -> tuple[int, Row] | None:
        """Returns a trial that is now this process's, or None if none is left.

        It is one whose process is gone, or else a new one.
        """
        with self._locked():
            found = self._take_over()
            if found is None and len(self._all()) < self.plan.num_trials:
                # With its owner from the first: what has none is anyone's.
                attrs = {"owner": self._owner, "beat": time.time()}
                new = optuna.trial.create_trial(
                    state=TrialState.RUNNING, user_attrs=attrs
                )
                self._study.add_trial(new)
                found = self._take_over()
            if found is None:
                return None
            trial = self._draw(found)
            self._mine[trial.number] = trial
            self._reported[trial.number] = set(found.intermediate_values)
        return trial.number, self.plan.row(trial.number, trial.params)

    def _all(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _take_over(self) -> FrozenTrial | None:
        """Returns a trial that nobody trains, with this process's name on it."""
        free = filter(self._is_free, self._all()[: self.plan.num_trials])
        for number in [frozen.number for frozen in free]:
            frozen = self._all()[number]  # others may have been quicker
            if not self._is_free(frozen):
                continue
            owner = frozen.user_attrs.get("owner", "")
            if owner != self._owner:
                trial = optuna.Trial(self._study, frozen._trial_id)
                with _UNLESS_ENDED:
                    trial.set_user_attr("owner", self._owner)
                    trial.set_user_attr("beat", time.time())
                time.sleep(0 if self._is_local(owner) else PAUSE)
                frozen = self._all()[number]
            is_mine = frozen.user_attrs.get("owner") == self._owner
            if is_mine and frozen.state == TrialState.RUNNING:
                return frozen
        return None

    def _draw(self, frozen: FrozenTrial) -> optuna.Trial:
        """Gives a trial its parameters; what it has already stays."""
        number, plan = frozen.number, self.plan
        params = plan.params(number)
        first = number - number % plan.seeds_each
        if params is None and number > first:
            params = self._params_of(first)
        # A new study, for this one's samplers would know the trials of before only.
        study = optuna.Study(NAME, self._storage, pruner=self._study.pruner)
        trial = optuna.Trial(study, frozen._trial_id)
        for factor in plan.space.factors:
            study.sampler = (
                _sampler(plan, number, name_of(factor))
                if params is None
                else _Given(params)
            )
            _suggest(trial, factor)
        return trial

    def _params_of(self, number: int) -> Params:
        """Returns the parameters of another trial, which may be about to get them."""
        for _ in range(100):
            frozen = self._all()[number]
            if len(frozen.params) == len(self.plan.space.factors):
                return frozen.params
            time.sleep(0.1)
        return self._draw(frozen).params  # its process is gone

    def _is_free(self, frozen: FrozenTrial) -> bool:
        return frozen.state == TrialState.RUNNING and not self._lives(frozen)

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
        """Whether the owner's file can be asked: it may be in a folder elsewhere."""
        is_here = owner.partition("/")[0] == socket.gethostname()
        return is_here and self._owner_file(owner).exists()

    def _owner_file(self, owner: str) -> Path:
        folder = self._folder / ".owners"
        make_folder(folder)
        return folder / owner.rpartition("/")[2]

    def beat(self) -> None:
        """Tells other machines that this process lives; needed every minute or so."""
        for trial in self._mine.values():
            with _UNLESS_ENDED:
                trial.set_user_attr("beat", time.time())

    def report(self, number: int, step: int, value: float) -> bool:
        """Takes in a value of the first metric; returns whether to prune the trial."""
        trial = self._mine[number]
        if len(self.plan.metrics) > 1 or not math.isfinite(value):
            return False
        if step not in self._reported[number]:  # before its process was gone
            self._reported[number].add(step)
            with _UNLESS_ENDED:
                trial.report(value, step)
        return trial.should_prune()

    def note(self, number: int, seconds: float = 0.0, **found: Any) -> None:
        """Keeps what is known of a trial of this process; seconds add up."""
        trial = self._mine[number]
        found["seconds"] = trial.user_attrs.get("seconds", 0.0) + seconds
        with _UNLESS_ENDED:
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
        found = self._all()[: self.plan.num_trials]
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
        folder = self._folder
        if self.url.startswith("sqlite:///"):
            beside = Path(self.url.removeprefix("sqlite:///")).parent
            folder = beside if beside.is_dir() else folder
        with (folder / ".study.lock").open("w") as file, one_line(self.url):
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _made(url: str, kept: Mapping[str, Any]) -> optuna.storages.RDBStorage:
    """Opens a database, and makes its tables if there are none.

    Another machine may make them at the same time; then one of the two fails at each
    table, and finds it there the next time.
    """
    for left in reversed(range(TRIES)):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=dict(kept))
        except DBAPIError as error:
            if not (left and error.statement):  # there is no connection
                raise
            time.sleep(random.random())
    raise AssertionError


@contextlib.contextmanager
def one_line(url: str) -> Iterator[None]:
    """Turns what can go wrong with a database into one line."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(
            f"the database {masked(url)} fails: {_said(error)}; mend that, and the "
            "same command goes on"
        ) from error


def _said(error: BaseException) -> str:
    """Returns what a driver says in a line, without the statement that it is about."""
    cause = error
    if isinstance(error, ImportError | optuna.exceptions.StorageInternalError):
        cause = error.__cause__ or error
    cause = (isinstance(cause, DBAPIError) and cause.orig) or cause
    return masked(" ".join(str(cause).split())[:160])


def masked(text: str) -> str:
    """Returns a text without the passwords in its URLs.

    >>> masked("postgresql://me:sec@ret@host/sweeps")
    'postgresql://me:***@host/sweeps'
    """
    return re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1:***@", text)


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


def _sampler(plan: Plan, number: int, name: str) -> optuna.samplers.BaseSampler:
    """Returns what draws a parameter: the same value however often a sweep ends."""

    def seed(*what: Any) -> int:
        return random.Random(repr((plan.seed, number, *what))).getrandbits(31)

    if plan.strategy == "cmaes":  # draws all numbers at once, and the rest at random
        rest = optuna.samplers.RandomSampler(seed=seed(name))
        return optuna.samplers.CmaEsSampler(
            seed=seed(), independent_sampler=rest, warn_independent_sampling=False
        )
    return optuna.samplers.TPESampler(seed=seed(name), constant_liar=True)


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=plan.first_step)
    if plan.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=max(plan.first_step, 1), max_resource=plan.last_step
        )
    return optuna.pruners.NopPruner()
