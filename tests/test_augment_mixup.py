"""MixUp and CutMix against what the pixels themselves say.

Image i holds the value i everywhere, so each mixed pixel tells whose it is. Bounds on counts are five standard
deviations: a false alarm in 1.7 million checks.
"""

import math

import numpy as np
import pytest

from src.data.augment.mixup import Mixup, cut_box, partners

BATCH, CLASSES, SIZE = 8, 10, (20, 24)


def numbered():
    images = np.empty((BATCH, 3, *SIZE), np.float32)
    images[...] = np.arange(BATCH)[:, None, None, None]
    return images, np.eye(CLASSES, dtype=np.float32)[:BATCH]


def mixed(seed, **keys):
    images, targets = numbered()
    mixup = Mixup(**keys)
    mix = mixup.draw(BATCH, SIZE, np.random.default_rng(seed))
    mixup.apply(images, targets, mix)
    return images, targets, mix


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("keys", [{"cutmix_alpha": 0}, {"mixup_alpha": 0}, {}, {"prob": 0.5}])
def test_targets_are_the_shares_of_the_pixels(mode, keys):
    seen = set()
    for seed in range(60):
        images, targets, mix = mixed(seed, mode=mode, **keys)
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
        for i in range(BATCH):
            j = BATCH - 1 - i
            values = set(np.unique(images[i]).tolist())
            if values <= {float(i), float(j)}:
                share = float((images[i] == i).mean())
                seen.add("whole" if share == 1 else "cut")
            else:
                assert len(values) == 1
                share = (values.pop() - j) / (i - j)
                seen.add("blended")
            assert targets[i, i] == pytest.approx(share, abs=1e-5)
            assert targets[i, j] == pytest.approx(1 - share, abs=1e-5)
            assert mix.share[i] == pytest.approx(share, abs=1e-5)
    assert ("cut" in seen) == (keys.get("cutmix_alpha") != 0)
    assert ("blended" in seen) == (keys.get("mixup_alpha") != 0)
    assert "whole" in seen or "prob" not in keys


@pytest.mark.parametrize("keys", [{"cutmix_alpha": 0}, {"mixup_alpha": 0}, {}])
def test_each_mode_shares_what_it_says(keys):
    batch = mixed(1, mode="batch", **keys)[2]
    assert len(set(batch.share)) == 1
    assert len({tuple(box) for box in batch.box}) == 1
    pair = mixed(1, mode="pair", **keys)[2]
    np.testing.assert_array_equal(pair.share, pair.share[::-1])
    np.testing.assert_array_equal(pair.box, pair.box[::-1])
    assert len(set(pair.share)) > 1
    elem = mixed(1, mode="elem", **keys)[2]
    assert len(set(elem.share)) > BATCH // 2


def test_elem_pastes_from_the_unmixed_originals():
    """Noise images, so that a pixel that had been mixed before it was used would show."""
    rng = np.random.default_rng(0)
    originals = rng.standard_normal((BATCH, 3, *SIZE)).astype(np.float32)
    for seed in range(30):
        images, targets = originals.copy(), numbered()[1]
        mixup = Mixup(mode="elem", prob=0.8)
        mix = mixup.draw(BATCH, SIZE, np.random.default_rng(seed))
        mixup.apply(images, targets, mix)
        for i in range(BATCH):
            mine, other = originals[i].astype(float), originals[BATCH - 1 - i].astype(float)
            expected = mix.share[i] * mine + (1 - mix.share[i]) * other
            if mix.cut[i]:
                top, bottom, left, right = mix.box[i]
                expected = mine.copy()
                expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            np.testing.assert_allclose(images[i], expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixup_shares_are_beta(alpha):
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)); the fourth moment bounds the error of the latter."""
    n, beta = 5000, np.random.default_rng(3)
    mixup = Mixup(mixup_alpha=alpha, cutmix_alpha=0, mode="elem")
    shares = np.concatenate([mixup.draw(500, SIZE, beta).share for _ in range(n // 500)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * math.sqrt(variance / n)
    assert abs(shares.var() - variance) < 5 * math.sqrt(variance**2 / n) * 1.5
    assert abs(((shares < 0.1) | (shares > 0.9)).mean() - beta_tails(alpha)) < 5 * math.sqrt(0.25 / n)


def beta_tails(alpha):
    from scipy.stats import beta

    return beta.cdf(0.1, alpha, alpha) + beta.sf(0.9, alpha, alpha)


def test_cutmix_is_chosen_with_switch_prob_and_batches_are_mixed_with_prob():
    draws, rng = 4000, np.random.default_rng(4)
    mixup = Mixup(prob=0.6, switch_prob=0.3)
    cuts = blends = 0
    for _ in range(draws):
        mix = mixup.draw(2, SIZE, rng)
        cuts += bool(mix.cut[0])
        blends += bool(not mix.cut[0] and mix.share[0] < 1)
    for count, share in ((cuts, 0.18), (blends, 0.42)):
        assert abs(count - draws * share) < 5 * math.sqrt(draws * share * (1 - share))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.5, 0.5), (0.999, 0.2)])
def test_the_box_is_clipped_and_has_the_size_of_the_authors_code(share, centre):
    height, width = 224, 200
    top, bottom, left, right = cut_box(share, (height, width), centre)
    for low, high, length, place in ((top, bottom, height, centre[0]), (left, right, width, centre[1])):
        half, middle = int(length * math.sqrt(1 - share)) // 2, int(place * length)
        inside = [x for x in range(middle - half, middle + half) if 0 <= x < length]
        assert (low, high) == (inside[0], inside[-1] + 1) if inside else low >= high


def test_pairs_flip_within_their_group_and_cover_every_image_once():
    np.testing.assert_array_equal(partners(8, 8), [[0, 7], [1, 6], [2, 5], [3, 4]])
    np.testing.assert_array_equal(partners(8, 512), partners(8, 8))
    np.testing.assert_array_equal(partners(8, 4), [[0, 3], [1, 2], [4, 7], [5, 6]])
    np.testing.assert_array_equal(partners(10, 4), [[0, 3], [1, 2], [4, 7], [5, 6], [8, 9]])
    np.testing.assert_array_equal(np.sort(partners(4096, 512).ravel()), np.arange(4096))


def test_a_batch_that_is_not_mixed_stays_as_it_is():
    images, targets, _ = mixed(0, prob=0.0, mode="elem")
    np.testing.assert_array_equal(images, numbered()[0])
    np.testing.assert_array_equal(targets, numbered()[1])
