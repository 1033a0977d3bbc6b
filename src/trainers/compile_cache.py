"""The compiled training step, kept from one start to the next.

MindSpore's own cache (MS_COMPILER_CACHE_ENABLE in https://www.mindspore.cn/docs/en/master/api_python/env_var_list.html)
tells graphs apart by source files alone: a constant that comes from a configuration is silently taken from the old
graph. So each graph has a folder of its own here, named by all that it follows from, and another never finds it.
"""

import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

import mindspore as ms

from src.args import Config, keys_that_change
from src.distributed.ranks import Ranks
from src.errors import UserError
from src.files import is_directory, is_private, read_json, sha256_of, write_text
from src.kernels.build import library

_log = logging.getLogger(__name__)
PROJECT = Path(__file__).resolve().parent.parent.parent
DAY = 24 * 3600
WHOLE = "whole.json"  # the last file of an entry: the SHA-256 of each other


class CompileCache:
    """Around the call that compiles the training step: the graph comes from the cache, or goes to it.

    A context manager that does nothing at its second use. What is compiled in it must be the step and nothing else.

    Args:
        config: its compile_cache is the folder of all entries; '': nothing is kept.
        ranks: seen from this process; each rank has an entry of its own.
        shapes: what else the graph follows from, such as the number of updates.
    """

    def __init__(self, config: Config, ranks: Ranks, *shapes: int) -> None:
        self.entry: Optional[Path] = None
        self.making: Optional[Path] = None
        if config.compile_cache and config.graph_mode == 0:
            self.entry = Path(config.compile_cache, digest(config, ranks, *shapes)).absolute()

    def __enter__(self) -> None:
        """Find the entry, or begin one aside.

        Raises:
            UserError: the folder cannot be written.
        """
        if self.entry is None:
            return
        if os.path.lexists(self.entry) and not is_whole(self.entry):
            _log.warning("compile_cache: %s is damaged, compiling anew", self.entry)
            _remove(self.entry)
            if os.path.lexists(self.entry):
                _log.warning("compile_cache: %s cannot be removed; the compiled step is not kept", self.entry)
                self.entry = None
                return
        if not os.path.lexists(self.entry):
            try:
                self.entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.making = self.entry.with_name(f".{self.entry.name}.{secrets.token_hex(8)}.tmp")
                self.making.mkdir(mode=0o700)
                for left in self.entry.parent.glob(".*.tmp"):  # of processes that died while they compiled
                    with suppress(FileNotFoundError):  # another rank removes it too
                        if left.stat().st_mtime < time.time() - DAY:
                            _remove(left)
            except OSError as error:
                raise UserError(f"compile_cache: {self.entry.parent}: cannot be written ({error.strerror})") from error
        for folder in (self.entry.parent, self.making or self.entry):
            if not is_private(folder):
                raise UserError(
                    f"compile_cache: {folder} belongs to another user or can be written by others, who could have a "
                    "program of theirs run as yours; choose a folder of your own, or chmod go-w"
                )
        ms.set_context(enable_compile_cache=True, compile_cache_path=str(self.making or self.entry))

    def __exit__(self, kind: Optional[type], *_: Any) -> None:
        """What was compiled becomes an entry, all at once; nothing that is compiled from now on is kept."""
        entry, self.entry = self.entry, None
        if entry is None:
            return
        ms.set_context(enable_compile_cache=False)
        if self.making is None:
            return
        try:
            files = contents(self.making)
            for name in files:
                (self.making / name).chmod(0o600)
            if files and kind is None:
                write_text(self.making / WHOLE, json.dumps(files))
                with suppress(OSError):  # another process was first
                    self.making.rename(entry)
        except (OSError, UserError) as error:  # a full disk, say
            _log.warning("compile_cache: %s; the compiled step is not kept", error)
        _remove(self.making)


def _remove(path: Path) -> None:
    if is_directory(path) and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def digest(config: Config, ranks: Ranks, *shapes: int) -> str:
    """Stands for all that the step's graph follows from: code, versions, configuration, shapes and rank."""
    sources = sorted([PROJECT / "train.py", *(PROJECT / "src").rglob("*.py")])
    parts = [f"{path.relative_to(PROJECT)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sources]
    kernels = library() if config.device_target == "CPU" else None
    parts += [ms.__version__, ms.__file__, sys.version, platform.machine(), str(kernels), str(PROJECT)]
    parts += [repr(ranks), repr(shapes)]
    outside = keys_that_change("nothing")
    parts += [f"{key}={value!r}" for key, value in config.model_dump().items() if key not in outside]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of an entry, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != WHOLE)
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def is_whole(entry: Path) -> bool:
    """Whether an entry holds what it held when it was made, and nobody else could have written to it."""
    try:
        files = contents(entry)
        return all(is_private(entry / name) for name in [WHOLE, *files]) and read_json(entry / WHOLE, 1 << 24) == files
    except (OSError, UserError):
        return False
