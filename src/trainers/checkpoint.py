"""Checkpoints: what a run leaves on disk, and how it goes on from there.

`<arch>-<epoch>_<step>.ckpt` holds the network's parameters, under its names, and nothing else, so that
`mindspore.load_checkpoint` reads it as it is. All else that the run needs to go on as if nothing had happened lies
beside it in a `.state` file:
moments, loss scale, counters, averaged weights, the place in the data, and the SHA-256 of both files. What is random
follows from the seed and that place, so no generator's state is needed.
"""

import hashlib
import io
import json
import logging
import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import numpy as np
from mindspore import nn

from src import __version__
from src.args import CONFIG_FILE, Config, keys_that_change
from src.data.names import CLASSES
from src.errors import TEMPORARY, TrainingStopped, UserError
from src.files import (
    LARGEST,
    atomic_write,
    claim,
    is_device,
    is_directory,
    is_fixed,
    is_regular,
    next_free,
    open_regular,
    read_json,
    sha256_of,
    sweep,
    try_writing,
    write_text,
)
from src.models.architectures import ARCHITECTURES, FLAVOURS
from src.parameters import assign
from src.trainers.train_one_step import TrainOneStep
from src.weights.formats import write_ckpt
from src.weights.load import load_pretrained

MAGIC = b"DDRNet training state 1\n"
ASIDE = ".before.state"  # the ending of a state whose weights are about to be replaced
_log = logging.getLogger(__name__)


def _as_it_acts(values: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration as it acts: keys that were not there yet or say "auto" have a value, idle ones none.

    Keys that a checkpoint lacks have what runs did before there were these keys: their default, but for two.
    """
    before: dict[str, Any] = {"drop_path_on": "branch"}
    if "batch_size" in values:  # one draw of MixUp and CutMix for all devices' batches
        before["mixup_group"] = max(512, values["batch_size"] * values.get("device_num", 1))
    values = {**json.loads(Config().model_dump_json()), **before, **values}
    if values["drop_path_on"] == "auto":
        values["drop_path_on"] = FLAVOURS[values["flavour"]].drop_path_on
    if values["drop_path_rate"] == 0:
        values["drop_path_on"] = None
    if values["lr_scheduler"] not in ("multistep_lr", "exp_lr"):
        values["lr_gamma"] = None
    return values


def save_weights(network: nn.Cell, path: Path) -> None:
    """Write the network's parameters to `path` (.ckpt), as `weights_file`."""
    with weights_file(network, path):
        pass


@contextmanager
def weights_file(network: nn.Cell, path: Path) -> Iterator[Path]:
    """The network's parameters as MindSpore's .ckpt with its CRC32, which becomes `path` when the block ends well.

    Raises:
        TrainingStopped: a parameter is not finite.
        UserError: the folder cannot be written or the disk is full. In both cases what stood at `path` is still there.
    """
    arrays = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise TrainingStopped(
                f"{name} is no longer finite, and nothing was saved; go on from an earlier checkpoint with a "
                "lower base_lr or a longer warmup"
            )
    with atomic_write(path) as temporary:
        write_ckpt(temporary, arrays)
        yield temporary


@dataclass
class Cursor:
    """Where a run is, which every checkpoint carries.

    epoch: the one that is under way, counted from 1; done: updates of it that are behind; seconds: spent in it so far;
    best: the highest top-1 so far, below 0 before there is one; best_epoch: when that was.
    """

    epoch: int = 1
    done: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_epoch: int = 0

    def next_epoch(self) -> None:
        """The epoch is over."""
        self.epoch, self.done, self.seconds = self.epoch + 1, 0, 0.0

    def facts(self) -> dict[str, Any]:
        """For the .state file; `of` reads it again."""
        return {
            "next_epoch": self.epoch,
            "next_done": self.done,
            "seconds": self.seconds,
            "best": self.best,
            "best_epoch": self.best_epoch,
        }

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Cursor":
        """What `facts` wrote."""
        best_epoch = facts.get("best_epoch", facts["next_epoch"] - 1)  # earlier versions have none
        return cls(facts["next_epoch"], facts["next_done"], facts["seconds"], facts["best"], best_epoch)


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: its weights' file, what it says of the run, and the step's arrays."""

    path: Path
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def cursor(self) -> Cursor:
        """Where the run goes on."""
        return Cursor.of(self.facts)

    def restore(self, network: nn.Cell, step: TrainOneStep, flavour: str) -> list[str]:
        """Bring network, optimizer and counters to where they were; the names that the checkpoint knows nothing of."""
        load_pretrained(network, str(self.path), flavour)
        afresh = []
        for name, parameter in step.state().items():
            if name in self.arrays and self.arrays[name].shape == tuple(parameter.shape):
                assign(parameter, self.arrays[name])
            else:
                afresh.append(name)
        return afresh

    def differences(self, config: Config) -> list[str]:
        """The keys that would change the run, as lines 'key: then, now'."""
        then, now = (_as_it_acts(values) for values in (self.facts["config"], json.loads(config.model_dump_json())))
        telling = keys_that_change("weights")
        lines = [
            f"{key}: {then.get(key)!r} in the checkpoint, {value!r} now"
            for key, value in now.items()
            if key in telling and then.get(key) != value
        ]
        if self.facts["images_an_update"] != config.images_an_update:
            lines.append(
                "batch_size x device_num x accumulation_step: "
                f"{self.facts['images_an_update']} in the checkpoint, {config.images_an_update} now"
            )
        return lines


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
        folder: ckpt_0.
        arch: the files' name, as in DDRNet23-<epoch>_<step>.ckpt.
        keep: how many of the numbered ones are kept, the newest.
        writes: False on all ranks but the first: they only keep count.
        facts: what else every checkpoint says of the run, to compare at resume.
    """

    def __init__(
        self, folder: Path, arch: str, keep: int, writes: bool = True, facts: Optional[dict[str, Any]] = None
    ) -> None:
        self.folder = folder
        self.arch = arch
        self.keep = keep
        self.writes = writes
        self.facts = facts or {}

    def holds_a_run(self) -> str:
        """The network whose weights the folder has, this run's before another; '' where it has none."""
        held = (arch for arch in (self.arch, *ARCHITECTURES) if any(map(is_regular, self._weights(arch))))
        return next(held, "")

    def clear(self) -> None:
        """Remove the weights and states of an earlier run."""
        if self.writes:
            for arch in ARCHITECTURES:
                for path in [*self._weights(arch), *self._files(".state", arch), *self._files(ASIDE, arch)]:
                    path.unlink(missing_ok=True)

    def _weights(self, arch: str = "") -> list[Path]:
        arch = arch or self.arch
        return [*self._files(".ckpt", arch), self.folder / f"{arch}_best.ckpt", self.folder / f"{arch}.ckpt"]

    def lock(self) -> None:
        """Claim the folder until the process ends, sweep what killed runs have left, and see that it can be written.

        Raises:
            UserError: another run writes there, or the folder or its parent cannot be written.
        """
        if not self.writes:
            return
        path = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = claim(path)
        except BlockingIOError as error:
            raise UserError(f"{self.folder}: another run is writing there; stop it or use another folder") from error
        except OSError as error:
            reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
            raise UserError(f"{self.folder}: cannot be written ({reason}); choose train_url") from error
        if self._lock is None:
            _log.warning("%s: cannot be locked here; see that no second run writes there", self.folder)
        sweep(self.folder, rf"{re.escape(self.arch)}.*", "config", "classes")
        sweep(self.folder.parent, "curves", "metrics")
        for folder in (self.folder, self.folder.parent):
            try_writing(folder)
        fixed = (self.best_path, self.best_path.with_suffix(".json"), self.folder / f"{self.arch}.ckpt")
        for path in (*fixed, self.folder / CONFIG_FILE, self.folder / CLASSES):  # what would only show after an epoch
            if kind := _obstacle(path):
                raise UserError(f"{path}: {kind}; move it away or choose train_url")

    def warn_of_little_room(self, network: nn.Cell, step: TrainOneStep, saves: int) -> None:
        """Warn where the disk has less room than `saves` checkpoints to come, the best and the last will take.

        What the run has saved before counts as room; the oldest goes only when the next is whole.
        """
        if not self.writes:
            return
        weights = sum(parameter.nbytes for parameter in network.get_parameters())
        both = weights + sum(parameter.nbytes for parameter in step.state().values())
        needed = (min(saves, self.keep) + 1) * both + 2 * weights
        held = sum(path.stat().st_size for path in [*self._weights(), *self._files(".state")] if is_regular(path))
        try:
            disk = os.statvfs(self.folder)
        except OSError:  # a file system that does not tell
            return
        files = 2 * (min(saves, self.keep) + 1) + 8  # and best, last, log, curves, what the run was told
        if disk.f_files and disk.f_favail < files:  # some file systems do not count
            _log.warning("%s: %d files can still be made, a run needs up to %d", self.folder, disk.f_favail, files)
        free = disk.f_bavail * disk.f_frsize
        if free < needed - held:
            _log.warning(
                "%s: %.2f GB are free, and checkpoints will take %.2f GB more; make room, or lower keep_checkpoint_max",
                self.folder,
                free / 1e9,
                (needed - held) / 1e9,
            )

    @property
    def best_path(self) -> Path:
        """Where the best weights lie."""
        return self.folder / f"{self.arch}_best.ckpt"

    def save(
        self,
        network: nn.Cell,
        step: TrainOneStep,
        config: Config,
        cursor: Cursor,
        finished: bool,
    ) -> Path:
        """Save <arch>-<epoch>_<done>.ckpt and .state, then drop the oldest beyond `keep`.

        Raises:
            TrainingStopped: a parameter is not finite; nothing was written.
            UserError: the folder cannot be written or the disk is full; what was there before still is.

        Args:
            network: whose parameters go to the .ckpt.
            step: the training step, whose state goes to the .state.
            config: of the run, to compare at resume.
            cursor: where the run is.
            finished: whether the epoch was validated and recorded too, so that the run goes on with the next.
        """
        path = self.folder / f"{self.arch}-{cursor.epoch}_{cursor.done}.ckpt"
        if not self.writes:
            return path
        onward = replace(cursor)
        if finished:
            onward.next_epoch()
        facts = {
            **onward.facts(),
            "serial": 1 + max((facts["serial"] for facts, _ in self._told()), default=0),
            "config": json.loads(config.model_dump_json()),
            "images_an_update": config.images_an_update,
            "version": __version__,
            **self.facts,
        }
        for place in (path, path.with_suffix(".state"), path.with_suffix(ASIDE)):
            _make_way(place)
        arrays = {name: parameter.asnumpy() for name, parameter in step.state().items()}
        # The state comes first: one alone is what a killed save leaves, weights alone are somebody's loss. Where this
        # name stands for a checkpoint already, its state steps aside until the weights are the new ones too.
        with weights_file(network, path) as temporary:
            facts["weights_sha256"] = sha256_of(temporary)
            _step_aside(path)
            _write_state(path.with_suffix(".state"), facts, arrays)
        _remove(path.with_suffix(ASIDE))
        self._drop_old()
        return path

    def _drop_old(self) -> None:
        for _, old in self._told()[: -self.keep]:
            for path in (old, old.with_suffix(".state"), old.with_suffix(ASIDE)):
                _remove(path)
        names = {path.name for path in self._entries()}
        for suffix in (".state", ASIDE):
            for state in self._files(suffix):
                if f"{state.name.removesuffix(suffix)}.ckpt" not in names:
                    _remove(state)  # of a save or a removal that was killed

    def save_best(self, network: nn.Cell, top1: float) -> None:
        """Save <arch>_best.ckpt, and its top-1 beside it.

        A better one, which a run has left that was gone on with from an earlier checkpoint, is kept as _best.1.ckpt; so
        is one that nothing says how good it is.
        """
        if not self.writes:
            return
        path, scores = self.best_path, self.best_path.with_suffix(".json")
        with weights_file(network, path) as temporary:
            if is_regular(path) and (other := _top1_in(scores)) > top1 and sha256_of(path) != sha256_of(temporary):
                kept = next_free(path)
                try:
                    path.replace(kept)
                    if is_regular(scores):
                        scores.replace(kept.with_suffix(".json"))
                except OSError as error:
                    raise UserError(f"{path}: cannot be renamed ({error.strerror})") from error
                known = "of unknown top-1" if math.isinf(other) else f"top-1 {other:.5f}"
                _log.info("best weights of another course of this run, %s: kept as %s", known, kept)
        write_text(scores, json.dumps({"top1": top1}) + "\n")

    def save_last(self, network: nn.Cell) -> Path:
        """Save <arch>.ckpt, the weights at the end of training."""
        path = self.folder / f"{self.arch}.ckpt"
        if self.writes:
            save_weights(network, path)
        return path

    def numbered(self) -> list[Path]:
        """The numbered checkpoints in the folder, in the order in which they were saved.

        What cannot say its own number stands behind the one before it by epoch and step.
        """
        serial, found = 0, []
        for path in self._files(".ckpt"):
            serial = _facts_of(path).get("serial", serial)
            found.append((serial, path))
        return [path for _, path in sorted(found, key=lambda pair: pair[0])]

    def of_other_runs(self, run: str) -> list[Path]:
        """The numbered checkpoints that say that they are of another run."""
        return [path for facts, path in self._told() if facts.get("run", run) != run]

    def _told(self) -> list[tuple[dict[str, Any], Path]]:
        """The numbered checkpoints that say of themselves what they are, in the order in which they were saved.

        Others, such as weights without their state, are somebody's, and no save takes their place.
        """
        found = [(_facts_of(path), path) for path in self._files(".ckpt")]
        return sorted((pair for pair in found if pair[0]), key=lambda pair: pair[0]["serial"])

    def _files(self, suffix: str, arch: str = "") -> list[Path]:
        """The regular files <arch>-<epoch>_<step><suffix> by epoch and step."""
        pattern = re.compile(rf"{re.escape(arch or self.arch)}-(\d+)_(\d+){re.escape(suffix)}")
        found = []
        for path in self._entries():
            match = pattern.fullmatch(path.name)
            if match and is_regular(path):
                found.append((int(match[1]), int(match[2]), path))
        return [path for *_, path in sorted(found)]

    def _entries(self) -> list[Path]:
        """All that is in the folder; nothing where there is none."""
        try:
            return list(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be read ({error.strerror})") from error

    def newest_good(self) -> tuple[Optional[Saved], list[str]]:
        """The newest whole checkpoint, and a line for each newer one that is damaged.

        Raises:
            UserError: none is whole as far as can be told, since the disk or its server fails.
        """
        complaints: list[UserError] = []
        for path in reversed(self.numbered()):
            try:
                return read_saved(path), list(map(str, complaints))
            except UserError as error:
                complaints.append(error)
        for complaint in complaints:
            if complaint.exit_code == TEMPORARY:
                raise complaint
        return None, list(map(str, complaints))


def read_saved(path: Union[str, Path]) -> Saved:
    """Read a checkpoint that a run can go on from, every byte of it checked.

    Raises:
        UserError: one of its files is missing, cannot be read, or is damaged.
    """
    path = Path(path)
    state, aside = path.with_suffix(".state"), path.with_suffix(ASIDE)
    try:
        return _read_pair(path, state)
    except UserError:
        if not is_regular(aside):
            raise
        with suppress(UserError):  # a save over this checkpoint was killed: the weights are still those of before
            return _read_pair(path, aside)
        raise


def _read_pair(path: Path, state: Path) -> Saved:
    for file in (path, state):
        if not is_regular(file):
            raise UserError(f"{file}: is not there; to go on, {path.name} and {state.name} are needed")
    facts, arrays = _read_state(state)
    try:
        with open_regular(path) as weights:
            digest = _sha256_of_rest(weights).hex()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if digest != facts.get("weights_sha256"):
        raise UserError(f"{path}: is damaged (its SHA-256 is not the one in {state.name})")
    return Saved(path, facts, arrays)


def _obstacle(path: Path) -> str:
    """Why no file can take a path's place; '' where one can, as in that of a link to nowhere."""
    if is_directory(path) and not path.is_symlink():
        return "is a folder, in the place of a file"
    if is_device(path):
        return "is a device, in the place of a file"
    return "can be neither replaced nor removed (it is immutable, or another user's)" if is_fixed(path) else ""


def _make_way(path: Path) -> None:
    if kind := _obstacle(path):
        aside = next_free(path)
        try:
            path.rename(aside)
        except OSError as error:
            raise UserError(f"{path}: {kind}; move it away") from error
        _log.warning("%s: %s; it is %s now", path, kind, aside.name)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s: cannot be removed (%s)", path, error.strerror)


def _step_aside(path: Path) -> None:
    """Let the state of a checkpoint that is about to be replaced stand under another name, where it is its state."""
    state, aside = path.with_suffix(".state"), path.with_suffix(ASIDE)
    if not (is_regular(path) and is_regular(state)):
        return
    with suppress(UserError):
        _read_pair(path, state)  # else the one that stands aside since an earlier save that was killed is
        try:
            state.replace(aside)
        except OSError as error:
            raise UserError(f"{state}: cannot be renamed ({error.strerror})") from error


@contextmanager
def holding(network: nn.Cell, values: Optional[dict[str, np.ndarray]]) -> Iterator[None]:
    """Let the network hold other values for its parameters, by name, inside the block; None: its own."""
    own = {}
    if values:
        for parameter in network.get_parameters():
            own[parameter.name] = parameter.asnumpy().copy()
            assign(parameter, values[parameter.name])
    try:
        yield
    finally:
        for parameter in network.get_parameters():
            if parameter.name in own:
                assign(parameter, own[parameter.name])


def _write_state(path: Path, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    body = buffer.getbuffer()
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + hashlib.sha256(body).digest())
        file.write(body)


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with open_regular(path) as file:
            whole = file.read(len(MAGIC)) == MAGIC and file.read(32) == _sha256_of_rest(file)
            if not whole:
                raise UserError(f"{path}: is damaged (its SHA-256 does not fit)")
            file.seek(len(MAGIC) + 32)
            with np.load(file) as arrays:
                values = dict(arrays)
        facts = json.loads(values.pop("facts").tobytes())
        _check_facts(facts)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # NumPy and zipfile raise a dozen kinds on what no training wrote
        raise UserError(f"{path}: is no training state of this program ({error})") from error
    return facts, values


def _sha256_of_rest(file: BinaryIO) -> bytes:
    """Of an open file's bytes from here on; b"" where it is larger than any that is written."""
    if os.fstat(file.fileno()).st_size > LARGEST:
        return b""
    digest = hashlib.sha256()
    while piece := file.read(1 << 22):
        digest.update(piece)
    return digest.digest()


def _check_facts(facts: dict[str, Any]) -> None:
    """Raise what comes to hand where facts are not what `Checkpoints.save` writes."""
    cursor, config = Cursor.of(facts), facts["config"]
    counts = (cursor.epoch, cursor.done, cursor.best_epoch, facts["images_an_update"])
    if not all(type(count) is int and 0 <= count < 1 << 53 for count in counts) or cursor.epoch < 1:
        raise ValueError("a count is none")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (cursor.seconds, cursor.best)):
        raise ValueError("a number is none")
    _as_it_acts(config)


def _facts_of(path: Path) -> dict[str, Any]:
    """What a numbered checkpoint says of itself, by its state or by the one that stands aside; {}: nothing."""
    return _facts_in(path.with_suffix(".state")) or _facts_in(path.with_suffix(ASIDE))


def _facts_in(state: Path) -> dict[str, Any]:
    """A state's facts, read without the rest, the serial number among them; {}: it is unreadable."""
    try:
        with open_regular(state) as file:  # a pipe would be waited for
            if file.read(len(MAGIC)) != MAGIC:
                return {}
            with zipfile.ZipFile(file) as archive, archive.open("facts.npy") as member:
                facts = json.loads(np.lib.format.read_array(member, allow_pickle=False).tobytes())
        serial = facts.get("serial") or 0  # an earlier version's has none
    except Exception:  # a damaged archive leads its reader anywhere
        return {}
    return {**facts, "serial": serial} if type(serial) is int and 0 <= serial < 1 << 53 else {}


def _top1_in(scores: Path) -> float:
    """The top-1 in a best checkpoint's .json; infinite where there is none."""
    try:
        top1 = read_json(scores, 1 << 16)["top1"]
    except (UserError, KeyError, TypeError):
        return math.inf
    return float(top1) if type(top1) in (int, float) and 0 <= top1 <= 1 else math.inf
