"""SIGTERM, Ctrl-C and a closed terminal end a run in good order: the step is finished and saved first."""

import os
import signal
import threading
from typing import Any, Optional

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """A stop signal has come."""


class StopSignal:
    """Remembers the first of `STOPS` once it is armed; before that, and at a second one, the process ends.

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
        """Take over the signals; to be called before MindSpore starts threads. nohup's SIGHUP stays ignored."""
        self.stops = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
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
        while True:
            number = signal.sigwait(self.stops)
            if self.number or not self.armed:
                os._exit(128 + number)
            self.number = number
