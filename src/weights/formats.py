"""Files of weights: .ckpt (MindSpore), .safetensors, and PyTorch's .pth, .pt, .bin and .pth.tar, read and written.

A file is read as data: no reader runs code that stands in it, and none allocates what the file only declares.
"""

import io
import logging
import os
import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Optional

import numpy as np

from src.errors import UserError, printable
from src.files import LARGEST, atomic_write, open_regular, read_bytes
from src.weights.names import listed, without_wrappers
from src.weights.pickles import HostilePickle, check_pickles

_log = logging.getLogger(__name__)

SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt", ".bin", ".pth.tar")
MOST_RECORDS = 50_000  # of a .ckpt, and members of a .pth; a network with an optimizer's state has 2,000

# Under which of its keys a PyTorch file has the weights, the first that it has; averaged ones only where there are no
# others.
WRAPPER_KEYS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "net_state_dict", "network_state_dict", "checkpoint", "state_dict_ema", "model_ema", "ema_state_dict", "ema",
    "params_ema",
)  # fmt: skip

_NUMBERS = {  # MindSpore's names of the types of numbers
    "Bool": np.bool_, "Int8": np.int8, "UInt8": np.uint8, "Int16": np.int16, "UInt16": np.uint16, "Int32": np.int32,
    "UInt32": np.uint32, "Int64": np.int64, "UInt64": np.uint64, "Float16": np.float16, "Float32": np.float32,
    "Float64": np.float64, "BFloat16": np.uint16,
}  # fmt: skip
_SAFETENSORS = {
    "BOOL": "Bool", "I8": "Int8", "U8": "UInt8", "I16": "Int16", "U16": "UInt16", "I32": "Int32", "U32": "UInt32",
    "I64": "Int64", "U64": "UInt64", "F16": "Float16", "F32": "Float32", "F64": "Float64", "BF16": "BFloat16",
}  # fmt: skip


def read_weights(path: str) -> dict[str, np.ndarray]:
    """Every array of a file, under the names that it has there, without what wrappers put before them.

    A PyTorch file may hold its weights as they are or under one of the usual keys, `WRAPPER_KEYS`. It is read as
    weights only, so that none can run code.

    Args:
        path: a file whose name ends in one of `SUFFIXES`, in capitals or not.

    Raises:
        UserError: the file is missing, damaged, holds no weights, or would run code; or it needs PyTorch, which is not
            installed.
    """
    suffix = suffix_of(path, "read from")
    try:
        with open_regular(path) as file:
            start = file.read(4)
            size = file.seek(0, 2)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if size == 0:
        raise UserError(f"{path}: the file is empty")
    if size > LARGEST:
        raise UserError(f"{path}: is larger than {LARGEST >> 30} GB; no DDRNet's weights are")
    if suffix == ".ckpt" and start == b"PK\3\4":  # PyTorch Lightning's ending is .ckpt too
        suffix = ".pth"
    try:
        arrays = _READERS.get(suffix, _read_torch)(Path(path))
    except MemoryError:
        raise UserError(f"{path}: this machine's memory does not suffice for its {size / 1e6:,.1f} MB") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not arrays:
        raise UserError(f"{path}: holds no weights")
    bare = without_wrappers(arrays)
    return {bare[name]: array for name, array in arrays.items()}


def write_weights(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays under their names, atomically, in the format that the end of `path` says.

    Raises:
        UserError: `path` has another end, cannot be written, or needs PyTorch, which is not installed.
    """
    write = _WRITERS.get(suffix_of(path, "written to"), _write_torch)
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    with atomic_write(path) as temporary:
        write(temporary, arrays)


def suffix_of(path: str, done: str = "read from") -> str:
    """The one of `SUFFIXES` that a path ends in.

    Raises:
        UserError: it ends in none of them.
    """
    suffix = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path}: weights are {done} files ending in {', '.join(SUFFIXES)}")
    return suffix


def _read_ckpt(file: Path) -> dict[str, np.ndarray]:
    # mindspore.load_checkpoint trusts the sizes that a damaged file gives, and reads beyond the data.
    from google.protobuf.message import DecodeError
    from mindspore.train.checkpoint_pb2 import Checkpoint

    foreign = f"{file}: truncated, damaged, or not a MindSpore checkpoint"
    tensors: dict[str, Any] = {}
    pieces: defaultdict[str, list[bytes]] = defaultdict(list)
    with open_regular(file) as stream:
        end = _checked_end(stream, file)
        try:
            for number, content in enumerate(_records(stream, end)):
                if number == MOST_RECORDS:
                    raise UserError(f"{file}: has more than {MOST_RECORDS} records, which is no network's")
                for record in Checkpoint.FromString(content).value:  # a text is decoded, and may fail to be, when read
                    name, tensor = record.tag, record.tensor
                    tensors[name] = (tensor.tensor_type, tuple(tensor.dims[:33]))
                    pieces[name].append(tensor.tensor_content)  # MindSpore cuts what is large into records of one name
        except UserError:
            raise
        except (DecodeError, ValueError) as error:  # ValueError: a text that is no UTF-8, or no record
            raise UserError(foreign) from error
    arrays = {}
    for name, (kind, dims) in tensors.items():
        if kind in ("", "str"):
            continue
        shape = () if dims == (0,) else dims
        arrays[name] = _array(b"".join(pieces[name]), kind, shape, f"{file}: damaged: {_short(name)}")
    if not arrays:
        raise UserError(foreign)
    return arrays


def _checked_end(stream: BinaryIO, file: Path) -> int:
    """Where the records of a .ckpt end: before its checksum, which must be right, where it has one."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 17))
    last = stream.read(17)
    stream.seek(0)
    if last[:7] != b"crc_num":
        return size
    checksum, left = 0, size - 17
    while left > 0 and (piece := stream.read(min(left, 1 << 22))):
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
    if checksum != int.from_bytes(last[7:], "big"):
        raise UserError(f"{file}: damaged: its checksum does not match")
    stream.seek(0)
    return size - 17


def _records(stream: BinaryIO, end: int) -> Iterator[bytes]:
    """The records of a .ckpt, one by one: its whole message is nothing but its field 1, each with its length before it.

    Read as one message, two bytes of a file would take 800 of memory.

    Raises:
        ValueError: something else stands there, or a record goes beyond the end.
    """
    while (start := stream.tell()) < end:
        head = stream.read(11)
        stop = next((at for at, byte in enumerate(head[1:], 1) if byte < 0x80), 0)  # the length's last byte
        length = sum((byte & 0x7F) << 7 * at for at, byte in enumerate(head[1 : stop + 1]))
        if head[:1] != b"\x0a" or not stop or stop + 1 + length > end - start:
            raise ValueError("no record")
        stream.seek(start)
        content = stream.read(stop + 1 + length)
        if len(content) <= stop + length:  # it was shorter than it said
            raise ValueError("no record")
        yield content


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        with open_regular(file) as stream:  # eight bytes, the header's size, tell most of what is none
            size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= file.stat().st_size - 8:
            raise ValueError("no header")
        tensors = safetensors.deserialize(read_bytes(file, LARGEST))
    except MemoryError:
        raise
    except Exception as error:  # SafetensorError, and a panic of the Rust library on some damaged headers
        raise UserError(f"{file}: damaged, or not a safetensors file") from error
    arrays = {}
    for name, tensor in tensors:
        kind = tensor["dtype"]
        if kind not in _SAFETENSORS:
            raise UserError(f"{file}: {_short(name)} has numbers of type {_short(kind)}; store the weights as float32")
        where = f"{file}: damaged: {_short(name)}"
        arrays[name] = _array(bytes(tensor["data"]), _SAFETENSORS[kind], tuple(tensor["shape"]), where)
    return arrays


def _array(content: bytes, kind: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """An array of a file's bytes; `kind` is a key of `_NUMBERS`."""
    if kind not in _NUMBERS:
        raise UserError(f"{where} has numbers of type {_short(kind)}, which are not known")
    try:
        numbers = np.frombuffer(content, _NUMBERS[kind])
        if any(length < 0 for length in shape):
            raise ValueError("a negative length")
        numbers = numbers.reshape(shape)
    except ValueError as error:
        lengths = _short("x".join(map(str, shape)) or "scalar")
        raise UserError(f"{where} has not the {lengths} numbers that it should have") from error
    return (numbers.astype(np.uint32) << 16).view(np.float32) if kind == "BFloat16" else numbers


def _read_torch(file: Path) -> dict[str, np.ndarray]:
    torch = _torch(file)
    room = _check_torch(file)
    try:
        with warnings.catch_warnings(), _stand_ins(torch):
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes the unpickler raises whatever they lead it to
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise UserError(
                f"{file}: refused: reading it would run code ({_short(wanted[1])}), and only plain weights are read; "
                "write it with torch.save(network.state_dict(), ...)"
            ) from error
        if "TorchScript" in str(error):
            raise UserError(f"{file}: refused: a TorchScript program, not plain weights") from error
        raise UserError(f"{file}: damaged, or not a PyTorch file") from error
    tensors = _state_dict(content, torch, file)
    arrays = {}
    room = 4 * room + (1 << 20)  # float16 doubles, and tensors may share memory; far more is an expanded tensor
    for name, tensor in tensors.items():
        room -= max(4, tensor.element_size()) * tensor.numel()
        if room < 0:
            raise UserError(f"{file}: {_short(name)} declares {tensor.numel()} numbers, more than the file holds")
        arrays[name] = _to_numpy(tensor, torch, f"{file}: {_short(name)}")
    return arrays


def _check_torch(file: Path) -> int:
    """The bytes that a PyTorch file holds, after a check of what its pickles build and of every member's checksum."""
    damaged = f"{file}: damaged, or not a PyTorch file"
    try:
        with open_regular(file) as stream:
            if stream.read(4) == b"PK\3\4":
                return _check_zip(file)
            stream.seek(0)
            check_pickles(stream, 5)  # PyTorch's format of before 1.6: four small ones, the weights, then numbers
        return file.stat().st_size
    except HostilePickle as error:
        raise UserError(f"{damaged} (its pickle {error})") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and lzma raise a dozen kinds of errors on damaged bytes
        raise UserError(damaged) from error


def _check_zip(file: Path) -> int:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.flag_bits & 1 for member in members):
            raise UserError(f"{file}: is encrypted; only plain weights are read")
        if len(members) > MOST_RECORDS or len({member.filename for member in members}) < len(members):
            raise UserError(f"{file}: damaged: a member stands in it twice, or there are more than {MOST_RECORDS}")
        size = sum(member.file_size for member in members)
        if size > 10 * file.stat().st_size + (1 << 20):  # torch.save does not compress, and weights hardly shrink
            raise UserError(f"{file}: unpacks to {size} bytes, more than weights in such a file can be")
        if bad := archive.testzip():
            raise UserError(f"{file}: damaged: the checksum of {_short(bad)} does not match")
        for member in members:
            if member.filename.endswith(".pkl"):
                check_pickles(io.BytesIO(archive.read(member)))
    return size


class _Beside:
    """Stands in for what people keep beside the weights, such as a NumPy scalar: holds nothing, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Beside":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_BESIDE = (
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray", "numpy.random.__RandomState_ctor",
    "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "pathlib.PosixPath", "pathlib.WindowsPath",
    "pathlib._local.PosixPath", "datetime.datetime", "datetime.timedelta", "datetime.date",
    "argparse.Namespace",  # timm's checkpoints hold their command line in one
)  # fmt: skip


def _stand_ins(torch: Any) -> Any:
    """A context in which PyTorch reads what people keep beside the weights, as objects that do nothing."""
    admit = getattr(torch.serialization, "safe_globals", None)
    if admit is None:  # before PyTorch 2.5
        return nullcontext()
    classes = []
    for path in _BESIDE:
        module, _, name = path.rpartition(".")
        classes.append(type(name, (_Beside,), {"__module__": module, "__qualname__": name}))
    return admit(classes)


def _state_dict(content: Any, torch: Any, file: Path) -> dict[str, Any]:
    """The tensors of a PyTorch file, wherever it keeps them."""
    for _ in range(4):  # wrappers may be wrapped
        if not isinstance(content, dict):
            raise UserError(f"{file}: must hold a state dict, not a {_short(type(content).__name__)}")
        held = [key for key in WRAPPER_KEYS if _tensors(content.get(key), torch)]
        others = [key for key, value in content.items() if _tensors(value, torch)]
        inner: Optional[Any] = held[0] if held else None
        if inner is None and not _tensors(content, torch):
            deeper = [key for key in WRAPPER_KEYS if isinstance(content.get(key), dict)]
            inner = others[0] if len(others) == 1 else next(iter(deeper), None)
        if inner is None:
            break
        if len(held) > 1:
            _log.info("%s: the weights under %s are read, not those under %s", file, inner, ", ".join(held[1:]))
        content = content[inner]
    tensors = _tensors(content, torch)
    if not tensors:
        keys = f"; its keys are {listed(content)}" if content else ""
        raise UserError(f"{file}: holds no weights{keys}; write it with torch.save(network.state_dict(), ...)")
    return tensors


def _tensors(value: Any, torch: Any) -> dict[str, Any]:
    """The tensors directly in a dict, by name; none where it is no dict."""
    if not isinstance(value, dict):
        return {}
    return {str(name): tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor)}


def _to_numpy(tensor: Any, torch: Any, where: str) -> np.ndarray:
    """A tensor's numbers; those of floating point as float32, but float64 as it is."""
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        what = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else str(tensor.layout)
        raise UserError(f"{where} is a {_short(what)} tensor of {kind}; store plain float32 tensors")
    if tensor.is_floating_point() and tensor.dtype not in kinds:
        raise UserError(f"{where} has numbers of type {kind}; store the weights as float32")
    try:
        plain = tensor.detach().resolve_conj().resolve_neg()
        return (plain.float() if tensor.dtype in kinds else plain).numpy()
    except Exception as error:  # nested tensors, subclasses, types that NumPy lacks
        raise UserError(f"{where} is a tensor of {kind} that cannot be read; store plain float32 tensors") from error


def write_ckpt(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as `mindspore.save_checkpoint` does with crc_check, byte for byte, and nothing beside the file.

    MindSpore's own goes by way of a second file, changes modes, which some file systems refuse, and leaves that file
    behind on a full disk.
    """
    from mindspore.train.checkpoint_pb2 import Checkpoint

    checksum = 0
    with file.open("wb") as stream:
        for name, array in arrays.items():
            record = Checkpoint()
            value = record.value.add(tag=name)
            value.tensor.dims.extend(array.shape)
            value.tensor.tensor_type = array.dtype.name.capitalize()
            value.tensor.tensor_content = array.tobytes()
            content = record.SerializeToString()
            checksum = zlib.crc32(content, checksum)
            stream.write(content)
        stream.write(b"crc_num" + checksum.to_bytes(10, "big"))


def _write_safetensors(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), file, metadata={"format": "pt"})


def _write_torch(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    torch = _torch(file)
    with file.open("wb") as stream:  # not by its name, which would go into the archive
        torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, stream)


def _torch(file: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{file}: {file.suffix} files need PyTorch: pip install torch, or use .safetensors") from error
    return torch


def _short(text: Any) -> str:
    return printable(text, 80)


_READERS = {".ckpt": _read_ckpt, ".safetensors": _read_safetensors}
_WRITERS = {".ckpt": write_ckpt, ".safetensors": _write_safetensors}
