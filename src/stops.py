"""The signals that ask a run to end in good order: the step is finished and saved first.

SIGTERM, Ctrl-C, Ctrl-\\, a closed terminal; SIGUSR1 and SIGUSR2, by which batch systems warn of a job's end (sbatch
--signal, qsub -notify), and SIGXCPU, by which the system does where CPU time is limited.
"""

import signal
import time
from typing import Optional

STOPS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
TOGETHER = 0.1  # seconds within which signals are one request, and
TOGETHER_IN_A_JOB = 2.0  # for a rank, which gets one that went to all its job from its launcher too


def listened_to() -> list[signal.Signals]:
    """Those of `STOPS` that whoever started this process has not had ignored, as nohup has SIGHUP."""
    return [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]


class Requests:
    """Tells another request to end from the same one that has come twice.

    `timeout` signals a process and then its whole group; a batch system the launcher and the ranks alike, to which the
    launcher passes it on; and the system says SIGXCPU once a second.

    Args:
        launched: this is a rank of a launcher, which kills it where it is to end at once.
    """

    def __init__(self, launched: bool = False) -> None:
        self._first: Optional[float] = None
        self._together = TOGETHER_IN_A_JOB if launched else TOGETHER

    def is_another(self, number: int) -> bool:
        """Take note of a signal; whether it is another request than the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            return False
        return number != signal.SIGXCPU and now - self._first > self._together
