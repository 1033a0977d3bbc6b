"""Optimizers, with weight decay on weights alone: biases and batch norm's gamma and beta go without.

Where MindSpore's own optimizer does not compute the published rule on every device, ours does: `nn.Momentum` leaves
Nesterov's term out on the CPU without a word, `nn.AdamWeightDecay` corrects no bias, `nn.Lamb` has no CPU operator.
"""

import re
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.args import Config
from src.kernels.operators import momentum_update
from src.models import HEAD


class Momentum(nn.Optimizer):
    """Momentum, Nesterov's or plain, with weight decay, in one pass over the weights.

    m = momentum * m + g + decay * w; w -= lr * (g + decay * w + momentum * m), or lr * m without Nesterov (Sutskever et
    al., "On the importance of initialization and momentum in deep learning", ICML 2013, in the form where the gradient
    is taken at w).
    """

    def __init__(self, groups: list, rates: Sequence[float], momentum: float, nesterov: bool) -> None:
        super().__init__(rates, groups)
        self.momentum = Tensor(momentum, ms.float32)
        self.moments = self._parameters.clone(prefix="moments", init="zeros")
        self.started = self._parameters.clone(prefix="stat", init="zeros")
        nesterov = nesterov and momentum > 0
        self.rules = tuple(ops.SGD(0.0, decay, nesterov) for decay in _decays(self._parameters, groups))
        # ops.SGD decays as it goes; the base class's pass over the weights is not wanted.
        self.exec_weight_decay = False

    def construct(self, gradients: tuple) -> Tensor:
        rates = self.get_lr() if self.is_group_lr else (self.get_lr(),) * len(self._parameters)
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        done = Tensor(True)
        for rule, weight, gradient, moment, started, rate in zip(
            self.rules, self._parameters, gradients, self.moments, self.started, rates
        ):
            done = ops.depend(done, rule(weight, gradient, rate, moment, self.momentum, started))
        return done


class NativeMomentum(nn.Optimizer):
    """`Momentum` on the CPU in one pass over the memory, with the gradients' factor in it too."""

    takes_factor = True

    def __init__(self, groups: list, rates: Sequence[float], momentum: float, nesterov: bool) -> None:
        super().__init__(rates, groups)
        self.moments = self._parameters.clone(prefix="moments", init="zeros")
        self.exec_weight_decay = False
        rules = [(momentum, decay, nesterov) for decay in _decays(self._parameters, groups)]
        self.rules = Tensor(np.array(rules, np.float32))
        self.update = momentum_update(len(rules))

    def construct(self, gradients: tuple, factor: Tensor) -> Tensor:
        """`factor`: a scalar that multiplies the gradients first."""
        rates = ops.stack(self.get_lr()) if self.is_group_lr else self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        return self.update(rates, factor, self.rules, *self._parameters, *self.moments, *gradients)


def _decays(parameters: Sequence[Parameter], groups: list) -> list[float]:
    """The weight decay of each parameter, which its group says."""
    decays = {id(member): group["weight_decay"] for group in groups[:-1] for member in group["params"]}
    return [decays[id(parameter)] for parameter in parameters]


def _add_adam_moments(optimizer: nn.Optimizer) -> None:
    """Both moments of every weight, and the powers of beta that correct their bias."""
    optimizer.beta1_power = Parameter(Tensor(1.0, ms.float32), name="beta1_power")
    optimizer.beta2_power = Parameter(Tensor(1.0, ms.float32), name="beta2_power")
    optimizer.moment1 = optimizer._parameters.clone(prefix="moment1", init="zeros")
    optimizer.moment2 = optimizer._parameters.clone(prefix="moment2", init="zeros")


class AdamW(nn.Optimizer):
    """Adam with decoupled weight decay and bias correction.

    Kingma and Ba, arXiv 1412.6980, algorithm 1 in the order of section 2's last paragraph (epsilon beside the
    uncorrected root); Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
    """

    beta1_power: Parameter
    beta2_power: Parameter

    def __init__(self, groups: list, rates: Sequence[float], beta: tuple[float, float], eps: float) -> None:
        super().__init__(rates, groups)
        self.beta1, self.beta2, self.eps = (Tensor(value, ms.float32) for value in (*beta, eps))
        _add_adam_moments(self)
        self.adam = ops.Adam()

    def construct(self, gradients: tuple) -> Tensor:
        rates = self.get_lr() if self.is_group_lr else (self.get_lr(),) * len(self._parameters)
        decays = self.get_weight_decay()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        self.beta1_power = self.beta1_power * self.beta1
        self.beta2_power = self.beta2_power * self.beta2
        done = ops.depend(Tensor(True), self.beta2_power)
        for weight, gradient, moment1, moment2, decay, decays_it, rate in zip(
            self._parameters, gradients, self.moment1, self.moment2, decays, self.decay_flags, rates
        ):
            if decays_it:
                done = ops.depend(done, ops.assign(weight, weight * (1.0 - rate * decay)))
            after_decay = ops.depend(gradient, done)
            powers = (self.beta1_power, self.beta2_power)
            update = self.adam(weight, moment1, moment2, *powers, rate, self.beta1, self.beta2, self.eps, after_decay)
            done = ops.depend(done, update)
        return done


class Lamb(nn.Optimizer):
    """Adam's direction at the length of each weight (You et al., arXiv 1904.00962, algorithm 2, phi the identity)."""

    beta1_power: Parameter
    beta2_power: Parameter

    def __init__(self, groups: list, rates: Sequence[float], beta: tuple[float, float], eps: float) -> None:
        super().__init__(rates, groups)
        self.beta1, self.beta2 = beta
        self.eps = eps
        _add_adam_moments(self)

    def construct(self, gradients: tuple) -> Tensor:
        rates = self.get_lr() if self.is_group_lr else (self.get_lr(),) * len(self._parameters)
        decays = self.get_weight_decay()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        self.beta1_power = self.beta1_power * self.beta1
        self.beta2_power = self.beta2_power * self.beta2
        done = Tensor(True)
        for weight, gradient, moment1, moment2, decay, rate in zip(
            self._parameters, gradients, self.moment1, self.moment2, decays, rates
        ):
            mean = self.beta1 * moment1 + (1 - self.beta1) * gradient
            square = self.beta2 * moment2 + (1 - self.beta2) * gradient * gradient
            direction = mean / (1 - self.beta1_power) / (ops.sqrt(square / (1 - self.beta2_power)) + self.eps)
            direction = direction + decay * weight
            length, unit = ops.sqrt((weight * weight).sum()), ops.sqrt((direction * direction).sum())
            known = ops.logical_and(length > 0, unit > 0)
            trust = ops.where(known, length / ops.maximum(unit, Tensor(1e-30, ms.float32)), ops.ones_like(length))
            done = ops.depend(done, ops.assign(moment1, mean))
            done = ops.depend(done, ops.assign(moment2, square))
            done = ops.depend(done, ops.assign(weight, weight - rate * trust * direction))
        return done


def takes_decay(parameter: Parameter) -> bool:
    """Whether weight decay acts on a parameter: on convolutions' and the classifier's weights."""
    return not parameter.name.endswith((".bias", ".gamma", ".beta"))


def is_head(parameter: Parameter) -> bool:
    """Whether a parameter is the classifier's, which all else in the network feeds."""
    return parameter.name.startswith(f"{HEAD}.")


FREEZABLE = ("stem", "stage1", "stage2", "stage3", "stage4", "backbone")


def is_frozen(name: str, up_to: str) -> bool:
    """Whether a part or parameter of a network is frozen, by its name.

    Args:
        name: such as layer3_.0.conv1.weight or down4.
        up_to: one of `FREEZABLE`: it and all before it is frozen, of both branches; backbone: all but the classifier.
            '': nothing.
    """
    first = name.split(".")[0]
    if not up_to or first == HEAD:
        return False
    number = re.match(r"(?:layer|compression|down)(\d)", first)
    place = int(number[1]) if number else 0 if first == "conv1" else len(FREEZABLE) - 1
    return place <= FREEZABLE.index(up_to)


def freeze(network: nn.Cell, up_to: str) -> None:
    """Let training leave a network's first parts as they are; arguments as of `is_frozen`."""
    for parameter in network.get_parameters():
        if is_frozen(parameter.name, up_to):
            parameter.requires_grad = False


def still(network: nn.Cell, up_to: str) -> None:
    """Let what is frozen compute as in inference: batch norm keeps its statistics, drop path is off."""
    for name, cell in network.name_cells().items():
        if is_frozen(name, up_to):
            cell.set_train(False)


def unchanging(optimizer: nn.Optimizer) -> list[Parameter]:
    """An optimizer's parameters that training leaves as they are: its rates, and the zeros that `ops.SGD` asks for."""
    return [*optimizer.learning_rate.get_parameters(), *getattr(optimizer, "started", ())]


def create_optimizer(network: nn.Cell, config: Config, rates: np.ndarray, native: bool = False) -> nn.Optimizer:
    """The configured optimizer over the network's trainable parameters, in their order.

    Args:
        network: whose `trainable_params()` are updated.
        config: reads optimizer, its numbers, weight_decay and head_lr_scale.
        rates: float32 (updates,), the learning rate of each update.
        native: use the kernels in `src.kernels` where there is one for the rule.
    """
    parameters = network.trainable_params()
    groups = []
    for head in (False, True):
        for decays in (True, False):
            members = [p for p in parameters if is_head(p) is head and takes_decay(p) is decays]
            if members:
                groups.append({"params": members, "weight_decay": config.weight_decay if decays else 0.0})
                if config.head_lr_scale != 1:
                    groups[-1]["lr"] = (rates * (config.head_lr_scale if head else 1.0)).tolist()
    groups.append({"order_params": parameters})
    whole = rates.tolist()
    if config.optimizer in ("momentum", "sgd"):  # two names of one rule
        rule = NativeMomentum if native else Momentum
        return rule(groups, whole, config.momentum, config.use_nesterov)
    if config.optimizer == "adamw":
        return AdamW(groups, whole, config.beta, config.eps)
    if config.optimizer == "lamb":
        return Lamb(groups, whole, config.beta, config.eps)
    if config.optimizer == "rmsprop":
        return nn.RMSProp(groups, whole, config.decay, config.momentum, config.eps)
    raise NotImplementedError(f"optimizer: {config.optimizer} has no rule in create_optimizer")
