"""Checkpoints: what a run leaves on disk, and how it goes on from there.

`<arch>-<epoch>_<step>.ckpt` holds the network's parameters, under its names, and nothing else, so that
`mindspore.load_checkpoint` reads it as it is. All else that the run needs to go on as if nothing had happened lies
beside it in a `.state` file:
moments, loss scale, counters, averaged weights, the place in the data, and the SHA-256 of both files. What is random
follows from the seed and that place, so no generator's state is needed.
"""

import fcntl
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn

from src.args import OUTSIDE, Config
from src.errors import TrainingStopped, UserError
from src.files import atomic_write
from src.models.architectures import FLAVOURS
from src.parameters import assign
from src.trainers.train_one_step import TrainOneStep
from src.weights.load import load_pretrained

# Keys that leave the weights as they would have been; batch size, cards and accumulation count by their product.
HARMLESS = OUTSIDE | {
    "accumulation_step",
    "batch_size",
    "cpu_kernels",
    "crop_mode",
    "crop_pct",
    "device_num",
    "device_target",
    "graph_mode",
    "sink_size",
}
MAGIC = b"DDRNet training state 1\n"


def _as_it_acts(values: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with the value that each key has had: also those that were not there yet or say "auto"."""
    before = {"drop_path_on": "branch"}  # what runs did when there was no such key; of others the default
    values = {**json.loads(Config().model_dump_json()), **before, **values}
    if values["drop_path_on"] == "auto":
        values["drop_path_on"] = FLAVOURS[values["flavour"]].drop_path_on
    if values["drop_path_rate"] == 0:
        values["drop_path_on"] = "nothing"
    return values


def save_weights(network: nn.Cell, path: Path) -> None:
    """Write the network's parameters to `path` (.ckpt), with MindSpore's CRC32 of each.

    Raises:
        TrainingStopped: a parameter is not finite.
        UserError: the folder cannot be written or the disk is full. In both cases what stood at `path` is still there.
    """
    for parameter in network.get_parameters():
        if not np.isfinite(parameter.asnumpy()).all():
            raise TrainingStopped(
                f"{parameter.name} is no longer finite, and nothing was saved; go on from an earlier checkpoint with a "
                "lower base_lr or a longer warmup"
            )
    values = [{"name": parameter.name, "data": parameter} for parameter in network.get_parameters()]
    with atomic_write(path) as temporary:
        ms.save_checkpoint(values, str(temporary), crc_check=True)


@dataclass
class Cursor:
    """Where a run is, which every checkpoint carries.

    epoch: the one that is under way, counted from 1; done: updates of it that are behind; seconds: spent in it so far;
    best: the highest top-1 so far, below 0 before there is one.
    """

    epoch: int = 1
    done: int = 0
    seconds: float = 0.0
    best: float = -1.0

    def next_epoch(self) -> None:
        """The epoch is over."""
        self.epoch, self.done, self.seconds = self.epoch + 1, 0, 0.0

    def facts(self) -> dict[str, Any]:
        """For the .state file; `of` reads it again."""
        return {"next_epoch": self.epoch, "next_done": self.done, "seconds": self.seconds, "best": self.best}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Cursor":
        """What `facts` wrote."""
        return cls(facts["next_epoch"], facts["next_done"], facts["seconds"], facts["best"])


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
        lines = [
            f"{key}: {then.get(key)!r} in the checkpoint, {value!r} now"
            for key, value in now.items()
            if key not in HARMLESS and then.get(key) != value
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
        kernels: what computes, to compare at resume.
    """

    def __init__(self, folder: Path, arch: str, keep: int, writes: bool = True, kernels: str = "") -> None:
        self.folder = folder
        self.arch = arch
        self.keep = keep
        self.writes = writes
        self.kernels = kernels

    def lock(self) -> None:
        """Claim the folder until the process ends.

        Raises:
            UserError: another run writes there, or the folder cannot be written.
        """
        if not self.writes:
            return
        path = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = path.open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in self.folder.glob(f".{self.arch}*.tmp*"):  # of a run that was killed while it wrote
                left.unlink()
        except BlockingIOError as error:
            raise UserError(f"{self.folder}: another run is writing there; stop it or use another folder") from error
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}); choose train_url") from error

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
        others = [other.stat().st_mtime_ns for other in self.numbered() if other != path]
        save_weights(network, path)
        newest = max([time.time_ns(), *(other + 1 for other in others)])  # also where the clock was set back
        os.utime(path, ns=(newest, newest))
        onward = replace(cursor)
        if finished:
            onward.next_epoch()
        facts = {
            **onward.facts(),
            "config": json.loads(config.model_dump_json()),
            "images_an_update": config.images_an_update,
            "kernels": self.kernels,
            "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        arrays = {name: parameter.asnumpy() for name, parameter in step.state().items()}
        try:
            _write_state(path.with_suffix(".state"), facts, arrays)
        except UserError:
            path.unlink()  # it says nothing without the other
            raise
        for old in self.numbered()[: -self.keep]:
            old.with_suffix(".state").unlink(missing_ok=True)
            old.unlink()
        return path

    def save_best(self, network: nn.Cell) -> None:
        """Save <arch>_best.ckpt."""
        if self.writes:
            save_weights(network, self.best_path)

    def save_last(self, network: nn.Cell) -> Path:
        """Save <arch>.ckpt, the weights at the end of training."""
        path = self.folder / f"{self.arch}.ckpt"
        if self.writes:
            save_weights(network, path)
        return path

    def numbered(self) -> list[Path]:
        """The numbered checkpoints in the folder, the oldest first."""
        pattern = re.compile(rf"{re.escape(self.arch)}-\d+_\d+\.ckpt")
        found = [path for path in self.folder.glob(f"{self.arch}-*.ckpt") if pattern.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def newest_good(self) -> tuple[Optional[Saved], list[str]]:
        """The newest whole checkpoint, and a line for each newer one that is damaged."""
        complaints = []
        for path in reversed(self.numbered()):
            try:
                return read_saved(path), complaints
            except UserError as error:
                complaints.append(str(error))
        return None, complaints


def read_saved(path: Union[str, Path]) -> Saved:
    """Read a checkpoint that a run can go on from, every byte of it checked.

    Raises:
        UserError: one of its files is missing or damaged.
    """
    path = Path(path)
    state = path.with_suffix(".state")
    for file in (path, state):
        if not file.is_file():
            raise UserError(f"{file}: is not there; to go on, {path.name} and {state.name} are needed")
    facts, arrays = _read_state(state)
    if hashlib.sha256(path.read_bytes()).hexdigest() != facts["weights_sha256"]:
        raise UserError(f"{path}: is damaged (its SHA-256 is not the one in {state.name})")
    return Saved(path, facts, arrays)


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
    content = path.read_bytes()
    start = len(MAGIC) + 32
    body = content[start:]
    if content[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != content[len(MAGIC) : start]:
        raise UserError(f"{path}: is damaged (its SHA-256 does not fit)")
    with np.load(io.BytesIO(body)) as arrays:
        values = dict(arrays)
    return json.loads(values.pop("facts").tobytes()), values
