"""The one way in which files reach the disk: whole or not at all."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Union

from src.errors import UserError


@contextmanager
def atomic_write(path: Union[str, Path]) -> Iterator[Path]:
    """Write a file so that its name stands for the whole new content or for the old one, whatever dies when.

    Yields a temporary path in the same folder, with the same suffix, to write to. When the block ends well the file is
    synced, made readable and writable by its owner as the umask has it, renamed, and the folder synced, in that order;
    when it raises, the temporary file is removed and `path` is as it was.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask | 0o600)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # the folder itself may be what is missing
            for left in path.parent.glob(glob.escape(temporary.stem) + "*"):  # MindSpore writes aside once more
                left.unlink()


def write_text(path: Union[str, Path], text: str) -> None:
    """Replace the file at `path` by `text`, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
