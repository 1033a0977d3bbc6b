"""A rank's sign of life: a file that it writes at each step and that its launcher watches.

A process that hangs, in a collective, a driver or a dead network disk, ends neither well nor badly; only its silence
tells.
"""

import os
from contextlib import suppress
from functools import cache

FILE_VARIABLE = "HEARTBEAT_FILE"  # in a rank's environment: which file
DONE = -1.0  # in place of seconds: this process has done all its work


def is_watched() -> bool:
    """Whether a launcher listens."""
    return bool(os.environ.get(FILE_VARIABLE))


def beat(seconds: float = 0) -> None:
    """Say that this process moves on; nothing happens where no launcher listens.

    Args:
        seconds: how long the next sign may take, where that is more than the launcher's own limit: to be given before
            the graph is compiled, data is copied in, or results are copied out.
    """
    if not is_watched():
        return
    with suppress(OSError):  # a full disk must not end a step
        os.pwrite(_file(os.environ[FILE_VARIABLE]), f"{seconds:15.0f}\n".encode(), 0)


@cache
def _file(path: str) -> int:
    """The file, open for good: whoever tidies up the logs of a job that runs may remove it."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)  # no pipe is waited for


def finish() -> None:
    """Say that this process has done all its work: what happens to it now undoes nothing.

    MindSpore takes its threads and connections down after that, and now and then ends by signal 11 on the way: its
    TCPClient::Finalize lets a thread read from a connection that is closed, when the scheduler hangs up just then.
    """
    beat(DONE)
