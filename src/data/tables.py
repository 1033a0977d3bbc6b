"""Tables of numbers and names on disk, as .npz: whole and unchanged, or an error.

`numpy.load` allocates what a damaged header declares and raises a dozen kinds of errors. Here every array is as large
as its bytes, and a checksum covers all of them.
"""

import hashlib
import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from src.files import atomic_write, open_regular

LARGEST = 4 << 30  # bytes; ImageNet's listing takes 55 MB
_CHECKSUM = "sha256"


class DamagedTable(ValueError):
    """The file is no table, or not as it was written."""


def write_table(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays under their names, atomically, with a checksum.

    Raises:
        UserError: the file cannot be written.
    """
    checksum = np.frombuffer(_digest(arrays), np.uint8)
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays, **{_CHECKSUM: checksum})


def read_table(path: Path, checked: bool = True) -> dict[str, np.ndarray]:
    """The arrays of a table.

    Args:
        path: the file.
        checked: refuse a table without a checksum, as earlier versions wrote it.

    Raises:
        DamagedTable: the file is no table, or not as it was written.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if size > LARGEST:
            raise DamagedTable(f"is larger than {LARGEST >> 30} GB")
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if sum(member.file_size for member in members) > size:
                    raise DamagedTable("is no table")
                arrays = {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
        except DamagedTable:
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds of errors on damaged bytes
            raise DamagedTable(f"is no table ({type(error).__name__})") from error
    checksum = arrays.pop(_CHECKSUM, None)
    if checksum is None and checked:
        raise DamagedTable("has no checksum")
    if checksum is not None and checksum.tobytes() != _digest(arrays):
        raise DamagedTable("its checksum does not match")
    return arrays


def _array(content: bytes) -> np.ndarray:
    """An .npy file's array, without a copy."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():  # NumPy takes some damage for a file of Python 2
        warnings.simplefilter("ignore")
        shape, is_fortran, kind = read_header(stream)
    if kind.hasobject or is_fortran:
        raise DamagedTable("is no table")
    return np.frombuffer(content, kind, offset=stream.tell()).reshape(shape)


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    whole = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        whole.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        whole.update(array.view(np.uint8).data if array.size else b"")
    return whole.digest()
