"""Random erasing: where, how much and with what."""

import math

import numpy as np
import pytest

from src.data.augment.random_erasing import random_erasing

SHAPE = (3, 64, 80)
MARK = np.float32(7.5)  # no value that erasing would write


def erased(seed, mode="const", count=1):
    image = np.full(SHAPE, MARK)
    random_erasing(image, np.random.default_rng(seed), mode, count)
    return image, (image != MARK).all(axis=0)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_one_box_within_the_papers_area_and_ratio(mode):
    shares, aspects = [], []
    for seed in range(300):
        image, mask = erased(seed, mode)
        assert ((image != MARK).any(axis=0) == mask).all()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        h, w = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert mask.sum() == h * w
        shares.append(h * w / mask.size)
        aspects.append(h / w)
    assert 0.015 < min(shares) < 0.04
    assert 0.28 < max(shares) < 0.36
    assert 0.25 < min(aspects) < 0.5
    assert 2.0 < max(aspects) < 4.0


def test_const_is_zero_rand_one_colour_and_pixel_normal_noise():
    assert (erased(1)[0][:, erased(1)[1]] == 0).all()
    image, mask = erased(1, "rand")
    colours = image[:, mask]
    assert (colours == colours[:, :1]).all()
    assert len(set(colours[:, 0])) == 3
    noise = np.concatenate([image[:, mask].ravel() for image, mask in (erased(seed, "pixel") for seed in range(20))])
    assert abs(noise.mean()) < 5 / math.sqrt(len(noise))
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / len(noise))


def test_re_count_is_the_most_boxes_and_they_share_the_area():
    one = np.mean([erased(seed)[1].mean() for seed in range(300)])
    boxes, shares = set(), []
    for seed in range(300):
        image = np.full(SHAPE, MARK)
        random_erasing(image, np.random.default_rng(seed), "rand", 3)
        mask = image[0] != MARK
        boxes.add(len(np.unique(image[0][mask])))
        shares.append(mask.mean())
    assert boxes == {1, 2, 3}
    assert max(shares) < 0.36
    assert abs(np.mean(shares) - one) < 0.05


def test_an_image_too_small_for_a_box_stays_whole():
    image = np.full((3, 1, 1), MARK)
    random_erasing(image, np.random.default_rng(0))
    assert (image == MARK).all()
