"""The preview: what it draws is what the network gets."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.augment.transforms import denormalise, load_eval_image
from src.data.preview import TEXT, draw_preview
from tests.photos import make_config, make_folder


def test_denormalise_gives_back_the_pixels(tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    image = load_eval_image(str(path), make_config(tmp_path, image_size=40, crop_pct=1.0))
    np.testing.assert_array_equal(np.asarray(denormalise(image)), pixels)


def test_the_grid_shows_the_evaluation_crop_and_differing_training_views(tmp_path):
    config = make_config(make_folder(tmp_path), image_size=64)
    cell = 68
    grid = np.asarray(draw_preview(config, rows=2, cell=cell))

    def shown(row, column):
        top, left = row * (cell + 2 * TEXT) + 2 * TEXT + 2, column * cell + 2
        return grid[top : top + 64, left : left + 64]

    first = sorted((tmp_path / "train" / "class_0").iterdir())[0]
    expected = np.asarray(denormalise(load_eval_image(str(first), config)))
    np.testing.assert_array_equal(shown(0, 6), expected)
    views = {shown(0, column).tobytes() for column in range(1, 6)}
    assert len(views) > 1
    assert len({shown(2, column).tobytes() for column in range(2)}) == 2


def test_the_command_writes_the_picture_and_a_wrong_folder_is_one_line(tmp_path):
    make_folder(tmp_path)
    out = tmp_path / "grid.png"
    command = [sys.executable, "-m", "src.data.preview", "--num_classes", "3", "--image_size", "64"]
    root = Path(__file__).parent.parent
    subprocess.run([*command, "--data_url", str(tmp_path), "--out", str(out)], cwd=root, check=True)
    assert min(Image.open(out).size) > 500
    wrong = [*command, "--data_url", str(tmp_path / "none"), "--out", str(out)]
    done = subprocess.run(wrong, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "none") in done.stderr
