"""MindRecord shards for slow disks: a few large files in place of a million small ones.

    python -m src.data.mindrecord --data_url D --out M [--short_side 320]

packs D's train/ and val/ into M; `--data_url M` then trains and evaluates from there. Without --short_side the files'
bytes are packed as they are and the batches are the folder's, bit for bit.
"""

import io
import os
import sqlite3
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from src.args import parse_args
from src.data.augment.transforms import UndecodableImage, decode
from src.data.listing import Samples, is_folder, list_classes, list_folder
from src.data.packed import MOST_SHARDS, index_path, shard_path, write_index
from src.errors import UserError, printable
from src.files import sync

SHARD_BYTES = 2 << 30  # about what a shard holds
CHUNK_BYTES = 64 << 20  # about what is handed to MindRecord at once
_HEADER, _PAGE, _LENGTH = 1 << 24, 1 << 25, 8  # MindRecord's header and page, and the length before each image


def pack(samples: Samples, root: Path, split: str, short_side: int = 0) -> int:
    """Write a split as MindRecord shards with a table beside them.

    Args:
        samples: the split.
        root: where to; made if need be. Shards of an earlier run are overwritten.
        split: train or val.
        short_side: scale larger images down to this shorter side, pixels, as JPEG of quality 95; 0: keep all bytes.

    Returns:
        The number of bytes that the images take.

    Raises:
        UserError: a file cannot be read or written.
    """
    from mindspore.mindrecord import MindRecordException

    try:
        root.mkdir(parents=True, exist_ok=True)
        for old in [index_path(root, split), *root.glob(f"{split}.mindrecord*")]:
            old.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass  # better now than after an hour
    except OSError as error:
        raise UserError(f"--out {root}: cannot be written ({error.strerror})") from error
    shards, checksums = np.zeros(len(samples), np.int32), np.zeros(len(samples), np.uint32)
    offsets, sizes = np.zeros(len(samples), np.int64), np.zeros(len(samples), np.int64)
    first, number = 0, 0
    while first < len(samples):
        if number == MOST_SHARDS:
            raise UserError(f"--out {root}: the images take more than {MOST_SHARDS} shards; say --short_side")
        path = shard_path(root, split, number)
        try:
            last = _write_shard(path, split, samples, first, short_side, checksums)
        except (MindRecordException, RuntimeError, OSError) as error:
            reason = getattr(error, "strerror", None) or printable(error)
            raise UserError(f"--out {path}: cannot be written ({reason})") from error
        shards[first:last] = number
        offsets[first:last], sizes[first:last] = _places(path, last - first)
        first, number = last, number + 1
    _check(root, split, samples, shards, offsets, sizes, short_side)
    write_index(root, split, samples, shards, offsets, sizes, checksums)
    return int(sizes.sum())


def _write_shard(path: Path, split: str, samples: Samples, first: int, short_side: int, checksums: np.ndarray) -> int:
    """Write samples from `first` on until the shard is full, and note their checksums; where the next one starts."""
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(path), shard_num=1)
    writer.add_schema({"image": {"type": "bytes"}, "label": {"type": "int32"}, "index": {"type": "int64"}}, split)
    writer.add_index(["index"])
    rows, waiting, written, index = [], 0, 0, first
    while index < len(samples) and written < SHARD_BYTES:
        image = shrink(_read(samples, index), short_side)
        checksums[index] = zlib.crc32(image)
        rows.append({"image": image, "label": int(samples.labels[index]), "index": index - first})
        waiting, written, index = waiting + len(image), written + len(image), index + 1
        if waiting >= CHUNK_BYTES:
            writer.write_raw_data(rows)
            rows, waiting = [], 0
    if rows:
        writer.write_raw_data(rows)
    writer.commit()
    for file in (path, Path(f"{path}.db")):
        file.chmod(0o644)
        sync(file)  # before the table, which says that they are whole
    return index


def _read(samples: Samples, index: int) -> bytes:
    try:
        return samples.read(index)
    except (OSError, UndecodableImage) as error:  # that it cannot be read, and why; or that it is too large
        raise UserError(f"data_url: {samples.path(index)}: {error}; mend or remove it") from error


def _places(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Offset and size of each image in a shard, from the index that MindRecord keeps beside it."""
    with sqlite3.connect(f"{path}.db") as index:
        rows = index.execute(
            "SELECT PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY index_0"
        ).fetchall()
    index.close()
    page, start, end = np.array(rows, np.int64).reshape(count, 3).T
    return _HEADER + page * _PAGE + start + _LENGTH, end - start - _LENGTH


def _check(root, split, samples, shards, offsets, sizes, short_side) -> None:
    """Read some images back from where the table says, before anyone trusts it."""
    for index in np.linspace(0, len(samples) - 1, min(len(samples), 200)).astype(int).tolist():
        with shard_path(root, split, int(shards[index])).open("rb") as file:
            file.seek(int(offsets[index]))
            if file.read(int(sizes[index])) != shrink(_read(samples, index), short_side):
                raise UserError(
                    f"--out {file.name}: this MindSpore lays MindRecord out in a way that is not known here"
                )


def shrink(encoded: bytes, short_side: int) -> bytes:
    """An image scaled down to a shorter side of `short_side` pixels, as JPEG; its own bytes where it is no larger."""
    if not short_side:
        return encoded
    try:
        image = decode(encoded)
    except UndecodableImage:
        return encoded  # training and evaluation say what they think of it
    shorter = min(image.size)
    if shorter <= short_side:
        return encoded
    width, height = (max(short_side, round(length * short_side / shorter)) for length in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=95)
    return file.getvalue()


def main() -> None:
    config, rest = parse_args(
        description="Pack train/ and val/ into MindRecord shards.",
        extra=[
            ("--out", {"required": True, "metavar": "DIR", "help": "where the shards go"}),
            ("--short_side", {"type": int, "default": 0, "help": "scale larger images down to this, pixels; 0: never"}),
        ],
    )
    root, classes = Path(config.data_url), None
    splits = [split for split in ("train", "val") if is_folder(root / split)]
    if not splits:
        raise UserError(f"data_url: {root}: has neither train/ nor val/")
    if rest.short_side < 0:
        raise UserError(f"--short_side {rest.short_side}: must be at least 0")
    if os.path.realpath(rest.out) == os.path.realpath(root):
        raise UserError(f"--out {rest.out}: is the data set itself; name another folder")
    if "train" in splits:
        classes = list_classes(str(root / "train"))
    for split in splits:
        samples = list_folder(str(root / split), classes, config.listing_cache, every_class=split == "train")
        size = pack(samples, Path(rest.out), split, rest.short_side)
        print(f"{split}: {len(samples)} images, {size / 1e9:.2f} GB, in {Path(rest.out, split)}.mindrecord*")


if __name__ == "__main__":
    from src.errors import run

    run(main)
