"""What asks a run to end is waited for while the graph runs; the step is finished and saved first."""

import os
import signal
import threading
from typing import Any, Optional

from src.heartbeat import is_watched
from src.stops import Requests, listened_to


class Interrupted(Exception):
    """A stop signal has come."""


class StopSignal:
    """Remembers the first of `src.stops` once it is armed; before that, and at another request, the process ends.

    While a graph runs, MindSpore puts its own handler in place of Python's, which turns SIGINT into SIGTERM, and a
    Python handler waits until the running operator returns. So the signals are blocked for this thread and all that it
    starts, and a thread of its own waits for them.

    Attributes:
        number: the signal received, or None.
    """

    def __init__(self) -> None:
        self.number: Optional[int] = None
        self.armed = False

    def listen(self) -> "StopSignal":
        """Take over the signals; to be called before MindSpore starts threads."""
        self.stops = listened_to()
        signal.pthread_sigmask(signal.SIG_BLOCK, self.stops)
        threading.Thread(target=self._wait, name="stop-signal", daemon=True).start()
        return self

    def arm(self) -> None:
        """From now on there is something to save."""
        self.armed = True

    def check(self, *_: Any) -> None:
        """Raise Interrupted once a signal has come; takes any arguments, so that it serves as a callback."""
        if self.number:
            raise Interrupted

    def _wait(self) -> None:
        requests = Requests(launched=is_watched())
        while True:
            number = signal.sigwait(self.stops)
            if not self.armed or requests.is_another(number):
                os._exit(128 + number)
            self.number = self.number or number
