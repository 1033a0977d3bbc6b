"""Reading a split that `src.data.mindrecord` has packed into MindRecord shards.

The shards are plain MindRecord. A table beside them says where each image's bytes lie, so that any image is one read
in any order, as shuffling wants it.
"""

import os
from pathlib import Path
from typing import Optional

import numpy as np

from src.data.listing import Samples
from src.errors import UserError


class PackedSamples(Samples):
    """The images of a packed split. Attributes are those of `Samples`; `order` of the images is the folder's."""

    def __init__(self, root: Path, split: str, classes: Optional[list[str]] = None) -> None:
        path = index_path(root, split)
        try:
            with np.load(path, allow_pickle=False) as index:
                own, labels = index["classes"].tolist(), index["labels"]
                names, ends = index["names"].tobytes(), index["ends"]
                self._shards, self._offsets, self._sizes = index["shards"], index["offsets"], index["sizes"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"data_url: {path}: is damaged ({error}); pack the data set again") from error
        if classes is not None:
            unknown = [name for name in own if name not in set(classes)]
            if unknown:
                raise UserError(f"data_url: {path}: has class {unknown[0]}, which train has not")
            labels = np.array([classes.index(name) for name in own], np.int32)[labels]
        super().__init__(str(root / split), own if classes is None else classes, labels, names, ends)
        self._files = []
        for number in range(int(self._shards.max()) + 1):
            try:
                self._files.append(shard_path(root, split, number).open("rb", buffering=0))
            except OSError as error:
                raise UserError(
                    f"data_url: {shard_path(root, split, number)}: cannot be read ({error.strerror}); "
                    "pack the data set again"
                ) from None

    def read(self, index: int) -> bytes:
        """An image's encoded bytes."""
        file = self._files[self._shards[index]]
        encoded = os.pread(file.fileno(), int(self._sizes[index]), int(self._offsets[index]))
        if len(encoded) != self._sizes[index]:
            raise OSError(f"{file.name}: is cut short")
        return encoded


def index_path(root: Path, split: str) -> Path:
    """Where a packed split's table lies: names, labels, and each image's shard, offset and size."""
    return root / f"{split}.index.npz"


def shard_path(root: Path, split: str, number: int) -> Path:
    """Where a shard lies."""
    return root / f"{split}.mindrecord{number:03d}"


def is_packed(root: Path, split: str) -> bool:
    """Whether `root` has the split as shards."""
    return os.path.isfile(index_path(root, split))  # noqa: PTH113 (Path.is_file raises where the folder is closed)
