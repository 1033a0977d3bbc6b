"""A rank of tests/test_distributed.py: does what the ranks do together, and writes what came of it to results.npz."""

import json
import logging
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.args import Config
from src.distributed import one_machine
from src.distributed.join import join
from src.errors import TemporaryFailure, UserError
from src.heartbeat import finish
from src.kernels.build import library
from src.metrics import Totals
from src.parameters import assign
from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
from src.tools.optimizer import create_optimizer
from src.trainers.train_one_step import TrainOneStep

BATCH, SIDE, CLASSES, UPDATES = 8, 8, 5, 4


class Network(nn.Cell):
    """Convolution, batch norm, classifier; takes what drop path would need and does without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, pad_mode="pad", padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.linear = nn.Dense(6, CLASSES)

    def construct(self, images: Tensor, _uniforms=None) -> Tensor:
        features = self.bn(self.conv(images))
        return self.linear(nn.ReLU()(features).mean((2, 3)))


def filled(network: nn.Cell, seed: int) -> nn.Cell:
    """Give a network values that follow from the seed."""
    rng = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        values = rng.normal(0.0, 0.5, parameter.shape)
        values = np.abs(values) + 0.5 if "variance" in parameter.name else values
        parameter.set_data(Tensor(values.astype(np.float32)))
    return network


def global_batch(update: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and targets of one update, over all ranks."""
    rng = np.random.default_rng(100 + update)
    images = rng.normal(0.0, 1.0, (BATCH, 3, SIDE, SIDE)).astype(np.float32)
    return images, rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)


def new_step(
    config: Config, ranks: int, frozen: bool, float_status: Optional[nn.Cell] = None, share_memory: bool = False
) -> TrainOneStep:
    """A training step over a small network; frozen: batch norm keeps to its moving statistics."""
    network = filled(Network(), 1)
    rates = np.full(UPDATES, 0.1, np.float32)
    step = TrainOneStep(
        NetworkWithLoss(network, SoftTargetCrossEntropy()),
        create_optimizer(network, config, rates),
        rates,
        ranks,
        clip_norm=0.1,
        ema_decay=0.5 if frozen else 0.0,
        float_status=float_status,
        share_memory=share_memory,
    )
    return step.set_train(not frozen)


class LargeGradients(nn.Cell):
    """Stands in for the NPU's status flag: up where a gradient is above what float16 holds."""

    def cleared(self, images: Tensor) -> Tensor:
        return images

    def construct(self, gradients: tuple) -> Tensor:
        return ops.abs(gradients[0]).max() > 65504


def weights_of(step: nn.Cell) -> dict[str, np.ndarray]:
    """Copies of all that is trained, by name."""
    return {parameter.name: parameter.asnumpy().copy() for parameter in step.replicated()}


def main() -> None:
    """Everything, in the same order on each rank."""
    logging.basicConfig(level=logging.INFO)
    config, ranks = join(Config(device_target="CPU"))
    share = slice(ranks.rank * BATCH // ranks.world, (ranks.rank + 1) * BATCH // ranks.world)
    results = {"place": [ranks.rank, ranks.world, config.device_num]}

    # Updates with batch norm frozen: what one process computes from the same global batches, also of averaged weights
    # whose statistics were averaged over the ranks in between, as a checkpoint does.
    step = new_step(config, ranks.world, frozen=True)
    for update in range(UPDATES):
        step(*(Tensor(column[share]) for column in global_batch(update)))
        ranks.average(step.statistics())
    ranks.check_identical(step.replicated())
    results.update({f"frozen/{name}": values for name, values in weights_of(step).items()})
    results.update({f"averaged/{name}": values for name, values in step.averaged_weights().items()})

    # The same where gradients meet in the machine's memory.
    if library() is not None:
        shares = ranks.world > 1 and one_machine.meet(ranks)
        results["shares"] = [shares]
        sharing = new_step(config, ranks.world, frozen=True, share_memory=shares)
        for update in range(UPDATES):
            sharing(*(Tensor(column[share]) for column in global_batch(update)))
            ranks.average(sharing.statistics())
        ranks.check_identical(sharing.replicated())
        results.update({f"shared/{name}": values for name, values in weights_of(sharing).items()})

    # An infinity in the last rank's images alone: all skip the update and halve the scale.
    before = weights_of(step)
    images, targets = (column[share].copy() for column in global_batch(UPDATES))
    if ranks.rank == ranks.world - 1:
        images[0, 0, 0, 0] = np.inf
    step(Tensor(images), Tensor(targets))
    after = weights_of(step)
    results["overflow/scale"] = [before["loss_scale"], after["loss_scale"]]
    kept = [name for name in before if not name.startswith(("loss_scale", "good_updates", "overflows", "stuck"))]
    results["overflow/changed"] = [name for name in kept if not np.array_equal(before[name], after[name])]
    ranks.check_identical(step.replicated())

    # Saturated gradients in the last rank's images alone: the flag is one on all.
    step = new_step(config, ranks.world, frozen=True, float_status=LargeGradients())
    before = weights_of(step)
    images, targets = (column[share].copy() for column in global_batch(UPDATES))
    if ranks.rank == ranks.world - 1:
        images *= 1e6
    step(Tensor(images), Tensor(targets))
    after = weights_of(step)
    results["saturation/scale"] = [before["loss_scale"], after["loss_scale"]]
    results["saturation/changed"] = [name for name in kept if not np.array_equal(before[name], after[name])]
    step(*(Tensor(column[share]) for column in global_batch(UPDATES)))
    results["saturation/next"] = weights_of(step)["loss_scale"]

    # Batch norm alive: statistics differ by rank and are averaged, weights do not differ.
    step = new_step(config, ranks.world, frozen=False)
    for update in range(UPDATES):
        step(*(Tensor(column[share]) for column in global_batch(update)))
    network = step.network.network
    results["statistics/own"] = network.bn.moving_mean.asnumpy().copy()
    ranks.average(step.statistics())
    results["statistics/mean"] = network.bn.moving_mean.asnumpy().copy()
    results["statistics/variance"] = network.bn.moving_variance.asnumpy().copy()
    ranks.check_identical(step.replicated())

    # Sums and agreement.
    totals = Totals(images=2**40 + ranks.rank, loss=(ranks.rank + 1) / 3, top1=2**33 + 1, top5=ranks.rank)
    total = ranks.sum_totals(totals)
    results["totals"] = [repr(total)]
    results["agree"] = [ranks.agree(15 * ranks.rank), ranks.agree(0)]
    results["add_up"] = [repr(ranks.add_up(ranks.rank + 1)), repr(ranks.add_up(0.1))]
    results["gather"] = ranks.gather(np.array([ranks.rank, np.nan, -0.0], np.float64))

    # Rank 0's values on all ranks, whatever their type and size.
    cell = nn.Cell()
    rng = np.random.default_rng(ranks.rank)
    for name, dtype, shape in (
        ("a", ms.float32, (3, 5)),
        ("b", ms.float16, (7,)),
        ("c", ms.int32, ()),
        ("d", ms.bool_, (3,)),
    ):
        values = Tensor(rng.integers(0, 100, shape) % (2 if name == "d" else 100), dtype)
        cell.insert_param_to_cell(name, Parameter(values, name=name))
    ranks.hand_out(cell)
    for name, parameter in cell.parameters_dict().items():
        results[f"handed/{name}"] = parameter.asnumpy()
    results["facts"] = [json.dumps(ranks.hand_out_facts({"é": [1, 2.5, None]} if ranks.is_first else None))]

    # One bit of one moment on one rank.
    moment = next(parameter for parameter in step.replicated() if parameter.name == "moments.conv.weight")
    values = moment.asnumpy().copy()
    if ranks.rank == ranks.world - 1:
        values.reshape(-1).view(np.int32)[7] ^= 1
    assign(moment, values)
    try:
        ranks.check_identical(step.replicated())
        results["mismatch"] = ["none"]
    except TemporaryFailure as error:
        results["mismatch"] = [str(error)]
    ranks.check_equal("answer", 42)
    try:
        ranks.check_equal("answer", 42 + ranks.rank)
        results["unequal"] = ["none"]
    except UserError as error:
        results["unequal"] = [str(error)]
    np.savez("results.npz", **results)


if __name__ == "__main__":
    main()
    finish()
