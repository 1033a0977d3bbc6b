"""Draw what the network will see: originals, training views, the evaluation crop and a mixed batch.

python -m src.data.preview --ddr_config src/configs/ddrnet23_imagenet.yaml --data_url DIR --out grid.png
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.args import Config, parse_args
from src.data import create_dataset
from src.data.augment.transforms import EvalTransform, TrainTransform, decode, denormalise
from src.data.imagenet import sample_generator
from src.errors import run

VIEWS = 5  # training views an image, one an epoch
TEXT = 14  # pixels a line


def draw_preview(config: Config, rows: int = 6, cell: int = 160) -> Image.Image:
    """A grid of `rows` images of train/ and as many of its first mixed batch.

    Each row: the original, its training views in epochs 1 to 5, and the evaluation crop. Below: one mixed batch with
    each image's classes and shares.

    Raises:
        UserError: the data folder is wrong or has fewer images than one batch.
    """
    rows += rows % 2
    config = config.model_copy(
        update={"batch_size": rows, "accumulation_step": 1, "device_num": 1, "label_smoothing": 0.0}
    )
    train = create_dataset(config, "train")
    training, evaluation = TrainTransform(config), EvalTransform(config)
    columns = max(VIEWS + 2, rows)
    height = cell + 2 * TEXT
    grid = Image.new("RGB", (columns * cell, (rows + 1) * height + TEXT), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default()

    def place(image: Image.Image, row: int, column: int, caption: str, top: int = 0) -> None:
        shown = image.copy()
        shown.thumbnail((cell - 4, cell - 4))
        x, y = column * cell, row * height + top
        grid.paste(shown, (x + (cell - shown.width) // 2, y + 2 * TEXT + (cell - shown.height) // 2))
        draw.text((x + 3, y + 1), caption, fill="black", font=font)

    for row, index in enumerate(np.linspace(0, train.size - 1, rows).astype(int).tolist()):
        encoded = train.samples.read(index)
        original = decode(encoded)
        name = train.classes[train.samples.labels[index]]
        place(original, row, 0, f"{name}\n{original.width} x {original.height}")
        for epoch in range(1, VIEWS + 1):
            view = training.image(encoded, sample_generator(config.seed, epoch, index))
            place(view, row, epoch, f"training\nepoch {epoch}")
        place(evaluation.image(encoded), row, VIEWS + 1, f"evaluation\n{config.crop_mode}")

    images, targets = next(iter(train.epoch(1)))[:2]
    draw.text((3, rows * height + 2), "The first batch of epoch 1, as the network gets it:", fill="black", font=font)
    for column, (image, target) in enumerate(zip(images, targets)):
        shares = [f"{train.classes[label]} {target[label]:.2f}" for label in np.argsort(-target) if target[label] > 0]
        place(denormalise(image), rows, column, "\n".join(shares), top=TEXT)
    return grid


def main() -> None:
    config, rest = parse_args(
        description="Draw originals, training views, evaluation crops and a mixed batch.",
        extra=[("--out", {"default": "grid.png", "metavar": "PNG", "help": "where the picture goes"})],
    )
    draw_preview(config).save(rest.out)
    print(rest.out)


if __name__ == "__main__":
    run(main)
