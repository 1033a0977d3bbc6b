"""SIGTERM and Ctrl-C end a run in good order: the step is finished and saved first."""

import signal
from typing import Any, Optional


class Interrupted(Exception):
    """A stop signal has come."""


class StopSignal:
    """Remembers the first SIGTERM or SIGINT; a second one ends the process at once, as if nobody listened.

    Attributes:
        number: the signal received, or None.
    """

    def __init__(self) -> None:
        self.number: Optional[int] = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: Any) -> None:
        self.number = number
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_DFL)

    def check(self, *_: Any) -> None:
        """Raise Interrupted once a signal has come; takes any arguments, so that it serves as a callback."""
        if self.number:
            raise Interrupted
