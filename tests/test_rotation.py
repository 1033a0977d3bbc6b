"""EXIF rotations are found as Pillow finds them, and told of; whatever the bytes are, finding them ends."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data import create_dataset
from src.data.rotation import count_rotated, rotation, rotation_note
from tests.photos import make_config, make_folder, small_photos

ORIENTATION = 0x0112


def photograph(orientation=None, kind="JPEG", **keys) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "A maker of cameras"
    if orientation is not None:
        exif[ORIENTATION] = orientation
    exif[0x0131] = "software " * 50
    stream = io.BytesIO()
    small_photos()[0].save(stream, kind, exif=exif, **keys)
    return stream.getvalue()


def as_big_endian(encoded: bytes) -> bytes:
    """The same photograph with the smallest EXIF data of the other byte order."""
    start = encoded.index(b"Exif\0\0")
    length = int.from_bytes(encoded[start - 2 : start], "big")
    value = rotation(encoded)
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + value.to_bytes(2, "big") + b"\0\0\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return encoded[: start - 2] + (len(body) + 2).to_bytes(2, "big") + body + encoded[start + length - 2 :]


@pytest.mark.parametrize("orientation", [None, *range(10)])
@pytest.mark.parametrize("other", [lambda encoded: encoded, as_big_endian], ids=["little endian", "big endian"])
def test_the_rotation_is_the_one_that_pillow_reads(orientation, other):
    encoded = photograph(orientation)
    if other is as_big_endian:
        encoded = as_big_endian(encoded)
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        want = image.getexif().get(ORIENTATION, 1)
    assert rotation(encoded) == (want if 1 <= want <= 8 else 1)


def test_what_stands_before_the_exif_data_does_not_hide_it():
    encoded = photograph(6, comment=b"a comment", icc_profile=b"x" * 3000)
    assert rotation(encoded) == 6
    assert rotation(encoded[:2] + b"\xff\xe1\x00\x0chttp://xmp" + encoded[2:]) == 6


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80), st.integers(0, 120), st.integers(0, 200))
def test_any_bytes_have_some_rotation(noise, place, cut):
    encoded = photograph(3)
    assert 1 <= rotation(encoded[:place] + noise + encoded[place + len(noise) :]) <= 8
    assert 1 <= rotation(encoded[:cut]) <= 8
    assert rotation(b"\xff\xd8\xff" + noise) in range(1, 9)
    assert rotation(noise) == 1 or noise.startswith(b"\xff\xd8\xff")


def test_a_sample_of_the_training_images_tells_how_many_are_rotated(tmp_path):
    make_folder(tmp_path, train=6)
    for number in (1, 4):
        (tmp_path / "train" / "class_1" / f"{number:03d}.jpg").write_bytes(photograph(8))
    (tmp_path / "train" / "class_2" / "000.jpg").write_bytes(b"no image")
    assert count_rotated(create_dataset(make_config(tmp_path), "train").samples) == (2, 18)


def test_the_line_says_how_many_and_where_to_read_on():
    assert rotation_note(0, "of 9 images") == []
    (line,) = rotation_note(2, "of 9 images")
    assert line.startswith("2 of 9 images carry a rotation") and "docs/own_photos.md" in line
