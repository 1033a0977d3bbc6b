"""The names of a network's classes, as a run leaves them beside its weights."""

from pathlib import Path
from typing import Optional

from src.errors import UserError
from src.files import is_regular, read_json

CLASSES = "classes.json"
_MOST_BYTES = 64 * 2**20  # the names of a million classes fit


def classes_beside(weights: str) -> Optional[list[str]]:
    """The names of the classes that lie beside a weights file; None: there are none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(weights).parent / CLASSES
    if not weights or not is_regular(path):
        return None
    names = read_json(path, _MOST_BYTES)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise UserError(f"{path}: must be a list of different names; remove it, or write it anew by training")
    return names
