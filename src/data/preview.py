"""Draw what the network will see: originals, training views, the evaluation crop and a mixed batch.

python -m src.data.preview --ddr_config src/configs/ddrnet23_imagenet.yaml --data_url DIR --out grid.png
"""

import logging
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw

from src.args import Config, parse_args
from src.data import create_dataset
from src.data.augment.transforms import EvalTransform, TrainTransform, denormalise
from src.data.decode import decode
from src.data.image_files import UndecodableImage
from src.data.imagenet import sample_generator
from src.data.settle import settle
from src.errors import UserError, run
from src.files import atomic_write, is_directory
from src.pictures import class_label, draw_text, fit

log = logging.getLogger("preview")

VIEWS = 5  # training views an image, one an epoch
LETTER = 12  # pixels
TEXT = 16  # pixels a line
MARGIN = 2  # pixels around a picture


def draw_preview(config: Config, rows: int = 6, cell: int = 160) -> Image.Image:
    """A grid of `rows` images of train/ and as many of its first mixed batch.

    Each row: the original, its training views in epochs 1 to 5, and the evaluation crop. Below: one mixed batch with
    each image's classes and shares. Small images are enlarged by whole numbers. Where an image cannot be decoded its
    row says so, and a line in the log names it.

    Raises:
        UserError: the data folder is wrong or has fewer images than one batch.
    """
    rows += rows % 2
    config = config.model_copy(
        update={
            "batch_size": rows,
            "accumulation_step": 1,
            "device_num": 1,
            "label_smoothing": 0.0,
            "class_weights": "",
        }
    )
    train = create_dataset(config, "train")
    training, evaluation = TrainTransform(config), EvalTransform(config)
    columns = max(VIEWS + 2, rows)
    height = cell + 2 * TEXT
    grid = Image.new("RGB", (columns * cell, (rows + 1) * height + TEXT), "white")
    draw = ImageDraw.Draw(grid)

    def show(image: Optional[Image.Image], row: int, column: int, *caption: str, top: int = 0) -> None:
        x, y = column * cell, row * height + top
        for line, text in enumerate(caption[:2]):
            draw_text(draw, (x + 3, y + 1 + line * TEXT), text, LETTER, cell - 6)
        if image:
            shown = fit(image, cell - 2 * MARGIN)
            grid.paste(shown, (x + (cell - shown.width) // 2, y + 2 * TEXT + (cell - shown.height) // 2))

    for row, index in enumerate(np.linspace(0, train.size - 1, rows).astype(int).tolist()):
        label = int(train.samples.labels[index])
        name = class_label(train.classes[label], label)
        try:
            encoded = train.samples.read(index)
            original = decode(encoded)
            views = [
                training.image(encoded, sample_generator(config.seed, epoch, index)) for epoch in range(1, VIEWS + 1)
            ]
            crop = evaluation.image(encoded)
        except (OSError, UndecodableImage) as error:
            log.warning("%s cannot be decoded (%s)", train.samples.path(index), error)
            show(None, row, 0, name, "cannot be decoded")
            continue
        show(original, row, 0, name, f"{original.width} x {original.height}")
        for epoch, view in enumerate(views, 1):
            show(view, row, epoch, "training", f"epoch {epoch}")
        show(crop, row, VIEWS + 1, "evaluation", config.crop_mode)

    draw_text(
        draw, (3, rows * height + 2), "The first batch of epoch 1, as the network gets it:", LETTER, columns * cell - 6
    )
    try:
        images, targets = map(list, next(iter(train.epoch(1)))[:2])
    except UserError as error:  # too many that cannot be decoded
        log.warning("%s", error)
        images, targets = [], []
    colours = [tuple(map(float, values)) for values in (config.mean, config.std)]
    for column, (image, target) in enumerate(zip(images, targets)):
        shares = [
            f"{target[label]:.0%} {class_label(train.classes[label], label)}"
            for label in np.argsort(-target, kind="stable").tolist()
            if target[label] > 0
        ]
        show(denormalise(image, *colours), rows, column, *shares, top=TEXT)
    return grid


def main() -> None:
    """Draw the grid and write it."""
    config, rest = parse_args(
        description="Draw originals, training views, evaluation crops and a mixed batch.",
        extra=[
            ("--out", {"default": "grid.png", "metavar": "PNG", "help": "where the picture goes (.png, .jpg, .webp)"})
        ],
    )
    out = check_picture_path("--out", rest.out)
    grid = draw_preview(settle(config))
    with atomic_write(out) as temporary:
        grid.save(temporary)
    print(out)


def check_picture_path(flag: str, path: str) -> Path:
    """Where a picture can be written; its folder is made.

    Raises:
        UserError: it is a folder, or its ending is none that pictures have here.
    """
    if is_directory(path) or Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"{flag} {path}: must be the name of a picture, such as grid.png, grid.jpg or grid.webp")
    return Path(path)


if __name__ == "__main__":
    run(main)
