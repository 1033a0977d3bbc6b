"""The launcher's processes: what it starts, what guards them after its death, and how a rank's silence shows."""

import contextlib
import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Optional

from src.errors import TemporaryFailure, UserError
from src.files import is_regular, open_regular
from src.heartbeat import DONE
from src.launcher import guard
from src.launcher.guard import signal_group

POLL = 0.1  # seconds between two looks at the ranks
ORPHAN_GRACE = 20.0  # seconds to save in, for ranks whose launcher has died
LOG_LINES = 20

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class Guard:
    """A process that kills the groups it was told of after the launcher's death; `src.launcher.guard`.

    Args:
        detached: it is no child of the launcher, and lives on where that and all its children are killed.
    """

    def __init__(self, detached: bool) -> None:
        self.detached = detached
        self.groups: set[int] = set()
        self._start()

    def _start(self) -> None:
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # a guard that stands stopped must not stop the launcher
        try:
            if self.detached:
                command = [sys.executable, "-I", "-S", guard.__file__, str(ORPHAN_GRACE)]
                subprocess.run(command, stdin=reader, stdout=subprocess.DEVNULL, start_new_session=True, check=False)
                return
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    os.close(self._writer)
                    os.setsid()
                    guard.watch(reader, ORPHAN_GRACE)
                finally:
                    os._exit(0)
        finally:
            os.close(reader)

    def add(self, group: int) -> None:
        """Have a process group watched."""
        self.groups.add(group)
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Have it watched no more: it has ended."""
        self.groups.discard(group)
        self._tell(f"-{group}\n")

    def renew(self) -> None:
        """Replace the guard where it was killed."""
        if not self._tell("\n"):
            os.close(self._writer)
            self._reap()
            self._start()
            for group in self.groups:
                self._tell(f"+{group}\n")

    def close(self) -> None:
        """End the guard; every group must have been removed."""
        os.close(self._writer)
        self._reap()

    def _reap(self) -> None:
        deadline = time.monotonic() + 2.0
        with contextlib.suppress(ChildProcessError):
            while not self.detached and os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:  # it stands stopped
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.01)

    def _tell(self, order: str) -> bool:
        """Whether the guard lives to hear it."""
        try:
            os.write(self._writer, order.encode())
        except OSError:  # it has gone, or does not read
            return False
        return True


class Guards:
    """Two guards, of which one is no child of the launcher: killing that and its children leaves the other."""

    def __init__(self) -> None:
        self._guards = [Guard(detached=False), Guard(detached=True)]

    def add(self, group: int) -> None:
        """Have a process group watched."""
        for one in self._guards:
            one.add(group)

    def remove(self, group: int) -> None:
        """Have it watched no more: it has ended."""
        for one in self._guards:
            one.remove(group)

    def renew(self) -> None:
        """Replace those that were killed."""
        for one in self._guards:
            one.renew()

    def close(self) -> None:
        """End both."""
        for one in self._guards:
            one.close()


class Child:
    """A process of the job, the first of its own process group.

    Args:
        name: in messages, such as "rank 1".
        command: the program and its arguments.
        folder: where it runs.
        log: its output is added to this file there.
        environment: all of it.
        cores: that it may use.

    Raises:
        UserError: the program or the folder cannot be used; TemporaryFailure: this machine can start no more.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        log: str,
        environment: Mapping[str, str],
        cores: Iterable[int],
    ) -> None:
        self.name, self.log = name, folder / log
        self.code: Optional[int] = None
        launcher = os.getpid()

        def prepare() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != launcher:  # it died before the line above
                os._exit(1)
            os.sched_setaffinity(0, cores)

        try:
            with self.log.open("ab") as output:
                self.process = subprocess.Popen(
                    list(command),
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=prepare,
                )
        except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
            raise UserError(f"{error.filename}: cannot be used to start {name} ({error.strerror})") from error
        except (OSError, subprocess.SubprocessError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOEXEC):
                raise UserError(f"{name} cannot be started ({error.strerror})") from error
            raise TemporaryFailure(f"{name} cannot be started ({getattr(error, 'strerror', None) or error})") from error

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
        signal_group(self.pid, signal.SIGKILL)  # before it is reaped, so that the number is still its own
        code = self.process.wait()
        self.code = code if code >= 0 else 128 - code
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the process and all it has started."""
        if self.code is None:
            signal_group(self.pid, number)

    def is_stopped(self) -> bool:
        """Whether it was stopped, as by SIGSTOP, and so can do nothing at all."""
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{self.pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()[0]
            return state == "T"
        return False

    def last_lines(self) -> str:
        """The end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 65536))
                lines = file.read(65536).decode("utf-8", "replace").splitlines()[-LOG_LINES:]
        except OSError as error:
            return f"  (cannot be read: {error.strerror})"
        return "\n".join(f"  {line}" for line in lines)


class Pulse:
    """A rank's signs of life (`src.heartbeat`), timed by the launcher's own clock.

    Args:
        path: the file that the rank writes to.
        limit: seconds of silence after which it counts as hung; 0: never.

    Attributes:
        finished: whether the rank has said that all its work is done.
        pace: the longest time between two signs so far, in seconds, where nothing long was announced.
        beats: the number of signs seen.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self._path, self._limit = path, limit
        self._file: Optional[BinaryIO] = None  # which stays, also where somebody removes its name
        self._last: tuple[int, bytes] = (0, b"")
        self._announced = 0.0
        self._since = time.monotonic()
        self.pace, self.beats, self.finished = 0.0, 0, False

    def look(self) -> None:
        """Take note of a sign that has come."""
        try:
            self._file = self._file or open_regular(self._path)
            number = self._file.fileno()
            now = (os.fstat(number).st_mtime_ns, os.pread(number, 32, 0))
        except OSError:
            return
        if now == self._last:
            return
        if self.beats and not self._announced:
            self.pace = max(self.pace, self.silent())
        try:
            seconds = float(now[1])
        except ValueError:  # it is being written
            return
        self._announced, self.finished = min(max(0.0, seconds), 7 * 86400.0), seconds == DONE
        self._last, self._since = now, time.monotonic()
        self.beats += 1

    def close(self) -> None:
        """Look no more."""
        if self._file:
            self._file.close()
            self._file = None

    def silent(self) -> float:
        """Seconds since the last sign."""
        return time.monotonic() - self._since

    def excuse(self) -> None:
        """Begin to count anew: it was the launcher that did not look."""
        self._since = time.monotonic()

    def is_overdue(self) -> bool:
        """Whether the rank has been silent for too long; one that has never given a sign is not asked for any."""
        return bool(self._limit and self.beats) and self.silent() > max(self._limit, self._announced)

    def stops_by(self, patience: float, longest: float) -> float:
        """Seconds of silence after which a rank that was asked to stop will not do so any more.

        patience: what a rank is given beyond three of its steps; longest: the limit for one without signs of life.
        """
        return min(longest, max(self._announced, patience + 3 * self.pace)) if self.beats else longest


class Follower:
    """Copies what is added to a file to standard output, without ever waiting for a reader there."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._rest = b""
        self._output: Optional[int] = 1 if is_regular(path) else None  # a device may have no end

    def copy(self) -> bool:
        """Copy what can be copied now; whether something was."""
        if self._output is None:
            return False
        try:
            self._rest = self._rest or self._file.read(2048)
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
