"""What a network says of each image: its likeliest classes with their probabilities, 50 bytes an image."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from src.files import atomic_write
from src.metrics import rank_of_label

LIKELIEST = 5
UNKNOWN = -1  # a label that nobody gave, or an answer that was no number


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of each row, in float64: (N, C) to (N, C)."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


class Predictions:
    """The answers for n images, in the order in which they were added; none at first.

    Args:
        classes: how many there are; k is five, or their number where that is less.

    Attributes:
        labels: int32 (n,), the right class; -1 where it is unknown.
        ranks: int32 (n,), how many classes stand before the right one, as `rank_of_label` counts.
        classes: int32 (n, k), the likeliest classes, the likeliest first; -1 where a logit was no finite number.
        shares: float32 (n, k), their probabilities; NaN where a logit was no finite number.
    """

    def __init__(self, classes: int) -> None:
        k = min(LIKELIEST, classes)
        nothing = (
            np.empty(0, np.int32),
            np.empty(0, np.int32),
            np.empty((0, k), np.int32),
            np.empty((0, k), np.float32),
        )
        self._parts: list[tuple[np.ndarray, ...]] = [nothing]

    def add(self, logits: np.ndarray, labels: Optional[np.ndarray] = None) -> None:
        """Keep what a batch's logits (N, C) say.

        Args:
            logits: any float dtype.
            labels: integers (N,); rows of -1 are padding and left out. None: the labels are unknown.
        """
        if labels is not None:
            real = labels >= 0
            logits, labels = logits[real], labels[real]
        finite = np.isfinite(logits).all(axis=1)
        known = probabilities(np.where(finite[:, None], logits, 0))
        classes = np.argsort(-known, axis=1, kind="stable")[:, :LIKELIEST]
        shares = np.take_along_axis(known, classes, axis=1)
        classes[~finite], shares[~finite] = UNKNOWN, np.nan
        if labels is None:
            labels = ranks = np.full(len(logits), UNKNOWN)
        else:
            ranks = np.where(finite, rank_of_label(logits, labels), logits.shape[1])
        self._parts.append(
            (labels.astype(np.int32), ranks.astype(np.int32), classes.astype(np.int32), shares.astype(np.float32))
        )

    @property
    def labels(self) -> np.ndarray:
        return self._whole(0)

    @property
    def ranks(self) -> np.ndarray:
        return self._whole(1)

    @property
    def classes(self) -> np.ndarray:
        return self._whole(2)

    @property
    def shares(self) -> np.ndarray:
        return self._whole(3)

    def _whole(self, column: int) -> np.ndarray:
        if len(self._parts) > 1:
            self._parts = [tuple(np.concatenate(arrays) for arrays in zip(*self._parts))]
        return self._parts[0][column]

    def gathered(self, gather: Callable[[np.ndarray], np.ndarray], size: int) -> "Predictions":
        """All ranks' answers, where rank r has those for the images r, r + world, ... of `size`.

        Args:
            gather: an array of each rank, all of one shape, to one with a first axis of ranks.
            size: images of all ranks.
        """
        world = len(gather(np.zeros(1, np.int32)))
        rows = -(-size // world)
        columns = []
        for own in (self.labels, self.ranks, self.classes, self.shares):
            padded = np.zeros((rows, *own.shape[1:]), own.dtype)
            padded[: len(own)] = own
            columns.append(gather(padded).swapaxes(0, 1).reshape(world * rows, *own.shape[1:])[:size])
        whole = Predictions(self.classes.shape[1])
        whole._parts = [tuple(columns)]
        return whole


def write_predictions(path: Path, paths: Iterable[str], predictions: Predictions, names: Sequence[str]) -> None:
    """Write a line an image: its path, its label where that is known, and the likeliest classes with probabilities.

    Args:
        path: of the CSV file, UTF-8; a name's byte that is no UTF-8 stands as its escape.
        paths: of the images, in the order of the predictions.
        predictions: of these images.
        names: of the classes.
    """
    labels, classes, shares = predictions.labels, predictions.classes, predictions.shares
    head = ["path", "label"]
    for place in range(1, classes.shape[1] + 1):
        head += [f"class_{place}", f"probability_{place}"]

    def rows() -> Iterable[list[str]]:
        yield head
        for image, label, likeliest, chances in zip(paths, labels.tolist(), classes.tolist(), shares.tolist()):
            row = [image, "" if label == UNKNOWN else names[label]]
            for index, chance in zip(likeliest, chances):
                row += ["", ""] if index == UNKNOWN else [names[index], f"{chance:.6f}"]
            yield row

    write_table(path, rows())


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, atomically."""
    with atomic_write(path) as temporary, temporary.open("wb") as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
        csv.writer(text, lineterminator="\n").writerows(rows)
        text.detach()
