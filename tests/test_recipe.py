"""The published recipe as literal numbers, typed here and not read back from the code; docs/recipe.md compares them.

A changed constant, a swapped row of a table, a dropped operation must fail something here.
"""

import io
import math
import re

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from src.args import Config, parse_args
from src.data import create_dataset
from src.data.augment import transforms
from src.data.augment.auto_augment import AugmentOp, create_auto_augment
from src.data.augment.mixup import Mixup
from src.data.augment.random_erasing import random_erasing
from src.data.augment.transforms import TrainTransform, random_crop_box
from src.errors import UserError
from src.tools.schedulers import learning_rates
from tests.conftest import ROOT
from tests.photos import make_config, make_folder, photos, small_photos

RECIPE = str(ROOT / "src/configs/ddrnet23_imagenet.yaml")
ASCEND = str(ROOT / "src/configs/ddrnet23_imagenet_ascend.yaml")
EIGHT_CARDS = {"device_num": 8}
IMAGES = 1_281_167
MEAN_COLOUR = (124, 116, 104)


def recipe(path: str = RECIPE) -> Config:
    return parse_args(["--ddr_config", path])[0].model_copy(update=EIGHT_CARDS)


# Learning rate


@pytest.mark.parametrize(
    ("update", "rate"),
    [
        (0, 0.000016),
        (1, 0.00052881538461538),
        (1560, 0.800008),
        (3119, 1.59948718461538),
        (3120, 1.6),
        (50000, 0.754554685192903),
        (93599, 0.000160000482182),
    ],
)
def test_the_learning_rate_on_eight_cards(update, rate):
    rates = learning_rates(recipe(), IMAGES // 4096)
    assert len(rates) == 93_600 == 300 * 312
    assert rates[update] == pytest.approx(rate, rel=2e-7)


@pytest.mark.parametrize(
    ("scheduler", "first", "at_3120", "last"),
    [
        # 0.1 * 0.97 ** (epochs // 30), without warmup
        ("multistep_lr", 1.6, 1.6, 1.21636934550465),
        # warmup floored at min_lr; 0.1 * 0.97 ** epochs: 0.97 ** 10 = 0.737, 0.97 ** 299.997 = 1.0753e-4
        ("exp_lr", 0.00016, 1.1798785972, 0.000172062),
        ("constant_lr", 0.00016, 1.6, 1.6),
    ],
)
def test_the_other_schedules_with_the_published_keys(scheduler, first, at_3120, last):
    rates = learning_rates(recipe().model_copy(update={"lr_scheduler": scheduler}), 312)
    assert rates[[0, 3120, 93599]] == pytest.approx([first, at_3120, last], rel=1e-4)


# Configurations


def test_the_ascend_file_is_the_recipe_with_random_erasing():
    with_erasing, without = recipe(ASCEND).model_dump(), recipe().model_dump()
    assert {key: value for key, value in with_erasing.items() if value != without[key]} == {"re_prob": 0.25}
    assert without["re_prob"] == 0.0


def test_the_recipe_draws_mixing_for_a_cards_512_images():
    assert recipe().mixup_group == 512


# RandAugment, AutoAugment, AugMix: the tables


RAND_AUGMENT = [
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
    "TranslateXRel", "TranslateYRel",
]  # fmt: skip
RAND_AUGMENT_PLAIN = [
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
]  # fmt: skip
WEIGHT_SET_0 = [0.25, 0.05, 0.05, 3, 0.05, 0.05, 0.05, 0.25, 0.05, 0.05, 0.25, 2, 2, 1, 1]  # in that order
AUGMIX = [
    "AutoContrast", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "Equalize",
    "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
]  # fmt: skip
# A row a sub-policy: operation, probability, level; twice. P stands for the posterize of the policy.
IMAGENET_POLICY = [
    ("P", 0.4, 8, "Rotate", 0.6, 9),
    ("Solarize", 0.6, 5, "AutoContrast", 0.6, 5),
    ("Equalize", 0.8, 8, "Equalize", 0.6, 3),
    ("P", 0.6, 7, "P", 0.6, 6),
    ("Equalize", 0.4, 7, "Solarize", 0.2, 4),
    ("Equalize", 0.4, 4, "Rotate", 0.8, 8),
    ("Solarize", 0.6, 3, "Equalize", 0.6, 7),
    ("P", 0.8, 5, "Equalize", 1.0, 2),
    ("Rotate", 0.2, 3, "Solarize", 0.6, 8),
    ("Equalize", 0.6, 8, "P", 0.4, 6),
    ("Rotate", 0.8, 8, "Color", 0.4, 0),
    ("Rotate", 0.4, 9, "Equalize", 0.6, 2),
    ("Equalize", 0.0, 7, "Equalize", 0.8, 8),
    ("Invert", 0.6, 4, "Equalize", 1.0, 8),
    ("Color", 0.6, 4, "Contrast", 1.0, 8),
    ("Rotate", 0.8, 8, "Color", 1.0, 2),
    ("Color", 0.8, 8, "Solarize", 0.8, 7),
    ("Sharpness", 0.4, 7, "Invert", 0.6, 8),
    ("ShearX", 0.6, 5, "Equalize", 1.0, 9),
    ("Color", 0.4, 0, "Equalize", 0.6, 3),
    ("Equalize", 0.4, 7, "Solarize", 0.2, 4),
    ("Solarize", 0.6, 5, "AutoContrast", 0.6, 5),
    ("Invert", 0.6, 4, "Equalize", 1.0, 8),
    ("Color", 0.6, 4, "Contrast", 1.0, 8),
    ("Equalize", 0.8, 8, "Equalize", 0.6, 3),
]
V0_POLICY = [
    ("Equalize", 0.8, 1, "ShearY", 0.8, 4),
    ("Color", 0.4, 9, "Equalize", 0.6, 3),
    ("Color", 0.4, 1, "Rotate", 0.6, 8),
    ("Solarize", 0.8, 3, "Equalize", 0.4, 7),
    ("Solarize", 0.4, 2, "Solarize", 0.6, 2),
    ("Color", 0.2, 0, "Equalize", 0.8, 8),
    ("Equalize", 0.4, 8, "SolarizeAdd", 0.8, 3),
    ("ShearX", 0.2, 9, "Rotate", 0.6, 8),
    ("Color", 0.6, 1, "Equalize", 1.0, 2),
    ("Invert", 0.4, 9, "Rotate", 0.6, 0),
    ("Equalize", 1.0, 9, "ShearY", 0.6, 3),
    ("Color", 0.4, 7, "Equalize", 0.6, 0),
    ("P", 0.4, 6, "AutoContrast", 0.4, 7),
    ("Solarize", 0.6, 8, "Color", 0.6, 9),
    ("Solarize", 0.2, 4, "Rotate", 0.8, 9),
    ("Rotate", 1.0, 7, "TranslateYRel", 0.8, 9),
    ("ShearX", 0.0, 0, "Solarize", 0.8, 4),
    ("ShearY", 0.8, 0, "Color", 0.6, 4),
    ("Color", 1.0, 0, "Rotate", 0.6, 2),
    ("Equalize", 0.8, 4, "Equalize", 0.0, 8),
    ("Equalize", 1.0, 4, "AutoContrast", 0.6, 2),
    ("ShearY", 0.4, 7, "SolarizeAdd", 0.6, 7),
    ("P", 0.8, 2, "Solarize", 0.6, 10),
    ("Solarize", 0.6, 8, "Equalize", 0.6, 1),
    ("Color", 0.8, 6, "Rotate", 0.4, 5),
]


def test_the_published_rand_augment_operation_by_operation():
    augment = create_auto_augment("rand-m9-mstd0.5-inc1")
    assert [(op.name, op.prob, op.magnitude, op.spread, op.ceiling) for op in augment.operations] == [
        (name, 0.5, 9.0, 0.5, 10.0) for name in RAND_AUGMENT
    ]
    assert (augment.count, augment.weights) == (2, None)


def test_rand_augment_without_inc1_and_weight_set_0():
    augment = create_auto_augment("rand-m9-w0")
    assert [op.name for op in augment.operations] == RAND_AUGMENT_PLAIN
    np.testing.assert_allclose(augment.weights, np.array(WEIGHT_SET_0) / 10.1, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "policy", "posterize"),
    [
        ("original", IMAGENET_POLICY, "PosterizeOriginal"),
        ("originalr", IMAGENET_POLICY, "PosterizeIncreasing"),
        ("v0", V0_POLICY, "Posterize"),
        ("v0r", V0_POLICY, "PosterizeIncreasing"),
    ],
)
def test_auto_augments_policies_row_by_row(kind, policy, posterize):
    rows = [
        tuple(value for op in steps for value in (op.name, op.prob, op.magnitude))
        for steps in create_auto_augment(kind).policy
    ]
    assert rows == [tuple(posterize if value == "P" else value for value in row) for row in policy]


def test_augmix_operation_by_operation():
    augment = create_auto_augment("augmix")
    assert [(op.name, op.prob, op.magnitude, op.spread) for op in augment.operations] == [
        (name, 1.0, 3.0, math.inf) for name in AUGMIX
    ]
    assert (augment.width, augment.depth, augment.blended, augment.alpha) == (3, 0, False, 1.0)


# RandAugment, AutoAugment, AugMix: what a name does, at level 9, for either sign; 90 x 70 pixels


def affine(*matrix):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=MEAN_COLOUR
    )


def rotate(degrees):
    return lambda image: image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=MEAN_COLOUR)


def each_value(change):
    return lambda image: Image.fromarray(change(np.asarray(image).astype(int)).astype(np.uint8))


def enhance(enhancer, factor):
    return lambda image: enhancer(image).enhance(factor)


LEVEL_9 = {
    "AutoContrast": [ImageOps.autocontrast],
    "Equalize": [ImageOps.equalize],
    "Invert": [each_value(lambda value: 255 - value)],
    "Rotate": [rotate(27.0), rotate(-27.0)],
    "Posterize": [each_value(lambda value: value // 32 * 32)],
    "PosterizeIncreasing": [each_value(lambda value: value // 128 * 128)],
    "PosterizeOriginal": [each_value(lambda value: value // 2 * 2)],
    "Solarize": [each_value(lambda value: np.where(value < 230, value, 255 - value))],
    "SolarizeIncreasing": [each_value(lambda value: np.where(value < 26, value, 255 - value))],
    "SolarizeAdd": [each_value(lambda value: np.where(value < 128, np.minimum(value + 99, 255), value))],
    "Color": [enhance(ImageEnhance.Color, 1.72)],
    "ColorIncreasing": [enhance(ImageEnhance.Color, 1.81), enhance(ImageEnhance.Color, 0.19)],
    "Contrast": [enhance(ImageEnhance.Contrast, 1.72)],
    "ContrastIncreasing": [enhance(ImageEnhance.Contrast, 1.81), enhance(ImageEnhance.Contrast, 0.19)],
    "Brightness": [enhance(ImageEnhance.Brightness, 1.72)],
    "BrightnessIncreasing": [enhance(ImageEnhance.Brightness, 1.81), enhance(ImageEnhance.Brightness, 0.19)],
    "Sharpness": [enhance(ImageEnhance.Sharpness, 1.72)],
    "SharpnessIncreasing": [enhance(ImageEnhance.Sharpness, 1.81), enhance(ImageEnhance.Sharpness, 0.19)],
    "ShearX": [affine(1, 0.27, 0, 0, 1, 0), affine(1, -0.27, 0, 0, 1, 0)],
    "ShearY": [affine(1, 0, 0, 0.27, 1, 0), affine(1, 0, 0, -0.27, 1, 0)],
    "TranslateXRel": [affine(1, 0, 36.45, 0, 1, 0), affine(1, 0, -36.45, 0, 1, 0)],
    "TranslateYRel": [affine(1, 0, 0, 0, 1, 28.35), affine(1, 0, 0, 0, 1, -28.35)],
}


@pytest.mark.parametrize("name", list(LEVEL_9))
def test_what_an_operation_of_that_name_does_to_a_photograph(name):
    image, operation = small_photos()[1], AugmentOp(name, 1.0, 9.0)
    expected = {change(image).tobytes() for change in LEVEL_9[name]}
    assert {operation(image, np.random.default_rng(seed)).tobytes() for seed in range(12)} == expected


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_what_comes_from_outside_has_the_mean_colour(name, interpolation):
    black = Image.new("RGB", (64, 64))
    corners = set()
    for seed in range(12):
        moved = AugmentOp(name, 1.0, 10.0, interpolation=interpolation)(black, np.random.default_rng(seed))
        corners |= {moved.getpixel((x, y)) for x in (0, 63) for y in (0, 63)}
    assert MEAN_COLOUR in corners
    assert corners <= {MEAN_COLOUR, (0, 0, 0)}


# Crop, flip, erasing, mixing: the constants of their distributions. Bounds are five standard deviations.


def within(count, draws, share):
    return abs(count - draws * share) <= 5 * math.sqrt(draws * share * (1 - share))


def test_the_crops_area_ratio_and_flip():
    config = recipe()
    assert (config.scale, config.ratio, config.hflip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    rng, draws = np.random.default_rng(0), 20_000
    boxes = np.array([random_crop_box(4000, 4000, config.scale, config.ratio, rng) for _ in range(draws)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 16e6, width / height
    assert 0.0799 < area.min() < 0.081
    assert 0.7495 < ratio.min() < 0.7505
    assert 1.3325 < ratio.max() < 1.334
    fit = 0.75 - 0.08 + (0.25 + 0.75 * math.log(0.75)) / math.log(4 / 3)  # those too wide or high are drawn again
    assert within((area < 0.31).sum(), draws, 0.23 / fit)


def test_a_crop_is_tried_ten_times_before_the_centre_is_taken():
    """No square of the whole area fits: two numbers are drawn for each try."""
    rng, numbers = np.random.default_rng(5), np.random.default_rng(5).random(21)
    assert random_crop_box(10, 20, (1.0, 1.0), (1.0, 1.0), rng) == (0, 5, 10, 15)
    assert rng.random() == numbers[20]


def test_erasing_covers_two_to_33_percent_in_ratios_of_3_to_10_either_way():
    """The area is uniform from 0.02 to 1/3, the ratio uniform in its logarithm from 0.3 to 1/0.3."""
    draws, areas, ratios = 6000, [], []
    for seed in range(draws):
        image = np.full((3, 400, 400), 7.0, np.float32)
        random_erasing(image, np.random.default_rng(seed), "const")
        rows, columns = (np.flatnonzero((image[0] == 0).any(axis=axis)) for axis in (1, 0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        areas.append(height * width / 160_000)
        ratios.append(height / width)
    areas, ratios = np.array(areas), np.array(ratios)
    assert 0.0195 < areas.min() < 0.0203
    assert 0.3315 < areas.max() < 0.335
    assert within((areas < 0.03).sum(), draws, 0.01 / (1 / 3 - 0.02))
    assert 0.295 < ratios.min() < 0.303
    assert 3.30 < ratios.max() < 3.37
    assert within((ratios < 0.4).sum(), draws, math.log(0.4 / 0.3) / (2 * math.log(1 / 0.3)))


@pytest.mark.parametrize(("path", "share"), [(RECIPE, 0.0), (ASCEND, 0.25)])
def test_how_many_images_are_erased(path, share):
    encoded, file = io.BytesIO(), recipe(path)
    Image.new("RGB", (32, 32), (10, 200, 30)).save(encoded, "PNG")
    transform = TrainTransform(file.model_copy(update={"image_size": 32, "auto_augment": "", "color_jitter": 0.0}))
    out, erased, draws = np.empty((3, 32, 32), np.float32), 0, 2000
    for seed in range(draws):
        transform(encoded.getvalue(), out, np.random.default_rng(seed))
        erased += len(np.unique(out[0])) > 1
    assert within(erased, draws, share) if share else erased == 0


def test_mixing_is_cutmix_half_of_the_time_with_alphas_08_and_1():
    config, draws, rng = recipe(), 8000, np.random.default_rng(1)
    mixup = Mixup(config.mix_up, config.cutmix, config.mixup_prob, config.switch_prob, config.mixup_mode)
    mixes = [mixup.draw(2, (224, 224), rng) for _ in range(draws)]
    cut = np.array([mix.cut[0] for mix in mixes])
    shares = np.array([mix.share[0] for mix in mixes])
    assert within(cut.sum(), draws, 0.5)
    blended = shares[~cut]
    assert within((blended < 0.1).sum(), len(blended), 0.134815)  # Beta(0.8, 0.8); with 1 it were 0.1
    assert (config.mix_up, config.cutmix) == (0.8, 1.0)
    expected = 1 - (1 / 2 - 1 / 5 + 1 / 48)  # of (s - s**2 / 4)**2, s**2 uniform: the box, less what an edge cuts off
    assert abs(shares[cut].mean() - expected) < 5 * shares[cut].std() / math.sqrt(cut.sum())


def test_normalisation_is_imagenets():
    assert transforms.IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert transforms.IMAGENET_STD == (0.229, 0.224, 0.225)
    out = np.empty((3, 1, 1), np.float32)
    transforms.normalise(Image.new("RGB", (1, 1), (255, 0, 51)), out)
    np.testing.assert_allclose(out[:, 0, 0], [0.515 / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], rtol=1e-6)


# Limits of the input pipeline


@pytest.mark.parametrize(("bad", "stops"), [(5, False), (6, True)])
def test_of_500_images_five_may_be_bad_and_six_not(tmp_path, bad, stops):
    make_folder(tmp_path, classes=1, train=1, val=1)
    folder = tmp_path / "train" / "class_0"
    good = (folder / "000.jpg").read_bytes()
    for number in range(500):
        (folder / f"{number:03d}.jpg").write_bytes(b"no image" if number < bad else good)
    config = make_config(
        tmp_path, num_classes=1, image_size=32, auto_augment="", color_jitter=0.0, mix_up=0.0, cutmix=0.0
    )
    train = create_dataset(config.model_copy(update={"batch_size": 50}), "train")
    if stops:
        with pytest.raises(UserError, match="6 of 500 images of the epoch cannot be decoded, more than 1%"):
            list(train.epoch(1))
    else:
        assert len(list(train.epoch(1))) == 10
        assert train.bad == 5


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("side", [1000, 1700, 1791])
def test_a_crop_of_a_scaled_jpeg_sees_the_rows_below_it_as_far_as_the_filter_reaches(side, resample):
    """Against Pillow's own scaled decoding of the whole file; Lanczos reaches 12 rows at the largest factor."""
    encoded, box = io.BytesIO(), (3, 5, 3 + side, 5 + side)
    photos()[0].resize((2000, 1900)).save(encoded, "JPEG", quality=95)
    image, scaled = transforms.decode_part(encoded.getvalue(), lambda width, height: box, 224)
    whole = Image.open(encoded)
    whole.draft("RGB", (1000, 950))
    assert scaled == tuple(edge / 2 for edge in box)
    assert image.height == min(950, math.ceil(scaled[3]) + 16)
    np.testing.assert_array_equal(
        np.asarray(image.resize((224, 224), resample, scaled)), np.asarray(whole.resize((224, 224), resample, scaled))
    )


# The page


def test_every_test_that_the_page_names_is_there():
    page = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(test_\w+)`", page))
    files = set(re.findall(r"`(?:tests/)?(test_\w+\.py)`", page))
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    assert len(names) >= 20
    assert files <= set(sources)
    assert not [name for name in names if not any(f"def {name}(" in source for source in sources.values())]


def test_every_row_of_the_pages_comparison_says_how_it_was_compared():
    page = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.count(" | ") == 4]
    rows = [row for row in rows if row[0] != "| item"]
    assert len(rows) > 40
    assert not [
        row[0] for row in rows if not re.search(r"test_\w+|benchmarks/|\bread\b|\brun\b|\.md\)", " ".join(row[2:4]))
    ]
