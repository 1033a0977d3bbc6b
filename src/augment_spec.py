"""The grammar of `auto_augment`: short specs that timm made known, read into kinds and numbers.

- `rand-m9-mstd0.5-inc1`: RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719). m: magnitude, 0 to 10;
  n: operations an image (2); w: weight set (0; none: all alike); mstd: spread of the magnitude (over 100: drawn
  uniformly from 0 to m); mmax: its ceiling (10); p: probability of each operation (0.5); inc1: all operations grow
  stronger with the magnitude.
- `original-mstd0.5`, `originalr`, `v0`, `v0r`: AutoAugment (Cubuk et al. 2019, https://arxiv.org/abs/1805.09501) with
  the paper's policy for ImageNet or that of the EfficientNet code; with r, posterize grows stronger with the magnitude.
- `augmix-m3-w3-d2-b0-mstd1`: AugMix (Hendrycks et al. 2020, https://arxiv.org/abs/1912.02781). m: severity (3);
  w: chains (3); d: operations a chain (0: 1 to 3, drawn); b1: blend chain by chain in 8 bits; mstd: spread; without
  it magnitudes are uniform, 0 to m.

`src.data.augment.auto_augment` makes the augmentation. This module needs neither images nor NumPy, so that a
configuration is checked without them.
"""

import re
from typing import NamedTuple, Optional, Union

from src.errors import UserError

MAX_LEVEL = 10.0
POLICIES = ("original", "originalr", "v0", "v0r")
WEIGHT_SETS = {0: 15}  # of RandAugment, and how many operations each has

_LEVEL = (float, lambda value: value <= MAX_LEVEL, "a number from 0 to 10")
_SPREAD = (float, lambda value: value >= 0, "a number of at least 0")
_COUNT = (int, lambda value: 1 <= value <= 100, "a whole number from 1 to 100")
_FLAG = (int, lambda value: value in (0, 1), "0 or 1")
# The sections of each kind: type, test, and what the test wants.
_SECTIONS: dict[str, dict[str, tuple]] = {
    "rand": {
        "m": _LEVEL,
        "n": _COUNT,
        "w": (int, lambda value: value in WEIGHT_SETS, f"one of {', '.join(map(str, WEIGHT_SETS))}"),
        "mstd": _SPREAD,
        "mmax": _LEVEL,
        "p": (float, lambda value: value <= 1, "a number from 0 to 1"),
        "inc": _FLAG,
    },
    "augmix": {
        "m": _LEVEL,
        "w": _COUNT,
        "d": (int, lambda value: value <= 100, "a whole number from 0 to 100"),
        "b": _FLAG,
        "mstd": _SPREAD,
    },
    **{name: {"mstd": _SPREAD} for name in POLICIES},
}


class Spec(NamedTuple):
    """A spec that was read.

    Attributes:
        kind: rand, augmix or a policy's name.
        values: the numbers of the sections that stand there, by name.
    """

    kind: str
    values: dict[str, Union[int, float]]


def parse_spec(text: str) -> Optional[Spec]:
    """Read a spec, such as rand-m9-mstd0.5-inc1; None for ''.

    Raises:
        UserError: it has a section that is unknown, is no number, stands twice or is out of range.
    """
    if not text:
        return None
    kind, *sections = text.split("-")
    if kind not in _SECTIONS:
        raise UserError(f"auto_augment {text}: unknown kind {kind!r}; one of {', '.join(_SECTIONS)}")
    known, values = _SECTIONS[kind], {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", section)
        name, number = match.groups() if match else (section, "")
        if name not in known:
            raise UserError(f"auto_augment {text}: unknown section {section!r}; {kind} knows {', '.join(known)}")
        if name in values:
            raise UserError(f"auto_augment {text}: section {name!r} stands there twice")
        convert, allowed, what = known[name]
        try:
            values[name] = convert(number)
        except ValueError:
            raise UserError(f"auto_augment {text}: section {section!r} must be {what}") from None
        if not allowed(values[name]):
            raise UserError(f"auto_augment {text}: section {section!r} must be {what}")
    if "w" in values and kind == "rand" and values.get("n", 2) > WEIGHT_SETS[values["w"]]:
        raise UserError(f"auto_augment {text}: n{values['n']} is more operations than weight set {values['w']} has")
    return Spec(kind, values)
