"""What asks a run to end: real processes that get real signals."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Callable, Optional

import pytest

from src.stops import STOPS, TOGETHER, TOGETHER_IN_A_JOB
from tests.conftest import ROOT

# Takes a step after the other until it is asked to end; then `saves` for a while.
RUN = """
import sys, time
from src.trainers.signals import StopSignal
stop = StopSignal().listen()
stop.arm()
print("ready", flush=True)
while not stop.number:
    sum(range(10**5))
print("saves", flush=True)
time.sleep(float(sys.argv[1]))
print("saved", flush=True)
sys.exit(128 + stop.number)
"""


@pytest.fixture
def run() -> Iterator[Callable]:
    """Starts such a process; what a failed test leaves is ended."""
    started = []

    def start(saving: float = 0.0, prepare: Optional[Callable] = None, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(saving)], stdout=subprocess.PIPE, text=True, preexec_fn=prepare,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", STOPS)
def test_whichever_signal_asks_it_to_end_a_run_saves_first(number, run):
    process = run()
    process.send_signal(number)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("saves\nsaved\n", 128 + number)


def test_a_signal_that_comes_twice_at_once_is_one_request_and_a_later_one_ends_the_run(run):
    """As from timeout, which signals its child and then the group; or a session's end, which is SIGTERM and SIGHUP."""
    process = run(saving=30)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "saves\n"
    time.sleep(TOGETHER + 0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("", 128 + signal.SIGINT)


def test_a_rank_takes_what_its_launcher_passes_on_a_little_later_for_the_same_request(tmp_path, run):
    process = run(saving=30, HEARTBEAT_FILE=str(tmp_path / "heartbeat"))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saves\n"
    time.sleep(TOGETHER + 0.2)
    process.send_signal(signal.SIGTERM)
    time.sleep(TOGETHER_IN_A_JOB)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("", 128 + signal.SIGTERM)


def test_the_end_of_its_cpu_time_which_is_said_each_second_lets_a_run_save(run):
    process = run(saving=3, prepare=lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 60)))
    assert (process.communicate(timeout=60)[0], process.returncode) == ("saves\nsaved\n", 128 + signal.SIGXCPU)


def test_what_nohup_has_had_ignored_stays_ignored(run):
    process = run(prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 128 + signal.SIGUSR1
    process.stdout.close()
