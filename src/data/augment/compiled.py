"""Pillow's resampling arithmetic over whole rows, for numba to compile; `kernels` is the way in.

An image is an array uint8 (H, W, 4): red, green, blue and a byte without meaning, which is how Pillow stores RGB.
"""

import math
from typing import Callable

import numpy as np
from numba import njit

BITS = 22  # of the fraction in the fixed-point weights
_HALF = np.int32(1 << (BITS - 1))


def compiled(function: Callable) -> Callable:
    """Compile without the interpreter lock; keep the machine code on disk where a folder for it can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@compiled
def _weight(x: float, kind: int) -> float:
    x = abs(x)
    if kind == 0:
        return max(1.0 - x, 0.0)
    if kind == 1:
        if x < 1.0:
            return (1.5 * x - 2.5) * x * x + 1.0
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 if x < 2.0 else 0.0
    if x >= 3.0:
        return 0.0
    if x == 0.0:
        return 1.0
    x = x * math.pi
    return math.sin(x) / x * math.sin(x / 3.0) / (x / 3.0)


@compiled
def _weights(length: int, side: int, kind: int, support: float) -> tuple:
    """For each of `side` places: the first of the `length` places that it draws on, how many, and their weights."""
    scale = length / side
    stretch = max(scale, 1.0)
    reach = support * stretch
    first, count = np.empty(side, np.uint64), np.empty(side, np.uint64)
    weights = np.zeros((side, 2 * math.ceil(reach) + 1), np.int32)
    exact = np.empty(weights.shape[1])
    for place in range(side):
        centre = (place + 0.5) * scale
        low = max(int(centre - reach + 0.5), 0)
        high = min(int(centre + reach + 0.5), length)
        total = 0.0
        for i in range(high - low):
            exact[i] = _weight((i + low - centre + 0.5) * (1.0 / stretch), kind)
            total += exact[i]
        for i in range(high - low):
            fixed = exact[i] / total * (1 << BITS)
            weights[place, i] = int(fixed - 0.5) if fixed < 0 else int(fixed + 0.5)
        first[place], count[place] = low, high - low
    return first, count, weights


@compiled
def _combine_rows(source: np.ndarray, out: np.ndarray, kind: int, support: float) -> None:
    """Each row of `out` (side, n) is a weighted sum of rows of `source` (length, n)."""
    first, count, weights = _weights(source.shape[0], out.shape[0], kind, support)
    n = source.shape[1]
    total = np.empty(n, np.int32)
    for place in range(out.shape[0]):
        total[:] = _HALF
        for i in range(count[place]):
            weight, row = weights[place, i], first[place] + np.uint64(i)
            for x in range(n):
                total[x] = np.int32(total[x] + np.int32(np.int32(source[row, x]) * weight))
        for x in range(n):
            out[place, x] = np.uint8(min(max(total[x] >> BITS, 0), 255))


@compiled
def _transpose(source: np.ndarray, out: np.ndarray) -> None:
    """Transpose whole pixels, uint32, in strips that stay in the first cache."""
    height, width = source.shape
    for top in range(0, height, 16):
        bottom = min(top + 16, height)
        for x in range(width):
            for y in range(top, bottom):
                out[x, y] = source[y, x]


@compiled
def resize(source: np.ndarray, side: int, kind: int, support: float) -> np.ndarray:
    height, width, _ = source.shape
    if width == side:
        narrow = source
    else:
        columns = np.empty((width, height), np.uint32)
        _transpose(source.reshape(height, width * 4).view(np.uint32), columns)
        fewer = np.empty((side, height * 4), np.uint8)
        _combine_rows(columns.view(np.uint8), fewer, kind, support)
        rows = np.empty((height, side), np.uint32)
        _transpose(fewer.view(np.uint32), rows)
        narrow = rows.view(np.uint8).reshape(height, side, 4)
    if height == side:
        return narrow
    out = np.empty((side, side, 4), np.uint8)
    _combine_rows(narrow.reshape(height, side * 4), out.reshape(side, side * 4), kind, support)
    return out


@compiled
def shift_columns(source: np.ndarray, out: np.ndarray, shear: float, shift: float) -> None:
    """Pillow's bicubic where output (x, y) shows input (x + shear * y + shift, y); both uint8 (H, W, 4)."""
    height, width, _ = source.shape
    row, share = np.empty((width + 3) * 4, np.uint8), np.empty(width * 4, np.float64)
    for y in range(height):
        begin, end = width, 0
        for x in range(width):
            place = (x + 0.5) + shear * (y + 0.5) + shift
            if 0.0 <= place < width:
                begin, end = min(begin, x), x + 1
        x = begin
        while x < end:  # runs of the same whole offset: a row, save where rounding meets a whole number
            offset = math.floor((x + 0.5) + shear * (y + 0.5) + shift - 0.5) - x
            first = x
            while x < end:
                place = (x + 0.5) + shear * (y + 0.5) + shift - 0.5
                low = math.floor(place)
                if low - x != offset:
                    break
                share[4 * x : 4 * x + 4] = place - low
                x += 1
            for i in range(first, x + 3):
                column = min(max(i + offset - 1, 0), width - 1)
                for c in range(4):
                    row[4 * i + c] = source[y, column, c]
            _cubic(row[4 * first : 4 * x + 12], share[4 * first : 4 * x], out[y].reshape(width * 4)[4 * first : 4 * x])


@compiled
def _cubic(row: np.ndarray, share: np.ndarray, out: np.ndarray) -> None:
    """Pillow's cubic through four neighbours, a share of the way from the second to the third, cut to 8 bits."""
    for i in range(out.shape[0]):
        v1, v2 = np.float64(row[i]), np.float64(row[i + 4])
        v3, v4 = np.float64(row[i + 8]), np.float64(row[i + 12])
        d = share[i]
        value = v2 + d * ((v3 - v1) + d * ((2.0 * (v1 - v2) + v3 - v4) + d * (v2 - v1 + v4 - v3)))
        out[i] = np.uint8(np.int32(min(max(value, 0.0), 255.0)))


@compiled
def shift_rows(source: np.ndarray, out: np.ndarray, shear: float, shift: float) -> None:
    """The same for input (x, y + shear * x + shift)."""
    height, width, _ = source.shape
    turned, shifted = np.empty((width, height), np.uint32), np.empty((width, height), np.uint32)
    _transpose(source.reshape(height, width * 4).view(np.uint32), turned)
    flat = out.reshape(height, width * 4).view(np.uint32)
    _transpose(flat, shifted)
    shift_columns(
        turned.view(np.uint8).reshape(width, height, 4), shifted.view(np.uint8).reshape(width, height, 4), shear, shift
    )
    _transpose(shifted, flat)


@compiled
def look_up(source: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    for y in range(source.shape[0]):
        for c in range(3):
            for x in range(source.shape[1]):
                out[c, y, x] = table[c, source[y, x, c]]
