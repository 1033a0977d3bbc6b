"""Which images a data set has: ImageNet-style folders, listed lean enough for 1.28 million files."""

import hashlib
import logging
import os
import stat
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Union

import numpy as np

from src.data.image_files import read_image
from src.data.tables import DamagedTable, read_table, write_table
from src.errors import UserError, printable

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

    def where(self, index: int) -> str:
        """What to mend where an image is damaged."""
        return self.path(index)

    def read(self, index: int) -> bytes:
        """An image's encoded bytes."""
        return read_image(self.path(index))


def list_classes(folder: str) -> list[str]:
    """The sorted names of a split's class folders.

    Raises:
        UserError: the folder is missing, closed, empty or flat.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            classes = sorted(entry.name for entry in visible if _is(entry, os.DirEntry.is_dir))
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


def list_folder(
    folder: str, classes: Optional[list[str]] = None, cache: str = "", every_class: bool = False
) -> Samples:
    """List a split: every image of every class folder, by class and then by name.

    Images are regular files with one of `EXTENSIONS` that lie in a class folder directly. Hidden files are left out;
    what else is left out is told in one line.

    Args:
        folder: the split's folder.
        classes: the class names that labels count in; None: the split's own.
        cache: a folder that keeps listings. A listing in it is used while no class folder has changed since.
        every_class: a class without an image is an error, not a warning.

    Raises:
        UserError: the folder is missing, closed, empty or flat, has no image, or has a class that `classes` lacks.
    """
    own = list_classes(folder)
    classes = own if classes is None else classes
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in own if name not in numbers]
    if unknown:
        raise UserError(f"data_url: {folder}/{unknown[0]}: train/ has no class folder of that name")
    listing = _list_files(folder, own) if not cache else _cached(folder, own, cache)
    if listing.left_out:
        _log.warning("data_url: %s: %s", folder, listing.left_out)
    labels = np.repeat(np.array([numbers[name] for name in own], np.int32), listing.counts)
    if not len(labels):
        raise UserError(
            f"data_url: {folder}: its class folders hold no image ({' '.join(EXTENSIONS)}){_deeper(folder, own)}"
        )
    counts = np.bincount(labels, minlength=len(classes))
    _check_empty(folder, [name for name, count in zip(classes, counts) if not count], len(classes), every_class)
    return Samples(folder, classes, labels, listing.names, listing.ends)


def _check_empty(folder: str, empty: list[str], classes: int, every_class: bool) -> None:
    """Say which classes have no image."""
    if not empty:
        return
    shown = ", ".join(printable(name, 60) for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
    verb = "has" if len(empty) == 1 else "have"
    fact = f"data_url: {folder}: {len(empty)} of {classes} classes {verb} no image ({shown})"
    if every_class:
        raise UserError(f"{fact}: add images ({' '.join(EXTENSIONS)}) or remove the folders{_deeper(folder, empty)}")
    _log.warning("%s: figures are over the others%s", fact, _deeper(folder, empty))


def _deeper(folder: str, classes: list[str]) -> str:
    """'; images lie deeper, ...' where a class has them in folders of its own; looks at 10,000 folders at most."""
    looked = 0
    for name in classes:
        for root, _, files in os.walk(f"{folder}/{name}"):
            looked += 1
            found = next((file for file in sorted(files) if file.lower().endswith(EXTENSIONS)), None)
            if found is not None and root != f"{folder}/{name}":
                shown = printable(f"{root}/{found}"[len(folder) + 1 :], 120)
                return f"; images lie deeper, such as {shown}: move them up into {printable(name, 60)}/"
            if looked > 10_000:
                return ""
    return ""


class _Listing(NamedTuple):
    """All file names in one block, where each ends, how many each class has, and what was left out, in words."""

    names: bytes
    ends: np.ndarray
    counts: np.ndarray
    left_out: str


def _list_files(folder: str, classes: list[str]) -> _Listing:
    blocks, lengths, counts = [], [], []
    left_out: dict[str, tuple[int, str]] = {}  # what kind: how many, and the first by name
    for name in classes:
        files = []
        try:
            with os.scandir(f"{folder}/{name}") as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.name.lower().endswith(EXTENSIONS) and _is(entry, os.DirEntry.is_file):
                        files.append(os.fsencode(entry.name))
                    elif entry.name.lower() not in _CLUTTER:
                        kind, path = _kind(entry), f"{name}/{entry.name}"
                        count, first = left_out.get(kind, (0, path))
                        left_out[kind] = count + 1, min(first, path)
        except OSError as error:
            raise UserError(f"data_url: {folder}/{name}: cannot be read ({error.strerror})") from None
        files.sort()
        blocks.append(b"".join(files))
        lengths.append(np.fromiter(map(len, files), np.int64, len(files)))
        counts.append(len(files))
    ends = np.cumsum(np.concatenate(lengths)) if lengths else np.zeros(0, np.int64)
    return _Listing(b"".join(blocks), ends, np.array(counts, np.int64), _told(left_out))


_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})  # what file managers leave


def _is(entry: os.DirEntry, kind: Callable[[os.DirEntry], bool]) -> bool:
    """Whether an entry, or what it links to, is a file or a folder; not so where that cannot be told."""
    try:
        return kind(entry)
    except OSError:  # a loop of links, or a closed folder behind one
        return False


def _kind(entry: os.DirEntry) -> str:
    """What an entry that is no image is called."""
    if _is(entry, os.DirEntry.is_dir):
        return "folders within a class"
    if not _is(entry, os.DirEntry.is_file):
        return "pipes, devices or broken links"
    ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a Path a file would take too long)
    return f"*{printable(ending, 20)}" if ending else "files without an ending"


def _told(left_out: dict[str, tuple[int, str]]) -> str:
    """'12 entries are left out: *.heic (9, such as b/IMG_1.HEIC), folders within a class (3, such as a/old)'."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1][0], item[0]))
    parts = [f"{kind} ({count}, such as {printable(first, 80)})" for kind, (count, first) in kinds[:5]]
    if len(kinds) > 5:
        parts.append(f"others ({sum(count for _, (count, _) in kinds[5:])})")
    total = sum(count for count, _ in left_out.values())
    entries = "entry is" if total == 1 else "entries are"
    return f"{total} {entries} left out: {', '.join(parts)}" if parts else ""


def _cached(folder: str, classes: list[str], cache: str) -> _Listing:
    """The same from the cache, or listed and put there."""
    place = os.path.realpath(folder)
    key = hashlib.sha256(os.fsencode(place) + " ".join(EXTENSIONS).encode()).hexdigest()[:16]
    path = Path(cache, f"listing-{key}.npz")
    try:
        stamps = np.array([os.stat(f"{place}/{name}").st_mtime_ns for name in classes])  # noqa: PTH116
    except OSError as error:
        raise UserError(f"data_url: {error.filename}: cannot be read ({error.strerror})") from None
    names = np.frombuffer("\n".join(classes).encode("utf-8", "surrogateescape"), np.uint8)
    try:
        kept = read_table(path)
        if np.array_equal(kept["classes"], names) and np.array_equal(kept["stamps"], stamps):
            listing = _Listing(
                kept["names"].tobytes(), kept["ends"], kept["counts"], kept["left_out"].tobytes().decode()
            )
            if _fits(listing, len(classes)):
                return listing
            raise DamagedTable("its arrays do not fit together")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError) as error:
        _log.warning("%s: no listing (%s); it is written anew", path, getattr(error, "strerror", None) or error)
    listing = _list_files(folder, classes)
    try:
        write_table(
            path,
            {
                "classes": names,
                "stamps": stamps,
                "names": np.frombuffer(listing.names, np.uint8),
                "ends": listing.ends,
                "counts": listing.counts,
                "left_out": np.frombuffer(listing.left_out.encode(), np.uint8),
            },
        )
    except UserError as error:
        _log.warning("listing_cache: %s: the listing is not kept", error)
    return listing


def _fits(listing: _Listing, classes: int) -> bool:
    """Whether a listing's arrays belong together."""
    ends, counts = listing.ends, listing.counts
    return bool(
        ends.ndim == counts.ndim == 1
        and ends.dtype.kind == counts.dtype.kind == "i"
        and len(counts) == classes
        and (counts >= 0).all()
        and counts.sum() == len(ends)
        and (np.diff(ends, prepend=0) > 0).all()
        and (ends[-1] if len(ends) else 0) == len(listing.names)
    )


def is_folder(path: Union[str, Path]) -> bool:
    """Whether there is a folder of this name.

    Raises:
        UserError: that cannot be told, as a folder above it is closed.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 (of 3.9's Path.is_dir some errors come out)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"data_url: {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
