"""Carry weights between MindSpore and PyTorch, between the two flavours, and into a segmentation network.

    python -m src.weights.convert --from paper.pth --to DDRNet23.ckpt
    python -m src.weights.convert --from DDRNet23.ckpt --to DDRNet23.safetensors
    python -m src.weights.convert --from DDRNet23.ckpt --to backbone.pth --backbone

The member of the family, the flavour and the number of classes are read off the weights.
"""

import argparse
import logging
from collections.abc import Mapping

import numpy as np

from src.errors import Parser, UserError, run
from src.models import ARCHITECTURES, FLAVOURS, HEAD, create_model
from src.weights.formats import SUFFIXES, read_weights, suffix_of, write_weights
from src.weights.names import STEM_BIASES, TORCH_COUNTER, flavour_of, match_weights, torch_name

log = logging.getLogger(__name__)

MOST_CLASSES = 1_000_000  # more is no classifier but a damaged file
CLASSIFIER_ONLY = ("down5.", "last_layer.", f"{HEAD}.")
BORDERS = {
    "paper": "3x3 convolutions of stride 2 padded on every side, upsampling with half-pixel centres",
    "zoo": "3x3 convolutions of stride 2 padded at the right and bottom only, upsampling without half-pixel centres",
}


def convert(source: str, target: str, flavour: str = "", backbone: bool = False) -> None:
    """Convert a file of weights; the ends of the two names say the formats.

    Within a flavour every float32 keeps its bits. From the paper's flavour to the zoo's, the stem's biases are folded
    into batch norm's moving mean, to float32 rounding; the other way, the stem gets zero biases. How a network pads and
    upsamples is no weight and is not converted; the log says so.

    Args:
        source: ends in one of `SUFFIXES`.
        target: likewise; .ckpt gets MindSpore's names, the others PyTorch's.
        flavour: of the weights in `target`, a key of `FLAVOURS`; "": the paper's for PyTorch, whose DDRNets all have
            stem biases, and as they are for MindSpore.
        backbone: write only what the authors' segmentation networks share with the classifiers, for their flavour, the
            paper's.

    Raises:
        UserError: `source` cannot be read or holds another network's weights, or `target` cannot be written. Nothing is
            written then.
    """
    if backbone and flavour == "zoo":
        raise UserError("--flavour zoo: segmentation networks are of the paper's; leave it out beside --backbone")
    to_torch = suffix_of(target, "written to") != ".ckpt"
    arrays = read_weights(source)
    arch, found, num_classes = identify(arrays)
    weights = match_weights(arrays, parameter_shapes(arch, found, num_classes), source)
    log.info("%s: %s, the %s's flavour, %d classes, %d parameters", source, arch, found, num_classes, len(weights))

    wanted = flavour or ("paper" if to_torch or backbone else found)
    if wanted != found:
        weights = to_zoo(weights) if wanted == "zoo" else to_paper(weights)
        change = "were folded into moving_mean; that is one way" if wanted == "zoo" else "were set to zero"
        log.info("the stem's biases, %s, %s", " and ".join(STEM_BIASES), change)
        log.info("trained with: %s", BORDERS[found])
        log.info("runs with:    %s", BORDERS[wanted])
        log.info("so the network sees shifted features: expect a lower accuracy until it is fine-tuned")
    kept = {name: array for name, array in weights.items() if not (backbone and name.startswith(CLASSIFIER_ONLY))}
    write_weights(target, rename(kept, arrays, to_torch))
    log.info("%s: %d parameters written, the %s's flavour", target, len(kept), wanted)
    if backbone:
        left_out = [torch_name(name) if to_torch else name for name in weights if name not in kept]
        log.info("left out, the classifier's own: %s", ", ".join(left_out))
        log.info("not in it, the segmentation network's own: spp, final_layer, seghead_extra; nothing else is missing")
        log.info("layer5 has stride 2 there and 1 here; its weights are the same")


def identify(arrays: Mapping[str, np.ndarray]) -> tuple[str, str, int]:
    """The member of the family that arrays look like most, their flavour and their number of classes."""
    stem, head = arrays.get("conv1.0.weight"), arrays.get(f"{HEAD}.weight")
    arch = "DDRNet23"
    for name, architecture in ARCHITECTURES.items():
        stages = all(f"layer{part}.0.conv1.weight" in arrays for part in architecture.third)
        if stages and stem is not None and stem.shape[:1] == (architecture.planes,):
            arch = name
    if head is None or head.ndim != 2 or not 0 < len(head) <= MOST_CLASSES:
        return arch, flavour_of(arrays), 1000
    return arch, flavour_of(arrays), len(head)


def parameter_shapes(arch: str, flavour: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a network's parameters, in its order."""
    from mindspore.nn.utils import no_init_parameters

    with no_init_parameters():
        network = create_model(arch, num_classes, flavour=flavour)
    return {name: tuple(parameter.shape) for name, parameter in network.parameters_dict().items()}


def to_zoo(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fold the stem's biases: batch norm subtracts moving_mean, so conv + bias - mean is conv - (mean - bias)."""
    out = {name: array for name, array in weights.items() if name not in STEM_BIASES}
    for name in STEM_BIASES:
        out[_mean_after(name)] = weights[_mean_after(name)] - weights[name]
    return out


def to_paper(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the stem biases of zero, each after its convolution's weight."""
    out = {}
    for name, array in weights.items():
        out[name] = array
        bias = name.replace(".weight", ".bias")
        if bias in STEM_BIASES:
            out[bias] = np.zeros(len(array), np.float32)
    return out


def rename(
    weights: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], to_torch: bool
) -> dict[str, np.ndarray]:
    """Weights as a file is to hold them, with PyTorch's batch norm counters.

    PyTorch expects the counters; a MindSpore checkpoint gets those that are not zero, so that nothing is lost on the
    way there and back.

    Args:
        weights: under MindSpore's names.
        arrays: of the file that they come from, with the counters, where it has any.
        to_torch: use PyTorch's names.
    """
    out = {}
    for name, array in weights.items():
        out[torch_name(name) if to_torch else name] = array
        stem, _, kind = name.rpartition(".")
        if kind == "moving_variance":
            counter = f"{stem}.{TORCH_COUNTER}"
            count = np.asarray(arrays.get(counter, 0), np.int64)
            if to_torch or count:
                out[counter] = count
    return out


def _mean_after(bias: str) -> str:
    """'conv1.0.bias' to 'conv1.1.moving_mean': of the batch norm that follows a convolution in its cell."""
    cell, index, _ = bias.split(".")
    return f"{cell}.{int(index) + 1}.moving_mean"


def main() -> None:
    parser = Parser(
        prog="python -m src.weights.convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--from", dest="source", metavar="FILE", required=True, help=", ".join(SUFFIXES))
    parser.add_argument("--to", dest="target", metavar="FILE", required=True, help=", ".join(SUFFIXES))
    parser.add_argument(
        "--flavour",
        choices=list(FLAVOURS),
        default="",
        help="of the result (default: paper for PyTorch, else as it is)",
    )
    parser.add_argument("--backbone", action="store_true", help="only what a segmentation DDRNet shares")
    arguments = parser.parse_args()
    convert(arguments.source, arguments.target, arguments.flavour, arguments.backbone)


if __name__ == "__main__":
    run(main)
