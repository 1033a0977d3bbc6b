"""What a network is made of: its stages, what leaves them, their parameters and their multiply-adds.

python -m src.models.summary --arch DDRNet23 --image_size 224
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.errors import Parser, UserError, printable
from src.models import ARCHITECTURES, FLAVOURS, create_model


@dataclass(frozen=True)
class Stage:
    """A cell of the network, and what it does to one image.

    output: shape without the batch, channels first; parameters: trainable ones; multiply_adds: of its convolutions and
    dense layers. Batch norm, ReLU, additions and upsampling are not counted.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def summarize(network: nn.Cell, image_size: int) -> list[Stage]:
    """The stages of a network, in the order in which they run, measured on one image; in PyNative mode.

    Args:
        network: float32 (N, 3, image_size, image_size) in; its direct children are the stages.
        image_size: side of the image, pixels, at least 32.
    """
    outputs: dict[str, tuple[int, ...]] = {}
    multiply_adds: dict[str, int] = {}

    def recorder(stage: str) -> Callable:
        def record(cell: nn.Cell, inputs: tuple, output: Tensor) -> None:
            outputs[stage] = tuple(output.shape[1:])

        return record

    def counter(stage: str) -> Callable:
        def count(cell: nn.Cell, inputs: tuple, output: Tensor) -> None:
            positions = int(np.prod(output.shape[2:]))
            multiply_adds[stage] = multiply_adds.get(stage, 0) + positions * cell.weight.size

        return count

    handles = []
    children = {name: child for name, child in network.name_cells().items() if child.trainable_params()}
    for name, child in children.items():
        handles.append(child.register_forward_hook(recorder(name)))
        for _, cell in child.cells_and_names():
            if isinstance(cell, (nn.Conv2d, nn.Dense)):
                handles.append(cell.register_forward_hook(counter(name)))
    training = network.training
    try:
        network.set_train(False)(Tensor(np.zeros((1, 3, image_size, image_size), np.float32)))
    finally:
        network.set_train(training)
        for handle in handles:
            handle.remove()
    return [
        Stage(name, output, sum(parameter.size for parameter in children[name].trainable_params()), multiply_adds[name])
        for name, output in outputs.items()
    ]


def format_table(stages: Sequence[Stage]) -> str:
    """The stages and their totals, a line each."""
    lines = [("stage", "output", "parameters", "multiply-adds")]
    lines += [(s.name, "x".join(map(str, s.output)), f"{s.parameters:,}", f"{s.multiply_adds:,}") for s in stages]
    totals = (sum(s.parameters for s in stages), sum(s.multiply_adds for s in stages))
    lines.append(("total", "", f"{totals[0]:,}", f"{totals[1]:,}"))
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = [
        "  ".join((a.ljust(widths[0]), b.ljust(widths[1]), c.rjust(widths[2]), d.rjust(widths[3])))
        for a, b, c, d in lines
    ]
    rule = "-" * len(rows[0])
    return "\n".join([rows[0], rule, *rows[1:-1], rule, rows[-1]])


def main() -> None:
    parser = Parser(
        prog="python -m src.models.summary",
        description="Print a network's stages, shapes, parameters and multiply-adds for one image.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--arch", default="DDRNet23", help=", ".join(ARCHITECTURES))
    parser.add_argument("--flavour", default="zoo", help=", ".join(FLAVOURS))
    parser.add_argument("--image_size", type=int, default=224, help="side of the image, pixels, at least 32")
    parser.add_argument("--num_classes", type=int, default=1000, help="number of classes")
    arguments = parser.parse_args()
    # The network runs once, with its weights: DDRNet39 at 2048 pixels takes 20 s of CPU time.
    for name, least, most in (("image_size", 32, 2048), ("num_classes", 1, 100_000)):
        if not least <= getattr(arguments, name) <= most:
            raise UserError(f"--{name} {printable(getattr(arguments, name))}: must be from {least} to {most}")
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    network = create_model(arguments.arch, arguments.num_classes, flavour=arguments.flavour)
    stages = summarize(network, arguments.image_size)
    size = arguments.image_size
    print(f"{arguments.arch}, the {arguments.flavour}'s flavour, one image of {size}x{size} pixels\n")
    print(format_table(stages))


if __name__ == "__main__":
    from src.errors import run

    run(main)
