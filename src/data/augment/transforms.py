"""From an encoded image to a normalised array: decoding, cropping, flipping, jitter and normalisation.

The training crop is that of "Going Deeper with Convolutions" (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842,
section 6). The evaluation transform stands here once, for validation, eval.py and the preview.
"""

import io
import math
import warnings
from pathlib import Path
from typing import Callable, Optional

import numpy as np
from PIL import Image, ImageEnhance

from src.data.augment import kernels
from src.data.augment.auto_augment import create_auto_augment
from src.data.augment.random_erasing import random_erasing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_DRAWN = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)

# The normalised value of every 8-bit value of each channel, computed in double precision: float32 (3, 256).
_NORMALISED = ((np.arange(256) / 255.0 - np.array(IMAGENET_MEAN)[:, None]) / np.array(IMAGENET_STD)[:, None]).astype(
    np.float32
)


_UNWRITTEN = (253, 2, 251)  # a colour that no row of a photograph consists of
_MARGIN = 16  # rows below a scaled crop that the resizing filter may reach


class UndecodableImage(Exception):
    """The bytes are no image that Pillow can decode."""


def decode(encoded: bytes) -> Image.Image:
    """Decode a whole image to 8-bit RGB.

    Greyscale, palette, CMYK and transparent images become RGB as Pillow converts them; 16-bit greyscale is scaled to
    8 bits. EXIF rotation is ignored, as ImageNet's convention has it.

    Raises:
        UndecodableImage: the bytes are damaged or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(encoded))
            image.load()
            return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the damage leads them to
        raise UndecodableImage(str(error) or type(error).__name__) from error


def decode_part(
    encoded: bytes, draw_box: Callable[[int, int], tuple[int, int, int, int]], side: int
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Decode what a crop needs: of a JPEG, no rows below it, and at 1/2, 1/4 or 1/8 size where it stays twice as large.

    Without scaling the pixels are those of the whole image. With it, 191 crops of photographs differed by 0.6 grey
    levels on average and by 1.6 at most; down to the final size it would be up to 5.

    Args:
        encoded: the file's bytes.
        draw_box: from the image's width and height to the crop's left, top, right, bottom.
        side: pixels to which both sides of the crop will be resized.

    Returns:
        A PIL RGB image and the crop's box in its pixels, whole numbers unless the image is scaled down.

    Raises:
        UndecodableImage: the bytes are damaged or no image.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        partial = image.format == "JPEG" and image.mode in ("RGB", "L") and b"\xff\xd9" in encoded[-64:]
    except Exception as error:  # as in `decode`
        raise UndecodableImage(str(error) or type(error).__name__) from error
    if not partial:
        image = decode(encoded)
        return image, draw_box(*image.size)
    width, height = image.size
    box = draw_box(width, height)
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or min(box[2] - box[0], box[3] - box[1]) >= 2 * f * side)
    if factor > 1:
        image.draft(image.mode, (-(-width // factor), -(-height // factor)))
        across, down = image.width / width, image.height / height
        box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    rows = min(image.height, math.ceil(box[3]) + (_MARGIN if factor > 1 else 0))
    top = _decode_rows(image, encoded, rows)
    if top is not None:
        return to_rgb(top), box
    if factor == 1:
        return decode(encoded), box
    whole = decode(encoded)
    return whole, tuple(edge * whole.width / image.width for edge in box)


def _decode_rows(image: Image.Image, encoded: bytes, rows: int) -> Optional[Image.Image]:
    """The first rows of a JPEG that is opened and not yet loaded; None where that cannot be had.

    Pillow's decoder stops when the rows it was given are full, and then complains that the file goes on. That the
    last row was written tells this from a file that is damaged.
    """
    top = Image.new(image.mode, (image.width, rows), None)
    top.paste(_UNWRITTEN[: len(image.mode)], (0, rows - 1, image.width, rows))
    try:
        name, _, _, arguments = image.tile[0]
        decoder = Image._getdecoder(image.mode, name, arguments, image.decoderconfig)
        decoder.setimage(top.im, (0, 0, image.width, rows))
        consumed, code = decoder.decode(encoded)
        decoder.cleanup()
    except (AttributeError, TypeError, ValueError, SystemError):  # another Pillow's innards
        return None
    if consumed >= 0 and code == 0:  # it waits for more: the file is cut short
        return None
    last = top.crop((0, rows - 1, image.width, rows)).getcolors(1)
    return None if last and last[0][1] in (_UNWRITTEN, _UNWRITTEN[0]) else top


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to mode RGB; 16-bit greyscale is scaled, not clipped."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


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


def normalise(image: Image.Image, out: np.ndarray) -> None:
    """Write (value / 255 - mean) / std of a PIL RGB image of W x H into `out`, float32 (3, H, W)."""
    kernels.look_up(image, _NORMALISED, out)


def denormalise(image: np.ndarray) -> Image.Image:
    """The PIL RGB image that a normalised one, float32 (3, H, W), shows."""
    mean, std = np.array(IMAGENET_MEAN)[:, None, None], np.array(IMAGENET_STD)[:, None, None]
    pixels = np.clip(np.rint((image * std + mean) * 255), 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def resize_and_crop(image: Image.Image, size: int, crop_pct: float, crop_mode: str, resample: int) -> Image.Image:
    """The evaluation crop: resize with antialiasing, horizontally first as `kernels.resize`, then cut out the centre.

    Args:
        image: PIL RGB.
        size: side of the crop, pixels.
        crop_pct: share of the resized side that is kept: it is round(size / crop_pct) pixels.
        crop_mode: squash: both sides are resized to that, center: the shorter one.
        resample: Pillow's filter.

    Returns:
        PIL RGB of size x size.
    """
    side = round(size / crop_pct)
    width = height = side
    if crop_mode == "center":
        shorter = min(image.size)
        width, height = (max(side, int(side * length / shorter)) for length in image.size)
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

    def __call__(self, encoded: bytes, out: np.ndarray, rng: np.random.Generator) -> None:
        """Turn one encoded image into `out`, float32 (3, H, W).

        Raises:
            UndecodableImage: the bytes are damaged or no image; `out` is then undefined.
        """
        normalise(self.image(encoded, rng), out)
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

    def __call__(self, encoded: bytes, out: np.ndarray, rng: Optional[np.random.Generator] = None) -> None:
        """Turn one encoded image into `out`, float32 (3, H, W).

        Raises:
            UndecodableImage: the bytes are damaged or no image.
        """
        normalise(self.image(encoded), out)

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
        OSError: the file cannot be read.
        UndecodableImage: it is damaged or no image.
    """
    out = np.empty((3, config.image_size, config.image_size), np.float32)
    EvalTransform(config)(Path(path).read_bytes(), out)
    return out
