"""The exceptions that entry points print as one line, and the exit codes that tell them apart.

2: bad input, which another start would find as bad. 75: trouble that may have passed by the next start, sysexits.h's
EX_TEMPFAIL. 1: a run that must stop.
"""

import argparse
import errno
import logging
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

from src.console import make_unbreakable

# What MindSpore says where a card's memory does not suffice, by its libraries for Ascend.
_MEMORY = re.compile(r"Out of Memory|memory (isn't|is not) enough|Allocate memory failed", re.IGNORECASE)
# And where CANN refused to do something for it: a stream, an operator, a collective. Its messages come in sections.
_CANN = re.compile(
    r"- Ascend Error Message:\n|Create stream failed|\b(aclrt|aclnn|aclop|Hccl)[A-Z]\w*\W.*fail"
    r"|(?P<lacks>pointer\[executor\] is null|\b(acl|Hccl)\w+ not in \S*\.so)"  # an operator that is not there
)
_CANN_SAYS = re.compile(r"- Ascend Error Message:\n-+\n+(\S.*)")
BAD_INPUT, TEMPORARY = 2, 75
# What may have passed when the same is tried again: room is made, a server of files is back.
PASSING = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
    errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO, errno.ENOBUFS, errno.ESHUTDOWN,
}  # fmt: skip
MESSAGE_LIMIT = 2000  # characters of a message: files hold names and values of any length


def printable(value: Any, limit: int = 200) -> str:
    """A value's text for a message: one line, no control character, at most `limit` characters.

    What could move the cursor, forge a second line or stop a strict UTF-8 stream is written as its escape: a newline
    as `\\n`, a byte that is no UTF-8 as `\\udc80`. Of a longer text the middle is left out: it still ends as it did.
    """
    try:
        text = value if isinstance(value, str) else str(value)
    except (ValueError, RecursionError):  # a number of more digits than Python prints, or a list in itself
        text = f"<{type(value).__name__}>"
    text = _cut(text, limit)
    if text.isprintable():
        return text
    return _cut("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text), limit)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: max(0, limit - tail - 5)]} ... {text[len(text) - tail :]}"


class UserError(ValueError):
    """Bad input. The message names the key, flag, file or folder and says what would be right; it is `printable`.

    Raised where a disk or a server of files has failed, in a way that may pass, it is no bad input: see `exit_code`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, MESSAGE_LIMIT))

    @property
    def exit_code(self) -> int:
        """TEMPORARY where one of `PASSING` was the reason, else BAD_INPUT."""
        reason: Optional[BaseException] = self
        while reason is not None:
            if isinstance(reason, OSError) and reason.errno in PASSING:
                return TEMPORARY
            reason = reason.__cause__ or reason.__context__
        return BAD_INPUT


class TemporaryFailure(UserError):
    """Trouble with the machine that a restart may mend: a full disk, a rank that hangs or differs, a server that left.

    `src.launcher` starts the ranks again after it, and not after another UserError.
    """

    exit_code = TEMPORARY


class Parser(argparse.ArgumentParser):
    """Of a command line whose mistakes are `UserError`s, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help says what there is")


class TrainingStopped(RuntimeError):
    """Training cannot go on. The message names step, learning rate and loss scale; it is `printable`."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, MESSAGE_LIMIT))


def essence(error: BaseException) -> str:
    """The line of an error's text that counts: of MindSpore's sections the first line, and CANN's own where it has one.

    A text that is none of MindSpore's comes back whole.
    """
    text = str(error).strip()
    if "\n-----" not in text:
        return text
    first = next(line.strip() for line in text.splitlines() if line.strip())
    says = _CANN_SAYS.search(text)
    return f"{first} (CANN: {says[1].strip()})" if says and says[1].strip() != first else first


class _Lines(logging.Formatter):
    """One line a record, whatever the names in it hold; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record), 10 * MESSAGE_LIMIT)


def run(main: Callable[[], None]) -> None:
    """Run an entry point; what goes wrong is one line on standard error, with the exit codes above.

    Where a card's memory does not suffice, or CANN refuses an operation, the line says what helps. An error that nobody
    foresaw is one line too; with DDRNET_TRACEBACK=1 in the environment its traceback follows.
    """
    make_unbreakable()
    os.umask(os.umask(0o077) & 0o077)  # folders that are made here can be entered
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as an entry point has it while it imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Lines("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a closed HOME it tells at length
    try:
        here()
        main()
    except (UserError, TrainingStopped) as error:
        _end(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = printable(f"{type(error).__name__}: {essence(error)}", MESSAGE_LIMIT)
        full = _lack_of_memory(error)
        if full and os.environ.get("DDRNET_TRACEBACK") != "1":
            advice = "halve it, and double accumulation_step where a training run is to stay the same"
            _end(f"error: batch_size: {full}; {advice}, or lower image_size", 2)
        cann = _CANN.search(str(error)) if isinstance(error, RuntimeError) else None
        if cann and os.environ.get("DDRNET_TRACEBACK") != "1":
            advice = (
                "npu-smi info shows the card's state; CANN's toolkit and its kernels for this chip must both be there, "
                "in a version that fits this MindSpore (docs/ascend.md)"
            )
            what = printable(essence(error), 600)
            _end(
                f"error: device_target: the Ascend card or its CANN refused an operation: {what}; {advice}",
                2 if cann["lacks"] else 75,
            )
        hint = "; DDRNET_TRACEBACK=1 in the environment shows the traceback"
        if os.environ.get("DDRNET_TRACEBACK") == "1":
            traceback.print_exc()
            hint = ""
        _end(f"error: unforeseen, in {Path(where.filename).name} line {where.lineno}: {what}{hint}", 1)


def here() -> None:
    """See that there is a current folder, on which every relative path depends.

    Raises:
        UserError: it has been removed.
    """
    try:
        os.getcwd()  # noqa: PTH109 (Path.cwd is the same)
    except OSError as error:
        raise UserError(f"the current folder is not there any more ({error.strerror}); cd to one that is") from error


def _lack_of_memory(error: Exception) -> str:
    """What an error says of memory that does not suffice; empty where it is another."""
    if isinstance(error, MemoryError):
        return f"this machine's memory does not suffice ({printable(error) or 'Python had none left'})"
    found = _MEMORY.search(str(error))
    if not found:
        return ""
    line = next(line.strip() for line in str(error).splitlines() if found[0] in line)
    return f"the device's memory does not suffice ({printable(line)})"


def _end(line: str, code: int) -> None:
    sys.stdout.flush()
    print(line, file=sys.stderr)
    sys.exit(code)
