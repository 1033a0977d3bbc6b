"""Evaluate an exported DDRNet classifier on val/ in ONNX Runtime, without MindSpore.

python eval_onnx.py --pretrained DDRNet23.onnx --ddr_config CONFIG --device_target CPU
"""

import logging
from typing import Any, Optional

from tqdm import tqdm

from src.args import Config, parse_args
from src.data import create_dataset
from src.data.data_utils.modelarts import stage
from src.errors import UserError, run
from src.metrics import Totals
from src.serving.onnx_run import PROVIDERS, OnnxNetwork, knows_device

log = logging.getLogger("eval")
PREPROCESSING = ("crop_mode", "crop_pct", "interpolation")


def main(argv: Optional[list[str]] = None) -> None:
    """Print loss, top-1 and top-5 over val/, as eval.py does for a checkpoint."""
    config, rest = parse_args(argv, "Evaluate an exported DDRNet classifier in ONNX Runtime.", beside_weights=True)
    if not config.pretrained:
        raise UserError("--pretrained: name the file to evaluate, such as DDRNet23.onnx; export.py writes it")
    config, _ = stage(config, writes=False)
    network = OnnxNetwork(config.pretrained, device(config, "device_target" in rest.given), config.device_id)
    config = check(network, config)

    if network.batch_size is not None:
        config = config.model_copy(update={"batch_size": network.batch_size})
    val = create_dataset(config, "val")
    check_classes(network, val.classes, config)
    if val.classes_from == "val":
        log.info("classes: from val/, as there is no train/")
    totals = Totals()
    with tqdm(total=val.size, unit="img", disable=None) as bar:
        for images, labels in val.epoch():
            totals.add(network(images), labels)
            bar.update(totals.images - bar.n)
    means = totals.means()
    log.info("Loss: %.5f", means["loss"])
    log.info("Top1 acc: %.5f", means["top1"])
    log.info("Top5 acc: %.5f", means["top5"])


def device(config: Config, given: bool) -> str:
    """Where to run: as the command line says; as the configuration says, if ONNX Runtime can; else on the CPU."""
    if config.device_target == "auto":
        return "CPU"
    if given or knows_device(config.device_target):
        return config.device_target
    log.info("device: CPU, as ONNX Runtime here has no %s", PROVIDERS[config.device_target])
    return "CPU"


def check(network: OnnxNetwork, config: Config) -> Config:
    """Refuse a configuration that is not of this file's network; say where preprocessing differs; its colours count."""
    spec = network.description
    if config.num_classes == 0:
        config = config.model_copy(update={"num_classes": spec["num_classes"]})
    for key in ("num_classes", "image_size"):
        if spec[key] != getattr(config, key):
            raise UserError(
                f"{key}: is {getattr(config, key)}, but {config.pretrained} has {spec[key]}; make them agree"
            )
    for key in PREPROCESSING:
        own = getattr(config, key)
        if key in spec and own != spec[key] and not (own == "random" and spec[key] == "bicubic"):
            log.info(
                "%s: %s as the configuration says; %s was exported with %s", key, own, config.pretrained, spec[key]
            )
    colours: dict[str, Any] = {key: tuple(spec[key]) for key in ("mean", "std") if key in spec}
    return config.model_copy(update=colours)


def check_classes(network: OnnxNetwork, classes: list[str], config: Config) -> None:
    """Refuse data whose classes are not the file's, or are in another order."""
    own = network.description.get("classes")
    if own is not None and own != classes:
        index = next(index for index, pair in enumerate(zip(own, classes)) if pair[0] != pair[1])
        raise UserError(
            f"data_url: class {index} of {config.data_url} is {classes[index]!r}, but {own[index]!r} in "
            f"{config.pretrained}; evaluate it on data with the classes that it was exported for"
        )


if __name__ == "__main__":
    run(main)
