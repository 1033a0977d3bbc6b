"""What tells the members of the DDRNet family apart, as data; `ddrnet.py` turns it into networks.

Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes",
arXiv 2101.06085, table I.
"""

from dataclasses import dataclass


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
    """One of the two published lines of weights; it changes what the network computes.

    stem_bias: the stem's convolutions have a bias; same_padding: 3x3 convolutions of stride 2 pad as little as is
    needed, at the right and bottom first, instead of one on every side; half_pixel_centers: how bilinear upsampling
    places its samples; folded: batch norm is part of the convolutions, for inference (`fold.py`).
    """

    stem_bias: bool
    same_padding: bool
    half_pixel_centers: bool
    folded: bool = False


ARCHITECTURES = {
    "DDRNet23Slim": Architecture(32, (2, 2, 2, 2), ("3",), (2, 2), 1024),
    "DDRNet23": Architecture(64, (2, 2, 2, 2), ("3",), (2, 2), 2048),
    "DDRNet39": Architecture(64, (3, 4, 6, 3), ("3_1", "3_2"), (3, 3, 3), 2048),
}
FLAVOURS = {
    "zoo": Flavour(stem_bias=False, same_padding=True, half_pixel_centers=False),
    "paper": Flavour(stem_bias=True, same_padding=False, half_pixel_centers=True),
}
