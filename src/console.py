"""Standard output and error that never end a program: a reader that has gone or a full disk costs words, no more.

What a program computes and saves is worth more than its log.
"""

import os
import sys
from typing import Any, Optional, TextIO


class Unbreakable:
    """A text stream that drops what it cannot write, and writes what its encoding lacks as escapes.

    At the first failure the descriptor is led to /dev/null, so that what is buffered cannot fail again at the end.
    """

    def __init__(self, stream: Optional[TextIO]) -> None:
        self._stream = stream
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write, or drop; how many characters were taken."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # ValueError: it was closed
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what is left."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Whether a person is looking."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    @property
    def gone(self) -> bool:
        """Whether nobody hears it any more: a program that does nothing but print may end."""
        return self._stream is None

    def _give_up(self) -> None:
        stream, self._stream = self._stream, None
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)


def columns() -> int:
    """Of the terminal that standard error is; 80 where there is none, or where it does not say, as in a container."""
    return _size() or 80


def bar_size() -> dict[str, Any]:
    """What tells tqdm how large its bars are: as the terminal is, also once that changes.

    tqdm draws nothing where a terminal's size is 0, as in a container and on a serial line.
    """
    return {"dynamic_ncols": True} if _size() else {"ncols": columns(), "nrows": 24}


def _size() -> int:
    """The columns of the terminal that standard error is; 0 where it does not say them, or its lines."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return 0
    return size.columns if size.lines else 0


def make_unbreakable() -> None:
    """From now on sys.stdout and sys.stderr are Unbreakable."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Unbreakable):
            setattr(sys, name, Unbreakable(stream))
