"""How a network's cells compute: in which precision, and in whose kernels. Parameters are float32 in every case."""

import logging
from dataclasses import dataclass

import mindspore as ms
from mindspore import nn

from src.args import Config
from src.kernels.build import library

_log = logging.getLogger(__name__)


def cast_amp(network: nn.Cell, amp_level: str, keep_bn_fp32: bool) -> nn.Cell:
    """Let a classifier compute in float16, in place (Micikevicius et al., arXiv 1710.03740).

    Args:
        network: with its classifier in `network.linear`.
        amp_level: O0 all float32; O1 convolutions float16; O2 all but the classifier float16; O3 all float16.
        keep_bn_fp32: at O2 and O3, batch norm computes in float32.
    """
    if amp_level == "O0":
        return network
    if ms.get_context("device_target") == "CPU":
        _log.warning("amp_level %s: float16 is 3 to 5 times slower than float32 on a CPU; O0 is faster", amp_level)
    if amp_level == "O1":
        half = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.Conv2d)]
    else:
        half = [network]
    for cell in half:
        cell.to_float(ms.float16)
    full = [network.linear] if amp_level == "O2" else []
    if amp_level == "O1" or keep_bn_fp32:
        full += [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    for cell in full:
        cell.to_float(ms.float32)
    return network


@dataclass(frozen=True)
class Native:
    """Which parts of a run use the kernels in `src.kernels`: the network, and the update of its weights."""

    network: bool
    update: bool


def native_kernels(config: Config) -> Native:
    """Where the CPU's own kernels serve: they compute in float32, and must have been compiled."""
    update = config.device_target == "CPU" and config.cpu_kernels == "native" and library() is not None
    return Native(network=update and config.amp_level == "O0", update=update)
