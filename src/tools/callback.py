"""What a run tells its user: a progress bar or plain lines, metrics.jsonl, curves.png."""

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from src.console import bar_size, columns
from src.curves import draw_curves, read_records
from src.errors import UserError
from src.files import next_free, write_text

_log = logging.getLogger(__name__)


class Progress:
    """Loss, images/s and time left: a bar of one line on a terminal, a line every `log_every` steps in a log.

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
        self.log_beside_bar = ExitStack()
        self.compiles = False

    def start(self, epoch: int, done: int = 0) -> None:
        """Begin an epoch, counted from 1, of which `done` updates are behind."""
        self.epoch, self.done = epoch, done
        self.told_done, self.told_time = done, time.perf_counter()
        self._open(f"epoch {epoch}/{self.epochs}", self.steps, done)

    def compiling(self) -> None:
        """The first step is about to be compiled, which takes a while, and tells nothing of the others' speed."""
        self.compiles = True
        if self.bar is not None:
            self.bar.set_postfix_str("compiling the step")
        elif not self.quiet:
            print("compiling the step", flush=True)

    def step(self, done: int, loss: float, lr: float, wait_ms: float = 0.0) -> None:
        """`done` updates of the epoch are behind, the last with this loss; a step waits `wait_ms` for its data."""
        advanced, self.done = done - self.done, done
        due = done // self.log_every > self.told_done // self.log_every or done == self.steps
        if self.bar is not None:
            # What matters most comes first; the rest is shown where the terminal is wide enough.
            parts = [f"loss {loss:.3f}"]
            if not self.compiles:
                speed, left, epoch_left = self._pace(done)
                parts += [f"{speed:.{0 if speed >= 100 else 1}f} img/s", f"{left} left", f"epoch {epoch_left}"]
            parts += [f"wait {wait_ms:.0f} ms", f"lr {lr:.3g}"]
            self.bar.set_postfix_str(fitting(parts, self._room()), refresh=False)
            self.bar.update(advanced)
        elif due and not self.quiet:
            line = f"epoch {self.epoch}/{self.epochs} step {done}/{self.steps} loss {loss:.4f} lr {lr:.4g}"
            if not self.compiles:
                speed, left, epoch_left = self._pace(done)
                line += f" {speed:.1f} img/s (data wait {wait_ms:.0f} ms) {left} left, {epoch_left} of the epoch"
            print(line, flush=True)
        if due or self.compiles:
            self.told_done, self.told_time, self.compiles = done, time.perf_counter(), False

    def _pace(self, done: int) -> tuple[float, str, str]:
        """Images a second since the last line, and the time that is left of the run and of the epoch."""
        seconds = max(time.perf_counter() - self.told_time, 1e-9) / (done - self.told_done)
        epoch_left = seconds * (self.steps - done)
        left = epoch_left + seconds * self.steps * (self.epochs - self.epoch)
        return self.images / seconds, clock(left), clock(epoch_left)

    def end(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        self.log_beside_bar.close()

    def validate(self, images: int) -> None:
        """Begin to validate so many images; `validated` tells of them."""
        self._open("validation", images, 0)

    def validated(self, images: int) -> None:
        """So many more images are behind."""
        if self.bar is not None:
            self.bar.update(images)

    def _open(self, what: str, total: int, done: int) -> None:
        self.end()
        if self.quiet or not sys.stderr.isatty():
            return
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        self.bar = tqdm(total=total, initial=done, desc=what, bar_format=form, leave=False, **bar_size())
        self.log_beside_bar.enter_context(logging_redirect_tqdm())

    def _room(self) -> int:
        """Columns for what stands behind the count, beside a bar of at least eight."""
        total = len(str(self.steps))
        return columns() - len(f"epoch {self.epoch}/{self.epochs} 100%|| ,  ") - 9 - 2 * total


def fitting(parts: Sequence[str], room: int) -> str:
    """As many parts, from the first, as fit into so many columns, with commas between them."""
    text = ""
    for part in parts:
        longer = f"{text}, {part}" if text else part
        if len(longer) > room:
            break
        text = longer
    return text


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, below an hour as m:ss."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Events:
    """Event files that TensorBoard opens, in tensorboardX's format; like `Metrics` they never end a run.

    Its SummaryWriter is not used: that writes in a thread of its own, which a full disk ends, and then waits for it.

    Args:
        folder: where they lie.
        first_epoch: what an earlier start has written from this epoch on is to be passed over.
        enabled: whether anything is written.

    Raises:
        UserError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, first_epoch: int = 1, enabled: bool = False) -> None:
        self.writer: Any = None
        if not enabled:
            return
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar
        except ImportError as error:
            raise UserError("tensorboard: needs the package tensorboardX: pip install tensorboardX") from error
        self._event, self._scalar = Event, scalar

        def begin() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(folder / "events"))
            self._write(first_epoch, session_log=SessionLog(status=SessionLog.START))
            self.writer.flush()

        self._try(begin)

    def add(self, record: dict[str, Any]) -> None:
        """Add an epoch's numbers."""

        def write() -> None:
            for name, value in record.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    self._write(record["epoch"], summary=self._scalar(name, value))
            self.writer.flush()

        if self.writer is not None:
            self._try(write)

    def _write(self, epoch: int, **content: Any) -> None:
        self.writer.write_event(self._event(wall_time=time.time(), step=epoch, **content))

    def _try(self, work: Callable) -> None:
        try:
            work()
        except Exception as error:  # as in Metrics
            _log.warning("tensorboard: %s; the run goes on without", error)
            writer, self.writer = self.writer, None
            with suppress(Exception):  # it cannot write the rest
                writer.close()


class Metrics:
    """metrics.jsonl, a line an epoch, and the curves drawn from it. Neither ever ends a run: what fails is a warning.

    Args:
        folder: where both lie.
        first_epoch: the epoch that will be added first.
        goes_on: the file's lines of earlier epochs are this run's own and stay. Otherwise a file that an earlier run
            left is kept under the next free name, metrics.1.jsonl and so on.
        writes: False on all ranks but the first.
        unsaved: where a run begins afresh that may have been killed before its first checkpoint, the last epoch that
            it can have recorded by then; a file that goes further is an earlier run's.
    """

    def __init__(
        self,
        folder: Path,
        first_epoch: int = 1,
        goes_on: bool = False,
        writes: bool = True,
        unsaved: Optional[int] = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.curves = folder / "curves.png"
        self.records: list[dict[str, Any]] = []
        self.writes = writes
        if not writes or not os.path.lexists(self.path):
            return
        records, damaged = read_records(self.path) if goes_on else ([], False)
        if unsaved is not None and records and records[-1]["epoch"] > unsaved:
            goes_on = False
        self.records = [record for record in records if record["epoch"] < first_epoch]
        if damaged or not goes_on:
            try:
                kept = next_free(folder / ("metrics.damaged.jsonl" if damaged else "metrics.jsonl"))
                self.path.rename(kept)
            except OSError as error:
                _log.warning("%s: cannot be set aside (%s)", self.path, error.strerror)
                return
            if damaged:
                _log.warning("%s: is damaged: what can be read is kept, the whole set aside as %s", self.path, kept)

    def add(self, record: dict[str, Any]) -> None:
        """Add an epoch's record."""
        self.records.append(record)
        if self.writes:
            self._try(write_text, self.path, "".join(json.dumps(line) + "\n" for line in self.records))

    def draw(self, rates: np.ndarray, first: int = 0) -> None:
        """Draw the curves anew; `rates`: the learning rate of every update of the run, from update `first` on."""
        if self.writes:
            self._try(draw_curves, self.records, self.curves, rates, first)

    def _try(self, work: Callable, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:  # a log or a picture, whatever is wrong with it, is no reason to lose a run
            what = "" if isinstance(error, UserError) else f"{self.path.parent}: {type(error).__name__}: "
            _log.warning("%s%s; the run goes on without", what, error)
