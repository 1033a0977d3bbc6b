"""Every operation against Pillow's own operators or its closed form, on photographs."""

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from src.data.augment import ops
from tests.photos import small_photos

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


@pytest.fixture(params=range(2))
def image(request):
    return small_photos()[request.param]


def same(result, expected):
    assert result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


def test_auto_contrast_is_pillows(image):
    dull = image.point([60 + value // 3 for value in range(256)] * 3)
    same(ops.auto_contrast(dull), ImageOps.autocontrast(dull))
    assert np.asarray(ops.auto_contrast(dull)).min() == 0


def test_auto_contrast_of_one_colour_changes_nothing():
    flat = Image.new("RGB", (5, 4), (10, 100, 200))
    same(ops.auto_contrast(flat), flat)


def test_auto_contrast_stretches_each_channel_linearly(image):
    pixels = np.asarray(image.point([60 + value // 3 for value in range(256)] * 3)).astype(float)
    low, high = pixels.min((0, 1)), pixels.max((0, 1))
    stretched = np.asarray(ops.auto_contrast(Image.fromarray(pixels.astype(np.uint8)))).astype(float)
    exact = (pixels - low) * 255 / (high - low)
    assert ((exact - stretched > -1e-9) & (exact - stretched < 1 + 1e-9)).all()  # rounded down


def test_equalize_spreads_each_channels_values_evenly(image):
    """A value's new level is the share of the channel that lies below it, where the brightest value counts as 1.

    Pillow divides by a whole number of pixels a level, about 25 here, hence the tolerance.
    """
    pixels, spread = np.asarray(image), np.asarray(ops.equalize(image)).astype(float)
    for channel in range(3):
        for value in np.unique(pixels[:, :, channel]):
            places = pixels[:, :, channel] == value
            assert len(np.unique(spread[:, :, channel][places])) == 1
            below = (pixels[:, :, channel] < value).mean() / (
                pixels[:, :, channel] < pixels[:, :, channel].max()
            ).mean()
            assert abs(spread[:, :, channel][places][0] / 255 - below) < 0.035


def test_equalize_is_pillows(image):
    same(ops.equalize(image), ImageOps.equalize(image))
    flat = Image.new("RGB", (5, 4), (10, 100, 200))
    same(ops.equalize(flat), ImageOps.equalize(flat))


def test_invert_is_255_minus_the_value(image):
    same(ops.invert(image), ImageChops.invert(image))


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pillows(image, bits):
    same(ops.posterize(image, bits), ImageOps.posterize(image, bits))


def test_posterize_to_no_bits_is_black(image):
    same(ops.posterize(image, 0), Image.new("RGB", image.size))


@pytest.mark.parametrize("threshold", [0, 1, 26, 128, 255, 256])
def test_solarize_inverts_from_the_threshold_on(image, threshold):
    pixels = np.asarray(image).astype(int)
    same(ops.solarize(image, threshold), np.where(pixels >= threshold, 255 - pixels, pixels))


@pytest.mark.parametrize("addend", [0, 1, 99, 110, 128])
def test_solarize_add_adds_below_128_up_to_255(image, addend):
    pixels = np.asarray(image).astype(int)
    same(ops.solarize_add(image, addend), np.where(pixels < 128, np.minimum(pixels + addend, 255), pixels))


@pytest.mark.parametrize("factor", [0.1, 0.19, 0.5, 1.0, 1.81, 1.9])
def test_enhancements_are_pillows(image, factor):
    same(ops.color(image, factor), ImageEnhance.Color(image).enhance(factor))
    same(ops.brightness(image, factor), ImageEnhance.Brightness(image).enhance(factor))
    same(ops.contrast(image, factor), ImageEnhance.Contrast(image).enhance(factor))
    same(ops.sharpness(image, factor), ImageEnhance.Sharpness(image).enhance(factor))


def test_enhancements_blend_with_grey_black_mean_and_smoothed(image):
    grey = image.convert("L")
    mean = int(np.asarray(grey, float).mean() + 0.5)
    for operation, zero in (
        (ops.color, grey.convert("RGB")),
        (ops.brightness, Image.new("RGB", image.size)),
        (ops.contrast, Image.new("RGB", image.size, (mean,) * 3)),
        (ops.sharpness, image.filter(ImageFilter.SMOOTH)),
    ):
        same(operation(image, 0.4), Image.blend(zero, image, 0.4))
        same(operation(image, 1.0), image)


@pytest.mark.parametrize("degrees", [-30.0, -13.7, 0.0, 4.5, 27.0, 30.0])
@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
def test_rotate_is_pillows(image, degrees, resample):
    same(ops.rotate(image, degrees, resample), image.rotate(degrees, resample, fillcolor=ops.FILL))


def test_rotate_turns_counter_clockwise():
    square = small_photos()[0]
    same(ops.rotate(square, 90, BICUBIC), np.rot90(np.asarray(square)))


# Also far beyond what any magnitude asks for, and at the values where the image leaves the frame.
@pytest.mark.parametrize("factor", [-3.0, -0.3, -0.27, -0.013, 0.0, 1e-9, 0.1234, 0.3, 1.0])
@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
def test_shears_are_pillows_affine_transform(image, factor, resample):
    for operation, matrix in ((ops.shear_x, (1, factor, 0, 0, 1, 0)), (ops.shear_y, (1, 0, 0, factor, 1, 0))):
        expected = image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=ops.FILL)
        same(operation(image, factor, resample), expected)


@pytest.mark.parametrize("pixels", [-200.0, -43.2, -1.0, -0.5, 0.0, 1e-9, 0.3, 40.32, 43.2, 95.4, 96.0])
@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR])
def test_translations_are_pillows_affine_transform(image, pixels, resample):
    for operation, matrix in ((ops.translate_x, (1, 0, pixels, 0, 1, 0)), (ops.translate_y, (1, 0, 0, 0, 1, pixels))):
        expected = image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=ops.FILL)
        same(operation(image, pixels, resample), expected)


def test_translations_show_what_lies_right_and_below_and_fill_with_the_mean_colour(image):
    pixels = np.asarray(image)
    expected = np.full_like(pixels, ops.FILL)
    expected[:, :-7] = pixels[:, 7:]
    same(ops.translate_x(image, 7.0, BICUBIC), expected)
    expected = np.full_like(pixels, ops.FILL)
    expected[5:] = pixels[:-5]
    same(ops.translate_y(image, -5.0, BICUBIC), expected)
