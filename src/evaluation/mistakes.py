"""The mistakes that a network was surest of, as pictures: where labels are wrong or classes overlap, it shows here."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from src.data.decode import decode
from src.data.image_files import UndecodableImage
from src.data.listing import Samples
from src.errors import printable
from src.evaluation.predictions import UNKNOWN, Predictions
from src.pictures import class_label, draw_text, fit

MOST = 24  # mistakes that are shown
_CELL, _COLUMNS, _LETTER, _LINE = 176, 6, 12, 17  # pixels, but for the columns
_THUMBNAIL = 192  # pixels of the longer side in the page


def surest_mistakes(predictions: Predictions, most: int = MOST) -> list[int]:
    """The images with a wrong answer, by its probability, the highest first: their indices, at most `most`."""
    wrong = np.flatnonzero((predictions.ranks > 0) & (predictions.classes[:, 0] != UNKNOWN))
    order = np.argsort(-predictions.shares[wrong, 0], kind="stable")
    return wrong[order[:most]].tolist()


def sureness(share: float) -> str:
    """How sure a wrong answer was: never 100 %, which it cannot have been."""
    return f"{min(share, 0.999):.1%} sure"


def draw_mistakes(
    samples: Samples, predictions: Predictions, indices: Sequence[int], names: Sequence[str]
) -> Image.Image:
    """A sheet of images, each with what it is taken for, its label, how sure the answer was, and its file's name."""
    height = _CELL + 3 * _LINE + 8
    columns = min(_COLUMNS, max(len(indices), 3))
    rows = max(1, -(-len(indices) // columns))
    sheet = Image.new("RGB", (columns * (_CELL + 8), rows * height + 4), "white")
    draw = ImageDraw.Draw(sheet)
    if not indices:
        draw_text(draw, (12, 12), "no mistakes", 16, sheet.width - 24)
    for place, index in enumerate(indices):
        x, y = place % columns * (_CELL + 8) + 4, place // columns * height + 4
        shown = fit(whole_image(samples, index), _CELL)
        sheet.paste(shown, (x + (_CELL - shown.width) // 2, y + (_CELL - shown.height) // 2))
        label, answer = int(predictions.labels[index]), int(predictions.classes[index, 0])
        file = printable(samples.path(index).rpartition("/")[2])
        for line, (text, colour) in enumerate(
            [
                (f"answer: {class_label(names[answer], answer)}", "#b3261e"),
                (f"label: {class_label(names[label], label)}", "#1f3b73"),
                (f"{sureness(predictions.shares[index, 0])}, {class_label(file, index)}", "#666666"),
            ]
        ):
            draw_text(draw, (x, y + _CELL + 4 + line * _LINE), text, _LETTER, _CELL, fill=colour)
    return sheet


def whole_image(samples: Samples, index: int) -> Image.Image:
    """An image of a data set, uncut; a grey one where it cannot be read any more."""
    try:
        return decode(samples.read(index))
    except (OSError, UndecodableImage):
        return Image.new("RGB", (32, 32), "#888888")


def thumbnail_uri(samples: Samples, index: int) -> str:
    """An image, small, as a data URI: PNG where it is small by itself, else JPEG."""
    image = whole_image(samples, index)
    small = max(image.size) <= _THUMBNAIL // 2
    if not small:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    image.save(stream, "PNG" if small else "JPEG", quality=85)
    return data_uri(stream.getvalue(), "png" if small else "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """An image file's bytes as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
