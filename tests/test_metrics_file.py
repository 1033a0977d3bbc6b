"""metrics.jsonl: a log that is damaged or cannot be written never stops a run."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from src.tools.callback import Metrics
from tests.conftest import ROOT

RECORDS = [{"epoch": epoch, "loss": 1.0 / epoch, "lr": 0.1, "step": epoch} for epoch in (1, 2, 3)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
RATES = np.full(8, 0.1, np.float32)


def epochs(path) -> list[int]:
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (LINES + b'{"epoch": 4, "los', [1, 2, 3]),
        (LINES[:40] + b"\n" + LINES[40:], [2, 3]),
        (LINES + b"\n", [1, 2, 3]),
        (LINES + bytes(512), [1, 2, 3]),
        (LINES + b"\xff\xfe\n", [1, 2, 3]),
        (LINES + b'{"other": 1}\n', [1, 2, 3]),
        (LINES + b'[1]\n7\nnull\n"a"\n', [1, 2, 3]),
        (LINES + b'{"epoch": "x"}\n{"epoch": -1}\n{"epoch": true}\n', [1, 2, 3]),
        (LINES + b"[" * 100_000, [1, 2, 3]),
        (b"", []),
    ],
)
def test_what_can_be_read_stays_and_the_whole_is_set_aside(content, kept, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    metrics = Metrics(tmp_path, 4, goes_on=True)
    metrics.add({"epoch": 4, "loss": 0.2})
    assert epochs(path) == [*kept, 4]
    aside = tmp_path / "metrics.damaged.1.jsonl"
    clean = content in (b"", LINES)
    assert aside.exists() is not clean
    assert clean or aside.read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
def test_something_else_in_its_place_is_set_aside(kind, tmp_path):
    path = tmp_path / "metrics.jsonl"
    {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(path)}[kind]()
    metrics = Metrics(tmp_path, 2, goes_on=True)
    metrics.add({"epoch": 2, "loss": 0.5})
    assert epochs(path) == [2]
    assert os.path.lexists(tmp_path / "metrics.damaged.1.jsonl")


def test_lines_from_the_epoch_on_are_dropped_and_another_runs_file_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES)
    Metrics(tmp_path, 2, goes_on=True).add({"epoch": 2, "loss": 9.0})
    assert epochs(path) == [1, 2]
    before = path.read_bytes()
    Metrics(tmp_path, 1).add({"epoch": 1, "loss": 1.0})
    assert epochs(path) == [1]
    assert (tmp_path / "metrics.1.jsonl").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_keeps_one_file(tmp_path):
    for _ in range(3):
        Metrics(tmp_path, 1, goes_on=True).add({"epoch": 1, "loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(("unsaved", "kept"), [(3, 1), (2, 2), (None, 1)])
def test_an_earlier_run_s_file_whose_checkpoints_have_gone_is_kept(unsaved, kept, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(LINES)
    Metrics(tmp_path, 1, goes_on=True, unsaved=unsaved).add({"epoch": 1, "loss": 1.0})
    assert epochs(tmp_path / "metrics.jsonl") == [1]
    files = sorted(tmp_path.iterdir())
    assert len(files) == kept
    assert kept == 1 or files[0].read_bytes() == LINES


def test_curves_that_cannot_be_drawn_or_written_are_a_warning(tmp_path, caplog):
    (tmp_path / "curves.png").mkdir()
    metrics = Metrics(tmp_path)
    metrics.add({"epoch": 1, "loss": "rubbish", "lr": None, "top1": float("nan")})
    metrics.draw(RATES)
    assert any("goes on without" in record.message for record in caplog.records)


EVENTS = """
import logging, sys
from pathlib import Path
from src.tools.callback import Events
logging.basicConfig(format="%(message)s")
events = Events(Path(sys.argv[1]), 1, enabled=True)
for epoch in range(1, 9):
    events.add({"epoch": epoch, **{f"value {number}": 0.5 for number in range(400)}})
print("end")
"""


@pytest.mark.parametrize("kind", ["full", "folder", "nowhere"])
def test_events_that_cannot_be_written_cost_a_line_and_neither_wait_nor_end_the_run(kind, tmp_path):
    folder = tmp_path / "events"
    if kind == "folder":
        folder.write_text("a file")
    done = subprocess.run(
        [sys.executable, "-c", EVENTS, "/dev/null/events" if kind == "nowhere" else folder],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
    assert done.stderr.startswith("tensorboard: ")
    assert done.stderr.endswith("; the run goes on without\n")
    assert done.stderr.count("\n") == 1
