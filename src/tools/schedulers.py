"""Learning rates: one number for every update of a run, computed before it starts.

Linear warmup (Goyal et al., arXiv 1706.02677, section 2.2), then the chosen curve; cosine is SGDR's without restarts
(Loshchilov and Hutter, arXiv 1608.03983, section 3).
"""

import numpy as np

from src.args import Config


def learning_rates(config: Config, updates_an_epoch: int) -> np.ndarray:
    """The learning rate of every update, float32 (epochs * updates_an_epoch,).

    The whole curve is scaled by the global batch / 256. Warmup rises from warmup_lr, at the first update, to base_lr at
    the first update after warmup_length epochs.

    Args:
        config: reads the learning rate's keys, epochs, and the global batch.
        updates_an_epoch: optimizer updates in one epoch, at least 1.
    """
    total = config.epochs * updates_an_epoch
    warmup = min(config.warmup_length * updates_an_epoch, total)
    update = np.arange(total, dtype=np.float64)
    epoch = update // updates_an_epoch
    if config.lr_scheduler == "cosine_lr":
        progress = (update - warmup) / max(total - warmup, 1)
        curve = config.min_lr + (config.base_lr - config.min_lr) * 0.5 * (1 + np.cos(np.pi * progress))
    elif config.lr_scheduler == "multistep_lr":
        curve = config.base_lr * config.lr_gamma ** (epoch // config.lr_adjust)
    elif config.lr_scheduler == "exp_lr":
        curve = config.base_lr * config.lr_gamma ** np.maximum(epoch - config.warmup_length, 0)
    else:
        curve = np.full(total, config.base_lr)
    curve[:warmup] = config.warmup_lr + (config.base_lr - config.warmup_lr) * update[:warmup] / max(warmup, 1)
    return (curve * config.images_an_update / 256).astype(np.float32)
