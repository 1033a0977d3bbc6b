"""Real photographs for the data tests, and folders made of them."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from src.args import Config


@lru_cache
def photos() -> tuple[Image.Image, ...]:
    """Two photographs of 640 x 427 pixels, RGB."""
    return tuple(Image.fromarray(pixels) for pixels in load_sample_images().images)


@lru_cache
def small_photos() -> tuple[Image.Image, ...]:
    """The same at about the size that augmentation sees, one of them no square."""
    first, second = photos()
    return first.resize((96, 96)), second.resize((90, 70))


def make_folder(root: Path, classes: int = 3, train: int = 8, val: int = 3) -> Path:
    """An ImageNet-style folder of JPEGs, each another part of the photographs: `train` and `val` of them a class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                photo = photos()[number % 2]
                left, top = int(rng.integers(0, 440)), int(rng.integers(0, 260))
                width, height = (int(side) for side in rng.integers(60, 160, 2))
                photo.crop((left, top, left + width, top + height)).save(folder / f"{number:03d}.jpg", quality=90)
    return root


def make_config(root: Path, **keys) -> Config:
    """A configuration for small images from `root`."""
    values = {"num_classes": 3, "image_size": 48, "batch_size": 4, "num_parallel_workers": 2, "data_url": str(root)}
    return Config(**{**values, **keys})
