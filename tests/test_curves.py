"""curves.png: what its panels hold, read back from the figure and from the file's pixels."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from src.curves import draw_curves, plot_curves, read_metrics

RATES = np.concatenate([np.linspace(0, 0.1, 10, endpoint=False), np.linspace(0.1, 0, 50)]).astype(np.float32)


def record(epoch: int, **values: float) -> dict:
    return {"epoch": epoch, "step": epoch * 10, "lr": float(RATES[epoch * 10 - 1]), "loss": 1 / epoch, **values}


def lines(figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    axes = figure.axes[panel]
    return {line.get_label(): [tuple(point) for point in line.get_xydata().tolist()] for line in axes.lines}


def test_each_panel_has_its_curves_and_the_best_epoch_stands_in_the_legend():
    scores = [(0.5, 0.7, 0.9), (0.25, 0.9, 0.95), (0.3, 0.8, 1.0)]
    records = [record(e, val_loss=v, top1=a, top5=b) for e, (v, a, b) in enumerate(scores, 1)]
    figure = plot_curves(records)
    assert lines(figure, 0)["validation"] == [(1, 0.5), (2, 0.25), (3, 0.3)]
    assert lines(figure, 0)["training"] == [(1, 1), (2, 0.5), (3, 1 / 3)]
    accuracy = lines(figure, 1)
    assert list(accuracy) == ["top-1 (best 90.00%, epoch 2)", "top-5"]
    assert accuracy["top-5"][1] == (2, 95)


def test_top5_is_left_out_where_it_says_nothing():
    figure = plot_curves([record(1, top1=0.5, top5=1.0), record(2, top1=0.6, top5=1.0)])
    assert [name[:5] for name in lines(figure, 1)] == ["top-1"]


def test_the_whole_schedule_is_drawn_with_its_warmup_and_what_is_still_to_come():
    figure = plot_curves([record(1), record(2)], RATES)
    done, ahead = lines(figure, 2)["of every update"], lines(figure, 2)["to come"]
    assert done[0] == (0, 0)  # where warmup begins
    assert max(done, key=lambda point: point[1]) == (1.0, pytest.approx(0.1))  # and ends, after epoch 1
    assert len(done) == 20 and len(ahead) == 41
    assert ahead[-1] == (pytest.approx(5.9), 0)
    later = lines(plot_curves([record(1), record(2), record(3)], RATES[20:], first=20), 2)
    assert later["of every update"] == [(u / 10, RATES[u]) for u in range(20, 30)]
    long = lines(plot_curves([record(1)], np.linspace(0, 1, 1_000_000)), 2)
    assert sum(map(len, long.values())) < 2100


def test_averaged_weights_have_curves_of_their_own():
    figure = plot_curves([record(1, top1=0.5, ema_top1=0.75, val_loss=2.0, ema_val_loss=1.0)])
    assert lines(figure, 1)["averaged (best 75.00%, epoch 1)"] == [(1, 75)]
    assert lines(figure, 0)["validation, averaged weights"] == [(1, 1)]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(1, val_loss=0.5, top1=0.5, top5=0.9)],
        [record(1, loss=0.0, val_loss=0.0, top1=1.0, top5=1.0), record(2, loss=0.0, val_loss=0.0, top1=1.0, top5=1.0)],
        [record(1, val_loss=float("nan"), top1=float("inf")), record(2, val_loss=None, top1="?")],
        [{"epoch": 1}],
    ],
    ids=["no epoch", "one epoch", "one class", "no numbers", "bare"],
)
@pytest.mark.parametrize("rates", [None, RATES])
def test_any_run_gives_a_picture_without_a_warning(records, rates, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(records, tmp_path / "curves.png", rates)
    assert Image.open(tmp_path / "curves.png").size == (1430, 440)


def test_a_title_is_no_wider_than_its_axes():
    figure = plot_curves([record(1, top1=0.98611, top5=1.0)])
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.title.get_window_extent().width < axes.get_window_extent().width


def test_a_damaged_metrics_file_gives_its_readable_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(record(1))
    path.write_bytes(f'{good}\n[1]\n"text"\n\n{{"loss": 1}}\n'.encode() + b"\xff\xfe\0\0\n" + good[:9].encode())
    assert read_metrics(path) == [record(1)]
