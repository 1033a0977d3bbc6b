"""A training run from its first step to its last: where it is, what it saves and tells, how it stops and goes on."""

import logging
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from mindspore import nn

from src.args import Config
from src.data.data_utils.modelarts import Outbox
from src.data.imagenet import TrainBatches
from src.distributed.one_machine import telling_of_lost_ranks
from src.distributed.ranks import Ranks
from src.files import is_regular
from src.heartbeat import beat, finish
from src.metrics import in_words
from src.run_folder import write_run
from src.tools.callback import Events, Metrics, Progress
from src.tools.cell import native_kernels
from src.tools.get_misc import output_folder, seconds_running
from src.trainers.checkpoint import Cursor, holding
from src.trainers.feed import Feed
from src.trainers.judge import Judge
from src.trainers.signals import Interrupted, StopSignal
from src.trainers.start import Start
from src.trainers.train_one_step import TrainOneStep

_log = logging.getLogger(__name__)
COMPILING, SAVING = 3600.0, 1800.0  # seconds that a rank may be silent for


class Session:
    """One run in one folder.

    Args:
        config: reads the keys of epochs, saving, resuming and outputs.
        network: that is trained.
        step: trains it.
        train: the batches it is trained on.
        ranks: that train together; the first alone writes and speaks.
        outbox: hands in what was written.
        stop: the signals that end the run.
        start: its checkpoints, and the one that it goes on from.

    Attributes:
        cursor: where the run is.
        resumed: whether it went on from a checkpoint.
    """

    def __init__(
        self,
        config: Config,
        network: nn.Cell,
        step: TrainOneStep,
        train: TrainBatches,
        ranks: Ranks,
        outbox: Outbox,
        stop: StopSignal,
        start: Start,
    ) -> None:
        self.config, self.network, self.step, self.train = config, network, step, train
        self.ranks, self.outbox, self.stop = ranks, outbox, stop
        self.folder = output_folder(config)
        self.checkpoints, self._saved = start.checkpoints, start.saved
        self.checkpoints.facts["kernels"] = str(native_kernels(config))
        if ranks.is_first and not config.resume and self.checkpoints.holds_a_run():  # --overwrite was said
            _log.warning("overwrite: the earlier run in %s is removed", self.checkpoints.folder)
            self.checkpoints.clear()
        self.cursor = Cursor(epoch=config.start_epoch + 1)
        self.resumed = False
        self.progress = Progress(
            train.updates, config.epochs, config.images_an_update, config.log_every, quiet=not ranks.is_first
        )
        self._told = False

    def resume(self) -> None:
        """Go to where the checkpoint that the run starts from ends: the first rank knows, the others hear of it."""
        saved, self._saved = self._saved, None  # its arrays are large
        if saved:
            self._compare_kernels(saved.facts.get("kernels"))
            afresh = saved.restore(self.network, self.step, self.config.flavour)
            if afresh:
                _log.warning("resume: %d parameters start afresh, as %s: not in the checkpoint", len(afresh), afresh[0])
        self.ranks.hand_out(self.step)
        facts = self.ranks.hand_out_facts(saved.cursor.facts() if saved else None)
        if facts:
            self.cursor, self.resumed = Cursor.of(facts), True
            self._check_best()
            _log.info(
                "going on from %s, in epoch %d after step %d", saved and saved.path, self.cursor.epoch, self.cursor.done
            )
        goes_on = bool(self.config.resume)  # with auto also what was killed before its first checkpoint
        unsaved = None if self.resumed else self.config.start_epoch + (self.config.save_every or self.config.epochs)
        self.metrics = Metrics(self.folder, self.cursor.epoch, goes_on, self.ranks.is_first, unsaved)
        self.events = Events(
            self.folder / "events", self.cursor.epoch, enabled=self.config.tensorboard and self.ranks.is_first
        )
        if self.ranks.is_first:
            command = " ".join(map(shlex.quote, sys.argv))
            write_run(self.checkpoints.folder, self.config, self.train.classes, f"python {command}")
        saves = 1 + (self.train.updates // self.config.save_steps if self.config.save_steps else 0)
        saves *= max(0, self.config.epochs - self.cursor.epoch + 1)
        self.checkpoints.warn_of_little_room(self.network, self.step, saves)
        self.stop.arm()

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, counted from 1."""
        patience = self.config.patience
        while self.cursor.epoch <= self.config.epochs:
            waited = self.cursor.epoch - 1 - max(self.cursor.best_epoch, self.config.start_epoch)
            if patience and self.cursor.best >= 0 and waited >= patience:
                _log.info("patience: no better top-1 for %d epochs, the run ends", waited)
                return
            yield self.cursor.epoch

    @telling_of_lost_ranks()
    def run_epoch(self, feed: Feed) -> None:
        """Run the steps that are left of the epoch; save where that is due."""
        config, cursor = self.config, self.cursor
        started = time.perf_counter() - cursor.seconds
        self.progress.start(cursor.epoch, cursor.done)
        if not self._told:
            self.progress.compiling()
        beat(COMPILING)
        for batches, loss in feed.epoch(cursor.epoch, cursor.done * config.accumulation_step):
            if not self._told:
                _log.info("first step %.1f s after the start", seconds_running())
                self._told = True
            cursor.done = batches // config.accumulation_step
            cursor.seconds = time.perf_counter() - started
            self.step.check_health()
            self.progress.step(cursor.done, float(loss.asnumpy()), self.step.learning_rate(), feed.wait_ms)
            within = cursor.done < self.train.updates
            self._save_where_due(bool(config.save_steps) and cursor.done % config.save_steps == 0 and within)
        self.progress.end()
        cursor.seconds = time.perf_counter() - started

    def finish_epoch(self, judge: Judge, feed: Feed) -> None:
        """Validate where that is due, record the epoch, save where that is due, and go to the next."""
        config, cursor = self.config, self.cursor
        last = cursor.epoch == config.epochs
        scores: dict[str, float] = {}
        if last or (config.eval_every and cursor.epoch % config.eval_every == 0):
            try:
                scores = judge.scores(self._keep_best, self.progress)
            except Interrupted:
                self._save_where_due(False)
            finally:
                self.progress.end()
            for prefix, whose in (("", ""), ("ema_", ", averaged weights")):
                if f"{prefix}top1" in scores:
                    means = {"loss": scores[f"{prefix}val_loss"], "top1": scores[f"{prefix}top1"]}
                    means["top5"] = scores[f"{prefix}top5"]
                    _log.info("epoch %d%s: %s", cursor.epoch, whose, in_words(means, len(self.train.classes)))
        record = self._record(scores, feed)
        self.metrics.add(record)
        self._save_where_due(last or bool(config.save_every and cursor.epoch % config.save_every == 0), finished=True)
        self.metrics.draw(self.step.rates, config.start_epoch * self.train.updates)
        self.events.add(record)
        cursor.next_epoch()

    def end(self) -> None:
        """Save the weights of the end, the averaged ones where there are, and say where all is."""
        averaged = self.step.averaged_weights()
        with holding(self.network, averaged):
            path = self.checkpoints.save_last(self.network)
        beat(SAVING)
        self.outbox.send(last=True)
        _log.info("%s weights: %s", "averaged" if averaged else "last", path)
        if self.cursor.best >= 0:
            _log.info("best weights: %s, top-1 %.5f", self.checkpoints.best_path, self.cursor.best)
        finish()

    def _record(self, scores: dict[str, float], feed: Feed) -> dict[str, Any]:
        cursor, updates = self.cursor, self.train.updates
        totals = self.step.take_totals()
        totals["loss"] = self.ranks.add_up(totals["loss"]) / self.ranks.world
        return {
            "epoch": cursor.epoch,
            "step": cursor.epoch * updates,
            "lr": self.step.learning_rate(),
            **totals,
            **scores,
            "seconds": round(cursor.seconds, 2),
            "img_s": round(updates * self.config.images_an_update / cursor.seconds, 1),
            "wait_ms": round(feed.wait_ms, 2),
            "bad_images": self.ranks.add_up(feed.bad_images),
        }

    def _save_where_due(self, due: bool, finished: bool = False) -> None:
        """Save where that is due, or where a rank has received a stop signal, on which the run then ends.

        finished: the epoch has been validated and recorded too.
        """
        number = self.ranks.agree(self.stop.number or 0)
        if not (due or number):
            return
        beat(SAVING)
        path = self._save(finished)
        beat()
        if number and not (finished and self.cursor.epoch == self.config.epochs):
            self.progress.end()
            _log.info("stopped by signal %d, saved %s; to go on, add --resume auto to the same command", number, path)
            sys.exit(128 + number)

    def _save(self, finished: bool) -> Path:
        self.ranks.average(self.step.averaged_over_ranks())
        self.ranks.check_identical(self.step.replicated())
        path = self.checkpoints.save(self.network, self.step, self.config, self.cursor, finished)
        self.outbox.send()
        return path

    def _keep_best(self, whose: str, top1: float) -> None:
        if top1 <= self.cursor.best:
            return
        self.cursor.best, self.cursor.best_epoch = top1, self.cursor.epoch
        self.checkpoints.save_best(self.network, top1)
        if self.step.average:
            _log.info("best so far: the %s weights", whose)

    def _compare_kernels(self, then: Optional[str]) -> None:
        now = self.checkpoints.facts["kernels"]
        if then not in (None, now):
            _log.warning("resume: other CPU kernels (%s, now %s): right, but not bit for bit", then, now)

    def _check_best(self) -> None:
        """Where the best weights so far are not in this run's folder, the best is looked for anew."""
        if self.ranks.is_first and self.cursor.best >= 0 and not is_regular(self.checkpoints.best_path):
            _log.info("best weights: top-1 %.5f so far, but not in %s", self.cursor.best, self.checkpoints.folder)
            self.cursor.best = -1.0
        self.cursor.best = self.ranks.hand_out_facts(self.cursor.best)
