"""Train a DDRNet classifier from one YAML file.

python train.py --ddr_config ./src/configs/ddrnet23_imagenet.yaml --device_id 0 --device_target Ascend
"""

import logging
import time
from typing import Optional

from src.args import parse_args
from src.errors import UserError
from src.tools.get_misc import describe, output_folder, run


def main(argv: Optional[list[str]] = None) -> None:
    """Train, validate, save; see the README for every key."""
    began = time.perf_counter()
    config, _ = parse_args(argv, "Train a DDRNet classifier; see README.md for every key.")
    if config.start_epoch >= config.epochs:
        raise UserError(f"start_epoch: must be below epochs, {config.epochs}, not {config.start_epoch}")

    # MindSpore takes seconds to import; --help and a wrong flag need not wait for it.
    from src.data import create_dataset
    from src.models import create_model
    from src.tools.callback import Metrics, Progress
    from src.tools.cell import cast_amp
    from src.tools.checkpoint import Checkpoints
    from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
    from src.tools.evaluate import evaluate
    from src.tools.launch import launch
    from src.tools.optimizer import create_optimizer
    from src.tools.schedulers import learning_rates
    from src.tools.weights import load_pretrained
    from src.trainers.feed import Feed
    from src.trainers.train_one_step import TrainOneStep

    # 1. The device, and this process's place among the ranks.
    config, place = launch(config)
    log = logging.getLogger("train") if place.is_first else logging.getLogger("rank")
    log.setLevel(logging.INFO if place.is_first else logging.WARNING)

    # 2. The network and what it starts from.
    network = create_model(config.arch, config.num_classes, config.drop_path_rate, config.flavour)
    if config.pretrained:
        left_out = load_pretrained(network, config.pretrained, config.flavour, drop_head=True)
        log.info("weights: %s%s", config.pretrained, f", but not {', '.join(left_out)}" if left_out else "")

    # 3. The data.
    columns = network.num_drop_paths if config.drop_path_rate > 0 else 0
    train = create_dataset(config, "train", place.rank, place.world, uniform_columns=columns)
    val = create_dataset(config, "val", place.rank, place.world)

    # 4. The step.
    cast_amp(network, config.amp_level, config.keep_bn_fp32)
    updates = train.steps // config.accumulation_step
    rates = learning_rates(config, updates)[config.start_epoch * updates :]
    step = TrainOneStep(
        NetworkWithLoss(network, SoftTargetCrossEntropy()),
        create_optimizer(network, config, rates),
        loss_scale=None if config.is_dynamic_loss_scale else config.loss_scale,
        clip_norm=config.clip_global_norm_value if config.clip_global_norm else None,
        accumulation=config.accumulation_step,
    )
    step.set_train()

    # 5. Train.
    log.info(describe(config, network, train, val, rates))
    folder = output_folder(config)
    checkpoints = Checkpoints(folder / f"ckpt_{place.rank}", config.arch, config.keep_checkpoint_max)
    metrics = Metrics(folder)
    progress = Progress(updates, config.epochs, config.images_an_update, config.log_every, quiet=not place.is_first)
    feed = Feed(step, train, config, config.start_epoch + 1)
    for epoch in range(config.start_epoch + 1, config.epochs + 1):
        started = time.perf_counter()
        progress.start(epoch)
        for batches_done, loss in feed.epoch(epoch):
            done, rest = divmod(batches_done, config.accumulation_step)
            if rest == 0:
                lr = step.learning_rate(rates)
                progress.step(done, float(loss.asnumpy()), lr)
            if epoch == config.start_epoch + 1 and batches_done == feed.piece:
                log.info("first step after %.1f s", time.perf_counter() - began)
        progress.end()
        record = {"epoch": epoch, "step": epoch * updates, "lr": lr, **step.take_totals()}
        seconds = time.perf_counter() - started
        record.update(seconds=round(seconds, 2), img_s=round(updates * config.images_an_update / seconds, 1))

        # 6. Validate and save.
        last = epoch == config.epochs
        if last or (config.eval_every and epoch % config.eval_every == 0):
            means = evaluate(network, val.epoch()).means()
            record.update(val_loss=means["loss"], top1=means["top1"], top5=means["top5"])
            log.info("epoch %d: val loss %.5f, top-1 %.5f, top-5 %.5f", epoch, *means.values())
            checkpoints.save_best(network, means["top1"])
        if last or (config.save_every and epoch % config.save_every == 0):
            checkpoints.save(network, epoch, updates)
        metrics.add(record)
    log.info("weights: %s, best top-1 %.5f", checkpoints.save_last(network), checkpoints.best)


if __name__ == "__main__":
    run(main)
