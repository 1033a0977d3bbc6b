"""What a run tells its user: a progress bar or plain lines, metrics.jsonl, curves.png."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from src.evaluation.curves import draw_curves
from src.files import write_text


class Progress:
    """Loss, learning rate, images/s and time left: a bar on a terminal, a line every `log_every` steps in a log.

    Args:
        steps: updates an epoch.
        epochs: of the whole run.
        images: images an update, over all devices.
        log_every: steps between two lines.
        quiet: say nothing (ranks but the first).
    """

    def __init__(self, steps: int, epochs: int, images: int, log_every: int, quiet: bool = False) -> None:
        self.steps, self.epochs, self.images, self.log_every, self.quiet = steps, epochs, images, log_every, quiet
        self.bar: Optional[tqdm] = None

    def start(self, epoch: int, done: int = 0) -> None:
        """Begin an epoch, counted from 1, of which `done` updates are behind."""
        self.epoch, self.done = epoch, done
        self.told_done, self.told_time = done, time.perf_counter()
        if sys.stderr.isatty() and not self.quiet:
            self.bar = tqdm(
                total=self.steps, initial=done, desc=f"epoch {epoch}/{self.epochs}", unit="step", dynamic_ncols=True
            )

    def step(self, done: int, loss: float, lr: float, wait_ms: float = 0.0) -> None:
        """`done` updates of the epoch are behind, the last with this loss; a step waits `wait_ms` for its data."""
        advanced, self.done = done - self.done, done
        due = done // self.log_every > self.told_done // self.log_every or done == self.steps
        if self.quiet or not (self.bar or due):
            return
        seconds = max(time.perf_counter() - self.told_time, 1e-9) / (done - self.told_done)
        left = clock(seconds * (self.steps * (self.epochs - self.epoch + 1) - done))
        speed = f"{self.images / seconds:.1f} img/s (data wait {wait_ms:.0f} ms)"
        if self.bar:
            self.bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.4g}, {speed}, {left} left", refresh=False)
            self.bar.update(advanced)
        if due:
            if not self.bar:
                place = f"epoch {self.epoch}/{self.epochs} step {done}/{self.steps}"
                print(f"{place} loss {loss:.4f} lr {lr:.4g} {speed} {left} left", flush=True)
            self.told_done, self.told_time = done, time.perf_counter()

    def end(self) -> None:
        """End the epoch's bar."""
        if self.bar:
            self.bar.close()
            self.bar = None


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Metrics:
    """metrics.jsonl, a line an epoch, and the curves drawn from it.

    Args:
        folder: where both lie.
        first_epoch: the epoch that will be added first. 1: a file that an earlier run left is kept under the next free
            name, metrics.1.jsonl and so on; later: its lines of earlier epochs stay, the others are dropped.
        writes: False on all ranks but the first.
    """

    def __init__(self, folder: Path, first_epoch: int = 1, writes: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        self.curves = folder / "curves.png"
        self.records: list[dict[str, Any]] = []
        self.writes = writes
        if not writes or not self.path.exists():
            return
        if first_epoch == 1:
            number = 1
            while (kept := folder / f"metrics.{number}.jsonl").exists():
                number += 1
            self.path.rename(kept)
            return
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        self.records = [line for line in lines if line["epoch"] < first_epoch]

    def add(self, record: dict[str, Any]) -> None:
        """Add an epoch's record and draw the curves anew."""
        if not self.writes:
            return
        self.records.append(record)
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.records))
        draw_curves(self.records, self.curves)
