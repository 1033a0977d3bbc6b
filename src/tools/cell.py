"""How a network's cells compute: in which precision, and in whose kernels. Parameters are float32 in every case."""

import logging
from dataclasses import dataclass

import mindspore as ms
from mindspore import nn

from src.args import Config
from src.kernels.build import has_bfloat16, library
from src.models import HEAD

_log = logging.getLogger(__name__)


def cast_amp(network: nn.Cell, amp_level: str, keep_bn_fp32: bool) -> nn.Cell:
    """Let a classifier compute in float16, in place (Micikevicius et al., arXiv 1710.03740).

    Args:
        network: with its classifier under the name `HEAD`.
        amp_level: O0 all float32; O1 convolutions float16; O2 all but the classifier float16; O3 all float16; auto: O2,
            on the CPU O0, whose kernels know bfloat16 by themselves.
        keep_bn_fp32: at O2 and O3, batch norm computes in float32.
    """
    on_cpu = ms.get_context("device_target") == "CPU"
    if amp_level == "auto":
        amp_level = "O0" if on_cpu else "O2"
    if amp_level == "O0":
        return network
    if on_cpu:
        _log.warning("amp_level %s: float16 is 3 to 5 times slower than float32 on a CPU; O0 is faster", amp_level)
    if amp_level == "O1":
        half = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.Conv2d)]
    else:
        half = [network]
    for cell in half:
        cell.to_float(ms.float16)
    full = [getattr(network, HEAD)] if amp_level == "O2" else []
    if amp_level == "O1" or keep_bn_fp32:
        full += [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    for cell in full:
        cell.to_float(ms.float32)
    return network


@dataclass(frozen=True)
class Native:
    """Which parts of a run use the kernels in `src.kernels`.

    network: "float32" or "bfloat16", in which convolutions multiply; "": MindSpore's operators. update: whether the
    update of the weights does. library: the compiled kernels' name, which stands for their sources and the processor.
    """

    network: str = ""
    update: bool = False
    library: str = ""

    def __str__(self) -> str:
        return f"{self.network or 'none'} in the network, {self.library or 'none'}"


def native_kernels(config: Config) -> Native:
    """Where the CPU's own kernels serve: they compute in float32 or bfloat16, and must have been compiled."""
    if config.device_target != "CPU" or config.cpu_kernels != "native":
        return Native()
    path = library()
    if path is None:
        return Native()
    network = {"O0": "float32", "auto": "bfloat16" if has_bfloat16() else "float32"}.get(config.amp_level, "")
    return Native(network, update=True, library=path.stem)
