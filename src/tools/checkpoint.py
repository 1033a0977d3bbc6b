"""Checkpoints: the network's parameters, under its names, and nothing else.

`mindspore.load_checkpoint` reads them as they are, with or without crc_check.
"""

import re
from pathlib import Path

import mindspore as ms
from mindspore import nn

from src.tools.files import atomic_write


def save_weights(network: nn.Cell, path: Path) -> None:
    """Write the network's parameters to `path` (.ckpt), with MindSpore's CRC32 of each.

    Raises:
        UserError: the folder cannot be written or the disk is full; what stood at `path` is still there.
    """
    values = [{"name": parameter.name, "data": parameter} for parameter in network.get_parameters()]
    with atomic_write(path) as temporary:
        ms.save_checkpoint(values, str(temporary), crc_check=True)


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
        folder: ckpt_<rank>.
        arch: the files' name, as in DDRNet23-<epoch>_<step>.ckpt.
        keep: how many of the numbered ones are kept, the newest.
    """

    def __init__(self, folder: Path, arch: str, keep: int) -> None:
        self.folder = folder
        self.arch = arch
        self.keep = keep
        self.best = -1.0

    def save(self, network: nn.Cell, epoch: int, step: int) -> Path:
        """Save <arch>-<epoch>_<step>.ckpt, both counted from 1, and drop the oldest beyond `keep`."""
        path = self.folder / f"{self.arch}-{epoch}_{step}.ckpt"
        save_weights(network, path)
        for old in self.numbered()[: -self.keep]:
            old.unlink()
        return path

    def save_best(self, network: nn.Cell, top1: float) -> bool:
        """Save <arch>_best.ckpt if `top1` is the best so far; whether it was."""
        if top1 <= self.best:
            return False
        self.best = top1
        save_weights(network, self.folder / f"{self.arch}_best.ckpt")
        return True

    def save_last(self, network: nn.Cell) -> Path:
        """Save <arch>.ckpt, the weights at the end of training."""
        path = self.folder / f"{self.arch}.ckpt"
        save_weights(network, path)
        return path

    def numbered(self) -> list[Path]:
        """The numbered checkpoints in the folder, the oldest first."""
        pattern = re.compile(rf"{re.escape(self.arch)}-\d+_\d+\.ckpt")
        found = [path for path in self.folder.glob(f"{self.arch}-*.ckpt") if pattern.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)
