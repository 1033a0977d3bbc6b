"""The guard of a job: kills the process groups that it was told of, should the launcher die without ending them.

It reads its orders, +GROUP and -GROUP, from a pipe, whose end comes with the launcher's, however that happens.

python guard.py SECONDS      # on standard input; detaches itself, so that it is no child of the launcher
"""

import os
import signal
import sys
import time
from contextlib import suppress

POLL = 0.1  # seconds between two looks


def watch(reader: int, grace: float) -> None:
    """Follow the orders until they end; then give what is left `grace` seconds to save, and kill it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")  # no folder is kept from being removed
    nowhere = os.open(os.devnull, os.O_RDWR)
    reader = os.dup2(reader, 3)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.closerange(4, 4096)  # a link to other servers must break with the launcher
    groups: set[int] = set()
    with os.fdopen(reader) as orders:
        for line in orders:
            if line[0] in "+-":
                (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    deadline = time.monotonic() + grace
    while groups and time.monotonic() < deadline:
        groups = {group for group in groups if signal_group(group, 0)}
        time.sleep(POLL)
    for group in groups:
        signal_group(group, signal.SIGKILL)


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; whether anybody is in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # only exited members are left
        return False
    return True


def main() -> None:
    """Become a process of its own, which no list of the launcher's children shows."""
    reader = os.dup(0)
    if os.fork():
        os._exit(0)
    os.setsid()
    with suppress(OSError):
        watch(reader, float(sys.argv[1]))


if __name__ == "__main__":
    main()
