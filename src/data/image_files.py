"""JPEG and PNG files reduced to what their pixels need, and checked, before a decoder sees them.

Decoders differ in what they make of damage, odd metadata and rare kinds. Each file is therefore taken apart here by
rules of our own: what the pixels do not need (text, profiles, EXIF, previews) is dropped unread, what they need must be
whole. `ascend310_infer/src/image_files.cc` follows the same rules, so that both sides take and refuse the same files.
Sources: ITU-T T.81 annex B for JPEG, https://www.w3.org/TR/png-3 for PNG.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Union

from src.files import open_regular

MAX_PIXELS = 64_000_000  # 256 MB once decoded
MAX_SIDE = 65_500  # pixels, libjpeg's own limit
MAX_BYTES = 512 * 2**20  # of a file, which is read into memory whole

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_CUT = "the file is cut off"
_SOI, _EOI, _SOS, _APP0, _APP14, _COM, _TEM, _DNL = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xFE, 0x01, 0xDC
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # Huffman, arithmetic, quantisation, restart interval
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # baseline, sequential, progressive; the last two arithmetically coded
_PROGRESSIVE = (0xC2, 0xCA)
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless and hierarchical
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # that means something: no stuffing, restart or padding
_SMOOTHED = range(1, 10)  # coefficients in zigzag order
MOST_SCANS = 100  # encoders write a dozen; each takes as long as its pixels do, and may itself be a few bytes
_PIECE = 2**16  # bytes inflated at once
_PALETTE = 3


class UndecodableImage(Exception):
    """The bytes are no image that is read, or a damaged one."""


def read_image(path: Union[str, Path]) -> bytes:
    """An image file's bytes.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device; its text says which.
        UndecodableImage: it is larger than any image that is read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise UndecodableImage(f"it has {size} bytes; at most {MAX_BYTES} are read")
            return file.read(MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        raise OSError(f"it cannot be read ({getattr(error, 'strerror', None) or error})") from error


def is_jpeg_or_png(path: Union[str, Path]) -> bool:
    """Whether a file begins as one; not so where it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(len(_PNG)).startswith((_JPEG, _PNG))
    except (OSError, ValueError):
        return False


def bare_file(encoded: bytes) -> tuple[str, bytes]:
    """Tell a file by its first bytes; reduce and check a JPEG or PNG.

    Returns:
        JPEG or PNG and the reduced file; an empty text and the bytes themselves where it is neither.

    Raises:
        UndecodableImage: the file is empty, damaged, of a kind that is not read, or too large.
    """
    if encoded.startswith(_JPEG):
        return "JPEG", bare_jpeg(encoded)
    if encoded.startswith(_PNG):
        return "PNG", bare_png(encoded)
    if not encoded:
        raise UndecodableImage("the file is empty")
    return "", encoded


def check_size(width: int, height: int) -> None:
    """Refuse an image without pixels, or with more than there should be memory for."""
    if width < 1 or height < 1:
        raise UndecodableImage("it has no pixels")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise UndecodableImage(
            f"it has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million and {MAX_SIDE} a side are read"
        )


def bare_jpeg(encoded: bytes) -> bytes:
    """The frame, tables and scans of a JPEG, with its JFIF and Adobe marks in their plainest form.

    What stands before the first scan is checked as far as its structure goes; the rest is the decoder's to judge, save
    that there are not too many scans, and that a progressive image must have come to its last one.
    """
    parts, at, framed, progressive = [b"\xff\xd8"], 2, b"", False
    while True:
        found = _MARKER.search(encoded, at)
        if not found:
            raise UndecodableImage(_CUT)
        at, marker = found.end(), found[0][1]
        if marker in (_SOI, _EOI):
            raise UndecodableImage("it holds no scan")
        if at + 2 > len(encoded):
            raise UndecodableImage(_CUT)
        end = at + int.from_bytes(encoded[at : at + 2], "big")
        if end < at + 2:
            raise UndecodableImage("a JPEG segment has no length")
        if end > len(encoded):
            raise UndecodableImage(_CUT)
        body = encoded[at + 2 : end]
        if marker in _FRAMES:
            if framed:
                raise UndecodableImage("it has two frames")
            _check_frame(body)
            framed, progressive = body, marker in _PROGRESSIVE
        if marker in _FRAMES or marker in _TABLES:
            parts.append(encoded[at - 2 : end])
        elif marker == _SOS:
            if not framed:
                raise UndecodableImage("it has a scan before its frame")
            if progressive or body[:1] != framed[5:6]:  # or what may go on with other components
                _check_scans(encoded, at - 2, framed[6::3], progressive)
            parts.append(b"\xff\xda" + encoded[at:])
            return b"".join(parts)
        elif marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
            parts.append(_JFIF)
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            parts.append(_ADOBE + body[11:12])  # the colour transform
        elif marker in _OTHER_FRAMES:
            raise UndecodableImage("a lossless or hierarchical JPEG, which is not read")
        elif not (0xE0 <= marker <= 0xEF or marker in (_COM, _DNL)):
            raise UndecodableImage(f"it has an unknown JPEG marker {marker:#04x}")
        at = end


def _check_frame(body: bytes) -> None:
    """A frame header: bits, height, width, components, and three bytes for each of them."""
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise UndecodableImage("its JPEG frame header is damaged")
    bits, height, width, components = struct.unpack(">BHHB", body[:6])
    if bits != 8:
        raise UndecodableImage(f"a JPEG of {bits} bits, which is not read; 8 are")
    if components not in (1, 3, 4):
        raise UndecodableImage(f"a JPEG of {components} components, which is not read; 1, 3 and 4 are")
    check_size(width, height)


def _check_scans(encoded: bytes, at: int, components: bytes, progressive: bool) -> None:
    """Refuse an image of endless scans, the first at `at`, or a progressive one that leaves low frequencies unknown.

    libjpeg would smooth what is missing, each version in its own way.
    """
    known = {component: [-1] * 64 for component in components}
    scans = 0
    match = _MARKER.search(encoded, at)
    while match and match[0][1] != _EOI:
        start = match.end() + 2
        end = match.end() + int.from_bytes(encoded[match.end() : start], "big")
        if match[0][1] == _SOS and start <= len(encoded):
            scans += 1
            if scans > MOST_SCANS:
                raise UndecodableImage(f"it has more than {MOST_SCANS} scans")
        if match[0][1] == _SOS and end <= len(encoded):
            body = encoded[start:end]
            count = body[0] if body else 0
            if len(body) == 4 + 2 * count:
                first, last, bits = body[-3:]
                for component in body[1:-3:2]:
                    for coefficient in range(first, min(last, 63) + 1):
                        known.setdefault(component, [-1] * 64)[coefficient] = bits & 15
        match = _MARKER.search(encoded, max(end, start))
    missing = len(known) != len(components) or any(known[c][k] for c in components for k in _SMOOTHED)
    if progressive and missing:
        raise UndecodableImage("its progressive scans are not all there")


def bare_png(encoded: bytes) -> bytes:
    """A PNG of IHDR, a full palette, and the image data, uncompressed.

    Chunks that may be ignored are passed over unread, so nothing in them matters; the others must be whole, known and
    their CRC right, and so must the compressed stream, with its checksum. What follows the image data does not count.
    """
    header, palette = b"", b""
    pieces: list[memoryview] = []
    for name, body, checksum in _chunks(encoded):
        if pieces and name != b"IDAT":
            break
        if name[0] & 0x20:  # ancillary
            if not header:
                raise UndecodableImage("its first PNG chunk is not IHDR")
            continue
        if zlib.crc32(body, zlib.crc32(name)) != checksum:
            raise UndecodableImage(f"its PNG chunk {_text(name)} is damaged: the checksum is wrong")
        if (name == b"IHDR") != (not header):
            raise UndecodableImage("its first PNG chunk is not IHDR" if not header else "it has two PNG chunks IHDR")
        if name == b"IHDR":
            header = _check_header(body)
        elif name == b"PLTE" and header[9] == _PALETTE:
            if palette or not 0 < len(body) <= 768 or len(body) % 3:
                raise UndecodableImage("its PNG palette is damaged")
            palette = bytes(body)
        elif name == b"IDAT":
            if header[9] == _PALETTE and not palette:
                raise UndecodableImage("a PNG with a palette, but its chunk PLTE is missing")
            pieces.append(body)
        elif name != b"PLTE":  # a suggestion where the image has no palette
            raise UndecodableImage(
                "it holds no image data" if name == b"IEND" else f"an unknown PNG chunk {_text(name)}"
            )
    if not pieces:
        raise UndecodableImage(_CUT)
    parts = [_PNG, _chunk(b"IHDR", header)]
    if palette:
        full = 3 << header[8]
        parts.append(_chunk(b"PLTE", palette[:full].ljust(full, b"\0")))  # colours beyond the palette are black
    return b"".join([*parts, _chunk(b"IDAT", _stored(pieces, _raw_size(header))), _chunk(b"IEND", b"")])


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Name, body and checksum of each chunk of a PNG."""
    view, at = memoryview(encoded), len(_PNG)
    while at < len(encoded):
        if at + 8 > len(encoded):
            raise UndecodableImage(_CUT)
        length, name = struct.unpack(">I4s", view[at : at + 8])
        end = at + 8 + length
        if end + 4 > len(encoded):
            raise UndecodableImage(_CUT)
        yield name, view[at + 8 : end], int.from_bytes(view[end : end + 4], "big")
        at = end + 4


def _check_header(body: memoryview) -> bytes:
    if len(body) != 13:
        raise UndecodableImage("its PNG header is damaged")
    width, height, depth, color, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if depth not in _DEPTHS.get(color, ()) or compression or filtering or interlace > 1:
        raise UndecodableImage("its PNG header names a kind that there is not")
    check_size(width, height)
    return bytes(body)


def _raw_size(header: bytes) -> int:
    """How many bytes the image data inflate to: each row of each pass has a filter byte."""
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS[color]
    total = 0
    for left, top, across, down in _ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _stored(pieces: list[memoryview], size: int) -> bytes:
    """Inflate a zlib stream that must be whole, and wrap its first `size` bytes as a stream without compression.

    The memory that this takes is bounded by `size`, whatever the stream would inflate to.
    """
    inflater, wrapper, left, parts = zlib.decompressobj(), zlib.compressobj(0), size, []
    slices = (piece[at : at + _PIECE] for piece in pieces for at in range(0, len(piece), _PIECE))
    try:
        for piece in slices:
            data = bytes(piece)
            while not inflater.eof:
                raw = inflater.decompress(data, 16 * _PIECE)
                parts.append(wrapper.compress(raw[:left]))
                left -= min(left, len(raw))
                data = inflater.unconsumed_tail
                if not data and len(raw) < 16 * _PIECE:
                    break
    except zlib.error as error:
        raise UndecodableImage("its PNG image data are damaged") from error
    if not inflater.eof or left:
        raise UndecodableImage("its PNG image data end too early")
    return b"".join([*parts, wrapper.flush()])


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _text(name: bytes) -> str:
    return name.decode("ascii") if name.isalnum() else name.hex()
