"""Resampling and normalisation at the speed of the processor at hand, with Pillow's pixels.

Pillow's wheels are built for the oldest x86-64, one pixel at a time. Where numba is installed, the same integer and
double arithmetic runs over whole rows in a half to a fifth of the time. Without numba, and for what is not here,
Pillow itself does the work.
"""

import logging
from functools import cache
from typing import Any, Optional

import numpy as np
from PIL import Image

_log = logging.getLogger(__name__)
_FILTERS = {
    Image.Resampling.BILINEAR: (0, 1.0),
    Image.Resampling.BICUBIC: (1, 2.0),
    Image.Resampling.LANCZOS: (2, 3.0),
}


@cache
def engine() -> Any:
    """The compiled functions; None without numba. Imported when first needed: it takes half a second."""
    try:
        from src.data.augment import compiled
    except ImportError:
        _log.info("numba is not installed: Pillow resizes and shears, slower; pip install numba")
        return None
    return compiled


def resize(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """Resize PIL RGB to `side` x `side` pixels with antialiasing.

    Horizontally first, with 8 bits between the passes: Pillow 13 turns to the other order for some tall images, and
    the pixels should not depend on its version.

    Args:
        image: of any size.
        side: pixels.
        resample: Pillow's BILINEAR, BICUBIC or LANCZOS.
    """
    if engine() is None or image.size == (side, side):
        return image.resize((side, image.height), resample).resize((side, side), resample)
    return _image(engine().resize(_array(image), side, *_FILTERS[resample]))


def affine(image: Image.Image, matrix: tuple, fill: tuple[int, int, int]) -> Optional[Image.Image]:
    """Pillow's bicubic affine transform of PIL RGB where only one coordinate changes; None where this cannot do it."""
    a, b, c, d, e, f = matrix
    if engine() is None or a != 1 or e != 1 or not ((b == c == 0) or (d == f == 0)):
        return None
    source = _array(image)
    out = np.empty_like(source)
    out[...] = (*fill, 0)
    if d == f == 0:
        engine().shift_columns(source, out, float(b), float(c))
    else:
        engine().shift_rows(source, out, float(d), float(f))
    return _image(out)


def look_up(image: Image.Image, table: np.ndarray, out: np.ndarray) -> None:
    """Write each channel's `table` value, float32 (3, 256), of PIL RGB of W x H into `out`, float32 (3, H, W)."""
    if engine() is not None:
        engine().look_up(_array(image), table, out)
        return
    pixels = np.asarray(image)
    for channel in range(3):
        np.take(table[channel], pixels[:, :, channel], out=out[channel], mode="clip")


def _array(image: Image.Image) -> np.ndarray:
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, image.width, 4)


def _image(array: np.ndarray) -> Image.Image:
    return Image.frombytes("RGB", (array.shape[1], array.shape[0]), array, "raw", "RGBX")
