"""Optimizers, with weight decay on weights alone: biases and batch norm's gamma and beta go without."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.args import Config


class AdamW(nn.Optimizer):
    """Adam with decoupled weight decay and bias correction.

    Kingma and Ba, arXiv 1412.6980, algorithm 1 in the order of section 2's last paragraph (epsilon beside the
    uncorrected root); Loshchilov and Hutter, arXiv 1711.05101, algorithm 2. MindSpore's own AdamWeightDecay corrects no
    bias, which warmup then has to hide.
    """

    def __init__(self, params: list, learning_rate: list, beta: tuple[float, float], eps: float) -> None:
        super().__init__(learning_rate, params)
        self.beta1, self.beta2, self.eps = (Tensor(value, ms.float32) for value in (*beta, eps))
        self.beta1_power = Parameter(Tensor(1.0, ms.float32), name="beta1_power")
        self.beta2_power = Parameter(Tensor(1.0, ms.float32), name="beta2_power")
        self.moment1 = self._parameters.clone(prefix="moment1", init="zeros")
        self.moment2 = self._parameters.clone(prefix="moment2", init="zeros")
        self.adam = ops.Adam()

    def construct(self, gradients: tuple) -> Tensor:
        lrs = self.get_lr()
        decays = self.get_weight_decay()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        self.beta1_power = self.beta1_power * self.beta1
        self.beta2_power = self.beta2_power * self.beta2
        done = ops.depend(Tensor(True), self.beta2_power)
        for i in range(len(self._parameters)):
            weight = self._parameters[i]
            lr = lrs[i] if self.is_group_lr else lrs
            decay = decays[i] if self.is_group else decays
            if self.decay_flags[i]:
                done = ops.depend(done, ops.assign(weight, weight * (1.0 - lr * decay)))
            gradient = ops.depend(gradients[i], done)
            done = ops.depend(
                done,
                self.adam(
                    weight,
                    self.moment1[i],
                    self.moment2[i],
                    self.beta1_power,
                    self.beta2_power,
                    lr,
                    self.beta1,
                    self.beta2,
                    self.eps,
                    gradient,
                ),
            )
        return done


def takes_decay(parameter: Parameter) -> bool:
    """Whether weight decay acts on a parameter: on convolutions' and the classifier's weights."""
    return not parameter.name.endswith((".bias", ".gamma", ".beta"))


def create_optimizer(network: nn.Cell, config: Config, rates: np.ndarray) -> nn.Optimizer:
    """The configured optimizer over the network's trainable parameters, in their order.

    Args:
        network: whose `trainable_params()` are updated.
        config: reads optimizer, its numbers, and weight_decay.
        rates: float32 (updates,), the learning rate of each update.
    """
    parameters = network.trainable_params()
    groups = [
        {"params": [p for p in parameters if takes_decay(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if not takes_decay(p)], "weight_decay": 0.0},
        {"order_params": parameters},
    ]
    rates = rates.tolist()
    if config.optimizer == "momentum":
        return nn.Momentum(groups, rates, config.momentum, use_nesterov=config.use_nesterov)
    if config.optimizer == "sgd":
        nesterov = config.use_nesterov and config.momentum > 0
        return nn.SGD(groups, rates, config.momentum, nesterov=nesterov)
    if config.optimizer == "adamw":
        return AdamW(groups, rates, config.beta, config.eps)
    if config.optimizer == "lamb":
        return nn.Lamb(groups, rates, *config.beta, eps=config.eps)
    return nn.RMSProp(groups, rates, config.decay, config.momentum, config.eps)
