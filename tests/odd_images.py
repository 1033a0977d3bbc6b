"""Odd JPEG and PNG files, drawn from a seed: rare kinds, unusual structure, and damage of every sort.

Used by tests/test_image_files.py for a few hundred and by benchmarks/infer_310_agreement.py for many.
"""

import base64
import io
import struct
import subprocess
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image

from src.data.decode import decode
from src.data.image_files import UndecodableImage

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

# Arithmetically coded JPEGs of 40 x 24 pixels, sequential and progressive, by cjpeg, as Pillow writes none.
ARITHMETIC = (
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01XKW3knDg3knMk4h;_zAQcl55)&sJ9v2`kDKRiEDJ?8BI!Zn>HbyrrEkIX6ModmpQ&KWM"
    "T47pHU`kO^PygEhLjevB4iga*CKVMXPc<zyPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPf!2J"
    "01*fP7yu{(0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zfGtmwoJ`I#SB?JcDTLaYb}y3vCBkX{fytIVb?v%c96ITPXU"
    "K-BF;(|BA3gj}Z@A2yH+`9e5!8UFx5n1-?Z0t!84b>Hn@=*67_?|23DAsR(GkYJw@dmiG{+tQF5E-c|JJzU-c_$w^ww#+q@aVNol"
    "=&vEcbr1dEG**6e;P*I*O+B;MDU#lp|Je",
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01XKW3knDg3knMk4h;_zAQcl55)&sJ9v2`kDKRiEDJ?8BI!Zn>HbyrrEkIX6ModmpQ&KWM"
    "T47pHU`kO^PygEhLjevB4iga*CKVMXPc<zyPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zPf!2K"
    "01*fP7yu{(0U`hb5di}c0sqVZ1^^HN5dYc$3<CiG0uTcb0005agH>p()jaBe1xBe<WoS33G-B|!WF9ba|I7dc5C#9*00;pA009L8"
    "9-sz9`2jUJjF5N`zOety00a>Q|Jncu0RsU6KLHPZ>$JLBv6KsWa@u>-%sBtd00a>Q|Jncu0RjO5KLHd45Cy%FJE+Gn(gEQLp~w*b"
    "%m4%s1^?Or2mt{A20sF@|I7dc5C#9*00;pA00BQC01QaY0nlcpICxw?%KzE`3<CiG0ssR5000n?rK<68|I7dc5e5I+00;pC0RcY{"
    "!v6q*tk&jOoJ9Z300a>Q|Jncu0RjO5KM?&@H0w=#(Ra(_%>T>)1P}%P+5iXv0RRC%5JgF7yCoM)*N?9U@?-R}VI|+aYQU&Z|Je",
)


def photo_like(width: int, height: int, seed: int) -> Image.Image:
    """Waves of colour with noise."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([127 + 100 * np.sin(x / 17 + c) * np.cos(y / 13 - c * 2) for c in range(3)], -1)
    noise = np.random.default_rng(seed).normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **keys) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **keys)
    return file.getvalue()


@lru_cache(maxsize=1)
def whole_jpegs() -> tuple[bytes, ...]:
    """JPEGs of every kind that is read."""
    image = photo_like(75, 58, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    keys = (
        *({"subsampling": name} for name in ("4:4:4", "4:2:2", "4:2:0")),
        *({"progressive": True, "subsampling": name} for name in ("4:4:4", "4:2:0")),
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3, "progressive": True},
        {"quality": 5},
        {"quality": 100},
        {"optimize": True},
        {"exif": exif.tobytes()},
        {"icc_profile": b"not a profile" * 20},
        {"comment": b"a comment"},
    )
    files = [encoded(image, "JPEG", **key) for key in keys]
    files.append(encoded(image, "MPO", save_all=True, append_images=[photo_like(75, 58, 3)]))
    for mode in ("L", "CMYK"):
        files += [encoded(image.convert(mode), "JPEG", progressive=progressive) for progressive in (False, True)]
    return (*files, *map(base64.b85decode, ARITHMETIC))


def jpeg_segments(data: bytes) -> tuple[list[bytes], bytes]:
    """The segments before the first scan, each with its marker, and the rest."""
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append(data[at:end])
        at = end
    return segments, data[at:]


def odd_jpeg(rng: np.random.Generator) -> bytes:
    """A whole JPEG with zero to three changes of structure, and perhaps damaged bytes."""
    files = whole_jpegs()
    segments, scans = jpeg_segments(files[rng.integers(len(files))])
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    for _ in range(rng.integers(4)):
        place = int(rng.integers(len(segments) + 1))
        some = int(rng.integers(len(segments)))
        change = int(rng.integers(13))
        if change == 0:
            segments.insert(place, bytes([0xFF, rng.integers(256)]) + _sized(rng.bytes(int(rng.integers(40)))))
        elif change == 1:
            segments.insert(place, adobe + bytes([rng.integers(4)]))
        elif change == 2:
            del segments[some]
        elif change == 3:
            segments.insert(place, segments[some])
        elif change == 4:
            segments.insert(place, segments.pop(some))
        elif change == 5:
            segments.insert(place, rng.bytes(int(rng.integers(1, 5))))  # between the segments
        elif change == 6:
            segments.insert(place, b"\xff" * int(rng.integers(1, 4)))
        elif change == 7:  # the frame's fields
            frame = next((i for i, s in enumerate(segments) if len(s) > 9 and s[1] in (0xC0, 0xC1, 0xC2)), None)
            if frame is not None:
                segments[frame] = _changed(segments[frame], int(rng.integers(1, len(segments[frame]))), rng)
        elif change == 8:
            segments[some] = _changed(segments[some], int(rng.integers(len(segments[some]) or 1)), rng)
        elif change == 9:
            scans += [rng.bytes(50), bytes(50), b"\xff\xd9", files[0]][rng.integers(4)]
        elif change == 10:
            scans = scans[: int(rng.integers(len(scans) + 1))] + [b"", b"\xff\xd9"][rng.integers(2)]
        elif change == 11:  # a restart marker or the start of a scan is lost
            at = scans.find(bytes([0xFF, [0xD1, 0xD2, 0xDA, 0xC4][rng.integers(4)]]), 2)
            scans = scans[:at] + scans[at + 2 :] if at > 0 else scans
        else:
            at = int(rng.integers(len(scans) + 1))
            scans = scans[:at] + rng.bytes(int(rng.integers(1, 9))) + scans[at + int(rng.integers(9)) :]
        segments = segments or [b""]
    data = b"\xff\xd8" + b"".join(segments) + scans
    return damaged(data, rng) if rng.random() < 0.3 else data


def _sized(body: bytes) -> bytes:
    return struct.pack(">H", len(body) + 2) + body


def _changed(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at] + bytes([rng.integers(256)]) + data[at + 1 :]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes flipped, lost, repeated or cut off."""
    kind = rng.integers(4)
    at = int(rng.integers(len(data) + 1))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + int(rng.integers(1, 9)) :]
    if kind == 2:
        return data[:at] + data[max(0, at - int(rng.integers(1, 9))) :]
    values = bytearray(data)
    for place in rng.integers(0, len(values), int(rng.integers(1, 4))) if values else ():
        values[place] ^= 1 << int(rng.integers(8))
    return bytes(values)


def chunk(name: bytes, body: bytes, bad: bool = False) -> bytes:
    """A PNG chunk, its CRC wrong if `bad`."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ bad)


def raw_rows(width: int, height: int, bits: int, interlaced: bool, rng: np.random.Generator) -> bytes:
    """A PNG's image data before compression: rows of noise, each with a filter type."""
    rows = []
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, lines = -(-(width - left) // across), -(-(height - top) // down)
        for _ in range(lines if columns > 0 else 0):
            rows.append(bytes([rng.integers(5)]) + rng.bytes((columns * bits + 7) // 8))
    return b"".join(rows)


def odd_png(rng: np.random.Generator) -> bytes:
    """A PNG of any kind with zero to three changes of structure, and perhaps damaged bytes."""
    color = int(rng.choice([0, 2, 3, 4, 6]))
    depth = int(rng.choice(DEPTHS[color]))
    width, height, interlaced = int(rng.integers(1, 40)), int(rng.integers(1, 40)), bool(rng.integers(2))
    header = bytearray(struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))
    raw = raw_rows(width, height, depth * CHANNELS[color], interlaced, rng)
    colors = 2**depth if color == 3 else 0
    palette = rng.bytes(3 * colors)
    transparency = {0: 2, 2: 6, 3: max(1, colors // 2)}.get(color, 1)
    before, after, pieces = [], [], 1
    bad_header = bad_data = False
    stream = None
    for _ in range(rng.integers(4)):
        change = int(rng.integers(14))
        place = before if rng.integers(2) else after
        if change == 0:
            place.append(chunk(b"tRNS", rng.bytes(transparency), bool(rng.integers(2))))
        elif change == 1:
            name = [b"tEXt", b"iCCP", b"gAMA", b"zTXt", b"iTXt", b"eXIf", b"pHYs", b"sRGB", b"acTL", b"fcTL", b"cHRM"]
            place.append(chunk(name[rng.integers(len(name))], rng.bytes(int(rng.integers(40))), bool(rng.integers(2))))
        elif change == 2:
            place.append(chunk(b"zTXt", b"Raw\0\0" + zlib.compress(bytes(3_000_000))))
        elif change == 3:
            place.append(chunk([b"ABCD", b"CgBI", b"IEND", b"IHDR", b"PLTE"][rng.integers(5)], rng.bytes(13)))
        elif change == 4:
            palette = palette[: int(rng.integers(len(palette) + 1))]
        elif change == 5:
            palette += rng.bytes(int(rng.integers(1, 400)))
        elif change == 6:
            header[rng.integers(8, 13)] = rng.integers(8)
        elif change == 7:
            header[[3, 7][rng.integers(2)]] = rng.integers(50)
        elif change == 8:
            raw = raw[: int(rng.integers(len(raw) + 1))]
        elif change == 9:
            raw += rng.bytes(int(rng.integers(1, 2000)))
        elif change == 10:
            raw = damaged(raw, rng)  # among them unknown filters
        elif change == 11:
            stream = damaged(stream or zlib.compress(raw), rng)
        elif change == 12:
            bad_header, bad_data = rng.random() < 0.2, True
        else:
            pieces = int(rng.integers(1, 6))
    stream = stream or zlib.compress(raw, int(rng.integers(10)))
    cuts = sorted(rng.integers(0, len(stream) + 1, pieces - 1).tolist())
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)])]
    data = [chunk(b"IDAT", part, bad_data and rng.random() < 0.5) for part in parts]
    if rng.random() < 0.03:
        data.insert(int(rng.integers(len(data) + 1)), chunk(b"tEXt", b"a\0b"))
    chunks = [chunk(b"IHDR", bytes(header), bad_header), *before]
    chunks += [chunk(b"PLTE", palette)] if palette else []
    chunks += [*data, *after, chunk(b"IEND", b"")]
    if rng.random() < 0.05:
        del chunks[rng.integers(len(chunks))]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return damaged(content, rng) if rng.random() < 0.15 else content


def odd_image(seed: int, number: int) -> bytes:
    """The image of this number: a JPEG or a PNG."""
    rng = np.random.default_rng((seed, number))
    return (odd_jpeg, odd_png)[number % 2](rng)


def pixels_here(content: bytes) -> Union[np.ndarray, str]:
    """What the Python side makes of a file: uint8 (H, W, 3), or why it refuses it."""
    try:
        return np.asarray(decode(content))
    except UndecodableImage as error:
        return str(error)


def pixels_there(program: Path, paths: list[Path], folder: Path) -> list[Union[np.ndarray, str]]:
    """What the C++ program's tool makes of the same files."""
    output = folder / "pixels.bin"
    done = subprocess.run(
        [program, "--pixels", output, *paths], capture_output=True, text=True, errors="replace", timeout=600
    )
    assert done.returncode == 0, done.stderr
    verdicts, data, at, results = done.stdout.splitlines(), output.read_bytes(), 0, []
    assert len(verdicts) == len(paths)
    for verdict in verdicts:
        width, height = struct.unpack("=ii", data[at : at + 8])
        end = at + 8 + width * height * 3
        results.append(np.frombuffer(data[at + 8 : end], np.uint8).reshape(height, width, 3))
        at = end
        if verdict != "decoded":
            assert results[-1].size == 0
            results[-1] = verdict
    return results


def difference(here: Union[np.ndarray, str], there: Union[np.ndarray, str]) -> str:
    """What the two sides disagree in; empty where they agree: refused by both, or the same pixels."""
    if isinstance(here, str) or isinstance(there, str):
        if isinstance(here, str) and isinstance(there, str):
            return ""
        verdicts = [side if isinstance(side, str) else "decoded" for side in (here, there)]
        return f"Python: {verdicts[0]}; C++: {verdicts[1]}"
    if here.shape != there.shape:
        return f"sizes: Python {here.shape}, C++ {there.shape}"
    off = np.abs(here.astype(int) - there.astype(int))
    return f"{(off > 0).any(axis=-1).sum()} pixels differ, by up to {off.max()}" if off.any() else ""
