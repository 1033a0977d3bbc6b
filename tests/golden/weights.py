"""What the golden logits were computed from: parameters and images that follow from names and seeds alone.

Two implementations of one network agree on these logits exactly when they compute the same function; no file of
weights is needed. The stored logits are of `images()` in inference mode.
"""

import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter by its MindSpore name: float32 of `shape`, drawn from a seed that is the CRC-32 of the name."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    kind = name.rpartition(".")[2]
    if kind == "gamma":
        out = draw.uniform(0.3, 0.6, shape)
    elif kind == "moving_variance":
        out = draw.uniform(0.5, 1.5, shape)
    elif kind == "weight":
        out = draw.normal(0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
    else:
        out = draw.normal(0, 0.1, shape)
    return out.astype(np.float32)


def images(seed: int = 0, shape: tuple[int, ...] = (2, 3, 224, 224)) -> np.ndarray:
    """A batch, float32, standard normal."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def logits(file: str) -> np.ndarray:
    """The stored logits of `images()`, float32 (2, 1000)."""
    with np.load(FOLDER / file) as content:
        return content["logits"]


def parameters(file: str) -> dict[str, tuple[int, ...]]:
    """A stored list of names and shapes, in its order; a scalar's shape is ()."""
    lines = [line.split() for line in (FOLDER / file).read_text().splitlines()]
    return {name: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for name, shape in lines}


def published_names(arch: str, flavour: str) -> set[str]:
    """The parameters of a member of the family in MindSpore's words, from the published lists alone.

    The backbone's from the authors' segmentation network, the classifier's from the checkpoint on MindSpore Hub.
    """
    slug = {"DDRNet23Slim": "ddrnet23_slim", "DDRNet23": "ddrnet23", "DDRNet39": "ddrnet39"}[arch]
    theirs = parameters(f"{slug}_segmentation_parameters.txt")
    words = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    names = set()
    for name in theirs:
        cell, _, kind = name.rpartition(".")
        if name.split(".")[0] in ("spp", "final_layer", "seghead_extra") or kind == "num_batches_tracked":
            continue
        is_norm = f"{cell}.running_mean" in theirs
        names.add(f"{cell}.{words[kind] if is_norm else kind}")
    if flavour == "zoo":
        names -= {"conv1.0.bias", "conv1.3.bias"}
    hub = parameters("ddrnet23_zoo_parameters.txt")
    return names | {name for name in hub if name.split(".")[0] in ("down5", "last_layer", "linear")}
