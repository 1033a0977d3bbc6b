"""Evaluate a DDRNet classifier on val/, or name what single images show.

python eval.py --device_id 0 --device_target Ascend --ddr_config CONFIG --pretrained ./ckpt_0/DDRNet23.ckpt
"""

import logging
import signal
import sys
from typing import Optional

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while MindSpore is imported ends it without its traceback

from tqdm import tqdm

from src.args import parse_args
from src.assembly import build_classifier
from src.console import bar_size
from src.data import create_dataset
from src.data.data_utils.modelarts import stage
from src.data.names import CLASSES, check_classes, classes_beside
from src.data.settle import settle
from src.distributed.join import expected_rank, join
from src.errors import UserError, run
from src.evaluation.classify import classify
from src.evaluation.evaluate import RUNTIME, answering, evaluate
from src.evaluation.flags import FLAGS
from src.evaluation.names import find_class_names, with_words
from src.evaluation.outputs import find_outputs, write_outputs
from src.files import is_directory
from src.heartbeat import beat, finish

log = logging.getLogger("eval")


def main(argv: Optional[list[str]] = None) -> None:
    """Print loss, top-1 and top-5 over val/, or with --images the five likeliest classes of each."""
    config, rest = parse_args(argv, "Evaluate a DDRNet classifier.", extra=FLAGS, beside_weights=True)
    outputs = find_outputs(config, rest, writes=expected_rank() == 0)
    config, _ = stage(config, writes=False)
    if rest.beside and "data_url" not in rest.told and not rest.images and not is_directory(config.data_url):
        raise UserError(
            f"data_url: {config.data_url}, as {rest.beside} says, is no folder here; --data_url DIR says where it is"
        )
    config = settle(config)
    config, ranks = join(config)
    log.setLevel(logging.INFO if ranks.is_first else logging.WARNING)
    for note in rest.notes:
        log.warning(note)
    val = None if rest.images else create_dataset(config, "val", ranks.rank, ranks.world)
    network = build_classifier(config)
    if val is None:
        code = 0
        if ranks.is_first:
            words = with_words(find_class_names(config), config.data_url)
            code = classify(answering(network), rest.images, config, words, outputs.predictions)
        finish()
        sys.exit(code)

    trained = classes_beside(config.pretrained, len(val.classes))
    if trained is not None:
        check_classes(trained, val.classes, config.data_url, f"{CLASSES} beside {config.pretrained}")
    if val.classes_from == "val":
        log.info("classes: from val/, as there is no train/")
    predictions = outputs.collector(len(val.classes))
    with tqdm(total=val.size, unit="img", disable=None if ranks.world == 1 else True, **bar_size()) as bar:

        def evaluated(images: int) -> None:
            beat()
            bar.update(images)

        totals = evaluate(network, val.epoch(), evaluated, predictions.add if predictions else None)
    means = ranks.sum_totals(totals).means()
    if predictions:
        predictions = predictions.gathered(ranks.gather, val.size)
    if ranks.is_first:
        computed = {
            "precision": f"amp_level {config.amp_level}",
            "device": f"{config.device_target}, {config.device_num} process(es)",
            "runtime": RUNTIME,
        }
        write_outputs(outputs, config, val, predictions, means, computed, log)
    finish()


if __name__ == "__main__":
    run(main)
