"""Evaluate a DDRNet classifier on val/, or name what single images show.

python eval.py --device_id 0 --device_target Ascend --ddr_config CONFIG --pretrained ./ckpt_0/DDRNet23.ckpt
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from src.args import Config, parse_args
from src.assembly import build_classifier
from src.data import create_dataset
from src.data.data_utils.modelarts import stage
from src.data.settle import settle
from src.distributed.join import expected_rank, join
from src.errors import UserError, run
from src.evaluation.classify import classify
from src.evaluation.evaluate import evaluate
from src.evaluation.flags import FLAGS
from src.evaluation.names import find_class_names, with_words
from src.evaluation.predictions import Predictions, write_predictions
from src.evaluation.report import Evaluation, check_folder, write_report
from src.heartbeat import beat
from src.metrics import top5_note
from src.tools.get_misc import output_folder

log = logging.getLogger("eval")


def main(argv: Optional[list[str]] = None) -> None:
    """Print loss, top-1 and top-5 over val/, or with --images the five likeliest classes of each."""
    config, rest = parse_args(argv, "Evaluate a DDRNet classifier.", extra=FLAGS, beside_weights=True)
    report, predictions_file = find_outputs(config, rest)
    config, _ = stage(config, writes=False)
    config = settle(config)
    config, ranks = join(config)
    log.setLevel(logging.INFO if ranks.is_first else logging.WARNING)
    for note in rest.notes:
        log.warning(note)
    network = build_classifier(config)
    if rest.images:
        if ranks.is_first:
            words = with_words(find_class_names(config), config.data_url)
            sys.exit(classify(network, rest.images, config, words, predictions_file))
        return

    val = create_dataset(config, "val", ranks.rank, ranks.world)
    if val.classes_from == "val":
        log.info("classes: from val/, as there is no train/")
    predictions = Predictions(len(val.classes)) if report or predictions_file else None
    with tqdm(total=val.size, unit="img", disable=None if ranks.world == 1 else True) as bar:

        def evaluated(images: int) -> None:
            beat()
            bar.update(images)

        totals = evaluate(network, val.epoch(), evaluated, predictions.add if predictions else None)
    means = ranks.sum_totals(totals).means()
    if predictions:
        predictions = predictions.gathered(ranks.gather, val.size)
    if predictions and ranks.is_first:
        if predictions_file:
            paths = map(val.samples.path, range(val.size))
            write_predictions(predictions_file, paths, predictions, val.classes)
            log.info("predictions: %s", predictions_file)
        if report:
            words = with_words(val.classes, config.data_url)
            write_report(report, Evaluation(config, val.samples, predictions, means, val.classes, words))
            log.info("report: %s", report / "report.html")
    if note := top5_note(len(val.classes)):
        log.info(note)
    log.info("Loss: %.5f", means["loss"])
    log.info("Top1 acc: %.5f", means["top1"])
    log.info("Top5 acc: %.5f", means["top5"])


def find_outputs(config: Config, rest: argparse.Namespace) -> tuple[Optional[Path], Optional[Path]]:
    """Where the report and the predictions go, relative paths under train_url; their folders are made at once.

    Raises:
        UserError: they cannot be written, or there are no labels to report on.
    """
    if rest.images and rest.report:
        raise UserError(
            "--report: needs the labels of val/, which --images has not; --predictions writes a table of them"
        )
    report, predictions = (output_folder(config) / path if path else None for path in (rest.report, rest.predictions))
    if expected_rank() == 0:
        if report:
            check_folder("--report", report)
        if predictions:
            check_folder("--predictions", predictions.parent)
            if predictions.is_dir():
                raise UserError(f"--predictions {predictions}: is a folder; it must be a file such as predictions.csv")
    return report, predictions


if __name__ == "__main__":
    run(main)
