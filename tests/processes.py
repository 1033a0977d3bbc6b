"""What tests of whole jobs share: start a command, wait for what it says, see what it has left behind."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Optional

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534


def started(command: list, folder: Path, **environment: str) -> subprocess.Popen:
    """Start a command in a folder, with its output in output.txt there."""
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )


def finished(command: list, folder: Path, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess:
    """Run a command to its end; both streams are in `stdout`."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds; fail, naming it, if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def says(path: Path, text: str) -> Callable[[], bool]:
    """Whether a file holds a text by now."""
    return lambda: path.exists() and text in path.read_text(errors="replace")


def alive(mark: Path, but: Optional[int] = None) -> list[int]:
    """The processes that run in a folder or whose command line names it, but for one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), but):
            continue
        try:
            ended = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            names = (entry / "cmdline").read_bytes() + b"\0" + bytes((entry / "cwd").readlink())
            if not ended and str(mark).encode() in names:
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def end_all(mark: Path) -> None:
    """Kill what a failed test would leave behind."""
    for pid in alive(mark):
        os.kill(pid, signal.SIGKILL)


def as_nobody(work: Callable[[], str]) -> str:
    """What `work` returns when a user does it who owns nothing; root is kept out by no folder.

    In a fork, as that user may not run this Python. What it opens must be named from the current folder where those
    above are closed.
    """
    if os.geteuid() != 0:
        return work()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = work()
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode(errors="backslashreplace"))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said
