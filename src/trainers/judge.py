"""Validation while training: of the weights, and of the averaged ones where there are."""

from typing import Any, Callable

from mindspore import nn

from src.args import Config
from src.data.imagenet import EvalBatches
from src.distributed.ranks import Ranks
from src.evaluation.evaluate import evaluate
from src.heartbeat import beat
from src.models.fold import fold_batch_norm, refold
from src.tools.callback import Progress
from src.trainers.checkpoint import holding
from src.trainers.signals import StopSignal
from src.trainers.train_one_step import TrainOneStep

COMPILING = 1800.0  # seconds that a rank may be silent for


class Judge:
    """Scores a network that is being trained on val/.

    On the CPU it runs a copy whose batch norm is part of the convolutions, which is faster.

    Args:
        config: reads device_target and amp_level.
        network: that the step trains.
        step: has the averaged weights.
        val: every image once.
        ranks: that share the images.
        stop: interrupts a single rank; several must leave together, so they finish val/ first.
    """

    def __init__(
        self, config: Config, network: nn.Cell, step: TrainOneStep, val: EvalBatches, ranks: Ranks, stop: StopSignal
    ) -> None:
        self.network, self.step, self.val, self.ranks = network, step, val, ranks
        folds = config.device_target == "CPU" and config.amp_level in ("O0", "auto")
        self.judged = fold_batch_norm(network) if folds else network
        self.stop = stop

    def scores(self, keep: Callable[[str, float], Any], progress: Progress) -> dict[str, float]:
        """Loss and accuracy for metrics.jsonl: val_loss, top1, top5, and with ema_ before them those of the averages.

        Args:
            keep: is told whose scores these are, "plain" or "averaged", and the top-1, while the network holds the
                weights that made it.
            progress: shows how far it is.

        Raises:
            Interrupted: a stop signal has come.
        """
        beat(COMPILING)
        self.ranks.average(self.step.statistics())
        scores = self._scores_of("", None, keep, progress)
        averaged = self.step.averaged_weights()
        if averaged:
            scores.update(self._scores_of("ema_", averaged, keep, progress))
        return scores

    def _scores_of(
        self, prefix: str, weights: Any, keep: Callable[[str, float], Any], progress: Progress
    ) -> dict[str, float]:
        def between_batches(images: int) -> None:
            beat()
            progress.validated(images * self.ranks.world)
            if self.ranks.world == 1:
                self.stop.check()

        progress.validate(self.val.size)
        with holding(self.network, weights):
            if self.judged is not self.network:
                refold(self.network, self.judged)
            totals = self.ranks.sum_totals(evaluate(self.judged, self.val.epoch(), between_batches))
            means = totals.means()
            keep("averaged" if prefix else "plain", means["top1"])
        return {f"{prefix}val_loss": means["loss"], f"{prefix}top1": means["top1"], f"{prefix}top5": means["top5"]}
