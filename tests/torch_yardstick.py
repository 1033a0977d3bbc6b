"""The networks of benchmarks/peers in PyTorch, for tests that compare with them. Needs torch."""

import importlib.util
from pathlib import Path

import torch

from tests.golden import weights as golden

_PATH = Path(__file__).parents[1] / "benchmarks" / "peers" / "torch_ddrnet.py"
_SPEC = importlib.util.spec_from_file_location("torch_ddrnet", _PATH)
torch_ddrnet = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(torch_ddrnet)

FACTORIES = {
    "DDRNet23Slim": torch_ddrnet.ddrnet23_slim,
    "DDRNet23": torch_ddrnet.ddrnet23,
    "DDRNet39": torch_ddrnet.ddrnet39,
}
_BATCH_NORM_NAMES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def golden_network(arch: str, num_classes: int = 1000) -> torch.nn.Module:
    """A PyTorch network with the golden parameters, in inference mode."""
    network = FACTORIES[arch](num_classes=num_classes).eval()
    with torch.no_grad():
        for cell, module in network.named_modules():
            is_batch_norm = isinstance(module, torch.nn.BatchNorm2d)
            for kind, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if kind != "num_batches_tracked":
                    name = f"{cell}.{_BATCH_NORM_NAMES[kind] if is_batch_norm else kind}"
                    tensor.copy_(torch.from_numpy(golden.value(name, tuple(tensor.shape))))
    return network
