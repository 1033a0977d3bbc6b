"""A real train.py that is killed and goes on, compared with one that was left alone; benchmarks/soak.py uses it too."""

import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Optional

from tests.conftest import command

FINAL = ("DDRNet23Slim.ckpt", "DDRNet23Slim_best.ckpt")


def start(flags: list, folder: Path) -> subprocess.Popen:
    """train.py in `folder`, with what it says appended to log.txt."""
    folder.mkdir(exist_ok=True)
    log = (folder / "log.txt").open("a")
    return subprocess.Popen(command("train.py", *flags), cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def wait_for(process: subprocess.Popen, due: Callable[[], bool], seconds: float = 200) -> None:
    """Wait until `due()` holds or the process has ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and not due() and time.monotonic() < end:
        time.sleep(0.02)


def kill_when(process: subprocess.Popen, number: signal.Signals, due: Callable[[], bool]) -> int:
    """Send the signal once `due()` holds; the exit code, negative where the signal itself ended the process."""
    wait_for(process, due)
    if process.poll() is None:
        process.send_signal(number)
    return process.wait(timeout=200)


def outcome(folder: Path) -> dict:
    """What must not depend on interruptions: final weights, bit for bit, and the metrics but for times."""
    digests = {name: hashlib.sha256((folder / "ckpt_0" / name).read_bytes()).hexdigest() for name in FINAL}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "img_s", "wait_ms")
    return {**digests, "metrics": [{key: r[key] for key in r if key not in timed} for r in records]}


def log_of(folder: Path, since: Optional[int] = 0) -> str:
    """What the runs in `folder` have said, from a character on."""
    path = folder / "log.txt"
    return path.read_text()[since:] if path.exists() else ""
