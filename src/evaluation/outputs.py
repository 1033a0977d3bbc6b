"""What an evaluation leaves beside its three figures, whichever runtime made them: a report, a table of predictions."""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from src.args import Config
from src.data.imagenet import EvalBatches
from src.errors import UserError
from src.evaluation.names import with_words
from src.evaluation.predictions import Predictions, write_predictions
from src.evaluation.report import Evaluation, check_folder, write_report
from src.files import is_directory
from src.metrics import top5_note
from src.tools.get_misc import output_folder


@dataclass(frozen=True)
class Outputs:
    """Where the report and the predictions go; None: they were not asked for."""

    report: Optional[Path]
    predictions: Optional[Path]

    def collector(self, classes: int) -> Optional[Predictions]:
        """What is to be told every answer; None: nobody asked for them."""
        return Predictions(classes) if self.report or self.predictions else None


def find_outputs(config: Config, rest: argparse.Namespace, writes: bool = True) -> Outputs:
    """Where the report and the predictions go, relative paths under train_url; their folders are made at once.

    Args:
        config: reads train_url.
        rest: the flags of `flags.py`.
        writes: whether this process will write them.

    Raises:
        UserError: they cannot be written, or there are no labels to report on.
    """
    if rest.images and rest.report:
        raise UserError(
            "--report: needs the labels of val/, which --images has not; --predictions writes a table of them"
        )
    report, predictions = (output_folder(config) / path if path else None for path in (rest.report, rest.predictions))
    if writes and report:
        check_folder("--report", report)
    if writes and predictions:
        check_folder("--predictions", predictions.parent)
        if is_directory(predictions):
            raise UserError(f"--predictions {predictions}: is a folder; it must be a file such as predictions.csv")
    return Outputs(report, predictions)


def write_outputs(
    outputs: Outputs,
    config: Config,
    val: EvalBatches,
    predictions: Optional[Predictions],
    means: dict[str, float],
    computed: dict[str, str],
    log: logging.Logger,
) -> None:
    """Write what was asked for, and log where it is and, last, loss, top-1 and top-5.

    Args:
        outputs: where it goes.
        config: of the evaluation.
        val: that was evaluated.
        predictions: for all of its images, in their order.
        means: loss, top1 and top5.
        computed: in what precision, where and by which runtime, for the report.
        log: of the program.
    """
    if predictions and outputs.predictions:
        write_predictions(outputs.predictions, map(val.samples.path, range(val.size)), predictions, val.classes)
        log.info("predictions: %s", outputs.predictions)
    if predictions and outputs.report:
        words = with_words(val.classes, config.data_url)
        write_report(outputs.report, Evaluation(config, val.samples, predictions, means, val.classes, words, computed))
        log.info("report: %s", outputs.report / "report.html")
    if note := top5_note(len(val.classes)):
        log.info(note)
    log.info("Loss: %.5f", means["loss"])
    log.info("Top1 acc: %.5f", means["top1"])
    log.info("Top5 acc: %.5f", means["top5"])
