"""A rank's sign of life: a file that it writes at each step and that its launcher watches.

A process that hangs, in a collective, a driver or a dead network disk, ends neither well nor badly; only its silence
tells.
"""

import os
from contextlib import suppress

FILE_VARIABLE = "HEARTBEAT_FILE"  # in a rank's environment: which file
DONE = -1.0  # in place of seconds: this process has done all its work


def beat(seconds: float = 0) -> None:
    """Say that this process moves on; nothing happens where no launcher listens.

    Args:
        seconds: how long the next sign may take, where that is more than the launcher's own limit: to be given before
            the graph is compiled, data is copied in, or results are copied out.
    """
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return
    with suppress(OSError):  # a full disk must not end a step
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, f"{seconds:15.0f}\n".encode(), 0)
        finally:
            os.close(descriptor)


def finish() -> None:
    """Say that this process has done all its work: what happens to it now undoes nothing.

    MindSpore takes its threads and connections down after that, and now and then ends by signal 11 on the way: its
    TCPClient::Finalize lets a thread read from a connection that is closed, when the scheduler hangs up just then.
    """
    beat(DONE)
