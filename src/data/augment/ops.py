"""The image operations that AutoAugment, RandAugment and AugMix draw from.

Each is a pure function of a PIL RGB image and one parameter in the operation's own unit, as defined in AutoAugment
(Cubuk et al. 2019, https://arxiv.org/abs/1805.09501, table 6) and returns an RGB image of the same size. Geometric
operations sample the input outside its bounds as `FILL`, ImageNet's mean colour.
"""

from PIL import Image, ImageEnhance, ImageOps

from src.data.augment import kernels

FILL = (124, 116, 104)


def auto_contrast(image: Image.Image) -> Image.Image:
    """Stretch each channel to 0 to 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image) -> Image.Image:
    """Equalise each channel's histogram."""
    return ImageOps.equalize(image)


def invert(image: Image.Image) -> Image.Image:
    """255 minus the value."""
    return ImageOps.invert(image)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the `bits` highest bits, 0 to 8; none leaves a black image."""
    if bits >= 8:
        return image
    mask = 0xFF & ~(0xFF >> bits)
    return image.point([value & mask for value in range(256)] * 3)


def solarize(image: Image.Image, threshold: int) -> Image.Image:
    """Invert the values that are at least `threshold`, 0 to 256."""
    return ImageOps.solarize(image, threshold)


def solarize_add(image: Image.Image, addend: int, threshold: int = 128) -> Image.Image:
    """Add `addend` to the values below `threshold`, up to 255."""
    return image.point([min(255, value + addend) if value < threshold else value for value in range(256)] * 3)


def color(image: Image.Image, factor: float) -> Image.Image:
    """Saturation: 0 is grey, 1 the image."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Contrast about the mean grey: 0 is that grey, 1 the image."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Brightness: 0 is black, 1 the image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Sharpness: 0 is smoothed, 1 the image, 2 sharpened."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def rotate(image: Image.Image, degrees: float, resample: Image.Resampling) -> Image.Image:
    """Rotate counter-clockwise about the centre."""
    return image.rotate(degrees, resample=resample, fillcolor=FILL)


def shear_x(image: Image.Image, factor: float, resample: int) -> Image.Image:
    """Output column x, row y shows input column x + factor * y."""
    return _affine(image, (1, factor, 0, 0, 1, 0), resample)


def shear_y(image: Image.Image, factor: float, resample: int) -> Image.Image:
    """Output column x, row y shows input row y + factor * x."""
    return _affine(image, (1, 0, 0, factor, 1, 0), resample)


def translate_x(image: Image.Image, pixels: float, resample: int) -> Image.Image:
    """Output column x shows input column x + pixels."""
    return _affine(image, (1, 0, pixels, 0, 1, 0), resample)


def translate_y(image: Image.Image, pixels: float, resample: int) -> Image.Image:
    """Output row y shows input row y + pixels."""
    return _affine(image, (1, 0, 0, 0, 1, pixels), resample)


def _affine(image: Image.Image, matrix: tuple, resample: int) -> Image.Image:
    fast = kernels.affine(image, matrix, FILL) if resample == Image.Resampling.BICUBIC else None
    if fast is not None:
        return fast
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=FILL)
