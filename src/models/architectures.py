"""What tells the members of the DDRNet family apart, as data; `ddrnet.py` turns it into networks.

Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes",
arXiv 2101.06085, table I.
"""

from dataclasses import dataclass
from typing import Optional

HEAD = "linear"  # the classifier's name, in the network and before its parameters' names


@dataclass(frozen=True)
class Architecture:
    """A member of the family.

    planes: channels after the stem; depths: residual units in stages 1 to 4 of the low-resolution branch;
    third: the names of the parts of stage 3, after each of which the branches exchange what they found;
    high_depths: residual units of the high-resolution branch in each part of stage 3, then in stage 4;
    head_planes: channels before the classifier.
    """

    planes: int
    depths: tuple[int, int, int, int]
    third: tuple[str, ...]
    high_depths: tuple[int, ...]
    head_planes: int

    @property
    def residual_units(self) -> int:
        """How many residual units there are, each of which drop path may drop."""
        return sum(self.depths) + sum(self.high_depths) + 2  # one ends either branch


@dataclass(frozen=True)
class Flavour:
    """One of the two published lines of weights: what its network computes, and how its training began.

    stem_bias: the stem's convolutions have a bias; same_padding: 3x3 convolutions of stride 2 pad as little as is
    needed, at the right and bottom first, instead of one on every side; half_pixel_centers: how bilinear upsampling
    places its samples.
    drop_path_on: what drop path drops, "shortcut" or "branch"; head_deviation: the classifier's first weights are
    normal with this standard deviation, or None: uniform within 1 / sqrt(inputs) of 0, as PyTorch's are.
    """

    stem_bias: bool
    same_padding: bool
    half_pixel_centers: bool
    drop_path_on: str
    head_deviation: Optional[float]


ARCHITECTURES = {
    "DDRNet23Slim": Architecture(32, (2, 2, 2, 2), ("3",), (2, 2), 1024),
    "DDRNet23": Architecture(64, (2, 2, 2, 2), ("3",), (2, 2), 2048),
    "DDRNet39": Architecture(64, (3, 4, 6, 3), ("3_1", "3_2"), (3, 3, 3), 2048),
}
FLAVOURS = {
    "zoo": Flavour(
        stem_bias=False, same_padding=True, half_pixel_centers=False, drop_path_on="shortcut", head_deviation=0.01
    ),
    "paper": Flavour(
        stem_bias=True, same_padding=False, half_pixel_centers=True, drop_path_on="branch", head_deviation=None
    ),
}


def smallest_map(image_size: int) -> int:
    """The side of a network's smallest maps, for images of `image_size` pixels: five times halved, rounded up."""
    return -(-image_size // 32)


def stage_depths(architecture: Architecture) -> dict[str, int]:
    """How many residual units each stage has, by the stage's name, in the order of the way through the network.

    The stages of the high-resolution branch are those whose names end with "_".
    """
    first, second, third, fourth = architecture.depths
    depths = {"layer1": first, "layer2": second}
    parts = [(name, third // len(architecture.third)) for name in architecture.third] + [("4", fourth)]
    for (name, low), high in zip(parts, architecture.high_depths):
        depths[f"layer{name}"] = low
        depths[f"layer{name}_"] = high
    return {**depths, "layer5_": 1, "layer5": 1}


def drop_path_rates(architecture: Architecture, rate: float, drops: str) -> dict[str, list[float]]:
    """The drop path rate of every residual unit: for each stage one for each of its units.

    Args:
        rate: of the last unit; between 0 and 1.
        drops: "branch" as in Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382, section 3: unit l
            of the L on the way through the low-resolution branch has rate * l / L, and a stage of the high-resolution
            branch has the rates of the low-resolution stage beside it. "shortcut" as the model zoo's DDRNet: from 0 in
            the first unit in equal steps to `rate` in the last of stage 4, and both units of stage 5 have `rate`; a
            stage of the high-resolution branch has the rates of the low-resolution stage before the one beside it.
    """
    depths = stage_depths(architecture)
    low = [name for name in depths if not name.endswith("_")]
    before_5 = sum(depths[name] for name in low[:-1])
    rates: dict[str, list[float]] = {}
    unit = 0
    for name in low:
        units = range(unit, unit + depths[name])
        if drops == "branch":
            rates[name] = [rate * (i + 1) / (before_5 + 1) for i in units]
        else:
            rates[name] = [rate * min(i / (before_5 - 1), 1.0) for i in units]
        unit += depths[name]
    for name, depth in depths.items():
        if name == "layer5_":
            rates[name] = [rate]
        elif name.endswith("_"):
            beside = name[:-1]
            rates[name] = rates[beside if drops == "branch" else low[low.index(beside) - 1]][:depth]
    return rates
