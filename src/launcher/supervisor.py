"""The launcher: starts a server's ranks, watches them, and ends them together.

python -m src.launcher.supervisor --rank_table FILE -- python train.py ...
python -m src.launcher.supervisor --workers 2 --device_target CPU -- python train.py ...

One process a rank, each in a folder of its own with its output in log.txt, bound to its share of the cores; they meet
as `src.launcher.environment` says, and one more process on the first server, the scheduler, brings them together.

Nothing outlives the job, and nothing waits for ever: the launcher watches the ranks' ends and their signs of life; the
kernel tells each rank of the launcher's death (prctl(2), PR_SET_PDEATHSIG); guards kill what is left of them after
that (`src.launcher.guard`); and the launchers of several servers watch each other (`src.launcher.link`).

Why not msrun, which MindSpore brings: it restarts nothing, passes no signal on for the ranks to save and end by,
notices a killed rank after half a minute (31 s were measured), leaves ranks behind when it is killed itself, and its
servers do not know of each other's end.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from src.errors import BAD_INPUT, TEMPORARY, Parser, UserError, run
from src.files import is_regular, next_free, open_to_write
from src.launcher.environment import SCHEDULER
from src.launcher.job import Job, free_port, plan, share_of_cores
from src.launcher.link import Link, connect
from src.launcher.processes import ORPHAN_GRACE, POLL, Child, Follower, Guards, Pulse
from src.stops import STOPS, Requests, listened_to

GRACE = 10.0  # seconds between SIGTERM and SIGKILL, for a checkpoint that is being written
STOP_LIMIT = 900.0  # seconds in which ranks that were asked to stop finish their piece and save
STOP_PATIENCE = 60.0  # the same where they have shown how fast they step, beyond three steps
STOPPED_LIMIT = 60.0  # seconds for which a rank may stand stopped, as by SIGSTOP
AWAY = 5.0  # seconds between two looks that show that the launcher itself did not run
LONGEST_PAUSE = 60.0  # seconds before a restart; the first waits one
_STOPPING = "stopping: the ranks finish their step and save; a second signal ends them at once"


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
        """Start the ranks, wait for them, start them again where that is allowed; returns the exit code.

        Raises:
            UserError: the folder cannot be written, or the program cannot be started.
        """
        job = self.job
        requests = Requests()

        def take(number: int, _: object) -> None:
            if requests.is_another(number) or not self.signals:
                self.signals.append(number)

        for number in listened_to():
            signal.signal(number, take)
        make_folders(job)
        self.guards = Guards()
        try:
            for attempt in range(job.max_restarts + 1):
                outcome = self._attempt(attempt)
                if not outcome.can_restart or attempt == job.max_restarts or not self._pause(attempt):
                    break
                say(f"restart {attempt + 1} of {job.max_restarts}, from the newest checkpoint")
            return outcome.code
        finally:
            self.guards.close()

    def _pause(self, attempt: int) -> bool:
        """Wait before a restart, longer each time, as trouble takes a while to pass; False: a signal came."""
        deadline = time.monotonic() + min(2.0 ** min(attempt, 10), LONGEST_PAUSE)
        while time.monotonic() < deadline and not self.signals:
            time.sleep(POLL)
        return not self.signals

    def _attempt(self, attempt: int) -> Outcome:
        job, link = self.job, Link()
        if job.nodes > 1:
            joined = connect(job, attempt, lambda: bool(self.signals), say)
            if joined is None:
                return Outcome(128 + self.signals[0])
            link = joined
        watch = Attempt(job, link, self.guards, self.signals, resumes=max(attempt, link.attempt) > 0)
        try:
            watch.start()
            return watch.wait()
        except UserError as error:
            link.tell_failed(error.exit_code, str(error))
            if error.exit_code != TEMPORARY:
                raise
            say(str(error), error=True)
            return Outcome(TEMPORARY, can_restart=True)
        finally:
            watch.end()
            link.close()


class Attempt:
    """One start of the ranks, until all have ended.

    Args:
        job: what to run.
        link: to the other servers.
        guards: are told of every process.
        signals: that the launcher has received; grows.
        resumes: whether the ranks go on from a checkpoint.
    """

    def __init__(self, job: Job, link: Link, guards: Guards, signals: list[int], resumes: bool) -> None:
        self.job, self.link, self.guards, self.signals, self.resumes = job, link, guards, signals, resumes
        self.children: list[Child] = []
        self.ranks: list[Child] = []
        self.pulses: dict[Child, Pulse] = {}
        self.follower = Follower(job.rank_folder(job.ranks[0]) / "log.txt")
        self.stop, self._asked, self._asked_at, self._deadline = 0, 0, 0.0, float("inf")
        self._stopped: dict[Child, float] = {}
        self._late = 0.0  # when a rank first ended by a signal after its work
        self._looked = time.monotonic()

    def start(self) -> None:
        """Start the scheduler and the ranks."""
        job = self.job
        port = job.port or free_port(job.host)
        all_cores = sorted(os.sched_getaffinity(0))
        if job.needs_scheduler and job.node == 0:
            folder, values = job.rank_folder(job.ranks[0]), job.scheduler_environment(port)
            command = [sys.executable, "-c", SCHEDULER]
            self._started(Child("the scheduler", command, folder, "scheduler.txt", values, all_cores))
        command = [*job.command, *(job.restart_flags if self.resumes else ())]
        for rank in job.ranks:
            folder, values = job.rank_folder(rank), job.rank_environment(rank, port)
            job.heartbeat_file(rank).unlink(missing_ok=True)
            pulse = Pulse(job.heartbeat_file(rank), job.hang_limit)
            cores = share_of_cores(all_cores, rank.local, rank.local_world)
            child = self._started(Child(f"rank {rank.rank}", command, folder, "log.txt", values, cores))
            self.ranks.append(child)
            self.pulses[child] = pulse

    def _started(self, child: Child) -> Child:
        self.children.append(child)
        self.guards.add(child.pid)
        return child

    def wait(self) -> Outcome:
        """Wait until all ranks have ended well, one has failed or hangs, or a stop is over."""
        while True:
            while self.follower.copy():
                pass
            self.guards.renew()
            self._look()
            news = self.link.poll()
            if news.stop and not self.stop:
                self.signals.append(news.stop)
            self._take_signals()
            outcome = self._judge_ends()
            if outcome is None and news.failed is not None:
                say(f"{news.failed}; the ranks of this server are stopped", error=True)
                outcome = Outcome(news.code, can_restart=not self.stop and news.code != BAD_INPUT)
            outcome = outcome or self._judge_silence() or self._judge_stop()
            if outcome is not None:
                return outcome
            time.sleep(POLL)

    def end(self) -> None:
        """End what is left: SIGTERM first, SIGKILL where that does not help."""
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, float("inf"))):
            left = [child for child in self.children if not child.look()]
            for child in left:
                child.signal(signal.SIGKILL if child.is_stopped() else number)
            deadline = time.monotonic() + seconds
            while left and time.monotonic() < deadline:
                self.follower.copy()
                time.sleep(POLL)
                left = [child for child in left if not child.look()]
        for child in self.children:
            self.guards.remove(child.pid)
        for pulse in self.pulses.values():
            pulse.close()
        self.follower.finish()

    def _look(self) -> None:
        """Take note of the signs of life that have come, and of what stands stopped."""
        now = time.monotonic()
        was_away, self._looked = now - self._looked > AWAY, now
        for pulse in self.pulses.values():
            pulse.look()
            if was_away:
                pulse.excuse()
        for child in self.children:
            if child.code is not None or not child.is_stopped():
                self._stopped.pop(child, None)
            elif child not in self._stopped or was_away:
                self._stopped[child] = now

    def _take_signals(self) -> None:
        """Pass the launcher's signals on to the ranks, the first as it came, and to the other servers."""
        while len(self.signals) > self._asked:
            number = self.signals[self._asked]
            self._asked += 1
            self.stop = self.stop or (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            self.link.tell_stop(self.stop)
            say(_STOPPING if self._asked == 1 else "stopping at once")
            for child in self.ranks:
                child.signal(self.stop)
            now = time.monotonic()
            self._asked_at = self._asked_at or now
            self._deadline = min(self._deadline, now + (STOP_LIMIT if self._asked == 1 else GRACE / 2))

    def _judge_ends(self) -> Optional[Outcome]:
        """What follows from the processes that have ended."""
        ended = [child for child in self.children if child.look()]
        for child in ended:
            self.guards.remove(child.pid)
        self._judge_late_ends()
        over = all(child.code is not None for child in self.ranks)
        # A rank may have had its signal from elsewhere, and MindSpore turns SIGINT into SIGTERM while a graph runs.
        good = {0, *(128 + number for number in STOPS)} if self.stop else {0}
        failed = [child for child in ended if child.code not in good and (child in self.ranks or not over)]
        if self._asked > 1:  # at once, and so anyhow
            failed = []
        early = [child for child in ended if not self.stop and child in self.pulses and self._is_early(child)]
        if failed or early:
            return self._failed((failed or early)[0])
        if over:
            code = 128 + self.stop if any(child.code for child in self.ranks) else 0
            self.link.tell_done(code)
            if self.link.all_done():
                return Outcome(max(code, self.link.code))
        elif self.stop and any(child in ended for child in self.ranks):
            self._deadline = min(self._deadline, time.monotonic() + ORPHAN_GRACE)
        return None

    def _judge_late_ends(self) -> None:
        """A rank that a signal ended after all its work was done has ended well; the others may wait for it in vain."""
        for child, pulse in self.pulses.items():
            if child.code is None or child.code <= 128:
                continue
            pulse.look()
            if pulse.finished:
                say(f"{child.name} ended with signal {child.code - 128} after its work was done")
                child.code, self._late = 0, self._late or time.monotonic()
        if self._late and time.monotonic() - self._late > GRACE:
            for child, pulse in self.pulses.items():
                if pulse.finished:
                    child.signal(signal.SIGKILL)

    def _is_early(self, child: Child) -> bool:
        """Whether a rank has left with exit code 0 out of its steps, and has not said that its work was done.

        One that gave no sign of life after it had joined the others may be a program of somebody's own.
        """
        pulse = self.pulses[child]
        pulse.look()
        return child.code == 0 and pulse.beats > 1 and not pulse.finished

    def _failed(self, child: Child) -> Outcome:
        code = child.code or TEMPORARY
        how = f"exit code {code}" if child.code else "exit code 0 before its work was done"
        if code > 128:
            how = f"signal {code - 128}" + (", perhaps out of memory" if code == 137 else "")
        message = f"{child.name} ended with {how}"
        self.link.tell_failed(code, message)
        say(f"{message}; the last lines of {child.log}:\n{child.last_lines()}", error=True)
        return Outcome(code, can_restart=not self.stop and code != BAD_INPUT)

    def _judge_silence(self) -> Optional[Outcome]:
        """Whether a rank hangs: it has given no sign of life for too long, or stands stopped."""
        now = time.monotonic()
        limit = GRACE if self.stop else STOPPED_LIMIT
        reasons = {
            child: f"{child.name} has been stopped (SIGSTOP) for {limit:.0f} s"
            for child, since in self._stopped.items()
            if now - since > limit
        }
        if not reasons and not self.stop:
            silent = [child for child, pulse in self.pulses.items() if child.code is None and pulse.is_overdue()]
            reasons = {
                child: f"{child.name} has given no sign of life for {self.pulses[child].silent():.0f} s (HANG_LIMIT)"
                for child in silent
            }
        if not reasons:
            return None
        child, message = next(iter(reasons.items()))
        self.link.tell_failed(TEMPORARY, message)
        say(f"{message}; the job is ended; the last lines of {child.log}:\n{child.last_lines()}", error=True)
        return Outcome(128 + self.stop if self.stop else TEMPORARY, can_restart=not self.stop)

    def _judge_stop(self) -> Optional[Outcome]:
        """Whether ranks that were asked to stop have had their time, or do not step any more."""
        if not self.stop:
            return None
        now = time.monotonic()
        hang = [
            min(pulse.silent(), now - self._asked_at) > pulse.stops_by(STOP_PATIENCE, STOP_LIMIT)
            for child, pulse in self.pulses.items()
            if child.code is None
        ]
        if now <= self._deadline and not any(hang):
            return None
        say("the ranks did not stop in time and are killed", error=True)
        for child in self.ranks:
            child.signal(signal.SIGKILL)
        return Outcome(128 + self.stop)


def make_folders(job: Job) -> None:
    """The ranks' folders, with empty logs; what an earlier training has said stays as log.1.txt and so on.

    Raises:
        UserError: one cannot be made or written.
    """
    for rank in job.ranks:
        folder = job.rank_folder(rank)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("log.txt", "scheduler.txt")[: 1 + (rank.local == 0)]:
                if not Path(job.folder).name.startswith("eval"):  # which can be had again
                    keep_log(folder / name)
                open_to_write(folder / name).close()
            beat = job.heartbeat_file(rank)
            open_to_write(beat).close()
            beat.unlink()
        except OSError as error:
            raise UserError(
                f"{error.filename or folder}: cannot be written ({error.strerror}); start from a folder that can be"
            ) from error


def keep_log(path: Path) -> None:
    """Give a log that says something, such as why a run died, another name: the next start begins a new one."""
    if is_regular(path) and path.stat().st_size:
        path.rename(next_free(path))


def say(text: str, error: bool = False) -> None:
    """Print a line of the launcher's own; where the terminal has gone nobody misses it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"launcher: {text}", file=sys.stderr if error else sys.stdout, flush=True)


def detach(log: Path) -> Optional[int]:
    """Go on in the background, with output in `log`; the process id to the caller's process, None in the new one.

    Raises:
        UserError: the log cannot be written.
    """
    try:
        output = open_to_write(log)
    except OSError as error:
        raise UserError(f"{log}: cannot be written ({error.strerror}); start from a folder that can be") from error
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nowhere, 0), (output.fileno(), 1), (output.fileno(), 2)):
        os.dup2(source, target)
    return None


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run a job as the command line says; exit with its code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    make_folders(job)
    logs = ", ".join(f"{job.folder}{rank.rank}/log.txt" for rank in job.ranks[:2]) + (", ..." * (len(job.ranks) > 2))
    say(f"{len(job.ranks)} of {job.world} ranks here; logs: {logs}")
    if options.detach:
        log = Path(f"{job.folder}.txt").absolute()
        pid = detach(log)
        if pid:
            say(f"in the background, process {pid}, log {log}; to stop it and save: kill {pid}")
            return
    sys.exit(Supervisor(job).run())


if __name__ == "__main__":
    run(main)
