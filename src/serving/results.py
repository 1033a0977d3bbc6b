"""What an image's result and its PNG are called; `ascend310_infer/src/dataset.cc` has the same rules."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from src.errors import UserError

ENDING = "_0.bin"
LONGEST = 255  # bytes of a file's name


def result_names(images: Sequence[str]) -> list[str]:
    """The result file of each image.

    It is `<class>__<file without its ending>_0.bin`; where several images would share that name, each of them is named
    by its whole file name, `<class>__<file>_0.bin`. A name too long for a file system is replaced by its SHA-256.

    Args:
        images: `<class>/<file>` of every image of the folder.

    Raises:
        UserError: two images share even the longer name.
    """
    short = [_name(image, PurePath(image).stem) for image in images]
    shared = {name for name, count in Counter(short).items() if count > 1}
    names = [_name(image, PurePath(image).name) if name in shared else name for image, name in zip(images, short)]
    if len(set(names)) < len(names):
        owner: dict[str, str] = {}
        for image, name in zip(images, names):
            if owner.setdefault(name, image) != image:
                raise UserError(f"{image} and {owner[name]} would share the result file {name}; rename one")
    return names


def converted_name(file: str) -> str:
    """The PNG that preprocess.py writes of an image."""
    return _fitting(file, ".png")


def _name(image: str, file: str) -> str:
    return _fitting(f"{image.rpartition('/')[0]}__{file}", ENDING)


def _fitting(name: str, ending: str) -> str:
    encoded = os.fsencode(name)
    return (name if len(encoded) + len(ending) <= LONGEST else hashlib.sha256(encoded).hexdigest()) + ending
