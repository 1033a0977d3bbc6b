"""What RandAugment, AutoAugment and AugMix draw from: lists of operations, weights, and the policies' tables.

The names are those of `src.data.augment.auto_augment`, where each operation and its parameter stand.
"""

from typing import Optional

RAND = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)

# Weight set 0: relative weights, mostly geometry.
WEIGHTS = {
    0: {
        "Rotate": 3,
        "ShearX": 2,
        "ShearY": 2,
        "TranslateXRel": 1,
        "TranslateYRel": 1,
        "Color": 0.25,
        "Sharpness": 0.25,
        "AutoContrast": 0.25,
        "Solarize": 0.05,
        "SolarizeAdd": 0.05,
        "Contrast": 0.05,
        "Brightness": 0.05,
        "Equalize": 0.05,
        "Posterize": 0.05,
        "Invert": 0.05,
    }
}

AUGMIX = (
    "AutoContrast",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "Equalize",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)

# Sub-policies: operation, probability in tenths, magnitude; twice. Table 9 of the AutoAugment paper.
_ORIGINAL = """
    PosterizeOriginal 4 8 Rotate 6 9
    Solarize 6 5 AutoContrast 6 5
    Equalize 8 8 Equalize 6 3
    PosterizeOriginal 6 7 PosterizeOriginal 6 6
    Equalize 4 7 Solarize 2 4
    Equalize 4 4 Rotate 8 8
    Solarize 6 3 Equalize 6 7
    PosterizeOriginal 8 5 Equalize 10 2
    Rotate 2 3 Solarize 6 8
    Equalize 6 8 PosterizeOriginal 4 6
    Rotate 8 8 Color 4 0
    Rotate 4 9 Equalize 6 2
    Equalize 0 7 Equalize 8 8
    Invert 6 4 Equalize 10 8
    Color 6 4 Contrast 10 8
    Rotate 8 8 Color 10 2
    Color 8 8 Solarize 8 7
    Sharpness 4 7 Invert 6 8
    ShearX 6 5 Equalize 10 9
    Color 4 0 Equalize 6 3
    Equalize 4 7 Solarize 2 4
    Solarize 6 5 AutoContrast 6 5
    Invert 6 4 Equalize 10 8
    Color 6 4 Contrast 10 8
    Equalize 8 8 Equalize 6 3
"""
# The policy `v0` of the EfficientNet code (Tan and Le 2019, https://arxiv.org/abs/1905.11946).
_V0 = """
    Equalize 8 1 ShearY 8 4
    Color 4 9 Equalize 6 3
    Color 4 1 Rotate 6 8
    Solarize 8 3 Equalize 4 7
    Solarize 4 2 Solarize 6 2
    Color 2 0 Equalize 8 8
    Equalize 4 8 SolarizeAdd 8 3
    ShearX 2 9 Rotate 6 8
    Color 6 1 Equalize 10 2
    Invert 4 9 Rotate 6 0
    Equalize 10 9 ShearY 6 3
    Color 4 7 Equalize 6 0
    Posterize 4 6 AutoContrast 4 7
    Solarize 6 8 Color 6 9
    Solarize 2 4 Rotate 8 9
    Rotate 10 7 TranslateYRel 8 9
    ShearX 0 0 Solarize 8 4
    ShearY 8 0 Color 6 4
    Color 10 0 Rotate 6 2
    Equalize 8 4 Equalize 0 8
    Equalize 10 4 AutoContrast 6 2
    ShearY 4 7 SolarizeAdd 6 7
    Posterize 8 2 Solarize 6 10
    Solarize 6 8 Equalize 6 1
    Color 8 6 Rotate 4 5
"""


def _policy(table: str, posterize: Optional[str] = None) -> list[list[tuple[str, float, float]]]:
    policy = []
    for line in table.split("\n"):
        words = line.split()
        steps = [(words[i], int(words[i + 1]) / 10, float(words[i + 2])) for i in range(0, len(words), 3)]
        if posterize:
            steps = [(posterize if name.startswith("Posterize") else name, p, m) for name, p, m in steps]
        if steps:
            policy.append(steps)
    return policy


POLICIES = {
    "original": _policy(_ORIGINAL),
    "originalr": _policy(_ORIGINAL, "PosterizeIncreasing"),
    "v0": _policy(_V0),
    "v0r": _policy(_V0, "PosterizeIncreasing"),
}
