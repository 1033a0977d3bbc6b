"""Export a trained DDRNet for deployment: <arch>.mindir and <arch>.json in the current folder.

python export.py --pretrained ./ckpt_0/DDRNet23.ckpt --ddr_config CONFIG --device_target CPU
"""

import logging
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import nn

from src.args import parse_args
from src.assembly import build_classifier
from src.data import class_names
from src.distributed.join import join
from src.errors import UserError, run
from src.files import atomic_write
from src.models.fold import fold_batch_norm
from src.serving.description import describe, write_description
from src.serving.mindir import lower_mindir

log = logging.getLogger("export")
MINDIR_VERSION = 3  # of the format that MindSpore 2.7 and later write
TOLERANCE = 1e-4  # of the largest logit


def main(argv: Optional[list[str]] = None) -> None:
    """Write the file, load it again, compare its logits with the network's, and say beside it what a runtime needs."""
    version = (
        "--mindir_version",
        {
            "type": int,
            "choices": (1, MINDIR_VERSION),
            "default": MINDIR_VERSION,
            "help": "format of the MindIR file: 1 for runtimes up to MindSpore Lite 2.0",
        },
    )
    folding = (
        "--fold_batch_norm",
        {"action": "store_true", "help": "make batch norm part of the convolutions, for runtimes that do not"},
    )
    config, rest = parse_args(argv, "Export a DDRNet classifier to the current folder.", extra=[version, folding])
    if config.file_format == "AIR" and config.device_target != "Ascend":
        raise UserError("file_format: AIR needs --device_target Ascend; MINDIR serves on every device")

    classes = class_names(config)
    config, _ = join(config)
    network = build_classifier(config, portable=True)
    batch = config.batch_size if "batch_size" in rest.given else 1
    shape = (batch, 3, config.image_size, config.image_size)
    images = ms.Tensor(np.random.default_rng(0).standard_normal(shape, np.float32))

    path = Path(f"{config.arch}.{config.file_format.lower()}")
    with atomic_write(path) as temporary:
        exported = fold_batch_norm(network) if rest.fold_batch_norm else network
        ms.export(exported, images, file_name=str(temporary), file_format=config.file_format)
        if config.file_format == "MINDIR":
            check(network, temporary, images, path)
            if rest.mindir_version < MINDIR_VERSION:
                lower(temporary, path)
    described = write_description(path, {**describe(config, classes, shape), "mindir_version": rest.mindir_version})
    log.info("%s: %d x 3 x %d x %d to %d logits", path, *shape[:1], *shape[2:], config.num_classes)
    if classes is None:
        log.info("%s: no class names, as %s has neither train/ nor val/", described, config.data_url)


def lower(temporary: Path, path: Path) -> None:
    """Lower the format of the file that is to become `path`, in place."""
    try:
        lower_mindir(str(temporary), str(temporary))
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from error


def check(network: nn.Cell, temporary: Path, images: ms.Tensor, path: Path) -> None:
    """Load an exported file again; it must give the network's logits."""
    want = network(images).asnumpy()
    got = nn.GraphCell(ms.load(str(temporary)))(images).asnumpy()
    off = float(np.abs(got - want).max())
    if not off <= TOLERANCE * max(1.0, float(np.abs(want).max())):
        raise UserError(f"{path}: the exported file gives other logits than the network, by {off:.3g}; nothing is kept")


if __name__ == "__main__":
    run(main)
