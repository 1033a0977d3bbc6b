"""The curves of a run: loss, accuracy and learning rate over its epochs, from the records of metrics.jsonl."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from src.errors import UserError
from src.files import atomic_write, read_bytes

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING, VALIDATION, TOP5, RATE, AVERAGED = "#4269d0", "#ff725c", "#efb118", "#3ca951", "#a463f2"
MOST_METRICS = 1 << 28  # bytes of a metrics.jsonl
MOST_EPOCHS = 10**9  # a larger number is no epoch's
_LARGEST = 1e300  # of a number that can be drawn
_MARKED = 40  # epochs up to which each has a mark
_POINTS = 2000  # of the learning rate's curve, at most


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, an epoch each; lines that are no record are left out."""
    return read_records(path)[0]


def read_records(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The records of a metrics.jsonl in the order of their epochs, and whether anything in it could not be read."""
    try:
        lines = read_bytes(path, MOST_METRICS).splitlines()
    except UserError:
        return [], True
    records, damaged = {}, False
    for line in lines:
        try:
            record = json.loads(line)
            epoch = record["epoch"]
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged = True
            continue
        if isinstance(record, dict) and type(epoch) is int and 0 < epoch <= MOST_EPOCHS:
            records[epoch] = record
        else:
            damaged = True
    return [records[epoch] for epoch in sorted(records)], damaged


def draw_curves(
    records: list[dict[str, Any]], path: Path, rates: Optional["np.ndarray"] = None, first: int = 0
) -> None:
    """Draw the curves to a PNG; see `plot_curves`."""
    with atomic_write(path) as temporary:
        plot_curves(records, rates, first).savefig(temporary)


def plot_curves(records: list[dict[str, Any]], rates: Optional["np.ndarray"] = None, first: int = 0) -> "Figure":
    """Loss, accuracy and learning rate side by side.

    Top-5 is left out where it is 100 % throughout, as it must be with five classes or fewer.

    Args:
        records: an epoch each: epoch (from 1), step (updates until its end), lr (at its end), and what is there of
            loss, val_loss, top1, top5, ema_val_loss, ema_top1. Values that are no finite numbers are left out.
        rates: the learning rate of every update of the run: then the schedule is drawn in full, with warmup and with
            what is still to come.
        first: the update whose rate is the first of them, where a run's earlier epochs count as done.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(13, 4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3)

    loss.set_title("Loss")
    _line(loss, records, "loss", "training", TRAINING)
    _line(loss, records, "val_loss", "validation", VALIDATION)
    _line(loss, records, "ema_val_loss", "validation, averaged weights", AVERAGED)
    drawn = [value for line in loss.lines for value in line.get_ydata()]
    if drawn and min(drawn) > 0 and max(drawn) > 3 * min(drawn):
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        loss.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))

    accuracy.set_title("Validation accuracy, %")
    _line(accuracy, records, "top1", "top-1" + _best(records, "top1"), VALIDATION, 100)
    _line(accuracy, records, "ema_top1", "averaged" + _best(records, "ema_top1"), AVERAGED, 100)
    if any(value < 1 for _, value in _points(records, "top5")):
        _line(accuracy, records, "top5", "top-5", TOP5, 100)

    rate.set_title("Learning rate")
    last = records[-1] if records else {}
    if rates is not None and len(rates) and last.get("step"):
        _schedule(rate, rates, first, int(last["step"]), last["step"] / last["epoch"])
    else:
        _line(rate, records, "lr", "at the epoch's end", RATE)

    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.dataLim.width == 0:  # one epoch: a point
            axes.set_xlim(axes.dataLim.x0 - 0.5, axes.dataLim.x0 + 0.5)
            axes.set_xticks([axes.dataLim.x0])
        if axes.lines:
            axes.legend(framealpha=0.85, edgecolor="none")
        else:
            axes.text(0.5, 0.5, "nothing recorded", ha="center", va="center", color="grey", transform=axes.transAxes)
    return figure


def _points(records: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    pairs = [(record["epoch"], record.get(name)) for record in records]
    return [(epoch, value) for epoch, value in pairs if isinstance(value, (int, float)) and abs(value) < _LARGEST]


def _line(axes: "Axes", records: list[dict[str, Any]], name: str, label: str, colour: str, factor: float = 1.0) -> None:
    points = [(epoch, value * factor) for epoch, value in _points(records, name)]
    if points:
        marker = "o" if len(points) <= _MARKED else None
        axes.plot(*zip(*points), label=label, color=colour, marker=marker, markersize=3.5, linewidth=1.6)


def _best(records: list[dict[str, Any]], name: str) -> str:
    """Where a curve is highest, for its legend."""
    points = _points(records, name)
    if not points:
        return ""
    epoch, value = max(points, key=lambda point: point[1])
    return f" (best {value:.2%}, epoch {epoch})"


def _schedule(axes: "Axes", rates: "np.ndarray", first: int, done: int, updates: float) -> None:
    """The learning rate of every update: those done, and those to come in a paler line."""
    import numpy as np

    shown = np.unique(np.linspace(0, len(rates) - 1, min(len(rates), _POINTS)).astype(int))
    behind, ahead = shown[shown + first < done], shown[shown + first >= done - 1]
    marker = "o" if len(behind) == 1 else None
    epochs = (behind + first) / updates
    axes.plot(epochs, rates[behind], label="of every update", color=RATE, marker=marker, linewidth=1.6)
    if len(ahead) > 1:
        axes.plot((ahead + first) / updates, rates[ahead], label="to come", color=RATE, alpha=0.35, linewidth=1.6)
