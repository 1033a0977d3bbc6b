"""Which photographs say that they want to be turned, which nothing here does: ImageNet's convention ignores it.

A phone stores what the sensor saw and notes the rotation in the file's EXIF data (CIPA DC-008, tag 0x0112). Whoever
trains on such files should know.
"""

import struct

import numpy as np

from src.data.image_files import UndecodableImage
from src.data.listing import Samples

LOOKED_AT = 100  # images that stand for all
_ORIENTATION, _SHORT = 0x0112, 3


def rotation(encoded: bytes) -> int:
    """The orientation that a JPEG's EXIF data name, from 2 to 8; 1 where it is upright or does not say."""
    at = 2 if encoded.startswith(b"\xff\xd8\xff") else len(encoded)
    while (
        encoded[at : at + 1] == b"\xff" and at + 4 <= len(encoded) and encoded[at + 1] != 0xDA
    ):  # until the first scan
        end = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if encoded[at + 1] == 0xE1 and encoded[at + 4 : at + 10] == b"Exif\0\0":
            return _orientation(encoded[at + 10 : end])
        at = max(end, at + 2)
    return 1


def _orientation(tiff: bytes) -> int:
    """The orientation in the first directory of a TIFF structure; 1 where there is none that means anything."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack(f"{order}I", tiff[4:8])
    count = int.from_bytes(tiff[start : start + 2], "little" if order == "<" else "big")
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack(f"{order}HHIH", tiff[entry : entry + 10])
        if tag == _ORIENTATION:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def count_rotated(samples: Samples) -> tuple[int, int]:
    """How many of up to LOOKED_AT evenly spaced images want to be turned, and how many were looked at."""
    indices = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), LOOKED_AT)).astype(int)).tolist()
    rotated = 0
    for index in indices:
        try:
            rotated += rotation(samples.read(index)) > 1
        except (OSError, UndecodableImage):  # training will name it
            continue
    return rotated, len(indices)


def rotation_note(rotated: int, images: str) -> list[str]:
    """A line where images want to be turned; `images`: such as 'of 100 images looked at'."""
    if not rotated:
        return []
    verb = "carries" if rotated == 1 else "carry"
    return [
        f"{rotated} {images} {verb} a rotation in EXIF data, which is ignored; docs/own_photos.md says how to turn them"
    ]
