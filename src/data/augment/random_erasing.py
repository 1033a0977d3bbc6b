"""Random erasing (Zhong et al. 2020, https://arxiv.org/abs/1708.04896) of a normalised image."""

import math

import numpy as np


def random_erasing(
    image: np.ndarray,
    rng: np.random.Generator,
    mode: str = "pixel",
    count: int = 1,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> None:
    """Overwrite up to `count` boxes, in place.

    Args:
        image: float32 (3, H, W), normalised.
        rng: where the number of boxes, the boxes and the noise come from.
        mode: const: 0, which is the mean colour; rand: one colour a box; pixel: a value a pixel and channel. Colours
            and values are normal with mean 0 and deviation 1, as normalised pixels nearly are.
        count: the most boxes; how many is drawn uniformly from 1 to `count`, and they share the erased area.
        area: the erased share of the image, from and to.
        ratio: height to width of a box, from and to, drawn uniformly in its logarithm.
    """
    height, width = image.shape[1:]
    boxes = int(rng.integers(1, count + 1)) if count > 1 else 1
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(boxes):
        for _ in range(10):
            target = rng.uniform(*area) * height * width / boxes
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if not (0 < h < height and 0 < w < width):
                continue
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            box = image[:, top : top + h, left : left + w]
            if mode == "const":
                box[...] = 0.0
            elif mode == "rand":
                box[...] = rng.standard_normal((image.shape[0], 1, 1), np.float32)
            else:
                box[...] = rng.standard_normal(box.shape, np.float32)
            break
