"""AutoAugment, RandAugment and AugMix; `src.augment_spec` explains the specs that name them, and cites their papers."""

import math
from typing import Any, Callable, Optional

import numpy as np
from PIL import Image

from src.augment_spec import MAX_LEVEL, parse_spec
from src.data.augment import ops
from src.data.augment.policies import AUGMIX, POLICIES, RAND, WEIGHTS

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]

_RESAMPLE = {
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "lanczos": (Image.Resampling.BICUBIC,),  # Pillow's affine transform has no wider filter than bicubic
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _enhance(level: float, rng: np.random.Generator) -> float:
    return level / MAX_LEVEL * 1.8 + 0.1


def _enhance_increasing(level: float, rng: np.random.Generator) -> float:
    return max(0.1, 1.0 + _signed(level / MAX_LEVEL * 0.9, rng))


# name: (operation, its parameter from level and generator, or None where it has none).
_GEOMETRIC = {
    "Rotate": (ops.rotate, lambda level, rng: _signed(level / MAX_LEVEL * 30.0, rng)),
    "ShearX": (ops.shear_x, lambda level, rng: _signed(level / MAX_LEVEL * 0.3, rng)),
    "ShearY": (ops.shear_y, lambda level, rng: _signed(level / MAX_LEVEL * 0.3, rng)),
    "TranslateXRel": (ops.translate_x, lambda level, rng: _signed(level / MAX_LEVEL * 0.45, rng)),
    "TranslateYRel": (ops.translate_y, lambda level, rng: _signed(level / MAX_LEVEL * 0.45, rng)),
}
_POINTWISE = {
    "AutoContrast": (ops.auto_contrast, None),
    "Equalize": (ops.equalize, None),
    "Invert": (ops.invert, None),
    "Posterize": (ops.posterize, lambda level, rng: int(level / MAX_LEVEL * 4)),
    "PosterizeIncreasing": (ops.posterize, lambda level, rng: 4 - int(level / MAX_LEVEL * 4)),
    "PosterizeOriginal": (ops.posterize, lambda level, rng: int(level / MAX_LEVEL * 4) + 4),
    "Solarize": (ops.solarize, lambda level, rng: min(256, int(level / MAX_LEVEL * 256))),
    "SolarizeIncreasing": (ops.solarize, lambda level, rng: 256 - min(256, int(level / MAX_LEVEL * 256))),
    "SolarizeAdd": (ops.solarize_add, lambda level, rng: min(128, int(level / MAX_LEVEL * 110))),
    "Color": (ops.color, _enhance),
    "ColorIncreasing": (ops.color, _enhance_increasing),
    "Contrast": (ops.contrast, _enhance),
    "ContrastIncreasing": (ops.contrast, _enhance_increasing),
    "Brightness": (ops.brightness, _enhance),
    "BrightnessIncreasing": (ops.brightness, _enhance_increasing),
    "Sharpness": (ops.sharpness, _enhance),
    "SharpnessIncreasing": (ops.sharpness, _enhance_increasing),
}
_INCREASES = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


class AugmentOp:
    """One operation at one magnitude, applied with probability `prob`.

    Args:
        name: a name of `_GEOMETRIC` or `_POINTWISE`.
        prob: of being applied.
        magnitude: the level, 0 to 10.
        spread: standard deviation of the level; infinite: uniform from 0 to `magnitude`; 0: none.
        ceiling: the level's upper bound.
        interpolation: bilinear, bicubic, lanczos or random, of the geometric operations.
    """

    def __init__(
        self,
        name: str,
        prob: float,
        magnitude: float,
        spread: float = 0.0,
        ceiling: float = MAX_LEVEL,
        interpolation: str = "bicubic",
    ) -> None:
        self.name, self.prob, self.magnitude, self.spread, self.ceiling = name, prob, magnitude, spread, ceiling
        self._resample = _RESAMPLE[interpolation] if name in _GEOMETRIC else None
        operation: Any = _GEOMETRIC[name] if self._resample else _POINTWISE[name]
        self._apply, self._parameter = operation

    def level(self, rng: np.random.Generator) -> float:
        """Draw a level."""
        level = self.magnitude
        if math.isinf(self.spread):
            level = rng.uniform(0, level)
        elif self.spread > 0:
            level = rng.normal(level, self.spread)
        return min(max(level, 0.0), self.ceiling)

    def parameter(self, rng: np.random.Generator) -> Optional[float]:
        """Draw a level and sign; the parameter in the operation's unit, translations as a share of the side."""
        level = self.level(rng)
        return self._parameter(level, rng) if self._parameter else None

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.prob < 1.0 and rng.random() >= self.prob:
            return image
        value = self.parameter(rng)
        if value is None:
            return self._apply(image)
        if self._resample is None:
            return self._apply(image, value)
        resample = self._resample[int(rng.integers(len(self._resample))) if len(self._resample) > 1 else 0]
        if self.name == "TranslateXRel":
            value *= image.width
        elif self.name == "TranslateYRel":
            value *= image.height
        return self._apply(image, value, resample)


class RandAugment:
    """Apply `count` operations, drawn with replacement, or without where `weights` (shares, one an operation) say."""

    def __init__(self, operations: list[AugmentOp], count: int = 2, weights: Optional[np.ndarray] = None) -> None:
        self.operations, self.count, self.weights = operations, count, weights

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.weights is None:
            chosen = rng.integers(len(self.operations), size=self.count)
        else:
            chosen = rng.choice(len(self.operations), self.count, replace=False, p=self.weights)
        for index in chosen:
            image = self.operations[index](image, rng)
        return image


class AutoAugment:
    """Apply one sub-policy, drawn uniformly: each of its operations in turn, with its own probability."""

    def __init__(self, policy: list[list[AugmentOp]]) -> None:
        self.policy = policy

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for operation in self.policy[int(rng.integers(len(self.policy)))]:
            image = operation(image, rng)
        return image


class AugMix:
    """Mix `width` chains of operations, then the image with the mixture (section 3 of the paper).

    Args:
        operations: what the chains draw from, each with probability 1.
        width: number of chains, with shares from a Dirichlet distribution.
        depth: operations a chain; 0: 1 to 3, drawn.
        blended: round to 8 bits after every chain instead of once.
        alpha: of the Dirichlet and Beta distributions.
    """

    def __init__(
        self, operations: list[AugmentOp], width: int = 3, depth: int = 0, blended: bool = False, alpha: float = 1.0
    ) -> None:
        self.operations, self.width, self.depth, self.blended, self.alpha = operations, width, depth, blended, alpha

    def _chain(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        depth = self.depth if self.depth > 0 else int(rng.integers(1, 4))
        for index in rng.integers(len(self.operations), size=depth):
            image = self.operations[index](image, rng)
        return image

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        shares = rng.dirichlet([self.alpha] * self.width)
        mixed_share = rng.beta(self.alpha, self.alpha)
        if self.blended:
            return self._blend(image, shares * mixed_share, rng)
        mixed = np.zeros((image.height, image.width, 3), np.float32)
        for share in shares:
            mixed += np.float32(share) * np.asarray(self._chain(image, rng), np.float32)
        mixture = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
        return Image.blend(image, mixture, mixed_share)

    def _blend(self, image: Image.Image, shares: np.ndarray, rng: np.random.Generator) -> Image.Image:
        """Blend one chain after the other, so that the final shares are `shares` and, for the image, the rest."""
        result, total = image, 1.0 - shares.sum()
        for share in shares:
            total += share
            result = Image.blend(result, self._chain(image, rng), share / total if total > 0 else 0.0)
        return result


def create_auto_augment(spec: str, interpolation: str = "bicubic") -> Optional[Transform]:
    """The augmentation that a spec describes; `src.augment_spec` explains the grammar.

    Args:
        spec: such as rand-m9-mstd0.5-inc1, original-mstd0.5 or augmix-m3-w3; '' for none.
        interpolation: of the geometric operations: bilinear, bicubic, lanczos (bicubic here) or random.

    Returns:
        A function of a PIL RGB image and a NumPy generator to a PIL RGB image of the same size; None for ''.

    Raises:
        UserError: the spec has a section that is unknown, is no number, stands twice or is out of range.
    """
    parsed = parse_spec(spec)
    if parsed is None:
        return None
    kind, values = parsed
    spread = values.get("mstd", math.inf if kind == "augmix" else 0.0)
    spread = math.inf if spread > 100 else spread
    if kind == "rand":
        return _rand_augment(values, spread, interpolation)
    if kind == "augmix":
        level = values.get("m", 3.0)
        operations = [AugmentOp(name, 1.0, level, spread, interpolation=interpolation) for name in AUGMIX]
        return AugMix(operations, int(values.get("w", 3)), int(values.get("d", 0)), bool(values.get("b", 0)))
    return AutoAugment(
        [
            [AugmentOp(name, prob, level, spread, interpolation=interpolation) for name, prob, level in steps]
            for steps in POLICIES[kind]
        ]
    )


def _rand_augment(values: dict, spread: float, interpolation: str) -> RandAugment:
    increasing = bool(values.get("inc", 0))
    names = [name + "Increasing" if increasing and name in _INCREASES else name for name in RAND]
    operations = [
        AugmentOp(
            name, values.get("p", 0.5), values.get("m", MAX_LEVEL), spread, values.get("mmax", MAX_LEVEL), interpolation
        )
        for name in names
    ]
    weights = None
    if "w" in values:
        weights = np.array([WEIGHTS[values["w"]][name] for name in RAND])
        weights /= weights.sum()
    return RandAugment(operations, values.get("n", 2), weights)
