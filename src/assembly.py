"""What the entry points and benchmarks put together from a configuration: a network, and a step that trains it."""

import logging

from mindspore import nn

from src.args import Config
from src.distributed import ascend, one_machine
from src.distributed.ranks import Ranks
from src.errors import UserError
from src.models import create_model, smallest_map
from src.models.fold import fold_batch_norm
from src.tools.cell import cast_amp, native_kernels
from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
from src.tools.optimizer import create_optimizer, freeze, still
from src.tools.schedulers import learning_rates
from src.trainers.saturation import FloatStatus
from src.trainers.train_one_step import TrainOneStep
from src.weights.formats import read_weights
from src.weights.load import load_weights

_log = logging.getLogger(__name__)


def build_network(config: Config) -> nn.Cell:
    """The network to train: with the weights that it starts from, in its precision, with what is frozen.

    Args:
        config: reads the network's keys, pretrained, freeze, amp_level, device_target and cpu_kernels.

    Raises:
        UserError: the pretrained weights do not fit.
    """
    weights = read_weights(config.pretrained) if config.pretrained else {}  # before kernels are compiled
    kernels = native_kernels(config)
    network = create_model(
        config.arch,
        config.num_classes,
        config.drop_path_rate,
        config.flavour,
        kernels.network,
        config.drop_path_on,
    )
    if config.pretrained:
        left_out = load_weights(network, weights, config.pretrained, config.flavour, drop_head=True)
        anew = f"; the classifier ({', '.join(left_out)}) starts anew, as it has other classes" if left_out else ""
        _log.info("weights: %s%s", config.pretrained, anew)
    cast_amp(network, config.amp_level, config.keep_bn_fp32)
    freeze(network, config.freeze)
    return network


def build_classifier(config: Config, portable: bool = False) -> nn.Cell:
    """The network with trained weights, for inference: (N, 3, H, W) to logits (N, num_classes).

    Args:
        config: reads the network's keys, pretrained, amp_level, device_target and cpu_kernels.
        portable: of MindSpore's operators in float32, as a file for another runtime is made of it; else as fast as
            this device can.

    Raises:
        UserError: there are no weights, or they do not fit.
    """
    if not config.pretrained:
        raise UserError("--pretrained: name the trained weights, such as ./ckpt_0/DDRNet23.ckpt")
    weights = read_weights(config.pretrained)  # before kernels are compiled
    kernels = "" if portable else native_kernels(config).network
    network = create_model(config.arch, config.num_classes, flavour=config.flavour, native=kernels)
    load_weights(network, weights, config.pretrained, config.flavour)
    if not portable:
        if config.device_target == "CPU":  # Ascend's and the GPU's compilers fold by themselves
            network = fold_batch_norm(network)
        cast_amp(network, config.amp_level, config.keep_bn_fp32)
    return network.set_train(False)


def build_step(config: Config, network: nn.Cell, updates: int, ranks: Ranks = Ranks()) -> TrainOneStep:  # noqa: B008
    """The step that trains a network, over the rates of the whole run.

    Args:
        config: reads the keys of the loss, optimizer, learning rate, precision, accumulation and averaging.
        network: from `build_network`.
        updates: optimizer updates an epoch.
        ranks: that train together.

    Raises:
        UserError: batch norm would see one value.
    """
    if config.batch_size * smallest_map(config.image_size) ** 2 == 1 and config.freeze != "backbone":
        raise UserError(
            "batch_size: of 1 image of 32 pixels the smallest maps have one value a channel, on which batch norm "
            "cannot be trained; take a batch_size of 2 or more, or an image_size above 32"
        )
    rates = learning_rates(config, updates)[config.start_epoch * updates :]
    kernels = native_kernels(config)
    step = TrainOneStep(
        NetworkWithLoss(network, SoftTargetCrossEntropy()),
        create_optimizer(network, config, rates, kernels.update),
        rates=rates,
        ranks=ranks.world,
        loss_scale=None if config.is_dynamic_loss_scale else config.loss_scale,
        clip_norm=config.clip_global_norm_value if config.clip_global_norm else None,
        accumulation=config.accumulation_step,
        ema_decay=config.ema_decay,
        native=kernels.update,
        share_memory=kernels.update and ranks.world > 1 and one_machine.meet(ranks),
        float_status=FloatStatus() if config.device_target == "Ascend" and ascend.saturates() else None,
    )
    step.set_train()
    still(network, config.freeze)
    return step
