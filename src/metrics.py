"""Accuracy and loss of logits, counted the same way by training, eval.py and postprocess.py."""

from dataclasses import dataclass

import numpy as np


def rank_of_label(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes stand before the right one: 0 is a top-1 hit, below 5 a top-5 hit.

    Equal logits rank by class index, the lower first; a row with a NaN ranks last.

    Args:
        logits: (N, C), any float dtype.
        labels: (N,) integers in [0, C).

    Returns:
        (N,) integers in [0, C].
    """
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    return np.where(np.isnan(logits).any(axis=1), logits.shape[1], before.sum(axis=1))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Plain cross entropy of each row, in float64: logits (N, C) and labels (N,) to (N,)."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    return (top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))) - logits[np.arange(len(labels)), labels]


@dataclass
class Totals:
    """Sums over the images seen so far; sums of several ranks add up to the whole."""

    images: int = 0
    loss: float = 0.0
    top1: int = 0
    top5: int = 0

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count a batch: logits (N, C), labels (N,), of which those of -1 are padding."""
        real = labels >= 0
        logits, labels = logits[real], labels[real]
        ranks = rank_of_label(logits, labels)
        self.images += len(labels)
        self.loss += float(cross_entropy(logits, labels).sum())
        self.top1 += int((ranks < 1).sum())
        self.top5 += int((ranks < 5).sum())

    def means(self) -> dict[str, float]:
        """Mean loss, and top-1 and top-5 as fractions."""
        return {name: getattr(self, name) / max(self.images, 1) for name in ("loss", "top1", "top5")}


def top5_note(classes: int) -> str:
    """A line for results in which top-5 is 1 whatever the network says; '' where it means something."""
    plural = "es" if classes > 1 else ""
    return f"top-5 says nothing here: there are only {classes} class{plural}" if classes <= 5 else ""


def in_words(means: dict[str, float], classes: int) -> str:
    """An epoch's validation in a line; with five classes or fewer without top-5, which is then always 1."""
    words = f"val loss {means['loss']:.5f}, top-1 {means['top1']:.5f}"
    return words if top5_note(classes) else f"{words}, top-5 {means['top5']:.5f}"
