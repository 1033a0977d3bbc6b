"""Names and small images on a canvas, whatever the script of the name and the size of the image.

Text is drawn letter by letter in the first font that has the letter: DejaVu Sans, which comes with matplotlib, then the
system's, those for Chinese first. A name with a letter that no font has is replaced by the class's number.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Optional

from PIL import Image, ImageDraw, ImageFont

from src.errors import printable

# Which of the system's fonts are asked first, by a part of the file's name.
_PREFERRED = ("notosanscjk", "sourcehansans", "wqy-microhei", "wqy-zenhei", "droidsansfallback", "notosans-regular")
_UNWANTED = ("bold", "italic", "oblique", "mono", "light", "black", "condensed", "emoji", "lastresort")


def class_label(name: str, index: int) -> str:
    """A class's name as it can be drawn: printable, or its number where no font has all its letters."""
    text = printable(name)
    return text if all(_font_of(letter) for letter in text) else f"class {index}"


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, width: int, fill: str = "black"
) -> None:
    """Draw one line from its left upper corner, cut to `width` pixels with three dots where it is longer.

    Args:
        draw: where to draw.
        place: x and y in pixels.
        text: printable.
        size: of the letters, pixels.
        width: the most that the line may take, pixels.
        fill: the colour.
    """
    if text_width(text, size) > width:
        while text and text_width(text + "…", size) > width:
            text = text[:-1]
        text += "…"
    x: float = place[0]
    y = place[1]
    baseline = y + round(0.93 * size)  # DejaVu Sans's ascent; the fonts of a line share it
    for path, letters in _runs(text):
        draw.text((x, baseline), letters, fill=fill, font=_font(path, size), anchor="ls")
        x += _font(path, size).getlength(letters)


def text_width(text: str, size: int) -> float:
    """How many pixels a line takes."""
    return sum(_font(path, size).getlength(letters) for path, letters in _runs(text))


def font_families(texts: Iterable[str]) -> list[str]:
    """The families that matplotlib needs for these texts, in the order in which it should ask them."""
    from matplotlib import font_manager

    paths = {_dejavu(): None}
    for letter in set("".join(texts)):
        path = _font_of(letter)
        if path:
            paths[path] = None
    families = []
    for path in paths:
        font_manager.fontManager.addfont(path)
        families.append(font_manager.FontProperties(fname=path).get_name())
    return families


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image as large as fits into a square: shrunk smoothly, or enlarged by a whole number so that pixels show."""
    longer = max(image.size)
    if longer > side:
        scale = side / longer
        width, height = (max(1, round(length * scale)) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    factor = side // longer
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _runs(text: str) -> list[tuple[str, str]]:
    """The text in pieces of one font each: path, letters."""
    runs: list[tuple[str, str]] = []
    for letter in text:
        path = _font_of(letter) or _dejavu()
        if runs and runs[-1][0] == path:
            runs[-1] = (path, runs[-1][1] + letter)
        else:
            runs.append((path, letter))
    return runs


@cache
def _font_of(letter: str) -> Optional[str]:
    """The first font that has a letter."""
    return next((path for path in (_dejavu(), *_system_fonts()) if ord(letter) in _letters(path)), None)


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _dejavu() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@cache
def _system_fonts() -> tuple[str, ...]:
    """The system's fonts, those first that are likely to serve."""
    from matplotlib import font_manager

    def order(path: str) -> tuple:
        name = Path(path).name.lower()
        first = next((place for place, part in enumerate(_PREFERRED) if part in name), len(_PREFERRED))
        return sum(part in name for part in _UNWANTED), first, path

    return tuple(sorted(font_manager.findSystemFonts(), key=order))


@cache
def _letters(path: str) -> frozenset[int]:
    """The code points that a font has; none where it cannot be used."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 12)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a bitmap or damaged font
        return frozenset()
