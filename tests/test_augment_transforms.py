"""Decoding, cropping, jitter, normalisation and the evaluation transform."""

import io
import math
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from src.data import augment
from src.data import decode as decoding
from src.data.augment import kernels, transforms
from src.data.augment.transforms import UndecodableImage, create_transform, decode, load_eval_image
from tests.photos import make_config, photos


def encode(image, form, **keys):
    file = io.BytesIO()
    image.save(file, form, **keys)
    return file.getvalue()


def photo():
    return photos()[0].crop((200, 100, 420, 250))


def channels(out):
    """Back from normalised to 8 bits: (H, W, 3)."""
    mean, std = np.array(transforms.IMAGENET_MEAN), np.array(transforms.IMAGENET_STD)
    return np.rint((out.transpose(1, 2, 0) * std + mean) * 255).astype(int)


# Decoding


@pytest.mark.parametrize(("mode", "form"), [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG")])
def test_other_modes_become_rgb_as_pillow_converts_them(mode, form):
    encoded = encode(photo().convert(mode), form)
    image = decode(encoded)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))


@pytest.mark.filterwarnings("error")
def test_transparent_palettes_and_alpha_keep_their_colours():
    palette = photo().quantize(64)
    encoded = encode(palette, "PNG", transparency=bytes([0, 128] + [255] * 62))
    np.testing.assert_array_equal(np.asarray(decode(encoded)), np.asarray(palette.convert("RGB")))
    see_through = photo().copy()
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    np.testing.assert_array_equal(np.asarray(decode(encode(see_through, "PNG"))), np.asarray(photo()))


def test_16_bit_greyscale_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 256 * 16).astype(np.uint16).reshape(64, 64)
    image = Image.fromarray(values)
    for encoded in (encode(image, "PNG"), encode(image, "TIFF")):
        grey = np.asarray(decode(encoded)).astype(int)
        np.testing.assert_array_equal(grey, np.rint(values / 257.0).astype(int)[:, :, None].repeat(3, 2))


def test_a_png_by_the_name_of_jpeg_is_decoded(tmp_path):
    path = tmp_path / "n01440764_1.JPEG"
    photo().save(path, "PNG")
    config = make_config(tmp_path, image_size=32, crop_pct=1.0)
    expected = np.asarray(photo().resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(channels(load_eval_image(str(path), config)), expected)


def test_exif_rotation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(photo(), "JPEG", exif=exif)).size == photo().size


@pytest.mark.parametrize("damage", [lambda e: b"", lambda e: b"no image", lambda e: e[: len(e) // 2], lambda e: e[:30]])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_damaged_bytes_are_undecodable_whatever_the_crop(damage, form, tmp_path):
    encoded = damage(encode(photo(), form))
    with pytest.raises(UndecodableImage):
        decode(encoded)
    train = create_transform(make_config(tmp_path), is_training=True)
    out = np.empty((3, 48, 48), np.float32)
    for seed in range(20):
        with pytest.raises(UndecodableImage):
            train(encoded, out, np.random.default_rng(seed))


# The training crop


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("keys", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_decoding_only_the_rows_of_a_crop_gives_the_pixels_of_the_whole_image(mode, keys, monkeypatch):
    encoded = encode(photo().convert(mode), "JPEG", **keys)
    whole = decode(encoded)
    monkeypatch.setattr(decoding, "decode", None)  # so that the short way is taken and not the long one
    for bottom in (1, 7, 8, 64, 149, 150):
        image, box = decoding.decode_part(encoded, lambda width, height, b=bottom: (10, 0, 90, b), 224)
        assert (image.size, box) == ((220, bottom), (10, 0, 90, bottom))
        np.testing.assert_array_equal(np.asarray(image), np.asarray(whole)[:bottom])


@pytest.mark.parametrize("colour", [(253, 2, 251), (0, 0, 0), (255, 255, 255)])
def test_images_of_one_colour_are_decoded_even_in_the_colour_that_marks_unwritten_rows(colour):
    encoded = encode(Image.new("RGB", (64, 64), colour), "JPEG", quality=100, subsampling=0)
    image, box = decoding.decode_part(encoded, lambda width, height: (0, 0, 64, 20), 224)
    np.testing.assert_array_equal(np.asarray(image.crop(box)), np.asarray(decode(encoded).crop(box)))


@pytest.mark.parametrize(("crop", "factor"), [(450, 1), (896, 2), (1791, 2), (1792, 4)])
def test_large_crops_are_decoded_at_a_size_that_stays_twice_as_large(crop, factor):
    encoded = encode(photos()[0].resize((2000, 1800)), "JPEG")
    image, box = decoding.decode_part(encoded, lambda width, height: (3, 3, 3 + crop, 3 + crop), 224)
    assert image.width == 2000 // factor
    np.testing.assert_allclose(box, np.array([3, 3, 3 + crop, 3 + crop]) / factor)


def test_without_pillows_innards_the_whole_image_is_decoded(monkeypatch):
    encoded = encode(photo(), "JPEG")
    monkeypatch.delattr(Image, "_getdecoder")
    monkeypatch.setattr(decoding, "decode", lambda _: photo())  # Pillow's own decoding needs them as well
    image, box = decoding.decode_part(encoded, lambda width, height: (10, 0, 90, 40), 224)
    assert (image, box) == (photo(), (10, 0, 90, 40))


def draw_boxes(width, height, count, **keys):
    rng = np.random.default_rng(0)
    values = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), **keys}
    boxes = [transforms.random_crop_box(width, height, values["scale"], values["ratio"], rng) for _ in range(count)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    return np.array(boxes)


def test_crops_that_always_fit_are_uniform_in_area_log_ratio_and_place():
    """scale up to 0.5 always fits a square; bounds are five standard deviations."""
    n = 8000
    left, top, right, bottom = draw_boxes(2000, 2000, n, scale=(0.08, 0.5)).T
    width, height = right - left, bottom - top
    area, ratio = width * height / 4e6, np.log(width / height) / math.log(4 / 3)
    for quantile in (0.25, 0.5, 0.75):
        bound = 5 * math.sqrt(n * quantile * (1 - quantile))
        assert abs((area < 0.08 + 0.42 * quantile).sum() - n * quantile) < bound
        assert abs((ratio < 2 * quantile - 1).sum() - n * quantile) < bound
        for place, room in ((left, 2000 - width), (top, 2000 - height)):
            assert abs((place / room < quantile).sum() - n * quantile) < bound
    assert area.min() >= 0.0799
    assert area.max() <= 0.5001
    assert np.abs(ratio).max() < 1.003  # whole pixels


@pytest.mark.parametrize(("size", "expected"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))])
def test_fall_back_is_the_largest_central_box_of_an_allowed_ratio(size, expected):
    boxes = draw_boxes(*size, 20, scale=(0.9, 1.0))
    assert (boxes == expected).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3000, 2), (5, 7)])
def test_tiny_and_very_wide_images_go_through_both_transforms(size, tmp_path):
    encoded = encode(photos()[0].resize(size), "PNG")
    config = make_config(tmp_path)
    for crop_mode in ("squash", "center"):
        out = np.full((3, 48, 48), np.nan, np.float32)
        create_transform(config.model_copy(update={"crop_mode": crop_mode}), is_training=False)(encoded, out)
        assert np.isfinite(out).all()
    for seed in range(20):
        out = np.full((3, 48, 48), np.nan, np.float32)
        create_transform(config, is_training=True)(encoded, out, np.random.default_rng(seed))
        assert np.isfinite(out).all()


PLAIN = {"auto_augment": "", "color_jitter": 0.0, "re_prob": 0.0}


def crop_by_definition(image, config, seed):
    """The same crop from the whole decoded image, with Pillow."""
    rng = np.random.default_rng(seed)
    box = transforms.random_crop_box(*image.size, config.scale, config.ratio, rng)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    side = config.image_size
    resample = filters.get(config.interpolation, Image.Resampling.LANCZOS)
    crop = image.crop(box)
    crop = crop.resize((side, crop.height), resample).resize((side, side), resample)
    return np.asarray(crop if rng.random() >= config.hflip else crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT), int)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(500, 375), (2400, 1800)])
def test_the_training_crop_is_that_of_the_whole_image_within_two_grey_levels(interpolation, size, tmp_path):
    config = make_config(tmp_path, image_size=224, interpolation=interpolation, **PLAIN)
    transform = create_transform(config, is_training=True)
    for original in photos():
        encoded = encode(original.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=92)
        whole = decode(encoded)
        for seed in range(6):
            out = np.empty((3, 224, 224), np.float32)
            transform(encoded, out, np.random.default_rng(seed))
            difference = np.abs(channels(out) - crop_by_definition(whole, config, seed))
            assert difference.mean() <= 2.0


def test_random_interpolation_draws_bilinear_and_bicubic(tmp_path):
    encoded = encode(photo(), "PNG")
    random = create_transform(make_config(tmp_path, interpolation="random", hflip=0.0, **PLAIN), is_training=True)
    seen = []
    for seed in range(30):
        out = np.empty((3, 48, 48), np.float32)
        random(encoded, out, np.random.default_rng(seed))
        for name in ("bilinear", "bicubic"):
            config = make_config(tmp_path, interpolation=name, hflip=0.0, **PLAIN)
            if np.array_equal(channels(out), crop_by_definition(photo(), config, seed)):
                seen.append(name)
    assert len(seen) == 30
    assert set(seen) == {"bilinear", "bicubic"}


@pytest.mark.parametrize("hflip", [0.0, 0.25, 1.0])
def test_flips_come_with_their_probability(hflip, tmp_path):
    config = make_config(tmp_path, hflip=hflip, scale=(1.0, 1.0), ratio=(1.0, 1.0), **PLAIN)
    gradient = encode(Image.linear_gradient("L").rotate(90), "PNG")
    transform, out = create_transform(config, is_training=True), np.empty((3, 48, 48), np.float32)
    first = []
    for seed in range(400):
        transform(gradient, out, np.random.default_rng(seed))
        first.append(out[0, 0, 0] > out[0, 0, -1])
    plain_is_rising = np.asarray(Image.linear_gradient("L").rotate(90))[0, 0] == 0
    flips = np.sum(first) if plain_is_rising else 400 - np.sum(first)
    assert abs(flips - 400 * hflip) <= 5 * math.sqrt(400 * hflip * (1 - hflip))


def test_color_jitter_scales_brightness_contrast_and_saturation_in_every_order():
    """Each result equals one of the six orders, with factors read from the same generator."""
    image, orders = photo(), set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        expected, order = image, rng.permutation(3)
        for index in order:
            factor = rng.uniform(0.6, 1.4)
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[index]
            expected = enhancer(expected).enhance(factor)
        orders.add(tuple(order))
        jittered = transforms.color_jitter(image, 0.4, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(jittered), np.asarray(expected))
    assert len(orders) == 6


def test_color_jitter_of_a_grey_image_is_its_brightness_alone_uniform_from_06_to_14():
    """Contrast about its own mean and saturation leave grey as it is."""
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [transforms.color_jitter(grey, 0.4, np.random.default_rng(seed)).getpixel((0, 0)) for seed in range(2000)]
    assert all(len(set(value)) == 1 for value in values)
    levels = np.array([value[0] for value in values])
    assert 60 <= levels.min() < 62 < 138 < levels.max() <= 140
    for level in (80, 100, 120):
        share = (level - 60) / 80
        assert abs((levels < level).sum() - 2000 * share) <= 5 * math.sqrt(2000 * share * (1 - share))


def test_jitter_and_erasing_take_part_where_the_configuration_says(tmp_path):
    encoded = encode(photo(), "PNG")
    out = {}
    for name, keys in {
        "plain": PLAIN,
        "jitter": {**PLAIN, "color_jitter": 0.4},
        "augment": {**PLAIN, "color_jitter": 0.4, "auto_augment": "rand-m9-p1"},
        "augment alone": {**PLAIN, "auto_augment": "rand-m9-p1"},
        "erase": {**PLAIN, "re_prob": 1.0, "re_mode": "const"},
    }.items():
        out[name] = np.empty((3, 48, 48), np.float32)
        create_transform(make_config(tmp_path, **keys), is_training=True)(encoded, out[name], np.random.default_rng(3))
    assert not np.array_equal(out["plain"], out["jitter"])
    np.testing.assert_array_equal(out["augment"], out["augment alone"])
    erased = (out["erase"] == 0).all(axis=0)
    assert 0.01 < erased.mean() < 0.4
    np.testing.assert_array_equal(out["erase"][:, ~erased], out["plain"][:, ~erased])


def test_pixels_are_the_same_with_and_without_numba(tmp_path, monkeypatch):
    """Where numba is not installed, this compares Pillow with itself."""
    encoded = encode(photos()[1], "JPEG")
    for spec in ("rand-m9-p1-n1", "original"):
        for interpolation in ("bilinear", "bicubic", "lanczos"):
            config = make_config(tmp_path, auto_augment=spec, interpolation=interpolation)
            transform, outs = create_transform(config, is_training=True), []
            for engine in (kernels.engine, lambda: None):
                with monkeypatch.context() as patch:
                    patch.setattr(kernels, "engine", engine)
                    outs.append(np.empty((24, 3, 48, 48), np.float32))
                    for seed, out in enumerate(outs[-1]):
                        transform(encoded, out, np.random.default_rng(seed))
            np.testing.assert_array_equal(*outs)


def test_that_numba_is_missing_is_said_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "src.data.augment.compiled", None)
    monkeypatch.delattr(augment, "compiled", raising=False)
    kernels.engine.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert kernels.engine() is None and kernels.engine() is None
    finally:
        kernels.engine.cache_clear()
    assert [message for message in caplog.messages if "pip install numba" in message] == caplog.messages
    assert len(caplog.messages) == 1


# Normalisation and evaluation


def test_normalise_is_the_formula():
    image = photo()
    out = np.empty((3, image.height, image.width), np.float32)
    transforms.normalise(image, out)
    expected = np.asarray(image, np.float64) / 255 - np.array([0.485, 0.456, 0.406])
    expected /= np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("crop_mode", ["squash", "center"])
@pytest.mark.parametrize("size", [(640, 427), (300, 500)])
def test_evaluation_matches_another_antialiased_bicubic(crop_mode, size, tmp_path):
    """PyTorch's antialiased bicubic of 8-bit images: apart from rounding, the same."""
    torch = pytest.importorskip("torch")
    image = photos()[1].resize(size)
    config = make_config(tmp_path, image_size=224, crop_mode=crop_mode)
    out = np.empty((3, 224, 224), np.float32)
    create_transform(config, is_training=False)(encode(image, "PNG"), out)
    width, height = (256, 256) if crop_mode == "squash" else (int(256 * side / min(size)) for side in size)
    pixels = torch.tensor(np.asarray(image).transpose(2, 0, 1)[None])
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0].numpy()
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    expected = resized[:, top : top + 224, left : left + 224].transpose(1, 2, 0).astype(int)
    difference = np.abs(channels(out) - expected)
    assert (difference > 1).mean() < 1e-3
    assert difference.mean() < 0.02


def test_the_whole_image_is_kept_at_crop_pct_1(tmp_path):
    image = photos()[0].resize((64, 64))
    out = np.empty((3, 64, 64), np.float32)
    create_transform(make_config(tmp_path, image_size=64, crop_pct=1.0), is_training=False)(encode(image, "PNG"), out)
    np.testing.assert_array_equal(channels(out), np.asarray(image))


def test_evaluation_takes_bicubic_where_training_draws(tmp_path):
    outs = []
    for interpolation in ("random", "bicubic", "bilinear"):
        config = make_config(tmp_path, interpolation=interpolation)
        outs.append(np.empty((3, 48, 48), np.float32))
        create_transform(config, is_training=False)(encode(photo(), "PNG"), outs[-1])
    np.testing.assert_array_equal(outs[0], outs[1])
    assert not np.array_equal(outs[1], outs[2])
