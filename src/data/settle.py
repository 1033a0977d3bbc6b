"""What a configuration leaves to the data: the number of classes, and the mean and deviation of its colours."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from src.args import Config
from src.data.augment.transforms import EvalTransform
from src.data.image_files import UndecodableImage
from src.data.imagenet import check_layout, classes_in_data, open_train
from src.data.loader import clamp_workers
from src.errors import UserError

_log = logging.getLogger(__name__)
MEASURED = 2000  # images whose colours stand for all


def settle(config: Config) -> Config:
    """The configuration with num_classes 0, and mean and std "auto", replaced by what the data says.

    The same data gives the same numbers, on every rank and at every start.

    Raises:
        UserError: there is no data to say it.
    """
    if config.num_classes == 0:
        classes = classes_in_data(config)
        if classes is None:
            check_layout(Path(config.data_url))
            raise UserError(f"num_classes: is 0, which takes it from the folders of {config.data_url}, which has none")
        config = config.model_copy(update={"num_classes": len(classes)})
        _log.info("num_classes: %d, from %s", len(classes), config.data_url)
    if "auto" in (config.mean, config.std):
        mean, std = measure_colours(config)
        measured = {
            "mean": mean if config.mean == "auto" else config.mean,
            "std": std if config.std == "auto" else config.std,
        }
        config = config.model_copy(update=measured)
        _log.info("colours of the training images, measured: mean %s, std %s", config.mean, config.std)
    return config


def measure_colours(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, from 0 to 1, over up to MEASURED evenly spaced images of train/.

    They are taken as evaluation crops them. Four digits are kept.

    Raises:
        UserError: there is no train/, or none of its images can be decoded.
    """
    samples = open_train(config)
    transform = EvalTransform(config.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3}))

    def moments(index: int) -> tuple[np.ndarray, np.ndarray, int]:
        try:
            pixels = np.asarray(transform.image(samples.read(index)), np.float64).reshape(-1, 3) / 255
        except (OSError, UndecodableImage):
            return np.zeros(3), np.zeros(3), 0
        return pixels.sum(axis=0), np.square(pixels).sum(axis=0), len(pixels)

    indices = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), MEASURED)).astype(int))
    with ThreadPoolExecutor(clamp_workers(config.num_parallel_workers)) as pool:
        sums, squares, counts = zip(*pool.map(moments, indices.tolist()))
    count = sum(counts)
    if not count:
        raise UserError(f"mean: auto: none of the images in {Path(config.data_url, 'train')} can be decoded")
    mean = np.sum(sums, axis=0) / count
    deviation = np.sqrt(np.maximum(np.sum(squares, axis=0) / count - mean**2, 0.0))
    # One colour throughout has no deviation; a grey level is the least that an image can differ by.
    return _rounded(mean), _rounded(np.maximum(deviation, 1 / 255))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
