"""JPEG and PNG files: taken and refused by the same rules here and in the C++ program, whatever their state."""

import io
import os
import pickle
import resource
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from src.data.decode import decode, decode_part, to_rgb
from src.data.image_files import MAX_BYTES, UndecodableImage, bare_png, read_image
from tests import odd_images
from tests.infer_310 import PROJECT, build
from tests.odd_images import chunk, encoded, odd_image, photo_like, pixels_here, pixels_there

HEADER = b"\x00\x00\x00\x03\x00\x00\x00\x02\x08\x02\x00\x00\x00"  # 3 x 2 pixels, 8-bit RGB
ROWS = b"\x00" + bytes(range(9)) + b"\x00" + bytes(range(100, 109))
DATA = chunk(b"IDAT", zlib.compress(ROWS))
END = chunk(b"IEND", b"")


def png(*chunks, header=HEADER):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks)


def test_odd_and_damaged_images_get_the_same_verdict_and_pixels_from_the_program(tmp_path):
    """The long run of this is benchmarks/infer_310_agreement.py."""
    contents = [odd_image(7, number) for number in range(600)]
    contents += [many_scans(count, progressive) for count in (3, 100, 101) for progressive in (False, True)]
    paths = [tmp_path / f"{number}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    there = pixels_there(build() / "preprocess_images", paths, tmp_path)
    here = [pixels_here(content) for content in contents]
    differences = {number: odd_images.difference(*pair) for number, pair in enumerate(zip(here, there))}
    assert {number: text for number, text in differences.items() if text} == {}
    decoded = sum(not isinstance(result, str) for result in here)
    assert 200 < decoded < 450, "the images should neither all be whole nor all be broken"


def test_a_png_is_what_its_rows_say():
    np.testing.assert_array_equal(decode(png(DATA, END)), np.array([*range(9), *range(100, 109)]).reshape(2, 3, 3))


@pytest.mark.parametrize(
    "content",
    [
        png(chunk(b"tEXt", b"Comment\0hi", bad=True), DATA, END),
        png(chunk(b"zTXt", b"Raw\0\0" + zlib.compress(bytes(3_000_000))), DATA, END),
        png(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000))), DATA, END),
        png(chunk(b"gAMA", b"?"), DATA, END),
        png(DATA, chunk(b"tEXt", b"a\0b", bad=True), END),
        png(DATA),
        png(DATA, END, b"whatever follows"),
        png(chunk(b"IDAT", zlib.compress(ROWS + b"more")), END),
        png(chunk(b"PLTE", b"suggested"), DATA, END),
    ],
)
def test_what_the_pixels_of_a_png_do_not_need_changes_nothing(content):
    np.testing.assert_array_equal(decode(content), decode(png(DATA, END)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(chunk(b"IDAT", zlib.compress(ROWS), bad=True), END), "chunk IDAT is damaged: the checksum is wrong"),
        (png(chunk(b"CgBI", b""), DATA, END), "an unknown PNG chunk CgBI"),
        (png(chunk(b"IHDR", HEADER), DATA, END), "two PNG chunks IHDR"),
        (b"\x89PNG\r\n\x1a\n" + DATA, "first PNG chunk is not IHDR"),
        (png(DATA, END, header=HEADER[:9] + b"\x03\0\0\0"), "PLTE is missing"),
        (png(DATA, END, header=HEADER[:8] + b"\x04\x02\0\0\0"), "a kind that there is not"),
        (png(DATA, END, header=bytes(4) + HEADER[4:]), "it has no pixels"),
        (png(END), "it holds no image data"),
        (png(chunk(b"IDAT", zlib.compress(ROWS[:-1])), END), "end too early"),
        (png(chunk(b"IDAT", zlib.compress(ROWS)[:-1]), END), "end too early"),
        (png(chunk(b"IDAT", zlib.compress(ROWS)[:-1] + b"\0"), END), "are damaged"),
        (png(DATA)[:-1], "cut off"),
        (png(DATA, END, header=HEADER[:3] + b"\x04" + HEADER[4:]), "end too early"),
    ],
)
def test_a_damaged_png_is_refused_with_the_reason(content, message):
    with pytest.raises(UndecodableImage, match=message):
        decode(content)


def test_colours_beyond_a_short_palette_are_black():
    rows = b"\x00\x00\x01\x02\x00\xff\x01\x00"
    content = png(chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])), chunk(b"IDAT", zlib.compress(rows)), END)
    content = content.replace(chunk(b"IHDR", HEADER), chunk(b"IHDR", HEADER[:9] + b"\x03\0\0\0"))
    black, first, second = [0, 0, 0], [9, 8, 7], [6, 5, 4]
    np.testing.assert_array_equal(decode(content), [[first, second, black], [black, second, first]])


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def test_what_the_pixels_of_a_jpeg_do_not_need_changes_nothing():
    whole = encoded(photo_like(75, 58, 0), "JPEG", quality=90)
    for extra in (
        segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff\x01\x02"),
        segment(0xE2, b"ICC_PROFILE\0\x02\x05" + bytes(40)),
        segment(0xE2, b"MPF\0MM\0*\0\0\0\x08"),
        segment(0xE0, b"JFIF\0\1"),
        segment(0xFE, b"text"),
        b"\xff\xff",
        b"rubbish",
    ):
        np.testing.assert_array_equal(decode(whole[:20] + extra + whole[20:]), decode(whole))
    np.testing.assert_array_equal(decode(whole + b"MotionPhoto\xff\xd8\xff" + bytes(500)), decode(whole))


def many_scans(count, progressive=False):
    """A JPEG that goes over its pixels again and again: a few bytes a scan."""
    whole = encoded(photo_like(75, 58, 0), "JPEG", progressive=progressive)
    first = b"\xff\xda\0\x08\1\1\0\0" + (b"\0\0" if progressive else b"\x3f\0") + b"\0"
    return whole[: whole.index(b"\xff\xda")] + first * count + b"\xff\xd9"


def jpeg(find, replace, **keys):
    whole = encoded(photo_like(75, 58, 0), "JPEG", **keys)
    assert find in whole
    return whole.replace(find, replace, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jpeg(b"\xff\xc0", b"\xff\xc3"), "a lossless or hierarchical JPEG"),
        (jpeg(b"\x00\x11\x08\x00\x3a", b"\x00\x11\x0c\x00\x3a"), "a JPEG of 12 bits"),
        (jpeg(b"\x00\x11\x08\x00\x3a", b"\x00\x11\x08\x00\x00"), "it has no pixels"),
        (jpeg(b"\x00\x11\x08\x00\x3a", b"\x00\x12\x08\x00\x3a"), "frame header is damaged"),
        (jpeg(b"\xff\xc0", b"\xff\xfe"), "a scan before its frame"),
        (jpeg(b"\xff\xc0", b"\xff\xd9\xff\xc0"), "it holds no scan"),
        (jpeg(b"\xff\xda", b"\xff\x02"), "unknown JPEG marker 0x02"),
        (many_scans(101), "more than 100 scans"),
        (many_scans(101, progressive=True), "more than 100 scans"),
        (encoded(photo_like(75, 58, 0), "JPEG")[:300], "cut off"),
        (encoded(photo_like(75, 58, 0), "JPEG")[:-40], "truncated"),
        (encoded(photo_like(75, 58, 0), "JPEG", progressive=True)[:900] + b"\xff\xd9", "scans are not all there"),
    ],
)
def test_a_damaged_jpeg_is_refused_with_the_reason(content, message):
    with pytest.raises(UndecodableImage, match=message):
        decode(content)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", bytes(1000)])
def test_what_is_no_image_is_refused_in_the_same_words_each_time(content):
    messages = set()
    for _ in range(2):
        with pytest.raises(UndecodableImage) as caught:
            decode(content)
        messages.add(str(caught.value))
    assert len(messages) == 1 and "object at 0x" not in messages.pop()


def test_formats_that_are_not_supported_are_not_opened():
    """EPS above all: Pillow hands it to Ghostscript, whoever wrote it."""
    image = photo_like(40, 30, 0)
    for form in ("EPS", "TGA", "PCX", "ICO", "JPEG2000", "PDF"):
        with pytest.raises(UndecodableImage, match="no image of a format that is read"):
            decode(encoded(image, form))


def test_ghostscript_is_never_started(tmp_path):
    stand_in = tmp_path / "gs"
    stand_in.write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n")
    stand_in.chmod(0o755)
    (tmp_path / "x.jpg").write_bytes(encoded(photo_like(40, 30, 0), "EPS"))
    script = "import sys; from src.data.decode import decode; decode(open(sys.argv[1], 'rb').read())"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", script, tmp_path / "x.jpg"]
    assert subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True).returncode == 1
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("form", ["BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_the_other_formats_are_decoded(form):
    image = photo_like(40, 30, 0)
    got = np.asarray(decode(encoded(image, form, **({"lossless": True} if form == "WEBP" else {}))))
    assert np.abs(got.astype(int) - np.asarray(image)).max() <= (60 if form == "GIF" else 0)


@pytest.mark.parametrize(
    ("values", "form", "kind"),
    [
        (np.linspace(0, 1, 1200, dtype=np.float32), "TIFF", "floating-point"),
        (np.linspace(0, 255, 1200).astype(np.int32), "TIFF", "32-bit"),
        (np.linspace(0, 2**31 - 1, 1200).astype(np.int32), "TIFF", "32-bit"),
    ],
)
def test_images_of_unknown_white_are_refused_by_name_and_not_black(values, form, kind):
    content = encoded(Image.fromarray(values.reshape(30, 40)), form)
    with pytest.raises(UndecodableImage, match=f"{kind} values"):
        decode(content)
    with pytest.raises(UndecodableImage, match=f"{kind} values"):
        decode_part(content, lambda width, height: (0, 0, width, height), 32)


@pytest.mark.parametrize("form", ["TIFF", "PNG"])
def test_16_bit_greyscale_is_scaled(form):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = np.asarray(decode(encoded(Image.fromarray(values), form)))
    np.testing.assert_array_equal(got[..., 0], np.rint(values / 257))
    assert (got == got[..., :1]).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"P5 2 2 #" + b"x" * 70_000 + b"\n255\nabcd", "its Netpbm header is damaged"),
        (b"P6 2 2" + b" " * 70_000 + b"255\n" + bytes(12), "its Netpbm header is damaged"),
        (b"P3 1 1 255 " + b"7 " * 9_000_000, "it is a plain Netpbm file of 18000011 bytes"),
    ],
)
def test_a_portable_map_that_pillow_would_read_byte_by_byte_is_refused(content, said):
    with pytest.raises(UndecodableImage, match=said):
        decode(content)


def test_comments_of_portable_maps_change_nothing_and_take_no_time():
    start = time.thread_time()
    plain = decode(b"P2\n# by hand\n2 1 255\n" + b"#\n" * 300_000 + b"7 # seven\n 9")
    binary = decode(b"P5 # a\n#b\n2 1# c\n255\n\x07\x09")
    assert np.asarray(plain).tolist() == np.asarray(binary).tolist() == [[[7] * 3, [9] * 3]]
    assert time.thread_time() - start < 5, "each comment was looked for from the start"


def test_16_bit_portable_greymaps_are_scaled():
    values = np.array([0, 128, 129, 65535], ">u2")
    got = decode(b"P5 4 1 65535\n" + values.tobytes())
    np.testing.assert_array_equal(np.asarray(got)[0, :, 0], [0, 0, 1, 255])


def test_to_rgb_keeps_an_rgb_image():
    image = photo_like(40, 30, 0)
    assert to_rgb(image) is image


@pytest.mark.parametrize("size", [(8001, 8000), (70_000, 1), (1, 70_000), (2**31 - 1, 2**31 - 1)])
def test_images_of_too_many_pixels_are_refused_before_their_memory_is_taken(size):
    header = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big") + b"\x10\x00\0\0\0"
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(UndecodableImage, match=f"it has {size[0]} x {size[1]} pixels; at most 64 million and 65500"):
        decode(png(data, END, header=header))


def test_a_png_that_inflates_without_end_takes_no_memory():
    bomb = zlib.compressobj(9)
    stream = b"".join([bomb.compress(ROWS), *(bomb.compress(bytes(2**20)) for _ in range(300)), bomb.flush()])
    content = png(chunk(b"IDAT", stream), END)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    assert len(bare_png(content)) < 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
    assert time.perf_counter() - start < 30


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "zero.jpg", "folder.jpg", "missing.jpg"):
        with pytest.raises(OSError, match=r"cannot be read \((no regular file|Is a directory|No such file)"):
            read_image(tmp_path / name)


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(30 * 2**30)
    with pytest.raises(UndecodableImage, match=f"it has {30 * 2**30} bytes; at most {MAX_BYTES}"):
        read_image(tmp_path / "sparse.jpg")


def test_no_warning_of_pillow_reaches_the_log(capfd):
    content = encoded(photo_like(40, 30, 0), "TIFF")
    script = "import sys; from src.data.decode import decode; decode(sys.stdin.buffer.read())"
    at = content.rfind(b"\x1b\x01") + 2  # XResolution or the like: its type becomes one that there is not
    for damaged in (content, content[:at] + b"\x63\x00" + content[at + 2 :]):
        done = subprocess.run([sys.executable, "-c", script], input=damaged, cwd=PROJECT, capture_output=True)
        assert b"Warning" not in done.stderr


def test_what_pillow_logs_as_an_error_does_not_reach_the_log_either(caplog):
    samples = bytes.fromhex("1501 0300 0100 0000")  # SamplesPerPixel, a SHORT
    content = encoded(photo_like(40, 30, 0), "TIFF")
    at = content.index(samples) + len(samples)
    with pytest.raises(UndecodableImage):
        decode(content[:at] + b"\x09" + content[at + 1 :])
    assert not caplog.records


def test_the_files_own_name_for_a_buffer_is_io_bytes():
    """What the messages above must not hold comes from here."""
    with pytest.raises(Exception, match="BytesIO object at"):
        Image.open(io.BytesIO(b"no image"))


def test_libtiff_tells_nothing_of_damaged_files_by_itself():
    contents = [encoded(photo_like(40, 30, 0), "TIFF", compression="tiff_lzw") for _ in range(20)]
    script = (
        "import pickle, sys\nfrom src.data.decode import decode\n"
        "for content in pickle.load(sys.stdin.buffer):\n"
        "    try:\n        decode(content)\n    except Exception as error:\n        print(error)"
    )
    damaged = [content[: 8 + 3 * n] + b"\xff" + content[9 + 3 * n :] for n, content in enumerate(contents)]
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(damaged), cwd=PROJECT, capture_output=True, check=True
    )
    assert len(done.stdout.splitlines()) > 5  # refused, and libtiff's lines would stand on standard error
    assert done.stderr == b""
