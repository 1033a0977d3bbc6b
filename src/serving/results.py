"""How the C++ program names the result of an image; `ascend310_infer/src/dataset.cc` has the same rule."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from src.errors import UserError

ENDING = "_0.bin"


def result_names(images: Sequence[str]) -> list[str]:
    """The result file of each image.

    It is `<class>__<file without its ending>_0.bin`; where several images would share that name, each of them is named
    by its whole file name, `<class>__<file>_0.bin`.

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


def _name(image: str, file: str) -> str:
    return f"{image.rpartition('/')[0]}__{file}{ENDING}"
