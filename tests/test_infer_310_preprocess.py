"""The C++ program sees an image as eval.py does: the same files decode, to the same pixels."""

import functools
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from preprocess import convert
from src.data import load_eval_image
from src.data.augment.transforms import UndecodableImage, decode
from src.errors import UserError
from tests.infer_310 import PROJECT, build, eval_config, picture, spec

STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def preprocess(files, description, folder):
    """The program's tensors of image files: float32 (N, 3, S, S)."""
    (folder / "spec.json").write_text(json.dumps(description))
    command = [build() / "preprocess_images", folder / "spec.json", folder / "tensors.bin", *files]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = description["image_size"]
    return np.fromfile(folder / "tensors.bin", np.float32).reshape(-1, 3, size, size)


def assert_same_pixels(files, description, folder):
    """At most one grey level off anywhere, under 0.02 on average."""
    for file, got in zip(files, preprocess(files, description, folder)):
        off = np.abs(got - load_eval_image(str(file), eval_config(description))) * STD * 255
        assert off.max() <= 1.001, file.name
        assert off.mean() < 0.02, file.name


def jpeg(image, **options):
    return image, "JPEG", options


def png(image, **options):
    return image, "PNG", options


def palette(colors, **options):
    return png(picture(120, 80).quantize(colors), **options)


def with_alpha(image):
    image = image.copy()
    image.putalpha(picture(*image.size, seed=9).convert("L"))
    return image


def deep(width=120, height=80):
    """16-bit greyscale over the whole range."""
    values = np.linspace(0, 65535, width * height).reshape(height, width).astype(np.uint16)
    return Image.fromarray(values)


KINDS = {
    "4:2:0": lambda: jpeg(picture(301, 207), subsampling="4:2:0"),
    "4:2:2": lambda: jpeg(picture(301, 207), subsampling="4:2:2"),
    "4:4:4": lambda: jpeg(picture(301, 207), subsampling="4:4:4"),
    "progressive": lambda: jpeg(picture(301, 207), progressive=True),
    "low quality": lambda: jpeg(picture(301, 207), quality=8),
    "optimized": lambda: jpeg(picture(301, 207), optimize=True),
    "restart markers": lambda: jpeg(picture(301, 207), restart_marker_blocks=3),
    "kept as RGB": lambda: jpeg(picture(120, 80), keep_rgb=True),
    "greyscale": lambda: jpeg(picture(301, 207).convert("L")),
    "CMYK": lambda: jpeg(picture(301, 207).convert("CMYK")),
    "EXIF rotation": lambda: jpeg(picture(301, 207), exif=rotated()),
    "tall": lambda: jpeg(picture(150, 420)),
    "very wide": lambda: jpeg(picture(900, 40)),
    "square": lambda: jpeg(picture(200, 200)),
    "as large as resized": lambda: jpeg(picture(73, 73)),
    "small": lambda: jpeg(picture(20, 31)),
    "one pixel": lambda: png(Image.new("RGB", (1, 1), (200, 10, 90))),
    "PNG": lambda: png(picture(301, 207)),
    "PNG with alpha": lambda: png(with_alpha(picture(120, 80))),
    "PNG greyscale": lambda: png(picture(120, 80).convert("L")),
    "PNG greyscale with alpha": lambda: png(with_alpha(picture(120, 80).convert("L"))),
    "PNG black and white": lambda: png(picture(120, 80).convert("1")),
    "PNG palette": lambda: palette(200),
    "PNG palette of 3": lambda: palette(3),
    "PNG palette of 14": lambda: palette(14),
    "PNG palette, transparent": lambda: palette(200, transparency=5),
    "PNG RGB, transparent": lambda: png(picture(120, 80), transparency=(1, 2, 3)),
    "PNG 16 bits": lambda: png(deep()),
}


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@functools.lru_cache(maxsize=1)
def encoded_kinds():
    encoded = {}
    for name, make in KINDS.items():
        image, form, options = make()
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        encoded[name] = buffer.getvalue()
    return encoded


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every kind of image, all named .JPEG, as ImageNet names its one PNG."""
    folder = tmp_path_factory.mktemp("kinds")
    paths = [folder / f"{name.replace(' ', '_').replace(':', '')}.JPEG" for name in KINDS]
    for path, content in zip(paths, encoded_kinds().values()):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_mode", ["squash", "center"])
def test_every_kind_of_image_gives_the_pixels_of_the_evaluation_transform(files, crop_mode, interpolation, tmp_path):
    description = spec(64, crop_mode=crop_mode, interpolation=interpolation)
    assert_same_pixels(files, description, tmp_path)


@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (65, 0.9), (33, 1.0), (50, 0.35)])
@pytest.mark.parametrize("crop_mode", ["squash", "center"])
def test_sizes_and_offsets_are_rounded_as_the_evaluation_transform_does(files, size, crop_pct, crop_mode, tmp_path):
    assert_same_pixels(files, spec(size, crop_mode=crop_mode, crop_pct=crop_pct), tmp_path)


@pytest.mark.parametrize("crop_mode", ["squash", "center"])
def test_real_photographs_give_the_pixels_of_the_evaluation_transform(crop_mode, tmp_path):
    photographs = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    assert len(photographs) == 2
    assert_same_pixels(photographs, spec(224, crop_mode=crop_mode), tmp_path)


def test_all_16_bit_values_are_scaled_as_in_python(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(path)
    description = spec(256, crop_pct=1.0)
    got = preprocess([path], description, tmp_path)[0]
    assert np.array_equal(got, load_eval_image(str(path), eval_config(description)))


def decodes_here(encoded):
    try:
        decode(encoded)
    except UndecodableImage:
        return False
    return True


def decodes_there(path, folder):
    (folder / "spec.json").write_text(json.dumps(spec()))
    command = [build() / "preprocess_images", folder / "spec.json", folder / "tensor.bin", path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr
    assert done.returncode == 0 or done.stderr.count("\n") == 1
    return done.returncode == 0


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "greyscale", "PNG"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.97, -2, -1])
def test_a_cut_file_decodes_here_and_there_or_nowhere(kind, keep, tmp_path):
    content = encoded_kinds()[kind]
    cut = content[: int(len(content) * keep) if keep >= 0 else int(keep)]
    path = tmp_path / "cut.JPEG"
    path.write_bytes(cut)
    assert decodes_there(path, tmp_path) == decodes_here(cut)


@pytest.mark.parametrize("content", [b"", b"\xff", b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_what_is_no_image_is_refused(content, tmp_path):
    path = tmp_path / "broken.JPEG"
    path.write_bytes(content)
    assert not decodes_there(path, tmp_path)


def test_mutated_images_crash_nothing_under_sanitizers(tmp_path):
    """A short run of what benchmarks/sanitizers_310.py does at length."""
    folder = PROJECT / "ascend310_infer" / "build-address"
    configure = ["cmake", "-S", folder.parent, "-B", folder, "-DSANITIZE=address,undefined"]
    subprocess.run(list(map(str, configure)), check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(folder), "-j2", "--target", "fuzz_images"], check=True, capture_output=True)
    (tmp_path / "spec.json").write_text(json.dumps(spec()))
    seeds = []
    for name in ("4:2:0", "progressive", "greyscale", "CMYK", "restart markers", "PNG palette", "PNG 16 bits"):
        seeds.append(tmp_path / f"{len(seeds)}.bin")
        seeds[-1].write_bytes(encoded_kinds()[name])
    command = [folder / "fuzz_images", tmp_path / "spec.json", 400, 1, *seeds]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    decoded = int(done.stdout.split()[1])
    assert 40 < decoded < 360, "mutations should neither all break the images nor all be harmless"


@pytest.mark.parametrize("own", ["cat/photo.png", "notes.txt", "cat/more/a.bmp.png"])
def test_a_folder_that_no_earlier_run_has_written_is_not_removed(own, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    (tmp_path / ("b" * 248 + ".bmp")).write_bytes((tmp_path / "a.bmp").read_bytes())  # its PNG gets a short name
    for _ in range(2):
        assert convert([tmp_path / "a.bmp", tmp_path / ("b" * 248 + ".bmp")], tmp_path / "converted") == 2
    assert convert([], tmp_path / "converted") == 0 and not (tmp_path / "converted").exists()
    (tmp_path / "converted" / own).parent.mkdir(parents=True)
    (tmp_path / "converted" / own).write_text("mine")
    with pytest.raises(UserError, match=Path(own).parts[-1] if own != "cat/more/a.bmp.png" else "more"):
        convert([tmp_path / "a.bmp"], tmp_path / "converted")
    assert (tmp_path / "converted" / own).read_text() == "mine"
