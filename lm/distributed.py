"""Several processes that compute as one, each with devices of its own.

On two machines, the same command on both but for the last number:

    python -m lm.train --config=… --workdir=/shared/run --coordinator=10.0.0.1:8476 \\
        --num-processes=2 --process-id=0    # on 10.0.0.1
    python -m lm.train --config=… --workdir=/shared/run --coordinator=10.0.0.1:8476 \\
        --num-processes=2 --process-id=1    # on the other

Under SLURM (`srun`), Open MPI and on all workers of a Cloud TPU slice no flag is
needed; in an indexed Job of Kubernetes `--distributed` is. JAX finds out who is who
there (`jax._src.clusters`) and runs the collectives; this module sees to what goes
wrong:

- `lm.rendezvous` finds out which process this is and whether all are there.
- JAX's coordination service, which process 0 starts, is a process of its own. If it
  were in process 0, the end of that one would abort all others before they could say
  why.
- Every process shows that it lives, and how far it is, in the service's key-value
  store. One that does not, or that says that it failed, ends all others with a line
  and status 1; so does a step that does not end.
"""

import argparse
import atexit
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from lm import cli
from lm.rendezvous import Place, find_place, meet, one_line
from lm.types import UserError

# Errors with these words may be of another process that is gone.
_OF_PEERS = re.compile(
    "gloo|nccl|connection|socket|collective|UNAVAILABLE|DEADLINE|ABORTED|barrier|peer",
    re.IGNORECASE,
)

# Seconds: between signs of life, for up to so many processes; how long a failed process
# may take to close its files.
_INTERVAL, _PROCESSES_AN_INTERVAL = 1.0, 64
_CLOSING = 10.0
# JAX, which would abort, waits this many times longer for a silent process.
_JAX_PATIENCE = 10
_FOREVER_MS = 30 * 24 * 3600 * 1000

# A host is slow if it takes this many times what the median takes, and more by this
# part of a step and by so many seconds.
_SLOW_RATIO, _SLOW_PART, _SLOW_SECONDS = 2.0, 0.2, 0.05

# Ends with the process that started it: if that one did not say why, when the others
# have left, or after a while where the system does not tell that.
_SERVICE = """
import os, sys, time
from jaxlib import _jax
address, count, heartbeat, linger = sys.argv[1], *map(int, sys.argv[2:])
def has_clients():
    local = f":{int(address.rpartition(':')[2]):04X}"
    files = filter(os.path.exists, ("/proc/net/tcp", "/proc/net/tcp6"))
    rows = [row.split() for name in files for row in open(name)]
    return not rows or any(row[1].endswith(local) and row[3] == "01" for row in rows)
service = _jax.get_distributed_runtime_service(
    address, count, heartbeat_timeout=heartbeat, shutdown_timeout=heartbeat)
print("ready", flush=True)
if sys.stdin.read() == "done":
    service.shutdown()
else:
    end = time.monotonic() + linger
    while time.monotonic() < end and has_clients():
        time.sleep(0.2)
os._exit(0)
"""


class _Service:
    """JAX's coordination service in a process of its own."""

    def __init__(self, address: str, count: int, **options):
        """Starts it; the arguments are those of JAX."""
        seconds = options["heartbeat_timeout"]
        linger = seconds // _JAX_PATIENCE + _CLOSING  # until all have said why
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVICE, address, str(count)]
            + [str(seconds), str(int(linger))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise UserError(
                f"JAX's coordination service cannot start at {address}; choose another "
                "port in --coordinator on all hosts"
            )

    def shutdown(self) -> None:
        """Ends it."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate("done", timeout=_CLOSING)


def _client() -> Any:
    """Returns JAX's connection to its coordination service."""
    from jax._src import distributed as jax_distributed

    return jax_distributed.global_state.client


class Watch:
    """Sees that all processes live and go on, and ends this one if they do not."""

    def __init__(self, place: Place, hosts: Sequence[str], args: argparse.Namespace):
        """Begins to watch; JAX is connected.

        Args:
            place: This process.
            hosts: The name of each process's host.
            args: With the timeouts of `add_flags`.
        """
        self.place = place
        self.kept: Callable[[], str] = lambda: ""
        self._hosts = hosts
        self._client = _client()
        self._patience = args.heartbeat_timeout
        self._step_timeout = args.step_timeout
        self._interval = _INTERVAL * max(1, place.count // _PROCESSES_AN_INTERVAL)
        self._marks, self._step, self._marked = 0, 0, 0.0
        self._said = 0
        self._is_lost = self._is_out = False
        self._failure = ""
        self._unreached = self._closing = 0.0
        self._silence = [0.0] * place.count
        self._beats = [""] * place.count
        self._ending = threading.Lock()
        self._stopped = threading.Event()
        for work in (self._beat, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def name(self, index: int) -> str:
        """Returns what a process is called in messages."""
        return f"process {index} ({self._hosts[index]})"

    def mark(self, step: int | None) -> None:
        """Notes that this process gets on, at a step of training if there is one."""
        self._marks += 1
        self._step = self._step if step is None else step
        self._marked = time.monotonic()

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Returns what process 0 makes, a JSON value, on all, which wait for it."""
        self._said += 1
        key = f"lm/said/{self._said}"
        if self.place.index == 0:
            self._client.key_value_set(key, json.dumps(make()))
        return json.loads(self._client.blocking_key_value_get(key, _FOREVER_MS))

    def together(self) -> None:
        """Waits until all processes are here."""
        self._said += 1
        self._client.wait_at_barrier(f"lm/together/{self._said}", _FOREVER_MS)

    def share(self, seconds: float) -> list[float]:
        """Returns what each process shared last, on process 0, and [] on the others."""
        key = f"lm/pace/{self.place.index}"
        self._client.key_value_set(key, repr(seconds), allow_overwrite=True)
        if self.place.index:
            return []
        found = self._client.key_value_dir_get("lm/pace/")
        paces = {int(name.rpartition("/")[2]): float(value) for name, value in found}
        return [paces.get(index, seconds) for index in range(self.place.count)]

    def tell(self, error: BaseException) -> None:
        """Lets the others know that this process fails, and ends it if that is slow.

        What may be the failure of another process waits until that one is found.
        """
        if self._failure:
            return
        if isinstance(error, cli.Signalled):
            word = "interrupted" if error.number == signal.SIGINT else "terminated"
            self._failure = f"{self.name(self.place.index)} was {word}"
        elif isinstance(error, UserError):
            self._failure = f"{self.name(self.place.index)}: {error}"
        else:
            kind, line = type(error).__name__, one_line(error)
            self._failure = f"{self.name(self.place.index)} failed: {kind}: {line}"
            if isinstance(error, RuntimeError) and _OF_PEERS.search(str(error)):
                self._is_lost = True
                time.sleep(min(self._patience, self._lost_patience) + _CLOSING)
        self._closing = time.monotonic() + _CLOSING
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"lm/end/{self.place.index}", self._failure)

    def leave(self) -> None:
        """Lets the process end without the others, whatever else is open."""
        self._is_out = True
        atexit.register(_end, 1)

    def finish(self) -> None:
        """Waits until all others have done their work, too, and ends JAX's part."""
        import jax

        self._marked = 0.0
        self._client.wait_at_barrier("lm/finish", _FOREVER_MS)
        self._stopped.set()
        jax.distributed.shutdown()

    @property
    def _lost_patience(self) -> float:
        return 5 * self._interval

    def _beat(self) -> None:
        """Shows that this process lives, and looks at the others."""
        count, before, index = 0, time.monotonic(), self.place.index
        while not self._stopped.wait(self._interval):
            count += 1
            value = f"{count} {self._marks} {self._step}"
            try:
                self._client.key_value_set(
                    f"lm/beat/{index}", value, allow_overwrite=True
                )
                beats = self._client.key_value_dir_get("lm/beat/")
                ends = self._client.key_value_dir_get("lm/end/")
            except RuntimeError:
                continue
            self._unreached = 0.0
            now = time.monotonic()
            # One that slept itself, as laptops do, has not heard the others' silence.
            passed, before = min(now - before, 2 * self._interval), now
            found = {int(key.rpartition("/")[2]): value for key, value in beats}
            for other in range(self.place.count):
                is_new = found.get(other, "") != self._beats[other]
                self._silence[other] = 0.0 if is_new else self._silence[other] + passed
                self._beats[other] = found.get(other, "")
            for key, failure in ends:
                if int(key.rpartition("/")[2]) != index:
                    self._end_all(failure)

    def _judge(self) -> None:
        """Ends the process if the others are gone, a step does not end, or it fails."""
        index, before = self.place.index, time.monotonic()
        while not self._stopped.wait(self._interval / 2):
            now = time.monotonic()
            passed, before = min(now - before, self._interval), now
            self._unreached += passed
            patience = self._lost_patience if self._is_lost else self._patience
            for other, silence in enumerate(self._silence):
                if other != index and silence > min(patience, self._patience):
                    self._end_all(
                        f"{self.name(other)} is gone: no sign of life for "
                        f"{silence:.0f} s"
                    )
            if self._unreached > self._patience:
                self._end_all(
                    f"the coordination service on {self._hosts[0]} is gone: no answer "
                    f"for {self._unreached:.0f} s"
                )
            if self._marked and now - self._marked > self._step_timeout:
                self._end_all(self._stall(now - self._marked))
            if self._closing and now > self._closing:
                self._end_all("" if self._is_out else self._failure)

    def explain_abort(self) -> None:
        """Ends the process with a line if its coordination service is gone."""
        try:
            socket.create_connection(self.place.address, timeout=5).close()
        except OSError:
            self._end_all(
                f"{self.name(0)} is gone, or the coordination service beside it"
            )

    def _stall(self, seconds: float) -> str:
        """Says who holds up a step."""
        marks = [int(beat.split()[1]) if beat else 0 for beat in self._beats]
        steps = [int(beat.split()[2]) if beat else 0 for beat in self._beats]
        behind = [i for i, marked in enumerate(marks) if marked < max(marks)]
        if not behind:
            return (
                f"no process has got beyond step {self._step} for {seconds:.0f} s, "
                "though all live: a collective hangs (a device or the network), or "
                "compilation takes longer than --step-timeout"
            )
        named = ", ".join(f"{self.name(i)} at step {steps[i]}" for i in behind)
        return f"{named} holds up the others, which have waited for {seconds:.0f} s"

    def _end_all(self, failure: str) -> NoReturn:
        with self._ending:
            if failure:
                kept = self.kept()
                line = f"{failure}{kept and '; '}{kept}; start all processes again"
                print(f"error: {line}", file=sys.stderr, flush=True)
                # The service may be gone, and then this would not end.
                telling = threading.Thread(target=self._pass_on, args=(failure,))
                telling.daemon = True
                telling.start()
                telling.join(1.0)
            _end(1)

    def _pass_on(self, failure: str) -> None:
        with contextlib.suppress(RuntimeError):
            key = f"lm/end/{self.place.index}"
            self._client.key_value_set(key, failure, allow_overwrite=True)


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


_watch: Watch | None = None


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    """Says why before JAX aborts the process, which it does when its service is gone.

    Python's handlers of signals would run too late, and JAX asks nobody (0.10.2,
    0.12.0.1).
    """
    if _watch is not None:
        _watch.explain_abort()


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Joins the other processes, if there are any, for the body of a command.

    Raises:
        UserError: If they cannot be joined.
    """
    global _watch
    place = find_place(args)
    if place is None:
        yield
        return
    hosts = meet(place, args.start_timeout)
    _connect(place, args)
    _watch = Watch(place, hosts, args)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # as on Windows
        ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)
    try:
        with _own_stdout():
            yield
    except cli.Ended:
        _watch.finish()
        raise
    except BaseException as error:
        _watch.tell(error)
        _watch.leave()
        raise
    _watch.finish()
    _watch = None


@contextlib.contextmanager
def _own_stdout() -> Iterator[None]:
    """Sends what Gloo prints to standard error; standard output is for results."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    sys.stdout.flush()
    os.dup2(2, 1)
    with os.fdopen(kept, "w", errors="backslashreplace") as file:
        hidden = sys.stdout is sys.stderr  # by --json
        redirect = contextlib.nullcontext if hidden else contextlib.redirect_stdout
        try:
            with redirect(file):
                yield
        finally:
            file.flush()
            os.dup2(kept, 1)


def _connect(place: Place, args: argparse.Namespace) -> None:
    import jax
    from jax._src import distributed as jax_distributed

    # Collectives between CPUs; other devices have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It takes SIGTERM away from Python, which only training wants (`catch_sigterm`).
    jax.config.update("jax_enable_preemption_service", False)
    own = jax_distributed._jax
    original = own.get_distributed_runtime_service
    own.get_distributed_runtime_service = _Service
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            initialization_timeout=args.start_timeout,
            heartbeat_timeout_seconds=_JAX_PATIENCE * args.heartbeat_timeout,
            shutdown_timeout_seconds=_JAX_PATIENCE * args.heartbeat_timeout,
        )
    except RuntimeError as error:
        raise UserError(f"cannot start jax.distributed: {one_line(error)}") from error
    finally:
        own.get_distributed_runtime_service = original


def is_first() -> bool:
    """Returns whether this process is 0, or alone: the one that writes results."""
    return _watch is None or _watch.place.index == 0


def is_several() -> bool:
    """Returns whether there are other processes."""
    return _watch is not None


def catch_sigterm() -> None:
    """Lets JAX's preemption service take SIGTERM from now on."""
    import jax
    from jax._src import distributed as jax_distributed

    state = jax_distributed.global_state
    if _watch is not None and state.preemption_sync_manager is None:
        jax.config.update("jax_enable_preemption_service", True)
        state.initialize_preemption_sync_manager()


def keeps(what: Callable[[], str]) -> None:
    """Sets what a message says of the work that is not lost."""
    if _watch is not None:
        _watch.kept = what


def mark(step: int | None = None) -> None:
    """Notes that this process gets on; see `--step-timeout`."""
    if _watch is not None:
        _watch.mark(step)


def from_first(make: Callable[[], Any]) -> Any:
    """Returns what process 0 makes, a JSON value, on all processes."""
    return make() if _watch is None else _watch.from_first(make)


def together() -> None:
    """Waits until all processes are here."""
    if _watch is not None:
        _watch.together()


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Tells the others of an error at once, before what is open is closed."""
    try:
        yield
    except BaseException as error:
        if _watch is not None and not isinstance(error, cli.Ended):
            _watch.tell(error)
        raise


def pace(own: float, step: float) -> tuple[dict[str, float], str]:
    """Compares the time that the hosts take by themselves for a step.

    It is what a process does while it waits for no device: reading data, Python. A chip
    that is slow is not seen, since all hosts wait for it alike.

    Args:
        own: Seconds of a step, of this process.
        step: Seconds of a step, all in all.

    Returns:
        Metrics, and who is slow or ""; nothing on other processes than 0.
    """
    paces = [] if _watch is None else _watch.share(own)
    if not paces or _watch is None:
        return {}, ""
    median = statistics.median_low(paces)
    slowest = max(range(len(paces)), key=paces.__getitem__)
    metrics = {
        "perf/host_seconds_median": median,
        "perf/host_seconds_max": paces[slowest],
        "perf/slowest_process": float(slowest),
    }
    return metrics, slow_line(_watch.name(slowest), paces[slowest], median, step)


def slow_line(name: str, seconds: float, median: float, step: float) -> str:
    """Says that a host is clearly slower than the median, or nothing.

    >>> slow_line("process 1 (b)", 0.5, 0.01, 0.6)
    'process 1 (b) is slow: 0.500 s of a step by itself, the median host 0.010 s'
    >>> slow_line("process 1 (b)", 0.02, 0.01, 0.6)
    ''
    """
    least = max(_SLOW_PART * step, _SLOW_SECONDS)
    if seconds <= _SLOW_RATIO * median or seconds - median < least:
        return ""
    return (
        f"{name} is slow: {seconds:.3f} s of a step by itself, the median host "
        f"{median:.3f} s"
    )
