"""Reading a split that `src.data.mindrecord` has packed into MindRecord shards.

The shards are plain MindRecord. A table beside them says where each image's bytes lie and what their checksum is, so
that any image is one read in any order, as shuffling wants it, and a damaged one is noticed.
"""

import os
import zlib
from pathlib import Path
from typing import Optional

import numpy as np

from src.data.listing import Samples
from src.data.tables import DamagedTable, read_table, write_table
from src.errors import UserError, printable
from src.files import open_regular

MOST_SHARDS = 1000  # their names have three digits


class PackedSamples(Samples):
    """The images of a packed split. Attributes are those of `Samples`; `order` of the images is the folder's."""

    def __init__(self, root: Path, split: str, classes: Optional[list[str]] = None) -> None:
        path = index_path(root, split)
        try:
            table = read_table(path, checked=False)
            own = _names(table["classes"])
            _check(table, len(own))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"data_url: {path}: is damaged ({_reason(error)}); pack the data set again") from error
        labels, names, ends = table["labels"], table["names"].tobytes(), table["ends"]
        if classes is not None:
            numbers = {name: number for number, name in enumerate(classes)}
            unknown = [name for name in own if name not in numbers]
            if unknown:
                raise UserError(f"data_url: {path}: has class {printable(unknown[0])}, which train has not")
            labels = np.array([numbers[name] for name in own], np.int32)[labels]
        super().__init__(str(root / split), own if classes is None else classes, labels, names, ends)
        self._shards, self._offsets, self._sizes = table["shards"], table["offsets"], table["sizes"]
        self._checksums = table.get("checksums")  # None: packed by a version that knew none
        self._files = []
        ends_of = np.zeros(int(self._shards.max()) + 1, np.int64)
        np.maximum.at(ends_of, self._shards, self._offsets + self._sizes)
        for number, end in enumerate(ends_of.tolist()):
            shard = shard_path(root, split, number)
            try:
                file = open_regular(shard)
            except OSError as error:
                raise UserError(
                    f"data_url: {shard}: cannot be read ({error.strerror}); pack the data set again"
                ) from None
            self._files.append(file)
            if os.fstat(file.fileno()).st_size < end:
                raise UserError(f"data_url: {shard}: is cut short; pack the data set again")

    def where(self, index: int) -> str:
        """The shard that holds an image, and which image that was."""
        return f"{self._files[self._shards[index]].name} ({self.path(index)[len(self.folder) + 1 :]})"

    def read(self, index: int) -> bytes:
        """An image's encoded bytes.

        Raises:
            OSError: the shard cannot be read, or the bytes are not those that were packed.
        """
        file = self._files[self._shards[index]]
        encoded = os.pread(file.fileno(), int(self._sizes[index]), int(self._offsets[index]))
        if len(encoded) != self._sizes[index]:
            raise OSError(f"{file.name}: is cut short; pack the data set again")
        if self._checksums is not None and zlib.crc32(encoded) != self._checksums[index]:
            raise OSError(f"{file.name}: is damaged at byte {self._offsets[index]}; pack the data set again")
        return encoded


def write_index(
    root: Path,
    split: str,
    samples: Samples,
    shards: np.ndarray,
    offsets: np.ndarray,
    sizes: np.ndarray,
    checksums: np.ndarray,
) -> None:
    """Write a packed split's table.

    Args:
        root: where to.
        split: train or val.
        samples: the images, whose classes, labels and names the table keeps.
        shards: (n,) in which shard an image's bytes lie.
        offsets: (n,) where in it.
        sizes: (n,) how many they are.
        checksums: (n,) their CRC-32.

    Raises:
        UserError: the table cannot be written.
    """  # fmt: skip
    arrays = {
        "classes": np.array(samples.classes), "labels": samples.labels, "names": np.frombuffer(samples.names, np.uint8),
        "ends": samples.ends, "shards": shards, "offsets": offsets, "sizes": sizes, "checksums": checksums,
    }  # fmt: skip
    write_table(index_path(root, split), arrays)


def index_path(root: Path, split: str) -> Path:
    """Where a packed split's table lies: names, labels, and each image's shard, offset and size."""
    return root / f"{split}.index.npz"


def shard_path(root: Path, split: str, number: int) -> Path:
    """Where a shard lies."""
    return root / f"{split}.mindrecord{number:03d}"


def is_packed(root: Path, split: str) -> bool:
    """Whether `root` has the split as shards."""
    return os.path.isfile(index_path(root, split))  # noqa: PTH113 (Path.is_file raises where the folder is closed)


def _names(classes: np.ndarray) -> list[str]:
    if classes.ndim != 1 or classes.dtype.kind != "U" or not len(classes):
        raise DamagedTable("its classes are no names")
    names = classes.tolist()
    for name in names:
        os.fsencode(name)  # a UnicodeEncodeError, where damage made what no name has
    if len(set(names)) != len(names):
        raise DamagedTable("it has a class twice")
    return names


def _check(table: dict[str, np.ndarray], classes: int) -> None:
    """Refuse arrays that do not fit together: a version that wrote no checksum may have written the table."""
    labels, ends, shards, offsets, sizes = (table[key] for key in ("labels", "ends", "shards", "offsets", "sizes"))
    columns = [labels, ends, shards, offsets, sizes]
    if "checksums" in table:
        columns.append(table["checksums"])
    whole = (
        all(column.ndim == 1 and column.dtype.kind in "iu" and len(column) == len(labels) for column in columns)
        and table["names"].dtype == np.uint8
        and len(labels) > 0
        and _within(labels, classes)
        and _within(shards, MOST_SHARDS)
        and _within(offsets, 1 << 40)
        and _within(sizes, 1 << 32)
        and (np.diff(ends, prepend=0) > 0).all()
        and ends[-1] == table["names"].size
    )
    if not whole:
        raise DamagedTable("its arrays do not fit together")


def _within(numbers: np.ndarray, end: int) -> bool:
    return bool((numbers >= 0).all() and (numbers < end).all())


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    return getattr(error, "strerror", None) or str(error)
