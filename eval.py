"""Evaluate a DDRNet classifier on val/, or name what single images show.

python eval.py --device_id 0 --device_target Ascend --ddr_config CONFIG --pretrained ./ckpt_0/DDRNet23.ckpt
"""

import logging
from typing import Optional

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from src.args import Config, parse_args
from src.assembly import build_classifier
from src.data import class_names, create_dataset, load_eval_image
from src.data.data_utils.modelarts import stage
from src.data.settle import settle
from src.distributed.join import join
from src.errors import run
from src.evaluation.evaluate import evaluate
from src.heartbeat import beat

log = logging.getLogger("eval")


def main(argv: Optional[list[str]] = None) -> None:
    """Print loss, top-1 and top-5 over val/, or with --images the five likeliest classes of each."""
    images = ("--images", {"nargs": "+", "metavar": "IMAGE", "help": "classify these files instead of val/"})
    config, rest = parse_args(argv, "Evaluate a DDRNet classifier.", extra=[images], beside_weights=True)
    config, _ = stage(config, writes=False)
    config = settle(config)
    config, ranks = join(config)
    log.setLevel(logging.INFO if ranks.is_first else logging.WARNING)
    for note in rest.notes:
        log.warning(note)
    network = build_classifier(config)
    if rest.images:
        if ranks.is_first:
            classify(network, rest.images, config)
        return

    val = create_dataset(config, "val", ranks.rank, ranks.world)
    if val.classes_from == "val":
        log.info("classes: from val/, as there is no train/")
    with tqdm(total=val.size, unit="img", disable=None if ranks.world == 1 else True) as bar:

        def evaluated(images: int) -> None:
            beat()
            bar.update(images)

        totals = evaluate(network, val.epoch(), report=evaluated)
    means = ranks.sum_totals(totals).means()
    log.info("Loss: %.5f", means["loss"])
    log.info("Top1 acc: %.5f", means["top1"])
    log.info("Top5 acc: %.5f", means["top5"])


def classify(network: nn.Cell, paths: list[str], config: Config) -> None:
    """Print the five likeliest classes of each image, with probabilities."""
    names = class_names(config) or [f"class {index}" for index in range(config.num_classes)]
    images = [load_eval_image(path, config) for path in paths]
    for path, image in zip(paths, images):
        logits = network(Tensor(image[None])).asnumpy()[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        print(path)
        for index in np.argsort(-shares, kind="stable")[:5]:
            print(f"  {shares[index]:7.2%}  {names[index]}")


if __name__ == "__main__":
    run(main)
