"""Learning rates: one number for every update of a run, computed before it starts.

Linear warmup (Goyal et al., arXiv 1706.02677, section 2.2), then the chosen curve; cosine is SGDR's without restarts
(Loshchilov and Hutter, arXiv 1608.03983, section 3). The other three follow the model zoo's DDRNet to the letter.
"""

import numpy as np

from src.args import Config
from src.errors import UserError

MOST_UPDATES = 100_000_000  # of a run; the curve takes 3 GB then


def learning_rates(config: Config, updates_an_epoch: int) -> np.ndarray:
    """The learning rate of every update, float32 (epochs * updates_an_epoch,).

    The whole curve is scaled by the global batch / 256. Warmup rises from warmup_lr, at the first update, to base_lr at
    the first update after warmup_length epochs. With t the epochs done, fractions included, the curves are

    - cosine_lr: from base_lr after warmup to min_lr at the end;
    - multistep_lr: base_lr * lr_gamma ** floor(t / lr_adjust), without warmup;
    - exp_lr: base_lr * lr_gamma ** t, after warmup; t counts from the run's start, so the rate falls where warmup ends;
    - constant_lr: base_lr, after warmup;

    the last three not below min_lr, warmup included.

    Args:
        config: reads the learning rate's keys, epochs, and the global batch.
        updates_an_epoch: optimizer updates in one epoch, at least 1.

    Raises:
        UserError: the run would have more than `MOST_UPDATES`.
    """
    total = config.epochs * updates_an_epoch
    if total > MOST_UPDATES:
        raise UserError(
            f"epochs: {config.epochs} of {updates_an_epoch} updates are {total} in all, more than {MOST_UPDATES}"
        )
    warmup = 0 if config.lr_scheduler == "multistep_lr" else config.warmup_length * updates_an_epoch
    update = np.arange(total, dtype=np.float64)
    epoch = update / updates_an_epoch
    if config.lr_scheduler == "cosine_lr":
        progress = (update - warmup) / max(total - warmup, 1)
        curve = config.min_lr + (config.base_lr - config.min_lr) * 0.5 * (1 + np.cos(np.pi * progress))
    elif config.lr_scheduler == "multistep_lr":
        curve = config.base_lr * config.lr_gamma ** (epoch // config.lr_adjust)
    elif config.lr_scheduler == "exp_lr":
        curve = config.base_lr * config.lr_gamma**epoch
    elif config.lr_scheduler == "constant_lr":
        curve = np.full(total, config.base_lr)
    else:
        raise NotImplementedError(f"lr_scheduler: {config.lr_scheduler} has no curve in learning_rates")
    curve[:warmup] = config.warmup_lr + (config.base_lr - config.warmup_lr) * update[:warmup] / max(warmup, 1)
    if config.lr_scheduler != "cosine_lr":
        curve = np.maximum(curve, min(config.min_lr, curve.max()))
    return (curve * config.images_an_update / 256).astype(np.float32)
