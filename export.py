"""Export a trained DDRNet for deployment: <arch>.mindir or <arch>.onnx, and <arch>.json, in the current folder.

python export.py --pretrained ./ckpt_0/DDRNet23.ckpt --ddr_config CONFIG --device_target CPU --file_format ONNX
"""

import logging
import signal
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Optional

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while MindSpore is imported ends it without its traceback

from src import __version__  # before MindSpore, which reads the environment that it sets

# isort: split
import mindspore as ms
import numpy as np
from mindspore import nn

from src.args import parse_args, switch
from src.assembly import build_classifier
from src.data import class_names
from src.data.settle import settle
from src.distributed.join import join
from src.errors import UserError, run
from src.files import atomic_write
from src.models.fold import fold_batch_norm
from src.serving.description import describe, write_description
from src.serving.mindir import lower_mindir
from src.serving.onnx_run import OnnxNetwork

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
    folding = ("--fold_batch_norm", switch("make batch norm part of the convolutions, for runtimes that do not"))
    dynamic = ("--dynamic_batch", switch("ONNX: a file that takes any number of images at once"))
    config, rest = parse_args(
        argv,
        "Export a DDRNet classifier to the current folder.",
        extra=[version, folding, dynamic],
        purpose="export",
        beside_weights=True,
    )
    if config.file_format == "ONNX":
        need_onnx()
    if rest.dynamic_batch and config.file_format != "ONNX":
        raise UserError(f"--dynamic_batch: only with --file_format ONNX, not {config.file_format}")
    if rest.dynamic_batch and "batch_size" in rest.given:
        raise UserError("--dynamic_batch: the file takes any number of images; leave out --batch_size")

    for note in rest.notes:
        log.warning(note)
    config = settle(config)
    classes = class_names(config)
    config, _ = join(config)
    network = build_classifier(config, portable=True)
    exported = fold_batch_norm(network) if rest.fold_batch_norm else network
    batch = config.batch_size if "batch_size" in rest.given else 1
    shape = (batch, 3, config.image_size, config.image_size)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    spec = describe(config, classes, (None if rest.dynamic_batch else batch, *shape[1:]))

    path = Path(f"{config.arch}.{config.file_format.lower()}")
    with atomic_write(path) as temporary:
        if config.file_format == "ONNX":
            export_onnx(exported, temporary, images, spec, rest.dynamic_batch)
            check_onnx(network, temporary, images, path)
        else:
            with suppress(FileNotFoundError):  # where it wrote none, MindSpore fails to set that file's mode
                ms.export(exported, ms.Tensor(images), file_name=str(temporary), file_format=config.file_format)
            spec["mindir_version"] = rest.mindir_version
            if not temporary.exists():
                raise UserError(
                    f"file_format: {config.file_format}: MindSpore {ms.__version__} wrote no file on this chip; "
                    "AIR needs its GE backend, which a 910A has and a 910B not, and a whole CANN; MINDIR needs neither"
                )
        if config.file_format == "MINDIR":
            loaded = nn.GraphCell(ms.load(str(temporary)))
            check(network, lambda images: loaded(ms.Tensor(images)).asnumpy(), images, path)
            if rest.mindir_version < MINDIR_VERSION:
                lower(temporary, path)
    described = write_description(path, spec)
    size = "any number of" if rest.dynamic_batch else batch
    log.info("%s: %s x 3 x %d x %d to %d logits", path, size, *shape[2:], config.num_classes)
    if classes is None:
        log.info("%s: no class names, as %s has neither train/ nor val/", described, config.data_url)


def need_onnx() -> None:
    """Raise UserError unless the onnx package is there."""
    try:
        import_module("onnx")
    except ImportError as error:
        raise UserError("file_format: ONNX needs the onnx package; pip install onnx onnxruntime") from error


def export_onnx(network: nn.Cell, path: Path, images: np.ndarray, spec: dict[str, Any], dynamic_batch: bool) -> None:
    """Write a network as ONNX, by way of its MindIR, with the description in the file's metadata."""
    from src.serving.onnx_export import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        mindir = Path(folder, "network.mindir")
        ms.export(network, ms.Tensor(images), file_name=str(mindir), file_format="MINDIR")
        write_onnx(mindir, path, {"version": __version__, **spec}, dynamic_batch)


def check_onnx(network: nn.Cell, temporary: Path, images: np.ndarray, path: Path) -> None:
    """Run an exported file in ONNX Runtime, where that is installed; it must give the network's logits."""
    try:
        import_module("onnxruntime")
    except ImportError:
        log.info("%s: not run, as ONNX Runtime is not installed (pip install onnxruntime)", path)
        return
    loaded = OnnxNetwork(temporary)
    check(network, loaded, images, path)
    if loaded.batch_size is None:
        check(network, loaded, np.concatenate([images[:, :, ::-1], images, images[:, :, :, ::-1]]), path)


def lower(temporary: Path, path: Path) -> None:
    """Lower the format of the file that is to become `path`, in place."""
    try:
        lower_mindir(str(temporary), str(temporary))
    except UserError as error:
        raise UserError(str(error).replace(str(temporary), str(path))) from error


def check(network: nn.Cell, run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, path: Path) -> None:
    """`run`, the exported file that is to become `path`, must give the network's logits."""
    want, got = network(ms.Tensor(images)).asnumpy(), run(images)
    off = float(np.abs(got - want).max())
    if not off <= TOLERANCE * max(1.0, float(np.abs(want).max())):
        raise UserError(f"{path}: the exported file gives other logits than the network, by {off:.3g}; nothing is kept")


if __name__ == "__main__":
    run(main)
