"""ModelArts: data comes from an object store, outputs go back to it, through the platform's own `moxing` package.

Its functions are described at https://support.huaweicloud.com/intl/en-us/develop-modelarts/develop-moxing-0002.html:
`copy_parallel` for folders, `copy` for files, `exists`, `remove`. A training container's fast local disk is /cache,
https://support.huaweicloud.com/intl/en-us/modelarts_faq/modelarts_05_0090.html.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

from src.args import Config, check_addresses
from src.errors import TrainingStopped, UserError
from src.files import open_to_write

_log = logging.getLogger(__name__)


class Outbox:
    """Sends what a run has written to the object store; without an address it does nothing.

    Args:
        folder: where outputs lie; files whose name begins with a dot are never sent.
        url: where they go.
    """

    def __init__(self, folder: Optional[Path] = None, url: str = "") -> None:
        self.folder, self.url = folder, url.rstrip("/")
        self._sent: dict[str, tuple[int, int]] = {}

    def take_note(self) -> None:
        """What lies in the folder now is in the store already."""
        self._sent = self._files()

    def send(self, last: bool = False) -> None:
        """Copy what is new or has changed, and remove what was sent and is gone here.

        What fails is tried again at the next call; the store's bad minute is no reason to lose a run of days.

        Raises:
            TrainingStopped: `last` is set and something could not be copied.
        """
        if self.folder is None:
            return
        file = import_moxing().file
        found = self._files()
        # As on this disk, a checkpoint's state comes first: one alone is the rest of a send that was killed.
        for name in sorted(found, key=lambda name: (not name.endswith(".state"), name)):
            if self._sent.get(name) != found[name] and self._try("copy", last, file.copy, name):
                self._sent[name] = found[name]
        for name in [name for name in self._sent if name not in found]:
            if self._try("remove", last, lambda _, target: file.exists(target) and file.remove(target), name):
                del self._sent[name]

    def _try(self, what: str, last: bool, function: Any, name: str) -> bool:
        target = f"{self.url}/{name}"
        assert self.folder is not None  # `send` does nothing without
        try:
            function(str(self.folder / name), target)
        except Exception as error:  # moxing has no base class for what may go wrong in a store
            if last:
                raise TrainingStopped(
                    f"train_url: cannot {what} {target} ({error}); it lies in {self.folder}"
                ) from error
            _log.warning("train_url: cannot %s %s (%s); it is tried again at the next save", what, target, error)
            return False
        return True

    def _files(self) -> dict[str, tuple[int, int]]:
        """Relative path to size and time of change, of everything that is to be sent."""
        files: dict[str, tuple[int, int]] = {}
        if self.folder is None:
            return files
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                status = path.stat()
                files[path.relative_to(self.folder).as_posix()] = (status.st_size, status.st_mtime_ns)
        return files


def stage(config: Config, writes: bool) -> tuple[Config, Outbox]:
    """Bring what a run reads to this server, where run_modelarts says that it lies in an object store.

    The first process of a server copies data_url, the others wait for it. The kernel drops the lock with the process
    that holds it, so none is left behind; a copy that was cut short is made anew.

    Args:
        config: reads run_modelarts, data_url, train_url, pretrained and resume.
        writes: this process writes outputs, which go to train_url.

    Returns:
        The configuration with local paths, and where to hand in outputs.

    Raises:
        UserError: there is no moxing package, or an address is none.
        TrainingStopped: something could not be copied.
    """
    if not config.run_modelarts:
        return config, Outbox()
    import_moxing()
    check_addresses(config)
    cache = cache_folder()
    local = {"data_url": str(fetch("data_url", config.data_url, cache))}
    if is_address(config.pretrained):
        local["pretrained"] = str(fetch("pretrained", config.pretrained, cache, is_folder=False))
    if not writes:
        return config.model_copy(update=local), Outbox()
    outputs = cache / f"outputs-{_short(config.train_url)}"
    try:
        outputs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename or outputs}: cannot be made ({error.strerror})") from error
    local["train_url"] = str(outputs)
    outbox = Outbox(outputs, config.train_url)
    if config.resume:
        _fetch_outputs(config.train_url, outputs)
        outbox.take_note()
    return config.model_copy(update=local), outbox


def import_moxing() -> Any:
    """ModelArts' moxing package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import moxing
    except ImportError as error:
        raise UserError(
            "run_modelarts: needs the package moxing, which ModelArts' images have and this machine lacks; "
            "elsewhere, leave run_modelarts False and copy the data yourself"
        ) from error
    return moxing


def is_address(path: str) -> bool:
    """Whether a path is an object-store address, such as obs://bucket/folder."""
    return "://" in path


def cache_folder() -> Path:
    """Where copies go: ModelArts' /cache, else the folder for temporary files."""
    root = Path("/cache")
    if not (root.is_dir() and os.access(root, os.W_OK)):
        root = Path(tempfile.gettempdir())
    return root / "ddrnet"


def fetch(key: str, url: str, cache: Path, is_folder: bool = True) -> Path:
    """The local copy of a folder, or of a file, in the object store; made by the first process that asks for it.

    Args:
        key: the configuration's key that the address comes from, for messages.
        url: the address.
        cache: where copies lie.
        is_folder: whether a folder lies there, or a file.

    Raises:
        TrainingStopped: the copy failed.
    """
    name = Path(url).name
    target = cache / f"{key}-{_short(url)}" / name
    with _locked(target.parent):
        if target.exists():
            _log.info("%s: %s was copied before; remove %s to have it copied anew", key, url, target)
            return target
        partial = target.with_name(f".{name}.partial")
        _remove(partial)
        copy = import_moxing().file
        try:
            (copy.copy_parallel if is_folder else copy.copy)(url.rstrip("/"), str(partial))
            if not partial.exists() or (partial.is_dir() and not any(partial.iterdir())):
                raise FileNotFoundError("nothing lies there")
        except Exception as error:  # moxing has no base class for what may go wrong in a store
            _remove(partial)
            raise TrainingStopped(f"{key}: {url} cannot be copied to {target} ({error})") from error
        partial.rename(target)
        _log.info("%s: %s copied to %s", key, url, target)
    return target


def _fetch_outputs(url: str, outputs: Path) -> None:
    """Bring an earlier job's checkpoints and metrics here, so that --resume auto finds them."""
    file = import_moxing().file
    try:
        if not file.exists(url.rstrip("/")):
            return
        file.copy_parallel(url.rstrip("/"), str(outputs))
    except Exception as error:  # as above
        raise TrainingStopped(f"train_url: {url} cannot be copied to {outputs} ({error})") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process copies to a folder, where its file system has locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_to_write(folder / ".lock", os.O_APPEND)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _short(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
