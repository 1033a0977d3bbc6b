"""The preview: what it draws is what the network gets."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.augment.transforms import denormalise, load_eval_image
from src.data.preview import TEXT, check_picture_path, draw_preview
from src.errors import UserError
from tests.photos import make_config, make_folder

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "src.data.preview", "--num_classes", "3", "--image_size", "64"]


def shown(grid: np.ndarray, row: int, column: int, cell: int, side: int) -> np.ndarray:
    """The picture in one cell, of `side` pixels."""
    top, left = row * (cell + 2 * TEXT) + 2 * TEXT + (cell - side) // 2, column * cell + (cell - side) // 2
    return grid[top : top + side, left : left + side]


def test_denormalise_gives_back_the_pixels(tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    image = load_eval_image(str(path), make_config(tmp_path, image_size=40, crop_pct=1.0))
    np.testing.assert_array_equal(np.asarray(denormalise(image)), pixels)


@pytest.mark.parametrize(("size", "cell", "factor"), [(64, 68, 1), (32, 160, 4)])
def test_the_grid_shows_the_evaluation_crop_and_differing_training_views(tmp_path, size, cell, factor):
    config = make_config(make_folder(tmp_path), image_size=size)
    grid = np.asarray(draw_preview(config, rows=2, cell=cell))
    first = sorted((tmp_path / "train" / "class_0").iterdir())[0]
    crop = np.asarray(denormalise(load_eval_image(str(first), config)))
    expected = crop.repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(shown(grid, 0, 6, cell, size * factor), expected)
    assert len({shown(grid, 0, column, cell, size * factor).tobytes() for column in range(1, 6)}) > 1
    assert len({shown(grid, 2, column, cell, size * factor).tobytes() for column in range(2)}) == 2


def test_an_image_that_cannot_be_decoded_is_one_line_and_the_others_are_drawn(tmp_path, caplog):
    config = make_config(make_folder(tmp_path), image_size=64)
    bad = sorted((tmp_path / "train" / "class_0").iterdir())[0]
    bad.write_bytes(b"no image")
    grid = np.asarray(draw_preview(config, rows=2, cell=68))
    assert sum(str(bad) in message for message in caplog.messages) == 1
    assert all("\n" not in message for message in caplog.messages)
    assert np.all(shown(grid, 0, 6, 68, 64) == 255)
    assert np.any(shown(grid, 1, 6, 68, 64) < 255)


def test_the_command_writes_the_picture_and_a_wrong_folder_is_one_line(tmp_path):
    make_folder(tmp_path)
    out = tmp_path / "missing" / "grid.png"
    subprocess.run([*COMMAND, "--data_url", str(tmp_path), "--out", str(out)], cwd=ROOT, check=True)
    assert min(Image.open(out).size) > 500
    wrong = [*COMMAND, "--data_url", str(tmp_path / "none"), "--out", str(out)]
    done = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "none") in done.stderr


@pytest.mark.parametrize("name", [".", "grid", "grid.mat", "grid.pdf.d"])
def test_a_name_that_is_no_picture_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"--out .*: must be the name of a picture"):
        check_picture_path("--out", str(tmp_path / name))
