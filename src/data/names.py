"""The names of a network's classes, as a run leaves them beside its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from src.errors import UserError
from src.files import is_regular, read_json

CLASSES = "classes.json"
_MOST_BYTES = 64 * 2**20  # the names of a million classes fit


def classes_beside(weights: str, count: Optional[int] = None) -> Optional[list[str]]:
    """The names of the classes that lie beside a weights file; None: there are none.

    Args:
        weights: the file.
        count: how many classes its network has, where that is known.

    Raises:
        UserError: the names are damaged, or another network's.
    """
    path = Path(weights).parent / CLASSES
    if not weights or not is_regular(path):
        return None
    names = read_json(path, _MOST_BYTES)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise UserError(f"{path}: must be a list of different names; remove it, or write it anew by training")
    if count is not None and len(names) != count:
        raise UserError(
            f"{path}: has {len(names)} names, but the network beside it has {count} classes; it is another run's: "
            "remove it, or copy the right one"
        )
    return names


def check_classes(trained: Sequence[str], classes: Sequence[str], data_url: str, place: str) -> None:
    """Refuse data whose classes are not those of a network, or are in another order: every figure would be wrong.

    Args:
        trained: the network's, as many as there are in the data.
        classes: of the data.
        data_url: where the data lie.
        place: where the network's stand.

    Raises:
        UserError: they differ; the message names the first that does.
    """
    for index, (own, name) in enumerate(zip(trained, classes)):
        if own != name:
            raise UserError(
                f"data_url: class {index} of {data_url} is {name!r}, but {own!r} in {place}; evaluate a network on "
                "data with the classes that it was trained on"
            )
