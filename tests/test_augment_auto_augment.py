"""Specs, magnitudes, signs and probabilities of AutoAugment, RandAugment and AugMix.

Bounds on counts are five standard deviations of the binomial distribution: a false alarm in 1.7 million checks.
"""

import math

import numpy as np
import pytest
from PIL import Image

from src.data.augment import policies
from src.data.augment.auto_augment import AugmentOp, create_auto_augment
from src.errors import UserError
from tests.photos import small_photos

DRAWS = 20_000


def count_within(count, draws, share):
    return abs(count - draws * share) <= 5 * math.sqrt(draws * share * (1 - share))


def test_empty_spec_is_no_augmentation():
    assert create_auto_augment("") is None


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("rand-m9-x3", "x3"),
        ("rand-m9-mstd", "mstd"),
        ("rand-m11", "m11"),
        ("rand-m9-m8", "m"),
        ("rand-m-9", "m"),
        ("rand-n0", "n0"),
        ("rand-n1.5", "n1.5"),
        ("rand-w7", "w7"),
        ("rand-inc2", "inc2"),
        ("rand-p1.5", "p1.5"),
        ("rand-m9-w0-n16", "n16"),
        ("rand--m9", "''"),
        ("randaug-m9", "randaug"),
        ("original-m9", "m9"),
        ("v0-n2", "n2"),
        ("v1", "v1"),
        ("augmix-n2", "n2"),
        ("augmix-b3", "b3"),
    ],
)
def test_bad_spec_is_an_error_that_names_the_section(spec, named):
    with pytest.raises(UserError, match="auto_augment") as error:
        create_auto_augment(spec)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec",
    [
        "rand",
        "rand-m9-mstd0.5-inc1",
        "rand-m7-n3-w0-mstd1-mmax8-p0.3-inc0",
        "rand-mstd101",
        "original",
        "originalr-mstd0.5",
        "v0-mstd0.5",
        "v0r",
        "augmix",
        "augmix-m5-w4-d2-b1-mstd1",
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "random"])
def test_every_kind_keeps_size_and_mode_and_repeats_with_its_generator(spec, interpolation):
    augment = create_auto_augment(spec, interpolation)
    image = small_photos()[1]
    original = image.tobytes()
    changed = 0
    for seed in range(8):
        first = augment(image, np.random.default_rng(seed))
        second = augment(image, np.random.default_rng(seed))
        assert first.size == image.size
        assert first.mode == "RGB"
        assert first.tobytes() == second.tobytes()
        changed += first.tobytes() != original
    assert image.tobytes() == original
    assert changed > 0


LEVELS = np.array([0.0, 2.5, 5.0, 9.0, 10.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Rotate", LEVELS * 3.0),
        ("ShearX", LEVELS * 0.03),
        ("ShearY", LEVELS * 0.03),
        ("TranslateXRel", LEVELS * 0.045),
        ("TranslateYRel", LEVELS * 0.045),
        ("Posterize", [0, 1, 2, 3, 4]),
        ("PosterizeIncreasing", [4, 3, 2, 1, 0]),
        ("PosterizeOriginal", [4, 5, 6, 7, 8]),
        ("Solarize", [0, 64, 128, 230, 256]),
        ("SolarizeIncreasing", [256, 192, 128, 26, 0]),
        ("SolarizeAdd", [0, 27, 55, 99, 110]),
        ("Color", 0.1 + LEVELS * 0.18),
        ("Contrast", 0.1 + LEVELS * 0.18),
        ("Brightness", 0.1 + LEVELS * 0.18),
        ("Sharpness", 0.1 + LEVELS * 0.18),
        ("ColorIncreasing", LEVELS * 0.09),
        ("ContrastIncreasing", LEVELS * 0.09),
        ("BrightnessIncreasing", LEVELS * 0.09),
        ("SharpnessIncreasing", LEVELS * 0.09),
    ],
)
def test_level_gives_the_parameter(name, expected):
    rng = np.random.default_rng(0)
    signed = name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
    around_one = name in ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing")
    for level, value in zip(LEVELS, expected):
        drawn = np.array([AugmentOp(name, 1.0, level).parameter(rng) for _ in range(400)])
        if around_one:
            drawn = drawn - 1.0
        np.testing.assert_allclose(np.abs(drawn), value, atol=1e-12)
        if (signed or around_one) and level > 0:
            assert count_within((drawn > 0).sum(), 400, 0.5)
        else:
            assert (drawn >= 0).all()


def test_levels_are_normal_and_clipped_at_the_ceiling():
    rng = np.random.default_rng(1)
    draw = AugmentOp("Rotate", 1.0, 9.0, spread=0.5, ceiling=10.0).level
    levels = np.array([draw(rng) for _ in range(DRAWS)])
    assert levels.max() == 10.0
    for z in (-2.0, -1.0, 0.0, 1.0):
        share = 0.5 * (1 + math.erf(z / math.sqrt(2)))
        assert count_within((levels < 9.0 + 0.5 * z).sum(), DRAWS, share)
    assert count_within((levels == 10.0).sum(), DRAWS, 0.5 * math.erfc(2 / math.sqrt(2)))


def test_a_spread_over_100_draws_levels_uniformly():
    rng = np.random.default_rng(2)
    draw = create_auto_augment("rand-m8-mstd101").operations[0].level
    levels = np.array([draw(rng) for _ in range(DRAWS)])
    for quarter in (2.0, 4.0, 6.0):
        assert count_within((levels < quarter).sum(), DRAWS, quarter / 8)


def test_mmax_is_the_ceiling_and_without_mstd_the_level_is_m():
    rng = np.random.default_rng(3)
    ceiling = create_auto_augment("rand-m5-mstd3-mmax6").operations[0]
    assert max(ceiling.level(rng) for _ in range(500)) == 6.0
    fixed = create_auto_augment("rand-m7").operations[0]
    assert {fixed.level(rng) for _ in range(50)} == {7.0}


class Recorder:
    """Stands in for an operation and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, image, rng):
        self.calls += 1
        return image


def test_rand_augment_draws_n_of_fifteen_operations_alike():
    augment = create_auto_augment("rand-n3")
    augment.operations = [Recorder() for _ in augment.operations]
    rng = np.random.default_rng(4)
    for _ in range(DRAWS):
        augment(None, rng)
    calls = [operation.calls for operation in augment.operations]
    assert len(calls) == 15
    assert sum(calls) == 3 * DRAWS
    assert all(count_within(count, 3 * DRAWS, 1 / 15) for count in calls)


def test_weight_set_0_draws_by_weight_and_without_replacement():
    augment = create_auto_augment("rand-n1-w0")
    names = [operation.name for operation in augment.operations]
    augment.operations = [Recorder() for _ in names]
    rng = np.random.default_rng(5)
    for _ in range(DRAWS):
        augment(None, rng)
    calls = dict(zip(names, (operation.calls for operation in augment.operations)))
    for name, weight in {"Rotate": 3, "ShearX": 2, "TranslateYRel": 1, "Color": 0.25, "Equalize": 0.05}.items():
        assert count_within(calls[name], DRAWS, weight / 10.1)
    every = create_auto_augment("rand-n15-w0")
    every.operations = [Recorder() for _ in names]
    every(None, rng)
    assert {operation.calls for operation in every.operations} == {1}


@pytest.mark.parametrize(("spec", "prob"), [("rand-m9", 0.5), ("rand-m9-p0.2", 0.2), ("rand-m9-p1", 1.0)])
def test_an_operation_is_applied_with_its_probability(spec, prob):
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    invert = next(op for op in create_auto_augment(spec).operations if op.name == "Invert")
    rng = np.random.default_rng(6)
    applied = sum(invert(image, rng).getpixel((0, 0)) == (245, 235, 225) for _ in range(DRAWS // 4))
    assert count_within(applied, DRAWS // 4, prob) if prob < 1 else applied == DRAWS // 4


def test_inc1_takes_the_increasing_variants():
    plain = {operation.name for operation in create_auto_augment("rand-inc0").operations}
    increasing = {operation.name for operation in create_auto_augment("rand-inc1").operations}
    assert increasing - plain == {
        f"{name}Increasing" for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    }
    assert "SolarizeAdd" in plain & increasing


def test_translations_are_a_share_of_their_own_side():
    image = small_photos()[1]
    for name, side in (("TranslateXRel", image.width), ("TranslateYRel", image.height)):
        operation = AugmentOp(name, 1.0, 10.0, interpolation="bilinear")
        seen = []
        operation._apply = lambda image, pixels, resample, seen=seen: seen.append(abs(pixels))
        operation(image, np.random.default_rng(0))
        assert seen == [pytest.approx(0.45 * side)]


@pytest.mark.parametrize("kind", ["original", "originalr", "v0", "v0r"])
def test_a_policy_has_25_pairs_and_draws_them_alike(kind):
    augment = create_auto_augment(kind)
    assert [len(steps) for steps in augment.policy] == [2] * 25
    augment.policy = [[Recorder()] for _ in augment.policy]
    rng = np.random.default_rng(7)
    for _ in range(DRAWS):
        augment(None, rng)
    assert all(count_within(steps[0].calls, DRAWS, 1 / 25) for steps in augment.policy)


def test_the_papers_policy_in_its_own_words():
    """Sub-policies 0, 8, 13 and 18 of the AutoAugment paper's table for ImageNet."""
    policy = policies.POLICIES["original"]
    assert policy[0] == [("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)]
    assert policy[8] == [("Rotate", 0.2, 3), ("Solarize", 0.6, 8)]
    assert policy[13] == [("Invert", 0.6, 4), ("Equalize", 1.0, 8)]
    assert policy[18] == [("ShearX", 0.6, 5), ("Equalize", 1.0, 9)]


def test_lanczos_and_random_interpolation_of_geometric_operations():
    image = small_photos()[0]
    results = {}
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        operation = AugmentOp("Rotate", 1.0, 5.0, interpolation=interpolation)
        results[interpolation] = operation(image, np.random.default_rng(0)).tobytes()
    assert results["lanczos"] == results["bicubic"] != results["bilinear"]
    operation = AugmentOp("Rotate", 1.0, 0.0, interpolation="random")
    seen = []
    operation._apply = lambda image, degrees, resample: seen.append(resample)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        operation(image, rng)
    assert count_within(seen.count(Image.Resampling.BICUBIC), 1000, 0.5)
    assert set(seen) == {Image.Resampling.BICUBIC, Image.Resampling.BILINEAR}


@pytest.mark.parametrize("blended", [0, 1])
def test_augmix_of_operations_that_change_nothing_is_the_image(blended):
    augment = create_auto_augment(f"augmix-w4-b{blended}")
    augment.operations = [lambda image, rng: image]
    image = small_photos()[0]
    for seed in range(5):
        mixed = np.asarray(augment(image, np.random.default_rng(seed)), int)
        assert np.abs(mixed - np.asarray(image)).max() <= (4 if blended else 1)  # one rounding a blend


@pytest.mark.parametrize("blended", [0, 1])
def test_augmix_mixes_chains_and_image_by_shares_that_sum_to_one(blended):
    """Black image, white chains: the result is the chains' share, uniform for alpha 1."""
    augment = create_auto_augment(f"augmix-w3-b{blended}")
    black, white = Image.new("RGB", (1, 1)), Image.new("RGB", (1, 1), (255, 255, 255))
    augment.operations = [lambda image, rng: white]
    rng = np.random.default_rng(8)
    shares = np.array([augment(black, rng).getpixel((0, 0))[0] for _ in range(4000)]) / 255
    for share in (0.25, 0.5, 0.75):
        assert count_within((shares < share).sum(), 4000, share)


def test_augmix_depth_is_d_or_one_to_three():
    for spec, depths in (("augmix-w1-d2", {2}), ("augmix-w1", {1, 2, 3})):
        augment = create_auto_augment(spec)
        recorder = Recorder()
        augment.operations, seen, rng = [recorder], set(), np.random.default_rng(9)
        for _ in range(200):
            recorder.calls = 0
            augment(small_photos()[0], rng)
            seen.add(recorder.calls)
        assert seen == depths
