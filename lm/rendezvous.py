"""Which of several processes this is, and how they meet.

Before JAX connects them, all meet at the coordinator's port, where a wrong number, a
missing process or another version of JAX is one line on every one of them. JAX would
abort.
"""

import argparse
import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from lm.config import check_range
from lm.types import UserError


@dataclass(frozen=True)
class Place:
    """A process among the others.

    Attributes:
        coordinator: HOST:PORT of process 0.
        count: How many processes there are.
        index: Which of them this is.
    """

    coordinator: str
    count: int
    index: int

    @property
    def address(self) -> tuple[str, int]:
        """The coordinator's host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `lm.distributed.joined` reads."""
    group = parser.add_argument_group(
        "several hosts", "the same command on each, but for --process-id"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num-processes", type=int, help="1: alone, whatever is found")
    group.add_argument("--process-id", type=int, help="from 0")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="find them out (Kubernetes); by itself under srun, mpirun, on TPU slices",
    )
    for name, seconds, text in (
        ("start-timeout", 50, "for all processes to come"),
        ("heartbeat-timeout", 60, "of silence until one is gone; after errors 5"),
        ("step-timeout", 1800, "until a step, compiled or run, is given up"),
    ):
        group.add_argument(
            f"--{name}",
            type=int,
            default=seconds,
            metavar="SECONDS",
            help=f"{text} (default: {seconds})",
        )


def find_place(args: argparse.Namespace) -> Place | None:
    """Returns where the flags or the cluster put this process; None if it is alone.

    Raises:
        UserError: If the flags do not fit together, or `--distributed` finds nothing.
    """
    given = {
        "--coordinator": args.coordinator,
        "--num-processes": args.num_processes,
        "--process-id": args.process_id,
    }
    for name in ("start_timeout", "heartbeat_timeout", "step_timeout"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1 second")
    if args.num_processes == 1 and not args.coordinator and not args.process_id:
        return None
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return _detect(args)
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must go with "
            f"{' and '.join(name for name in given if name not in missing)}"
        )
    count, index = args.num_processes, args.process_id
    check_range("--num-processes", count, 1)
    if not 0 <= index < count:
        raise UserError(
            f"--process-id={index} is not one of --num-processes={count}; they count "
            "from 0"
        )
    host, _, port = args.coordinator.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator={args.coordinator} is not HOST:PORT, for example "
            "10.0.0.1:8476"
        )
    return Place(args.coordinator, count, index) if count > 1 else None


def _detect(args: argparse.Namespace) -> Place | None:
    """Asks JAX's cluster detection, of Kubernetes only if told to."""
    from jax._src import clusters

    environments = [
        found
        for found in clusters.ClusterEnv._cluster_types
        if not found.opt_in_only_method
        and (args.distributed or found is not clusters.K8sCluster)
    ]
    try:
        found = next((e for e in environments if e.is_env_present()), None)
        if found is None:
            if args.distributed:
                raise UserError(
                    "--distributed finds no cluster (Cloud TPU, SLURM, Open MPI, an "
                    "indexed Job of Kubernetes with jax[k8s]); leave it out on one "
                    "host, or give --coordinator, --num-processes and --process-id"
                )
            return None
        count = found.get_process_count()
        if count == 1:
            return None
        coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
        coordinator = coordinator or found.get_coordinator_address(
            args.start_timeout, os.environ.get("JAX_COORDINATOR_PORT")
        )
        return Place(coordinator, count, found.get_process_id())
    except (RuntimeError, ValueError, LookupError, OSError, ImportError) as error:
        raise UserError(
            f"cannot find out the other processes: {one_line(error)}; give "
            "--coordinator, --num-processes and --process-id, or --num-processes=1 to "
            "run alone"
        ) from error


def one_line(error: BaseException) -> str:
    """Returns the text of an error without line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def meet(place: Place, timeout: float) -> list[str]:
    """Waits until all processes are there; returns their hosts' names.

    Each sends process 0 a line of JSON and gets one back: whether all may go on.

    Raises:
        UserError: On every process: if one is missing after `timeout` seconds, is there
            twice, or has another number of processes or version of JAX.
    """
    import jax

    deadline = time.monotonic() + timeout
    mine = {
        "index": place.index,
        "count": place.count,
        "host": socket.gethostname(),
        "jax": jax.__version__,
    }
    if place.index:
        return _ask(place, mine, timeout, deadline)
    return _receive(place, mine, timeout, deadline)


def _receive(
    place: Place, mine: dict[str, Any], timeout: float, deadline: float
) -> list[str]:
    """Waits at the coordinator's port, as process 0."""
    port = place.address[1]
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
        )
    except OSError as error:
        raise UserError(
            f"cannot listen at port {port}: {os.strerror(error.errno or 0)}; choose "
            "another port in --coordinator on all hosts, unless another process has "
            "--process-id=0 too"
        ) from error
    came: dict[int, dict[str, Any]] = {0: mine}
    trouble = ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        files = []
        while len(came) < place.count and not trouble:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                file = stack.enter_context(connection.makefile("rw"))
                theirs = json.loads(file.readline(1000))
                index = theirs["index"]
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue
                lost = sorted(set(range(place.count)) - set(came))
                trouble = (
                    f"process {', '.join(map(str, lost))} of {place.count} did not "
                    f"come within {timeout:.0f} s; start all within that time, or set "
                    "--start-timeout (--num-processes=1 runs alone)"
                )
                break
            except (OSError, ValueError, TypeError, KeyError):
                continue  # no process of ours
            files.append(file)
            trouble = _differs(mine, theirs) or (
                f"process {index} is there twice ({came[index]['host']} and "
                f"{theirs['host']}); give each another --process-id"
                if index in came
                else ""
            )
            came.setdefault(index, theirs)
        hosts = [came[i]["host"] for i in sorted(came)]
        for file in files:
            with contextlib.suppress(OSError):
                file.write(json.dumps({"trouble": trouble, "hosts": hosts}) + "\n")
                file.flush()
    if trouble:
        raise UserError(trouble)
    return hosts


def _differs(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    for name, what in (("count", "--num-processes"), ("jax", "the version of JAX")):
        if mine[name] != theirs.get(name):
            return (
                f"{what} is {mine[name]} on process 0 ({mine['host']}) and "
                f"{theirs.get(name)} on process {theirs['index']} ({theirs['host']}); "
                "make it the same on all hosts"
            )
    return ""


def _ask(
    place: Place, mine: dict[str, Any], timeout: float, deadline: float
) -> list[str]:
    """Reports to process 0 and waits for its answer, as any other."""
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with (
                socket.create_connection(place.address, timeout=min(left, 5)) as peer,
                peer.makefile("rw") as file,
            ):
                file.write(json.dumps(mine) + "\n")
                file.flush()
                peer.settimeout(left + 5)  # process 0 may have started later
                answer = json.loads(file.readline(1 << 20))
            if answer["trouble"]:
                raise UserError(answer["trouble"])
            return answer["hosts"]
        except OSError as error:
            why = error.strerror or str(error)
        except (ValueError, TypeError, KeyError):
            why = "something else answers at that port"
        time.sleep(min(0.3, max(left, 0)))
    raise UserError(
        f"process {place.index} cannot reach process 0 at {place.coordinator} within "
        f"{timeout:.0f} s ({why}); start process 0 on that host, or mend "
        "--coordinator, a --process-id that two have, or the network between them"
    )
