"""What a terminal of 80 columns shows while a run goes on: a real terminal, read back."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from src.tools import callback
from src.tools.callback import Progress, clock, fitting
from tests.conftest import ROOT

SHOW = """
import logging, sys, time
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from src.tools.callback import Progress
progress = Progress(steps=312, epochs=300, images=4096, log_every=50)
progress.start(299)
progress.compiling()
for done in range(1, 313):
    progress.step(done, 2.3451, 0.0123, 3.0)
    if done == 100:
        logging.info("a line of the log")
    time.sleep(0.002)
progress.end()
progress.validate(500)
for _ in range(10):
    progress.validated(50)
progress.end()
print("the end")
"""


def shown(columns: int, lines: int = 24) -> str:
    """Everything that a terminal of so many columns received."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(
        [sys.executable, "-c", SHOW], stdin=follower, stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        content = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not piece:
                break
            content += piece
    os.close(leader)
    assert process.returncode == 0, content
    return content.decode()


@pytest.mark.parametrize(("size", "columns"), [((80, 24), 80), ((120, 24), 120), ((0, 0), 80), ((80, 0), 80)], ids=str)
def test_the_bar_stays_one_line_and_shows_loss_speed_and_time_left(size, columns):
    text = shown(*size)
    frames = [frame for line in text.split("\n") for frame in line.split("\r") if frame.strip()]
    assert max(map(len, frames)) <= columns
    bars = [frame for frame in frames if frame.startswith("epoch 299/300") and "loss" in frame]
    assert bars
    assert all("2.345" in bar and "img/s" in bar and "left" in bar for bar in bars)
    assert all(("wait 3 ms" in bar) for bar in bars) is (columns == 120)
    assert "compiling the step" in text
    assert any(frame.startswith("validation") for frame in frames)


def test_a_line_of_the_log_is_not_written_through_the_bar():
    lines = [line.split("\r")[-1].rstrip() for line in shown(80).split("\r\n")]
    assert "a line of the log" in lines
    assert "the end" in lines


def test_the_first_step_with_its_compilation_tells_nothing_of_the_speed(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(callback.time, "perf_counter", lambda: now[0])
    progress = Progress(steps=7, epochs=3, images=16, log_every=1)
    progress.start(1)
    progress.compiling()
    for done, now[0] in [(1, 120.0), (2, 120.5), (3, 121.0)]:
        progress.step(done, 1.5, 0.1)
    first, second, third = capsys.readouterr().out.splitlines()[1:]
    assert first == "epoch 1/3 step 1/7 loss 1.5000 lr 0.1"
    assert second.endswith(" 32.0 img/s (data wait 0 ms) 0:10 left, 0:02 of the epoch")
    assert " 32.0 img/s " in third


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (125407, "34:50:07")]
)
def test_time_is_hours_minutes_and_seconds(seconds, text):
    assert clock(seconds) == text


def test_parts_that_do_not_fit_are_left_out_from_the_end():
    assert fitting(["loss 1", "9 img/s", "0:10 left"], 15) == "loss 1, 9 img/s"
    assert fitting(["loss 1"], 5) == ""
