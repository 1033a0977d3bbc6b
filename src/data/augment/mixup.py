"""MixUp (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) and CutMix (Yun et al. 2019,
https://arxiv.org/abs/1905.04899) of a batch of normalised images and their soft targets.

An update's images fall into groups of a fixed number, as many as a card of the published run had. What is drawn is
drawn for a group, and image i of a group of n is mixed with image n-1-i of it. `partners` lists these pairs in the
order in which ranks and accumulated batches take them, so that partners always share a batch: neither the draws nor the
pairs depend on how many ranks there are.
"""

import math
from typing import NamedTuple

import numpy as np


class Mix(NamedTuple):
    """How every one of n images is mixed with its partner.

    Attributes:
        share: float64 (n,), what is left of the image itself; 1: not mixed.
        box: int64 (n, 4), top, bottom, left, right of what CutMix pastes; all 0 for MixUp.
        cut: bool (n,), whether the image is cut (CutMix) rather than blended (MixUp).
    """

    share: np.ndarray
    box: np.ndarray
    cut: np.ndarray

    @classmethod
    def unmixed(cls, n: int) -> "Mix":
        """Every image as it is."""
        return cls(np.ones(n), np.zeros((n, 4), np.int64), np.zeros(n, bool))

    def of(self, places: np.ndarray) -> "Mix":
        """What concerns the images at `places`."""
        return Mix(*(part[places] for part in self))


def partners(images: int, group: int) -> np.ndarray:
    """Who is mixed with whom among an update's images: int64 (images / 2, 2), pair by pair and group by group.

    Args:
        images: in the update, over all ranks and accumulated batches; even.
        group: images that share a draw; even. What does not fill one is a smaller group at the end.
    """
    pairs = []
    for first in range(0, images, group):
        members = np.arange(first, min(first + group, images))
        pairs.append(np.stack([members, members[::-1]], axis=1)[: len(members) // 2])
    return np.concatenate(pairs)


class Mixup:
    """Draw how a group is mixed, and mix a batch.

    Args:
        mixup_alpha: of MixUp's Beta distribution; 0: off.
        cutmix_alpha: of CutMix's Beta distribution; 0: off.
        prob: of mixing a group (or, with mode pair or elem, a pair or an image).
        switch_prob: of CutMix where both are on.
        mode: batch: one share and box for all; pair: one for each image and its partner; elem: one an image.
    """

    def __init__(
        self,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
    ) -> None:
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.prob, self.switch_prob, self.mode = prob, switch_prob, mode

    def draw(self, images: int, size: tuple[int, int], rng: np.random.Generator) -> Mix:
        """Draw for a group of `images` images, an even number, of (height, width) `size`."""
        n = {"batch": 1, "pair": images // 2, "elem": images}[self.mode]
        mixed = rng.random(n) < self.prob
        switch = rng.random(n) < self.switch_prob
        cut = switch if self.mixup_alpha > 0 and self.cutmix_alpha > 0 else np.full(n, self.cutmix_alpha > 0)
        cut = cut & mixed
        alpha = np.where(cut, self.cutmix_alpha, self.mixup_alpha or 1.0)
        share = np.where(mixed, rng.beta(alpha, alpha), 1.0)
        box = np.zeros((n, 4), np.int64)
        centres = rng.random((n, 2))
        for i in np.flatnonzero(cut):
            box[i] = cut_box(share[i], size, centres[i])
            pasted = (box[i, 1] - box[i, 0]) * (box[i, 3] - box[i, 2])
            share[i] = 1.0 - pasted / (size[0] * size[1])
        drawn = np.arange(n) if self.mode != "batch" else np.zeros(images, np.int64)
        return Mix(share, box, cut).of(np.concatenate([drawn, drawn[::-1]]) if self.mode == "pair" else drawn)

    @staticmethod
    def apply(images: np.ndarray, targets: np.ndarray, mix: Mix) -> None:
        """Mix float32 images (B, 3, H, W) and targets (B, classes) in place, i with B-1-i; B even."""
        last = len(images) - 1
        for i in range(len(images) // 2):
            _mix_pair(images[i], images[last - i], mix, i, last - i)
        share = mix.share.astype(np.float32)[:, None]
        targets[...] = share * targets + (1 - share) * targets[::-1]


def cut_box(share: float, size: tuple[int, int], centre: np.ndarray) -> tuple[int, int, int, int]:
    """CutMix's box: sides of sqrt(1 - share) of the image's, about a uniform centre, clipped at the image's edges.

    A side is made even, half on either side of the centre, as in the authors' code and the model zoo's.

    Args:
        share: what the image should keep.
        size: height and width, pixels.
        centre: two uniform numbers from 0 to 1, for y and x.

    Returns:
        top, bottom, left, right in pixels, bottom and right exclusive.
    """
    edges = []
    for length, place in zip(size, centre):
        half = int(length * math.sqrt(1.0 - share)) // 2
        middle = int(place * length)
        edges += [max(middle - half, 0), min(middle + half, length)]
    top, bottom, left, right = edges
    return top, bottom, left, right


def _mix_pair(first: np.ndarray, second: np.ndarray, mix: Mix, i: int, j: int) -> None:
    """Mix two images with each other in place, both from what they were before."""
    if not mix.cut[i] and not mix.cut[j]:
        _blend_pair(first, second, np.float32(mix.share[i]), np.float32(mix.share[j]))
    elif mix.cut[i] and mix.cut[j]:
        _swap_boxes(first, second, mix.box[i], mix.box[j])
    else:
        mixed_first, mixed_second = first.copy(), second.copy()
        for mine, other, out, k in ((first, second, mixed_first, i), (second, first, mixed_second, j)):
            if mix.cut[k]:
                top, bottom, left, right = mix.box[k]
                out[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            else:
                np.add(mine * np.float32(mix.share[k]), other * np.float32(1 - mix.share[k]), out=out)
        first[...], second[...] = mixed_first, mixed_second


def _blend_pair(first: np.ndarray, second: np.ndarray, share_first: np.float32, share_second: np.float32) -> None:
    if share_first == 1 and share_second == 1:
        return
    one = np.float32(1)
    for a, b in zip(first, second):
        blended = a * share_first
        blended += b * (one - share_first)
        b *= share_second
        b += a * (one - share_second)
        a[...] = blended


def _swap_boxes(first: np.ndarray, second: np.ndarray, box_first: np.ndarray, box_second: np.ndarray) -> None:
    """Paste the second image's pixels into the first's box and the reverse, both from what they were before."""
    top, bottom, left, right = box_second
    for_second = first[:, top:bottom, left:right].copy()
    t, b, le, r = box_first
    first[:, t:b, le:r] = second[:, t:b, le:r]
    second[:, top:bottom, left:right] = for_second
