"""Accuracy of a network on a data set: each image counts once, whatever the batch size and the number of ranks."""

from collections.abc import Iterable
from typing import Callable, Optional

import numpy as np
from mindspore import Tensor, __version__, nn

from src.metrics import Totals

RUNTIME = f"MindSpore {__version__}"


def answering(network: nn.Cell) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a function of arrays: images, float32 (N, 3, H, W), to logits (N, C)."""
    return lambda images: network(Tensor(images)).asnumpy()


def evaluate(
    network: nn.Cell,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    report: Optional[Callable[[int], None]] = None,
    collect: Optional[Callable[[np.ndarray, np.ndarray], None]] = None,
) -> Totals:
    """Run the network in inference mode over batches of images (N, 3, H, W) and labels (N,), -1 for padding.

    Args:
        network: from images to logits; its training flag is put back afterwards.
        batches: all of one shape, so that one graph serves them.
        report: is told how many images each batch held.
        collect: is handed each batch's logits (N, C) and labels (N,).
    """
    flags = [(cell, cell.training) for _, cell in network.cells_and_names()]  # frozen parts have their own
    network.set_train(False)
    totals = Totals()
    try:
        for images, labels in batches:
            before = totals.images
            logits = network(Tensor(images)).asnumpy()
            totals.add(logits, labels)
            if collect:
                collect(logits, labels)
            if report:
                report(totals.images - before)
    finally:
        for cell, training in flags:
            cell.training = training
    return totals
