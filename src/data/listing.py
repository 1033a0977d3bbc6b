"""Which images a data set has: ImageNet-style folders, listed lean enough for 1.28 million files."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Optional

import numpy as np

from src.data.image_files import read_image
from src.errors import UserError

_log = logging.getLogger(__name__)

EXTENSIONS = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


class Samples:
    """The images of a folder in a lean form: names in one block of bytes, 40 MB for 1.28 million files.

    Attributes:
        classes: the class folders' names, sorted.
        labels: int32 (n,), for each image its place in `classes`.
        names: all file names, one after the other.
        ends: int64 (n,), where each name ends.
    """

    def __init__(self, folder: str, classes: list[str], labels: np.ndarray, names: bytes, ends: np.ndarray) -> None:
        self.folder, self.classes, self.labels = folder, classes, labels
        self.names, self.ends = names, ends

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Where an image lies."""
        start = self.ends[index - 1] if index else 0
        name = os.fsdecode(self.names[start : self.ends[index]])
        return f"{self.folder}/{self.classes[self.labels[index]]}/{name}"

    def read(self, index: int) -> bytes:
        """An image's encoded bytes."""
        return read_image(self.path(index))


def list_classes(folder: str) -> list[str]:
    """The sorted names of a split's class folders.

    Raises:
        UserError: the folder is missing, empty or flat.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            classes = sorted(entry.name for entry in visible if entry.is_dir())
            flat = any(entry.name.lower().endswith(EXTENSIONS) for entry in visible)
    except OSError as error:
        raise UserError(
            f"data_url: {folder}: cannot be read ({error.strerror}); it must hold a folder a class"
        ) from None
    if classes:
        return classes
    if flat:
        raise UserError(
            f"data_url: {folder}: the images lie in it directly; move each to {folder}/<class>/ "
            "(raw ILSVRC val/: into the folder of its synset, such as n01440764, as ILSVRC2012_validation_ground_truth"
            ".txt and meta.mat of the development kit, or LOC_val_solution.csv, tell)"
        )
    raise UserError(f"data_url: {folder}: is empty; it must hold a folder a class, with its images")


def list_folder(folder: str, classes: Optional[list[str]] = None, cache: str = "") -> Samples:
    """List a split: every image of every class folder, by class and then by name.

    Hidden files and files without an image's extension are left out.

    Args:
        folder: the split's folder.
        classes: the class names that labels count in; None: the split's own.
        cache: a folder that keeps listings. A listing in it is used while no class folder has changed since.

    Raises:
        UserError: the folder is missing, empty or flat, has no image, or has a class that `classes` lacks.
    """
    own = list_classes(folder)
    classes = own if classes is None else classes
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in own if name not in numbers]
    if unknown:
        raise UserError(f"data_url: {folder}/{unknown[0]}: train/ has no class folder of that name")
    names, ends, counts = _list_files(folder, own) if not cache else _cached(folder, own, cache)
    labels = np.repeat(np.array([numbers[name] for name in own], np.int32), counts)
    if not len(labels):
        raise UserError(f"data_url: {folder}: its class folders hold no image ({' '.join(EXTENSIONS)})")
    return Samples(folder, classes, labels, names, ends)


def _list_files(folder: str, classes: list[str]) -> tuple[bytes, np.ndarray, np.ndarray]:
    """All file names in one block, where each ends, and how many each class has."""
    blocks, lengths, counts = [], [], []
    for name in classes:
        with os.scandir(f"{folder}/{name}") as entries:
            files = sorted(
                os.fsencode(entry.name)
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower().endswith(EXTENSIONS)
            )
        blocks.append(b"".join(files))
        lengths.append(np.fromiter(map(len, files), np.int64, len(files)))
        counts.append(len(files))
    return b"".join(blocks), np.cumsum(np.concatenate(lengths)), np.array(counts)


def _cached(folder: str, classes: list[str], cache: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """The same from the cache, or listed and put there."""
    place = Path(folder).resolve()
    path = Path(cache, f"listing-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.npz")
    stamps = np.array([(place / name).stat().st_mtime_ns for name in classes])
    try:
        with np.load(path, allow_pickle=False) as kept:
            if kept["classes"].tolist() == classes and np.array_equal(kept["stamps"], stamps):
                return kept["names"].tobytes(), kept["ends"], kept["counts"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError) as error:
        _log.warning("%s: no listing (%s); it is written anew", path, error)
    names, ends, counts = _list_files(folder, classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    np.savez(
        part, classes=np.array(classes), stamps=stamps, names=np.frombuffer(names, np.uint8), ends=ends, counts=counts
    )
    part.replace(path)
    return names, ends, counts
