"""Evaluate an exported DDRNet classifier on val/ in ONNX Runtime, or name what single images show; without MindSpore.

python eval_onnx.py --pretrained DDRNet23.onnx --data_url DIR
"""

import logging
import sys
from collections.abc import Iterable
from typing import Optional

from tqdm import tqdm

from src.args import OF_THE_NETWORK, Config, parse_args, with_values
from src.console import bar_size
from src.data import create_dataset
from src.data.data_utils.modelarts import stage
from src.data.names import check_classes
from src.errors import UserError, run
from src.evaluation.classify import classify
from src.evaluation.flags import FLAGS
from src.evaluation.names import find_class_names, with_words
from src.evaluation.outputs import find_outputs, write_outputs
from src.metrics import Totals
from src.serving.onnx_run import PROVIDERS, OnnxNetwork, knows_device

log = logging.getLogger("eval")


def main(argv: Optional[list[str]] = None) -> None:
    """Print loss, top-1 and top-5 over val/, or with --images the five likeliest classes of each, as eval.py does."""
    config, rest = parse_args(
        argv, "Evaluate an exported DDRNet classifier in ONNX Runtime.", extra=FLAGS, beside_weights=True
    )
    if not config.pretrained:
        raise UserError("--pretrained: name the file to evaluate, such as DDRNet23.onnx; export.py writes it")
    outputs = find_outputs(config, rest)
    config, _ = stage(config, writes=False)
    target = device(config, rest.told, "device_target" in rest.given)
    network = OnnxNetwork(config.pretrained, target, config.device_id)
    config = fitting(network, config, rest.told)
    if rest.images:
        words = with_words(network.description.get("classes") or find_class_names(config), config.data_url)
        sys.exit(classify(network, rest.images, config, words, outputs.predictions, network.batch_size))

    if network.batch_size is not None:
        config = config.model_copy(update={"batch_size": network.batch_size})
    val = create_dataset(config, "val")
    if network.description.get("classes") is not None:
        check_classes(network.description["classes"], val.classes, config.data_url, config.pretrained)
    if val.classes_from == "val":
        log.info("classes: from val/, as there is no train/")
    totals, predictions = Totals(), outputs.collector(len(val.classes))
    with tqdm(total=val.size, unit="img", disable=None, **bar_size()) as bar:
        for images, labels in val.epoch():
            logits = network(images)
            totals.add(logits, labels)
            if predictions:
                predictions.add(logits, labels)
            bar.update(totals.images - bar.n)
    computed = {"device": target, "runtime": network.runtime}
    write_outputs(outputs, config, val, predictions, totals.means(), computed, log)


def device(config: Config, told: Iterable[str], given: bool) -> str:
    """Where to run: as the command line says; as the configuration says, if ONNX Runtime can; else on the CPU.

    Args:
        config: reads device_target.
        told: the keys that a YAML file or a flag named: only what somebody has asked for is worth a word.
        given: whether the command line names the device.
    """
    if config.device_target == "auto":
        return "CPU"
    if given or knows_device(config.device_target):
        return config.device_target
    if "device_target" in told:
        log.info("device: CPU, as ONNX Runtime here has no %s", PROVIDERS[config.device_target])
    return "CPU"


def fitting(network: OnnxNetwork, config: Config, told: Iterable[str]) -> Config:
    """The configuration with what the file says of its network; of what else was told, what differs is logged.

    Args:
        network: the file's.
        config: as it was told.
        told: the keys that a YAML file or a flag named. Colours are the file's all the same, and so is `num_classes` 0.

    Raises:
        UserError: another number of classes or another size was told, which the file cannot take.
    """
    spec = {name: network.description[name] for name in OF_THE_NETWORK if name in network.description}
    for name in filter(set(told).__contains__, OF_THE_NETWORK):
        own = getattr(config, name)
        if name not in spec or name in ("mean", "std") or (name, own) == ("num_classes", 0):
            continue
        value = spec.pop(name)
        if own == value or (own == "random" and value == "bicubic"):
            continue
        if name in ("num_classes", "image_size"):
            raise UserError(f"{name}: is {own}, but {config.pretrained} has {value}; make them agree")
        log.info("%s: %s as the configuration says; %s was exported with %s", name, own, config.pretrained, value)
    return with_values(config, spec, f"{config.pretrained}: its metadata say that ")


if __name__ == "__main__":
    run(main)
