"""Weights in and out: .ckpt (MindSpore), .safetensors, and .pth or .pt (PyTorch), under either framework's names.

The frameworks name the parameters of a DDRNet alike but for batch norm's, whose names are translated here, once. Every
check comes before any effect: a file either loads as a whole or changes nothing.
"""

import argparse
import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.files import atomic_write
from src.models.architectures import FLAVOURS

SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt")
HEAD = ("linear.weight", "linear.bias")
STEM_BIASES = ("conv1.0.bias", "conv1.3.bias")
TORCH_COUNTER = "num_batches_tracked"  # of batch norm's updates; nothing that we compute depends on it

_TORCH_KIND = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_OPTIMIZER_STATE = re.compile(
    r"(moments?|moment[12]|(lamb|adam)_[mv]|accum(_update)?|mean_square|mean_grad|exp_avg|vhat|stat|prev)\.|"
    r"(learning_rate|momentum|weight_decay|global_step|beta[12]_power|scale_sense|loss_scale|overflow_count|"
    r"(current|last_overflow)_iterator_step|(epoch|step|batch)_num)$"
)
_LISTED = 10
_OTHER_FLAVOUR = {
    "paper": "trained in the paper's flavour (its stem has biases), with 3x3 convolutions of stride 2 padded on every "
    "side; this network pads them at the right and bottom only, which shifts what every layer sees and costs accuracy",
    "zoo": "trained in the zoo's flavour (its stem has no biases), with 3x3 convolutions of stride 2 padded at the "
    "right and bottom only; this network pads every side, which shifts what every layer sees and costs accuracy",
}


def read_weights(path: str) -> dict[str, np.ndarray]:
    """Every array of a file, under the names that it has there.

    A PyTorch file may hold its weights as they are or under `state_dict` or `model`; a `module.` before every name is
    taken off. PyTorch files are read as weights only, so that none can run code.

    Args:
        path: a file whose name ends in .ckpt, .safetensors, .pth or .pt.

    Raises:
        UserError: the file is missing, damaged, holds no weights, or would run code; or it needs PyTorch, which is not
            installed.
    """
    file, suffix = Path(path), Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: weights are read from files ending in {', '.join(SUFFIXES)}")
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if file.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    arrays = _READERS[suffix](file)
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name[len("module.") :]: array for name, array in arrays.items()}
    if not arrays:
        raise UserError(f"{path}: holds no weights")
    return arrays


def write_weights(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays under their names, atomically, in the format that the end of `path` says.

    Raises:
        UserError: `path` has another end, cannot be written, or needs PyTorch, which is not installed.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: weights are written to files ending in {', '.join(SUFFIXES)}")
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    write = _WRITERS[suffix]
    with atomic_write(path) as temporary:
        write(temporary, arrays)


def load_pretrained(network, path: str, flavour: str = "zoo", drop_head: bool = False) -> list[str]:
    """Load a file's weights into a network, all of them or none.

    Args:
        network: an `nn.Cell` of the family, from `create_model`.
        path: as `read_weights` takes it; names are MindSpore's or PyTorch's. An optimizer's state is passed over.
        flavour: the network's, a key of `FLAVOURS`.
        drop_head: leave the last layer as it is where the file's has another number of classes.

    Returns:
        The names of the parameters that were left as they are; empty, or the last layer's.

    Raises:
        UserError: as `read_weights`; parameters are missing, surplus, of another shape or not finite; or the weights
            are of the other flavour.
    """
    from src.parameters import assign

    arrays = read_weights(path)
    parameters = network.parameters_dict()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    left = []
    if drop_head:
        left = [name for name in HEAD if name in arrays and arrays[name].shape != shapes[name]]
        left = list(HEAD) if left else []
    if flavour == "zoo" and not any(arrays[name].any() for name in STEM_BIASES if name in arrays):
        # The zoo's weights as convert_weights writes them for PyTorch: biases of zero change nothing.
        arrays = {name: array for name, array in arrays.items() if name not in STEM_BIASES}
    found = flavour_of(arrays)
    expected = with_stem_biases(shapes, found)
    matched = match_weights(arrays, {name: shape for name, shape in expected.items() if name not in left}, path, left)
    if found != flavour:
        raise UserError(
            f"{path}: {_OTHER_FLAVOUR[found]}: add --flavour {found}, or, to use them all the same, "
            f"convert them with python -m src.weights.convert --flavour {flavour}"
        )
    for name, array in matched.items():
        assign(parameters[name], array)
    return left


def flavour_of(arrays: Iterable[str]) -> str:
    """The flavour, a key of `FLAVOURS`, that has parameters of these names: only the paper's stem has biases."""
    return "paper" if any(name in arrays for name in STEM_BIASES) else "zoo"


def with_stem_biases(shapes: Mapping[str, tuple[int, ...]], flavour: str) -> dict[str, tuple[int, ...]]:
    """A network's names and shapes, as they would be in a flavour."""
    out = {}
    for name, shape in shapes.items():
        if name not in STEM_BIASES:
            out[name] = shape
        bias = name.replace(".weight", ".bias")
        if name != bias and bias in STEM_BIASES and FLAVOURS[flavour].stem_bias:
            out[bias] = shape[:1]
    return out


def torch_name(name: str) -> str:
    """'layer1.0.bn1.gamma' to 'layer1.0.bn1.weight': a parameter's MindSpore name to its PyTorch name."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}.{_TORCH_KIND.get(kind, kind)}"


def match_weights(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], path: str, passed_over: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """A network's parameters, float32 and under MindSpore's names, from the arrays of a file.

    Args:
        arrays: as `read_weights` returns them.
        shapes: the network's parameters: MindSpore name to shape.
        path: the file, for errors.
        passed_over: further names that the file may hold.

    Raises:
        UserError: names are missing or surplus, or an array has another shape, is not of floats or not finite; the
            message gives the first ten of each and their count.
    """
    torch_style = any(name.endswith((".running_mean", ".running_var")) for name in arrays)
    file_names = {torch_name(name) if torch_style else name: name for name in shapes}
    surplus = [
        name
        for name in arrays
        if name not in file_names
        and name not in passed_over
        and not name.endswith(f".{TORCH_COUNTER}")
        and not _OPTIMIZER_STATE.match(name)
    ]
    missing = [name for name in file_names if name not in arrays]
    present = {name: (arrays[name], shapes[own]) for name, own in file_names.items() if name in arrays}
    misshapen = [
        f"{name} {_text(array.shape)} for {_text(shape)}"
        for name, (array, shape) in present.items()
        if array.shape != shape
    ]
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
        for kind, names in (("missing", missing), ("surplus", surplus), ("of another shape", misshapen))
        if names
    ]
    if faults:
        hint = ""
        if not missing and not surplus and {text.split()[0] for text in misshapen} <= set(HEAD):
            hint = f"; the file's network has {arrays[HEAD[1]].size} classes: set num_classes to that"
        raise UserError(f"{path}: not this network's weights: parameters {', '.join(faults)}{hint}")
    for name, (array, _) in present.items():
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise UserError(f"{path}: {name} must hold finite floating-point numbers")
    return {file_names[name]: array.astype(np.float32, copy=False) for name, (array, _) in present.items()}


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _read_ckpt(file: Path) -> dict[str, np.ndarray]:
    # mindspore.load_checkpoint trusts the sizes that a damaged file gives, and reads beyond the data.
    from google.protobuf.message import DecodeError
    from mindspore.train.checkpoint_pb2 import Checkpoint

    foreign = f"{file}: truncated, damaged, or not a MindSpore checkpoint"
    content = file.read_bytes()
    if content[-17:-10] == b"crc_num":
        content, checksum = content[:-17], int.from_bytes(content[-10:], "big")
        if zlib.crc32(content) != checksum:
            raise UserError(f"{file}: damaged: its checksum does not match")
    try:
        records = Checkpoint.FromString(content).value
    except DecodeError as error:
        raise UserError(foreign) from error
    tensors, pieces = {}, defaultdict(list)
    for record in records:
        tensors[record.tag] = record.tensor
        pieces[record.tag].append(record.tensor.tensor_content)  # MindSpore cuts what is large into records of one name
    arrays = {}
    for name, tensor in tensors.items():
        if tensor.tensor_type in ("", "str"):
            continue
        shape = () if list(tensor.dims) == [0] else tuple(tensor.dims)
        try:
            arrays[name] = _array(b"".join(pieces[name]), tensor.tensor_type, shape)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{file}: damaged: {name} has not the {_text(shape)} numbers that it should have"
            ) from error
    if not arrays:
        raise UserError(foreign)
    return arrays


def _array(content: bytes, number: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a checkpoint's bytes; `number` is MindSpore's name of the type, as in 'Float32'."""
    if number == "BFloat16":
        return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(content, np.dtype(number.lower())).reshape(shape)


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file}: damaged, or not a safetensors file") from error
    except TypeError as error:
        raise UserError(f"{file}: holds a number format that NumPy lacks; store the weights as float32") from error


def _read_torch(file: Path) -> dict[str, np.ndarray]:
    torch = _torch(file)
    damaged = f"{file}: damaged, or not a PyTorch file"
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise UserError(damaged) from error
        if bad:
            raise UserError(f"{file}: damaged: the checksum of {bad} does not match")
    # timm's checkpoints hold their command line in a Namespace, which is as harmless as a dict.
    admit = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())
    try:
        with warnings.catch_warnings(), admit([argparse.Namespace]):
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler raises whatever they lead it to
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise UserError(
                f"{file}: refused: reading it would run code ({wanted[1]}), and only plain weights are read; "
                "write it with torch.save(network.state_dict(), ...)"
            ) from error
        if "TorchScript" in str(error):
            raise UserError(f"{file}: refused: a TorchScript program, not plain weights") from error
        raise UserError(damaged) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold a state dict, not a {type(content).__name__}")
    return {
        str(name): (value.float() if value.is_floating_point() else value).numpy()
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _write_ckpt(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import mindspore as ms

    values = [{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()]
    ms.save_checkpoint(values, str(file), crc_check=True)


def _write_safetensors(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), file, metadata={"format": "pt"})


def _write_torch(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    torch = _torch(file)
    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, file)


def _torch(file: Path):
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{file}: {file.suffix} files need PyTorch: pip install torch, or use .safetensors") from error
    return torch


_READERS = {".ckpt": _read_ckpt, ".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
_WRITERS = {".ckpt": _write_ckpt, ".safetensors": _write_safetensors, ".pth": _write_torch, ".pt": _write_torch}
