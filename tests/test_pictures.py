"""Names and small images on a canvas."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from src import pictures
from src.pictures import class_label, draw_text, fit, font_families, text_width


def drawn(text: str, width: int = 300) -> np.ndarray:
    image = Image.new("L", (width, 20), 255)
    draw_text(ImageDraw.Draw(image), (0, 2), text, 12, width, fill=0)
    return np.asarray(image)


@pytest.fixture
def bare_system(monkeypatch):
    """A machine without any font but matplotlib's own."""
    monkeypatch.setattr(pictures, "_system_fonts", lambda: ())
    pictures._font_of.cache_clear()
    yield
    pictures._font_of.cache_clear()


def test_text_is_what_pillow_draws_in_dejavu_sans():
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    image = Image.new("L", (300, 20), 255)
    ImageDraw.Draw(image).text(
        (0, 13), "sports car, Zürich", fill=0, font=ImageFont.truetype(str(path), 12), anchor="ls"
    )
    np.testing.assert_array_equal(drawn("sports car, Zürich"), np.asarray(image))


def test_a_name_that_no_font_can_write_becomes_its_number(bare_system):
    assert class_label("café Ελληνικά", 3) == "café Ελληνικά"
    assert class_label("红熊猫", 3) == "class 3"
    assert class_label("a\nb\x1b[2J\u202e", 0) == r"a\nb\x1b[2J\u202e"
    assert class_label("bad\udcff", 0) == r"bad\udcff"
    assert font_families(["红"]) == ["DejaVu Sans"]
    drawn("红熊猫")  # and whoever draws it all the same gets boxes, not an error


def test_chinese_names_are_written_in_a_font_of_the_system_that_has_them():
    if class_label("红熊猫", 3) == "class 3":
        pytest.skip("no font with Chinese letters is installed")
    letters = [drawn(letter) for letter in "红熊猫"]
    assert all(np.any(letter < 128) for letter in letters)
    assert len({letter.tobytes() for letter in letters}) == 3  # not three boxes
    assert font_families(["红熊猫", "fox"])[0] == "DejaVu Sans"
    assert len(font_families(["红熊猫", "fox"])) == 2


def test_a_long_line_ends_in_three_dots_within_its_width():
    text = "Rhabarberbarbarabarbarbarenbart"
    assert text_width(text, 12) > 100
    pixels = drawn(text)
    assert np.any(pixels[:, 100:] < 255)
    image = Image.new("L", (300, 20), 255)
    draw_text(ImageDraw.Draw(image), (0, 2), text, 12, 100, fill=0)
    assert np.all(np.asarray(image)[:, 101:] == 255)
    assert np.any(np.asarray(image)[:, 85:100] < 255)


def test_small_images_grow_by_whole_numbers_and_large_ones_shrink():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)
    grown = np.asarray(fit(Image.fromarray(pixels), 160))
    np.testing.assert_array_equal(grown, pixels.repeat(5, 0).repeat(5, 1))
    assert fit(Image.fromarray(pixels), 63).size == (32, 20)
    assert fit(Image.new("RGB", (500, 200)), 160).size == (160, 64)
    assert fit(Image.new("RGB", (5000, 1)), 160).size == (160, 1)
