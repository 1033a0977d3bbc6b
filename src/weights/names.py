"""What a file's parameters are called, and whether they are a network's.

The frameworks name the parameters of a DDRNet alike but for batch norm's, whose names are translated here, once; what
wrappers put before the names is taken off here too.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from src.errors import UserError, printable
from src.models.architectures import FLAVOURS, HEAD

HEAD_PARAMETERS = (f"{HEAD}.weight", f"{HEAD}.bias")
STEM_BIASES = ("conv1.0.bias", "conv1.3.bias")
TORCH_COUNTER = "num_batches_tracked"  # of batch norm's updates; nothing that we compute depends on it

_TORCH_KIND = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
# What optimizers and training steps of MindSpore, averages of PyTorch's, and thop's profiler leave among the weights.
_NO_WEIGHTS = re.compile(
    r"(moments?|moment[12]|(lamb|adam)_[mv]|accum(_update)?|mean_square|mean_grad|exp_avg|vhat|stat|prev)\.|"
    r"(learning_rate|momentum|weight_decay|global_step|beta[12]_power|scale_sense|loss_scale|overflow_count|"
    r"(current|last_overflow)_iterator_step|(epoch|step|batch)_num|n_averaged)$|"
    rf"(.*\.)?(total_ops|total_params|{TORCH_COUNTER})$"
)
_WRAPPERS = re.compile(r"((module|_orig_mod|model|net|network|backbone|encoder|_backbone|_network)\.)+")
_STEM = "conv1.0.weight"  # every member of the family has it
_LISTED = 10  # names that a message gives of each kind


@dataclass(frozen=True)
class Differences:
    """How a file's parameters differ from a network's, under the file's names."""

    missing: list[str]
    surplus: list[str]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # name to the file's shape and the network's

    def __bool__(self) -> bool:
        return bool(self.missing or self.surplus or self.misshapen)

    def message(self) -> str:
        """'parameters 2 missing (a, b), 1 surplus (c)': the count of each kind and the first ten of its names."""
        misshapen = [f"{name} {_text(found)} for {_text(own)}" for name, (found, own) in self.misshapen.items()]
        kinds = [("missing", self.missing), ("surplus", self.surplus), ("of another shape", misshapen)]
        told = [f"{len(names)} {kind} ({listed(names)})" for kind, names in kinds if names]
        hint = ""
        if not self.missing and not self.surplus and set(self.misshapen) <= set(HEAD_PARAMETERS):
            found = next(iter(self.misshapen.values()))[0]
            hint = f"; the file's network has {found[0] if found else 0} classes: set num_classes to that"
        return f"parameters {', '.join(told)}{hint}"


def torch_name(name: str) -> str:
    """'layer1.0.bn1.gamma' to 'layer1.0.bn1.weight': a parameter's MindSpore name to its PyTorch name."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}.{_TORCH_KIND.get(kind, kind)}"


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """A file's names to the names without what wrappers put before them.

    DataParallel puts `module.` there, torch.compile `_orig_mod.`, frameworks `model.`, `net.` or `backbone.`, in any
    mixture and any number; anything else goes where it stands before all names. Where two names would become one, all
    stay as they are.
    """
    names = list(names)
    bare = {name: _WRAPPERS.sub("", name, count=1) if _WRAPPERS.match(name) else name for name in names}
    weights = [name for name in bare.values() if not _NO_WEIGHTS.match(name)]
    stem = next((name for name in weights if name.endswith(f".{_STEM}")), "")
    prefix = stem[: len(stem) - len(_STEM)]
    if prefix and all(name.startswith(prefix) for name in weights):
        bare = {name: short.removeprefix(prefix) for name, short in bare.items()}
    return bare if len(set(bare.values())) == len(names) else {name: name for name in names}


def flavour_of(names: Iterable[str]) -> str:
    """The flavour, a key of `FLAVOURS`, that has parameters of these names: only the paper's stem has biases."""
    names = set(names)
    return "paper" if any(name in names for name in STEM_BIASES) else "zoo"


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
    own = _own_names(arrays, shapes)
    differences = compare({name: array.shape for name, array in arrays.items()}, shapes, passed_over)
    if differences:
        raise UserError(f"{path}: not this network's weights: {differences.message()}")
    weights = {}
    for name, mine in own.items():
        if not np.issubdtype(arrays[name].dtype, np.floating):
            raise UserError(f"{path}: {name} must hold floating-point numbers, not {arrays[name].dtype}")
        with np.errstate(over="ignore"):
            weights[mine] = arrays[name].astype(np.float32, copy=False)
        if not np.isfinite(weights[mine]).all():
            raise UserError(f"{path}: {name} must hold finite numbers, in float32")
    return weights


def compare(
    found: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], passed_over: Iterable[str] = ()
) -> Differences:
    """How the names and shapes of a file differ from a network's.

    Args:
        found: the file's: name, in either framework's style, to shape.
        shapes: the network's: MindSpore name to shape.
        passed_over: further names that the file may hold; counters and an optimizer's state it may hold anyway.
    """
    own = _own_names(found, shapes)
    passed_over = set(passed_over)
    return Differences(
        missing=[name for name in own if name not in found],
        surplus=[name for name in found if name not in own and name not in passed_over and not _NO_WEIGHTS.match(name)],
        misshapen={
            name: (tuple(found[name]), tuple(shapes[mine]))
            for name, mine in own.items()
            if name in found and tuple(found[name]) != tuple(shapes[mine])
        },
    )


def listed(names: Iterable[object]) -> str:
    """The first ten names, for a message."""
    names = list(names)
    return ", ".join(printable(name, 80) for name in names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _own_names(names: Iterable[str], shapes: Iterable[str]) -> dict[str, str]:
    """The network's parameters: name in the file's style to MindSpore name."""
    torch_style = any(name.endswith((".running_mean", ".running_var")) for name in names)
    return {torch_name(name) if torch_style else name: name for name in shapes}


def _text(shape: tuple[int, ...]) -> str:
    return printable("x".join(map(str, shape[:8])) or "scalar", 80)
