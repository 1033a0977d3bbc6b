"""The supervisor: starts a server's ranks, watches them, and ends them together.

python -m src.launcher.supervisor --rank_table FILE -- python train.py ...
python -m src.launcher.supervisor --workers 2 --device_target CPU -- python train.py ...

One process a rank, each in a folder of its own with its output in log.txt, bound to its share of the cores. With a rank
table HCCL connects them (https://www.mindspore.cn/tutorials/en/r2.7.0/parallel/rank_table.html); otherwise, and on the
CPU always, MindSpore's dynamic cluster does, whose scheduler is one more process on the first server
(https://www.mindspore.cn/tutorials/en/r2.10.0/parallel/dynamic_cluster.html).

Nothing outlives the job: the supervisor watches the ranks; the kernel tells each rank of the supervisor's death
(prctl(2), PR_SET_PDEATHSIG); a guard process kills what is left of them after that; and the supervisors of several
servers watch each other (`src.launcher.link`).
"""

import argparse
import contextlib
import ctypes
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from src.errors import UserError, run
from src.launcher.link import Link, connect
from src.launcher.rank_table import find_server, read_rank_table

POLL = 0.1  # seconds between two looks at the ranks
GRACE = 10.0  # seconds between SIGTERM and SIGKILL, for a checkpoint that is being written
ORPHAN_GRACE = 20.0  # the same where the supervisor itself has died and the ranks save first
STOP_LIMIT = 900.0  # seconds in which ranks that were asked to stop finish their piece and save
LOG_LINES = 20
DEFAULT_PORT = 8118  # msrun's, https://www.mindspore.cn/tutorials/en/r2.10.0/parallel/msrun_launcher.html
# Ranks wait for each other while rank 0 saves, or another copies data in: MindSpore's own limit for a collective on the
# CPU, 30 s, would end the job then, and its heartbeat, also 30 s, where a machine is busy. The supervisor tells sooner.
PATIENCE = {
    name: os.environ.get(name, "1800") for name in ("MS_CPU_COMM_OP_TIMEOUT", "MS_NODE_TIMEOUT", "MS_TOPO_TIMEOUT")
}
SCHEDULER = "from mindspore import communication; communication.init('mccl')"

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Rank:
    """A rank of this server: its number, its card, and its place among the `local_world` ranks here."""

    rank: int
    device_id: int
    local: int
    local_world: int


@dataclass(frozen=True)
class Job:
    """What to run on this server, and who else takes part.

    Attributes:
        command: the program and its arguments, the same for each rank.
        ranks: of this server.
        world: ranks on all servers.
        folder: rank r runs in <folder><r>/.
        rank_table: path of the table, '': none.
        device_target: Ascend, GPU or CPU.
        nodes, node: number of servers, and which this is.
        host, port: of the scheduler, and with the port after it of the first server's supervisor; 0: any free one.
        max_restarts: how often all ranks are started again after a failure.
        restart_flags: what is added to the command then.
    """

    command: tuple[str, ...]
    ranks: tuple[Rank, ...]
    world: int
    folder: str
    rank_table: str = ""
    device_target: str = "Ascend"
    nodes: int = 1
    node: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    max_restarts: int = 0
    restart_flags: tuple[str, ...] = ()

    @property
    def needs_scheduler(self) -> bool:
        """Whether the ranks find each other through MindSpore's dynamic cluster."""
        return self.world > 1 and (not self.rank_table or self.device_target == "CPU")

    def rank_folder(self, rank: Rank) -> Path:
        """Where a rank runs."""
        return Path(f"{self.folder}{rank.rank}").resolve()

    def environment(self, rank: Rank, port: int) -> dict[str, str]:
        """What a rank's environment has beyond the supervisor's own."""
        values = {
            "RANK_ID": rank.rank,
            "RANK_SIZE": self.world,
            "DEVICE_NUM": self.world,
            "DEVICE_ID": rank.device_id,
        }
        if self.rank_table:
            values["RANK_TABLE_FILE"] = str(Path(self.rank_table).resolve())
        if self.needs_scheduler:
            values.update(MS_ROLE="MS_WORKER", MS_NODE_ID=rank.rank, **self._cluster(port))
        return {name: str(value) for name, value in values.items()}

    def scheduler_environment(self, port: int) -> dict[str, str]:
        """The same for the scheduler."""
        values = {"MS_ROLE": "MS_SCHED", "RANK_ID": 0, "RANK_SIZE": self.world, **self._cluster(port)}
        return {name: str(value) for name, value in values.items()}

    def _cluster(self, port: int) -> dict[str, Any]:
        return {"MS_WORKER_NUM": self.world, "MS_SCHED_HOST": self.host, "MS_SCHED_PORT": port, **PATIENCE}


def share_of_cores(cores: Sequence[int], local: int, local_world: int) -> list[int]:
    """The cores of one of `local_world` processes: contiguous, none of them another's where there are enough."""
    cores = sorted(cores)
    if len(cores) < local_world:
        return [cores[local % len(cores)]]
    return cores[len(cores) * local // local_world : len(cores) * (local + 1) // local_world]


def check_port(host: str, port: int) -> None:
    """Raise UserError if another program listens on a port of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"MASTER_PORT: {host}:{port} cannot be used ({error.strerror}); end the program that has it, or choose "
                f"another port, such as MASTER_PORT={free_port(host)}"
            ) from error


def free_port(host: str) -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        with contextlib.suppress(OSError):
            probe.bind((host, 0))
        return probe.getsockname()[1] or 8119


class Guard:
    """A process that kills the groups it was told of, should the supervisor die without ending them.

    It reads its orders from a pipe, whose end comes with the supervisor's, however that happens.
    """

    def __init__(self, groups: Iterable[int] = ()) -> None:
        reader, self._writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._writer)
                _watch(reader)
            finally:
                os._exit(0)
        os.close(reader)
        for group in groups:
            self.add(group)

    def add(self, group: int) -> None:
        """Have a process group watched."""
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Have it watched no more: it has ended."""
        self._tell(f"-{group}\n")

    def is_alive(self) -> bool:
        """Whether the guard itself still runs."""
        return os.waitpid(self.pid, os.WNOHANG)[0] == 0

    def close(self) -> None:
        """End the guard; every group must have been removed."""
        os.close(self._writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _tell(self, order: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # a guard that was killed is replaced at the next look
            os.write(self._writer, order.encode())


def _watch(reader: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    reader = os.dup2(reader, 3)
    os.closerange(4, 4096)  # a link to other servers must break with the supervisor
    groups = set()
    with os.fdopen(reader) as orders:
        for line in orders:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    deadline = time.monotonic() + ORPHAN_GRACE
    while groups and time.monotonic() < deadline:
        groups = {group for group in groups if _signal_group(group, 0)}
        time.sleep(POLL)
    for group in groups:
        _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # only exited members are left
        return False
    return True


class Child:
    """A process of the job, the first of its own process group."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, log: str, values: dict, cores: list) -> None:
        self.name, self.log = name, folder / log
        self.code: Optional[int] = None
        supervisor = os.getpid()

        def prepare() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != supervisor:  # it died before the line above
                os._exit(1)
            os.sched_setaffinity(0, cores)

        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                list(command),
                cwd=folder,
                env={**os.environ, **values},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self.process.pid

    def look(self) -> bool:
        """Whether it has ended; then nothing of its group is left and `code` is its exit code, 128 + n for signal n."""
        if self.code is not None:
            return True
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        _signal_group(self.pid, signal.SIGKILL)  # before it is reaped, so that the number is still its own
        code = self.process.wait()
        self.code = code if code >= 0 else 128 - code
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the process and all it has started."""
        if self.code is None:
            _signal_group(self.pid, number)

    def last_lines(self) -> str:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 65536))
            lines = file.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"  {line}" for line in lines)


class Follower:
    """Copies what is added to a file to standard output, without ever waiting for a reader there."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._rest = b""
        self._output: Optional[int] = 1

    def copy(self) -> bool:
        """Copy what can be copied now; whether something was."""
        if self._output is None:
            return False
        self._rest = self._rest or self._file.read(2048)
        try:
            if not self._rest or not select.select([], [self._output], [], 0)[1]:
                return False
            self._rest = self._rest[os.write(self._output, self._rest) :]
        except OSError:  # the terminal has gone; the job has not
            self._output = None
            return False
        return True

    def finish(self, seconds: float = 2.0) -> None:
        """Copy the rest, for at most so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (self.copy() or self._rest):
            pass
        self._file.close()


@dataclass
class Outcome:
    """How an attempt ended: its exit code, and whether another attempt may help."""

    code: int
    can_restart: bool = False


@dataclass
class Supervisor:
    """Runs a job to its end."""

    job: Job
    signals: list[int] = field(default_factory=list)

    def run(self) -> int:
        """Start the ranks, wait for them, start them again where that is allowed; returns the exit code."""
        job = self.job
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: self.signals.append(number))
        for rank in job.ranks:
            folder = job.rank_folder(rank)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "log.txt").write_bytes(b"")
        (job.rank_folder(job.ranks[0]) / "scheduler.txt").unlink(missing_ok=True)
        self.guard = Guard()
        try:
            for attempt in range(job.max_restarts + 1):
                outcome = self._attempt(attempt)
                if not outcome.can_restart or self.signals or attempt == job.max_restarts:
                    break
                say(f"restart {attempt + 1} of {job.max_restarts}, from the newest checkpoint")
            return outcome.code
        finally:
            self.guard.close()

    def _attempt(self, attempt: int) -> Outcome:
        job, link = self.job, Link()
        if job.nodes > 1:
            link = connect(job.node, job.nodes, job.host, job.port + 1, attempt, lambda: bool(self.signals))
            if link is None:
                return Outcome(128 + self.signals[0])
        port = job.port or free_port(job.host)
        children, ranks = [], []
        follower = Follower(job.rank_folder(job.ranks[0]) / "log.txt")
        try:
            if job.needs_scheduler and job.node == 0:
                children.append(self._start_scheduler(port))
            for rank in job.ranks:
                ranks.append(self._start_rank(rank, port, attempt))
            children += ranks
            return self._watch(children, ranks, follower, link)
        finally:
            self._end(children, follower)
            follower.finish()
            link.close()

    def _start_scheduler(self, port: int) -> Child:
        folder = self.job.rank_folder(self.job.ranks[0])
        values = self.job.scheduler_environment(port)
        command = [sys.executable, "-c", SCHEDULER]
        return self._guarded(
            Child("the scheduler", command, folder, "scheduler.txt", values, sorted(os.sched_getaffinity(0)))
        )

    def _start_rank(self, rank: Rank, port: int, attempt: int) -> Child:
        job = self.job
        command = job.command + (job.restart_flags if attempt else ())
        cores = share_of_cores(list(os.sched_getaffinity(0)), rank.local, rank.local_world)
        values = job.environment(rank, port)
        return self._guarded(Child(f"rank {rank.rank}", command, job.rank_folder(rank), "log.txt", values, cores))

    def _guarded(self, child: Child) -> Child:
        self.guard.add(child.pid)
        return child

    def _watch(self, children: list[Child], ranks: list[Child], follower: Follower, link: Link) -> Outcome:
        """Wait until all ranks have ended well, one has failed, or a stop is over."""
        stop, asked, deadline = 0, 0, float("inf")
        while True:
            while follower.copy():
                pass
            self._renew_guard(children)
            news = link.poll()
            if news.stop and not stop:
                self.signals.append(news.stop)
            while len(self.signals) > asked:
                number = self.signals[asked]
                asked += 1
                stop = stop or (signal.SIGTERM if number == signal.SIGHUP else number)
                link.tell_stop(stop)
                say(_STOPPING if asked == 1 else "stopping at once")
                for child in ranks:
                    child.signal(stop)
                deadline = min(deadline, time.monotonic() + (STOP_LIMIT if asked == 1 else GRACE / 2))
            ended = [child for child in children if child.look()]
            for child in ended:
                self.guard.remove(child.pid)
            # While a graph runs, MindSpore turns SIGINT into SIGTERM (its SignalGuard), so either may end a rank.
            good = {0, 128 + stop, 128 + signal.SIGTERM} if stop else {0}
            failed = [child for child in ended if child.code not in good and (child in ranks or not _over(ranks))]
            if failed:
                return self._failed(failed[0], stop, link)
            if news.failed is not None:
                say(f"{news.failed}; the ranks of this server are stopped", error=True)
                return Outcome(news.code, can_restart=not stop and news.code != 2)
            if _over(ranks):
                code = 128 + stop if any(child.code for child in ranks) else 0
                link.tell_done(code)
                if link.all_done():
                    return Outcome(max(code, link.code))
            elif stop and any(child in ended for child in ranks):
                deadline = min(deadline, time.monotonic() + ORPHAN_GRACE)
            if time.monotonic() > deadline:
                say("the ranks did not stop in time and are killed", error=True)
                for child in ranks:
                    child.signal(signal.SIGKILL)
                return Outcome(128 + stop)
            time.sleep(POLL)

    def _renew_guard(self, children: list[Child]) -> None:
        if not self.guard.is_alive():
            self.guard = Guard(child.pid for child in children if child.code is None)

    def _failed(self, child: Child, stop: int, link: Link) -> Outcome:
        how = f"exit code {child.code}"
        if child.code > 128:
            how = f"signal {child.code - 128}" + (", perhaps out of memory" if child.code == 137 else "")
        message = f"{child.name} ended with {how}"
        link.tell_failed(child.code, message)
        say(f"{message}; the last lines of {child.log}:\n{child.last_lines()}", error=True)
        return Outcome(child.code or 1, can_restart=not stop and child.code != 2)

    def _end(self, children: list[Child], follower: Follower) -> None:
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, float("inf"))):
            left = [child for child in children if not child.look()]
            for child in left:
                child.signal(number)
            deadline = time.monotonic() + seconds
            while left and time.monotonic() < deadline:
                follower.copy()
                time.sleep(POLL)
                left = [child for child in left if not child.look()]
        for child in children:
            self.guard.remove(child.pid)


_STOPPING = "stopping: the ranks finish their step and save; a second signal ends them at once"


def _over(ranks: list[Child]) -> bool:
    return all(child.code is not None for child in ranks)


def say(text: str, error: bool = False) -> None:
    """Print a line of the supervisor's own; where the terminal has gone nobody misses it."""
    with contextlib.suppress(OSError):
        print(f"launcher: {text}", file=sys.stderr if error else sys.stdout, flush=True)


def detach(log: Path) -> Optional[int]:
    """Go on in the background, with output in `log`; the process id to the caller's process, None in the new one."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for source, target in ((nowhere, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    return None


def plan(options: argparse.Namespace) -> Job:
    """The job that the command line and the environment ask for.

    Raises:
        UserError: the rank table, a number, an address or a port is wrong.
    """
    common: dict[str, Any] = {
        "command": tuple(options.command),
        "folder": options.folder,
        "device_target": options.device_target,
        "max_restarts": options.max_restarts,
        "restart_flags": tuple(shlex.split(options.restart_flags)),
    }
    host = os.environ.get("MASTER_ADDR", "")
    if options.rank_table:
        table = read_rank_table(options.rank_table)
        server = find_server(table, os.environ.get("SERVER_ID", ""))
        nodes, node, world = len(table.servers), table.servers.index(server), table.world
        ranks = [(card.rank, card.device_id) for card in server.cards]
        first = table.servers[0]
        host = host or first.host_ip or first.server_id
        common["rank_table"] = options.rank_table
    else:
        nodes, node = environment_number("SERVER_NUM", 1), environment_number("NODE_RANK", 0)
        if options.workers < 1:
            raise UserError(f"WORKERS: is {options.workers}; must be at least 1")
        if node >= nodes:
            raise UserError(f"NODE_RANK: is {node}, but SERVER_NUM is {nodes}; servers count from 0 to {nodes - 1}")
        if nodes > 1 and not host:
            raise UserError("MASTER_ADDR: with several servers, it must be the address of the one with NODE_RANK 0")
        world = options.workers * nodes
        ranks = [(node * options.workers + index, index) for index in range(options.workers)]
    port = environment_number("MASTER_PORT", DEFAULT_PORT if nodes > 1 else 0)
    job = Job(
        ranks=tuple(Rank(rank, card, local, len(ranks)) for local, (rank, card) in enumerate(ranks)),
        world=world,
        nodes=nodes,
        node=node,
        host=_resolve(host) if nodes > 1 else host or "127.0.0.1",
        port=port,
        **common,
    )
    if node == 0 and port:
        if job.needs_scheduler:
            check_port(job.host, port)
        if nodes > 1:
            check_port(job.host, port + 1)
    return job


def environment_number(name: str, default: int) -> int:
    """A number from the environment.

    Raises:
        UserError: it is none.
    """
    text = os.environ.get(name, "") or str(default)
    if not text.isdigit():
        raise UserError(f"{name}: is {text!r}; must be a number from 0")
    return int(text)


def _resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise UserError(f"MASTER_ADDR: {host!r} is no address of a server ({error.strerror}); set it") from error


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run a job as the command line says; exit with its code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--rank_table", metavar="FILE", help="start this server's ranks of a table")
    what.add_argument("--workers", type=int, metavar="N", help="start N ranks on this server")
    parser.add_argument("--device_target", default="Ascend", choices=["Ascend", "GPU", "CPU"])
    parser.add_argument("--folder", default="train_parallel", help="rank r runs in FOLDERr/ (default: %(default)s)")
    parser.add_argument("--max_restarts", type=int, default=0, help="start all ranks again so often after a failure")
    parser.add_argument("--restart_flags", default="", help="what is added to the command then")
    parser.add_argument("--detach", action="store_true", help="go on in the background")
    parser.add_argument("command", nargs="+", help="after --: the program and its arguments")
    options = parser.parse_args(argv)
    if options.max_restarts < 0:
        raise UserError(f"--max_restarts: is {options.max_restarts}; must be at least 0")

    job = plan(options)
    logs = ", ".join(f"{job.folder}{rank.rank}/log.txt" for rank in job.ranks[:2]) + (", ..." * (len(job.ranks) > 2))
    say(f"{len(job.ranks)} of {job.world} ranks here; logs: {logs}")
    if options.detach:
        log = Path(f"{job.folder}.txt").resolve()
        pid = detach(log)
        if pid:
            say(f"in the background, process {pid}, log {log}; to stop it and save: kill {pid}")
            return
    sys.exit(Supervisor(job).run())


if __name__ == "__main__":
    run(main)
