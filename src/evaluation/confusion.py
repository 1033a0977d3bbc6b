"""Which classes are taken for which: the confusion matrix, what follows from it, and its picture."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from src.evaluation.predictions import UNKNOWN, Predictions, write_table
from src.pictures import class_label, font_families, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERED = 30  # classes up to which each cell of the picture has its number
CLOSE_UP = 24  # classes in the part that is labelled where there are more
CELLS = 200  # cells a side of the picture of all classes, at most
LABEL = 26  # letters of a class's name in the picture


class Pair(NamedTuple):
    """A class that is taken for another."""

    label: int
    answer: int
    images: int
    share: float  # of the images of the class


class ClassScore(NamedTuple):
    """How a class fares. Shares are NaN where there is nothing to divide by."""

    label: int
    images: int
    top1: float
    top5: float
    precision: float  # of the images that are taken for this class, the share that shows it
    mistaken_for: int  # the commonest wrong answer; -1: there is none
    mistaken: int  # how often that is given


def confusion_matrix(predictions: Predictions, classes: int) -> np.ndarray:
    """How many images of class i are taken for class j: int64 (classes, classes). Answers that are no numbers are left
    out."""
    labels, answers = predictions.labels.astype(np.int64), predictions.classes[:, 0]
    given = answers != UNKNOWN
    counts = np.bincount(labels[given] * classes + answers[given], minlength=classes * classes)
    return counts.reshape(classes, classes)


def class_scores(predictions: Predictions, matrix: np.ndarray) -> list[ClassScore]:
    """A score for each class, in their order."""
    count = len(matrix)
    images = np.bincount(predictions.labels, minlength=count)
    within = [np.bincount(predictions.labels[predictions.ranks < k], minlength=count) for k in (1, 5)]
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    worst = wrong.argmax(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        top1, top5 = (hits / images for hits in within)
        precision = matrix.diagonal() / matrix.sum(axis=0)
    return [
        ClassScore(
            index,
            int(images[index]),
            float(top1[index]),
            float(top5[index]),
            float(precision[index]),
            int(worst[index]) if wrong[index, worst[index]] else UNKNOWN,
            int(wrong[index, worst[index]]),
        )
        for index in range(count)
    ]


def confused_pairs(matrix: np.ndarray, most: int) -> list[Pair]:
    """The commonest mistakes, at most `most`, the commonest first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    images = matrix.sum(axis=1)
    pairs = [(int(place) // len(matrix), int(place) % len(matrix)) for place in order]
    return [Pair(i, j, int(wrong[i, j]), float(wrong[i, j] / images[i])) for i, j in pairs if wrong[i, j]]


def write_confusion(path: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Write the matrix as a table: a row a class, a column an answer."""
    rows = ([name, *row.tolist()] for name, row in zip(names, matrix))
    write_table(path, [["is \\ taken for", *names], *rows])


def write_class_scores(path: Path, scores: Sequence[ClassScore], names: Sequence[str]) -> None:
    """Write a line a class."""

    def cells(score: ClassScore) -> list[object]:
        shares = ["" if share != share else f"{share:.6f}" for share in (score.top1, score.top5, score.precision)]
        wrong = names[score.mistaken_for] if score.mistaken else ""
        return [names[score.label], score.images, *shares, wrong, score.mistaken]

    head = ["class", "images", "top1", "top5", "precision", "most_often_mistaken_for", "times"]
    write_table(path, [head, *map(cells, scores)])


def by_likeness(matrix: np.ndarray) -> np.ndarray:
    """The classes in an order in which those that are taken for each other stand together: indices (classes,)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return np.arange(len(matrix))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    likeness = shares + shares.T
    np.fill_diagonal(likeness, 0)
    distance = 1 - likeness / max(likeness.max(), 1e-12)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average"))


def draw_confusion(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """The matrix as a PNG, rows for what an image shows and columns for what it is taken for.

    Right answers are blue, wrong ones red, each by its share of the row's images. Beyond 30 classes there are two
    parts: labelled, the classes with the commonest mistakes, and below all mistakes, in an order that puts classes
    together which are taken for each other and with neighbouring classes added up.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [shortened(class_label(name, index)) for index, name in enumerate(names)]
    images = matrix.sum(axis=1)
    stream = io.BytesIO()
    with mpl.rc_context({"font.family": font_families(labels), "axes.unicode_minus": False}):
        side = 2.4 + 0.36 * max(len(matrix), 4)
        size = (side + 0.6, side) if len(matrix) <= NUMBERED else (10.4, 18.8)
        figure = Figure(figsize=size, layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        if len(matrix) <= NUMBERED:
            _plot_labelled(figure.subplots(), matrix, images, labels)
        else:
            part, whole = figure.subplots(2, 1, height_ratios=(1.2, 1))
            order = by_likeness(matrix)
            chosen = _most_confused(matrix, order)
            _plot_labelled(part, matrix[np.ix_(chosen, chosen)], images[chosen], [labels[index] for index in chosen])
            part.set_title(f"The {len(chosen)} classes with the commonest mistakes, by number of images")
            _plot_mistakes(figure, whole, matrix, order)
        figure.savefig(stream, format="png", bbox_inches="tight", pad_inches=0.08)
    return stream.getvalue()


def shortened(name: str) -> str:
    """A name cut to what a label has room for."""
    return name if len(name) <= LABEL else name[: LABEL - 1].rstrip() + "…"


def _most_confused(matrix: np.ndarray, order: np.ndarray) -> list[int]:
    """The classes of the commonest mistakes, in the given order."""
    chosen: set[int] = set()
    for pair in confused_pairs(matrix, CLOSE_UP * CLOSE_UP):
        if len(chosen | {pair.label, pair.answer}) > CLOSE_UP:
            break
        chosen |= {pair.label, pair.answer}
    return [int(index) for index in order if int(index) in (chosen or set(range(CLOSE_UP)))]


def _plot_labelled(axes: "Axes", matrix: np.ndarray, images: np.ndarray, labels: list[str]) -> None:
    """A matrix with a label a row and a number a cell."""
    import matplotlib as mpl

    shares = matrix / np.maximum(images, 1)[:, None]
    right, wrong = mpl.colormaps["Blues"], mpl.colormaps["Reds"]
    colours = wrong(0.85 * np.sqrt(shares))
    diagonal = np.arange(len(matrix))
    colours[diagonal, diagonal] = right(0.1 + 0.75 * shares.diagonal())
    colours[matrix == 0] = (1, 1, 1, 1)
    axes.imshow(colours)
    size = 9 if len(matrix) <= 16 else 7
    brightness = colours[..., :3] @ (0.3, 0.6, 0.1)
    for row, column in np.argwhere(matrix).tolist():
        colour = "white" if brightness[row, column] < 0.55 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=size, color=colour)
    room = 72 * (0.9 / len(matrix) + 0.34)  # points that a column takes, about
    turned = 90 if max(text_width(label, 8) for label in labels) > room else 0
    axes.set_xticks(diagonal, labels, rotation=turned, fontsize=8)
    axes.set_yticks(diagonal, labels, fontsize=8)
    axes.set_xticks(diagonal[1:] - 0.5, minor=True)
    axes.set_yticks(diagonal[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e4e4", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#c8c8c8")
    axes.set_xlabel("is taken for")
    axes.set_ylabel("shows")


def _plot_mistakes(figure: "Figure", axes: "Axes", matrix: np.ndarray, order: np.ndarray) -> None:
    """All wrong answers, neighbours added up so that a single one is not lost between pixels."""
    wrong = matrix[np.ix_(order, order)].astype(np.float64)
    np.fill_diagonal(wrong, 0)
    together = -(-len(wrong) // CELLS)
    cells = -(-len(wrong) // together)
    padded = np.zeros((cells * together, cells * together))
    padded[: len(wrong), : len(wrong)] = wrong
    summed = padded.reshape(cells, together, cells, together).sum(axis=(1, 3))
    images = np.zeros(cells * together)
    images[: len(wrong)] = matrix[order].sum(axis=1)
    shares = summed / np.maximum(images.reshape(cells, together).sum(axis=1), 1)[:, None]
    edge = len(wrong) - 0.5
    picture = axes.imshow(
        np.where(summed > 0, np.sqrt(shares), np.nan),
        cmap="YlOrRd",
        extent=(-0.5, cells * together - 0.5, cells * together - 0.5, -0.5),
        interpolation="nearest",
        vmin=0,
    )
    axes.plot([-0.5, edge], [-0.5, edge], color="#4269d0", linewidth=0.5)
    axes.set_xlim(-0.5, edge)
    axes.set_ylim(edge, -0.5)
    axes.set_xticks([])  # a place in this order is no class's number
    axes.set_yticks([])
    axes.set_facecolor("#fafafa")
    added = f", {together} x {together} classes a point" if together > 1 else ""
    axes.set_title(f"All mistakes{added}; classes alike stand together")
    axes.set_xlabel("is taken for")
    axes.set_ylabel("shows")
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, pad=0.01)
    ticks = np.linspace(0, np.sqrt(max(shares.max(), 1e-9)), 6)
    bar.set_ticks(ticks, labels=[f"{tick * tick:.1%}" for tick in ticks])
    bar.set_label("share of the row's images")
