"""The input pipeline: image folders to training and evaluation batches.

Its names are imported when they are first asked for: `preprocess.py` reads image folders on machines that have NumPy
and Pillow alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.data.augment.transforms import load_eval_image
    from src.data.imagenet import Batches, class_names, create_dataset

__all__ = ["Batches", "class_names", "create_dataset", "load_eval_image"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    place = "augment.transforms" if name == "load_eval_image" else "imagenet"
    return getattr(import_module(f"{__name__}.{place}"), name)
