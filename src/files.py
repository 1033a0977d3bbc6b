"""The one way in which files reach the disk, whole or not at all, and in which small ones are read: bounded."""

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Optional, Union

from src.errors import PASSING, UserError, printable

LARGEST = 4 << 30  # bytes of a file; DDRNet39 with an optimizer's two moments and averaged weights is 0.7 GB


@contextmanager
def atomic_write(path: Union[str, Path]) -> Iterator[Path]:
    """Write a file so that its name stands for the whole new content or for the old one, whatever dies when.

    Yields a temporary path in the same folder, with the same suffix, to write to. When the block ends well the file is
    synced, made readable and writable by its owner as the umask has it, renamed, and the folder synced, in that order;
    when it raises, the temporary file is removed and `path` is as it was.

    Raises:
        UserError: the folder cannot be made or written, `path` is a device, or the disk is full or fails.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{path}: is a folder; name a file")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    if is_device(path):  # root would have it replaced by a file, /dev/null for the whole machine
        raise UserError(f"{path}: is a device; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        with _where_supported():  # some file systems have no modes
            temporary.chmod(0o666 & ~umask | 0o600)
        sync(temporary)
        temporary.replace(path)
        with _where_supported():  # and some cannot sync a folder
            sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # the folder itself may be what is missing
            for left in path.parent.glob(glob.escape(temporary.name) + "*"):
                left.unlink()


# What a file system says that lacks a call; the content stands all the same.
_UNSUPPORTED = {errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY, errno.EACCES}


@contextmanager
def _where_supported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def is_device(path: Path) -> bool:
    """Whether a path leads to a device, or is one of the names, such as /dev/stdout, that stand for open files."""
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = 0
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or path.absolute().parent == Path("/dev")


def is_fixed(path: Path) -> bool:
    """Whether a file can neither be replaced nor removed, though its folder may be written to.

    As one that is immutable (chattr +i), or another user's in a folder such as /tmp, where each removes his own alone.
    """
    try:
        status, folder = path.lstat(), path.parent.stat()
        if folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, status.st_uid, folder.st_uid):
            return True
        if stat.S_ISREG(status.st_mode):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EPERM  # a file that is merely closed gives EACCES
    return False


def try_writing(folder: Union[str, Path]) -> None:
    """Write a small file into a folder as `atomic_write` does, and remove it: what fails then would fail later too.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full.
    """
    with suppress(OSError):
        if os.path.lexists(folder) and not Path(folder).is_dir():
            raise UserError(f"{folder}: is no folder; files are to be written into it")
    path = Path(folder, f".trial.{os.getpid()}")
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(bytes(4096))
    except UserError as error:
        raise type(error)(str(error).replace(str(path), str(folder))) from error
    finally:
        with suppress(OSError):
            path.unlink()


def sweep(folder: Union[str, Path], *stems: str, age: float = 0) -> None:
    """Remove what killed processes have left of files that they were writing to a folder by `atomic_write`.

    age: seconds for which a file must not have been written to, where other processes may be writing there now.
    """
    pattern = re.compile(rf"\.(trial\.\d+|(\.trial|{'|'.join(stems)})\.\d+\.tmp.*)")
    with suppress(OSError):
        for path in Path(folder).iterdir():
            if not (pattern.fullmatch(path.name) and is_regular(path)):
                continue
            if not age or path.stat().st_mtime < time.time() - age:
                path.unlink()


def is_name(text: str) -> bool:
    """Whether a file could have this path: without NUL, or surrogates other than those of bytes that are no UTF-8."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def is_regular(path: Union[str, Path]) -> bool:
    """Whether a path leads to a regular file; False where there can be none: behind a closed folder, or too long.

    Raises:
        UserError: the disk or its server fails, so that a file that is there may seem not to be.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 (Path.is_file raises where os.path.isfile is False)
    except OSError as error:
        if error.errno in PASSING:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        return False
    except ValueError:
        return False


def is_directory(path: Union[str, Path]) -> bool:
    """Whether a path leads to a folder; False where that cannot be told."""
    return os.path.isdir(path)  # noqa: PTH112


def next_free(path: Path) -> Path:
    """The path with the lowest number before its ending that nothing has: a.jsonl to a.1.jsonl."""
    number = 1
    while os.path.lexists(free := path.with_suffix(f".{number}{path.suffix}")):
        number += 1
    return free


def is_private(path: Union[str, Path]) -> bool:
    """Whether a file or folder belongs to this user or root, and nobody else, of a group or not, may write to it.

    What is loaded and run from elsewhere may be another's.
    """
    try:
        status = Path(path).stat()
    except OSError:
        return False
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def claim(path: Path) -> Optional[IO]:
    """Hold a lock on a file until the process ends; None where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be made, or is a pipe.
    """
    file = open_to_write(path, os.O_APPEND)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        file.close()
        return None
    return file


def write_text(path: Union[str, Path], text: str) -> None:
    """Replace the file at `path` by `text`, atomically.

    What UTF-8 lacks, as in a folder's name of other bytes, stands as its escape, which JSON reads back: caf\\udce9.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_bytes(path: Union[str, Path], limit: int, place: str = "", hint: str = "") -> bytes:
    """A regular file's content.

    Args:
        path: a device or a pipe, which may never end, is refused.
        limit: the most bytes that such a file can have.
        place: what the message begins with, such as "rank table "; the path follows.
        hint: what it ends with where the file cannot be read, such as "; export.py writes it".

    Raises:
        UserError: the file is missing, closed, no regular file, or larger than `limit`.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > limit else file.read(min(limit, max(size, 1 << 16)) + 1)  # taken at once
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{place}{path}: cannot be read ({reason}){hint}") from error
    if max(size, len(content)) > limit:
        raise UserError(f"{place}{path}: is larger than {limit / 1e6:g} MB; such a file is small")
    return content


def open_regular(path: Union[str, Path]) -> BinaryIO:
    """A regular file, opened for reading in binary; what a pipe or a device would make wait for ever is refused.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        ValueError: the path holds a NUL or a lone surrogate.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file")
    return file


def open_to_write(path: Union[str, Path], flags: int = os.O_TRUNC) -> BinaryIO:
    """A file, made where it is missing, opened for writing in binary; a pipe, at which that may wait for ever, is not.

    Args:
        path: may lead to a device, such as /dev/null.
        flags: O_TRUNC writes it anew, O_APPEND goes on at its end.

    Raises:
        OSError: it cannot be opened, or is a pipe.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o666)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):  # one that somebody reads
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is a pipe", str(path))
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")


def read_text(path: Union[str, Path], limit: int, place: str = "", hint: str = "") -> str:
    """A small file's text, as `read_bytes`; it must be UTF-8."""
    try:
        return read_bytes(path, limit, place, hint).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}{path}: is not UTF-8 ({error.reason} at byte {error.start})") from error


def read_json(path: Union[str, Path], limit: int, place: str = "", hint: str = "") -> Any:
    """A small file's JSON, as `read_text`: no key twice, numbers of at most 100 digits, no NaN or infinity."""
    text = read_text(path, limit, place, hint)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except ValueError as error:
        raise UserError(f"{place}{path}: not valid JSON ({error})") from error
    except RecursionError:
        raise UserError(f"{place}{path}: not valid JSON (nested too deeply)") from None


def parse_json(text: str) -> Any:
    """A text's JSON, as strictly.

    Raises:
        ValueError, RecursionError: it is none.
    """
    return json.loads(text, parse_int=_integer, parse_float=_real, parse_constant=_constant, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{printable(name, 80)} stands there twice")
    return values


def _real(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _integer(text: str) -> int:
    if len(text) > 100:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def sync(path: Path) -> None:
    """Have the disk hold a file or folder as it is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal.

    Raises:
        OSError: it is none, cannot be read, or is larger than any that is written here: its end might not be reached.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EFBIG, "File too large")
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
