"""From an encoded image to a normalised array: decoding, cropping, flipping, jitter and normalisation.

The training crop is that of "Going Deeper with Convolutions" (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842,
section 6). The evaluation transform stands here once, for validation, eval.py and the preview.
"""

import math
from functools import cache
from typing import Callable, Optional

import numpy as np
from PIL import Image, ImageEnhance

from src.colours import IMAGENET_MEAN, IMAGENET_STD
from src.data.augment import kernels
from src.data.augment.auto_augment import create_auto_augment
from src.data.augment.random_erasing import random_erasing
from src.data.decode import decode, decode_part
from src.data.image_files import MAX_PIXELS, UndecodableImage, read_image

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_DRAWN = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@cache
def normalisation(mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> np.ndarray:
    """The normalised value of every 8-bit value of each channel, computed in double precision: float32 (3, 256)."""
    return ((np.arange(256) / 255.0 - np.array(mean)[:, None]) / np.array(std)[:, None]).astype(np.float32)


def random_crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random part of an image: `scale` of its area, `ratio` in width to height, uniform in place.

    The area is uniform, the ratio uniform in its logarithm. After ten boxes that do not fit: the largest central box
    of an allowed ratio.

    Returns:
        left, top, right, bottom in pixels, right and bottom exclusive.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Scale brightness, contrast and saturation in random order, each by 1 - strength to 1 + strength, at least 0."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(3):
        image = enhancers[index](image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def normalise(image: Image.Image, out: np.ndarray, table: Optional[np.ndarray] = None) -> None:
    """Write (value / 255 - mean) / std of a PIL RGB image of W x H into `out`, float32 (3, H, W).

    table: from `normalisation`; None: ImageNet's.
    """
    kernels.look_up(image, normalisation() if table is None else table, out)


def denormalise(
    image: np.ndarray, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Image.Image:
    """The PIL RGB image that a normalised one, float32 (3, H, W), shows."""
    values = image * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
    pixels = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def resize_and_crop(
    image: Image.Image, size: int, crop_pct: float, crop_mode: str, resample: Image.Resampling
) -> Image.Image:
    """The evaluation crop: resize with antialiasing, horizontally first as `kernels.resize`, then cut out the centre.

    Args:
        image: PIL RGB.
        size: side of the crop, pixels.
        crop_pct: share of the resized side that is kept: it is round(size / crop_pct) pixels.
        crop_mode: squash: both sides are resized to that, center: the shorter one.
        resample: Pillow's filter.

    Returns:
        PIL RGB of size x size.

    Raises:
        UndecodableImage: a strip so narrow that, resized, it has more pixels than there should be memory for.
    """
    side = round(size / crop_pct)
    width = height = side
    if crop_mode == "center":
        shorter = min(image.size)
        width, height = (max(side, side * length // shorter) for length in image.size)
        if width * height > max(MAX_PIXELS, side * side):
            raise UndecodableImage(f"it has {image.width} x {image.height} pixels, too narrow a strip")
    resized = image.resize((width, image.height), resample).resize((width, height), resample)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


class TrainTransform:
    """Decode, crop, flip, augment, normalise and erase, as the configuration says."""

    def __init__(self, config) -> None:
        self.size, self.scale, self.ratio, self.hflip = config.image_size, config.scale, config.ratio, config.hflip
        self.augment = create_auto_augment(config.auto_augment, config.interpolation)
        self.color_jitter = 0.0 if self.augment else config.color_jitter
        self.re_prob, self.re_mode, self.re_count = config.re_prob, config.re_mode, config.re_count
        self.resample = RESAMPLING.get(config.interpolation)
        self.table = normalisation(config.mean, config.std)

    def __call__(self, encoded: bytes, out: np.ndarray, rng: np.random.Generator) -> None:
        """Turn one encoded image into `out`, float32 (3, H, W).

        Raises:
            UndecodableImage: the bytes are damaged or no image; `out` is then undefined.
        """
        normalise(self.image(encoded, rng), out, self.table)
        if self.re_prob > 0 and rng.random() < self.re_prob:
            random_erasing(out, rng, self.re_mode, self.re_count)

    def image(self, encoded: bytes, rng: np.random.Generator) -> Image.Image:
        """The augmented PIL RGB image before normalisation."""
        image, box = self.decode(encoded, rng)
        return self.augmented(self.crop(image, box, rng), rng)

    def decode(self, encoded: bytes, rng: np.random.Generator) -> tuple[Image.Image, tuple[float, float, float, float]]:
        """Draw a crop box and decode what it needs of the image: PIL RGB, and the box in its pixels."""
        return decode_part(encoded, lambda w, h: random_crop_box(w, h, self.scale, self.ratio, rng), self.size)

    def crop(self, image: Image.Image, box: tuple[float, float, float, float], rng: np.random.Generator) -> Image.Image:
        """Cut out the box, resize it to the side with antialiasing and perhaps flip it."""
        resample = self.resample if self.resample is not None else _DRAWN[int(rng.integers(2))]
        if all(isinstance(edge, int) for edge in box):
            image = kernels.resize(image.crop(box), self.size, resample)
        else:
            image = image.resize((self.size, self.size), resample, box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < self.hflip else image

    def augmented(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augment by the spec, or jitter the colours."""
        if self.augment:
            return self.augment(image, rng)
        return color_jitter(image, self.color_jitter, rng) if self.color_jitter else image


class EvalTransform:
    """Decode, resize, crop the centre and normalise, as the configuration says."""

    def __init__(self, config) -> None:
        self.size, self.crop_pct, self.crop_mode = config.image_size, config.crop_pct, config.crop_mode
        self.resample = RESAMPLING.get(config.interpolation, Image.Resampling.BICUBIC)
        self.table = normalisation(config.mean, config.std)

    def __call__(self, encoded: bytes, out: np.ndarray, rng: Optional[np.random.Generator] = None) -> None:
        """Turn one encoded image into `out`, float32 (3, H, W).

        Raises:
            UndecodableImage: the bytes are damaged or no image.
        """
        normalise(self.image(encoded), out, self.table)

    def image(self, encoded: bytes) -> Image.Image:
        """The cropped PIL RGB image before normalisation."""
        return resize_and_crop(decode(encoded), self.size, self.crop_pct, self.crop_mode, self.resample)


def create_transform(config, is_training: bool) -> Callable:
    """The transform of one image: a function of its encoded bytes, the float32 (3, H, W) array that it fills and,
    in training, the generator that everything random comes from."""
    return TrainTransform(config) if is_training else EvalTransform(config)


def load_eval_image(path: str, config) -> np.ndarray:
    """Read one image file as evaluation sees it: float32 (3, H, W), normalised.

    Raises:
        OSError: the file cannot be read, or is a folder, a pipe or a device.
        UndecodableImage: it is damaged or no image.
    """
    out = np.empty((3, config.image_size, config.image_size), np.float32)
    EvalTransform(config)(read_image(path), out)
    return out
