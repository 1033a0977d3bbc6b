"""Train a DDRNet classifier from one YAML file.

python train.py --ddr_config ./src/configs/ddrnet23_imagenet.yaml --device_id 0 --device_target Ascend
"""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from src.args import Config, parse_args
from src.data import Batches, create_dataset
from src.data.data_utils.modelarts import stage
from src.distributed.collectives import (
    add_up,
    agree,
    average_statistics,
    check_equal,
    check_identical,
    hand_out,
    hand_out_facts,
    sum_totals,
    trained,
)
from src.distributed.place import Place, launch
from src.errors import UserError, run
from src.evaluation.evaluate import evaluate
from src.models import create_model
from src.models.fold import fold_batch_norm, refold
from src.tools.callback import Metrics, Progress
from src.tools.cell import cast_amp, native_kernels
from src.tools.criterion import NetworkWithLoss, SoftTargetCrossEntropy
from src.tools.get_misc import describe, output_folder, seconds_running
from src.tools.optimizer import create_optimizer, freeze_backbone
from src.tools.schedulers import learning_rates
from src.trainers.checkpoint import Checkpoints, Saved, holding, read_saved
from src.trainers.compile_cache import CompileCache
from src.trainers.feed import Feed
from src.trainers.signals import Interrupted, StopSignal
from src.trainers.train_one_step import TrainOneStep
from src.weights.load import load_pretrained

if TYPE_CHECKING:
    from mindspore import nn

log = logging.getLogger("train")


def main(argv: Optional[list[str]] = None, stop: Optional[StopSignal] = None) -> None:
    """Train, validate, save; the README explains every key. `stop`: listens for signals that end the run."""
    config, _ = parse_args(argv, "Train a DDRNet classifier; the README explains every key.")
    if config.start_epoch >= config.epochs:
        raise UserError(f"start_epoch: must be below epochs, {config.epochs}, not {config.start_epoch}")

    # 1. The device, and this process's place among the ranks, of which only the first speaks and writes.
    config, place = launch(config)
    log.setLevel(logging.INFO if place.is_first else logging.WARNING)
    config, outbox = stage(config, writes=place.is_first)

    # 2. The network and what it starts from.
    native = native_kernels(config)
    check_equal("cpu_kernels", native, place)
    network = create_model(config.arch, config.num_classes, config.drop_path_rate, config.flavour, native.network)
    if config.pretrained:
        left_out = load_pretrained(network, config.pretrained, config.flavour, drop_head=True)
        log.info("weights: %s%s", config.pretrained, f", but not {', '.join(left_out)}" if left_out else "")

    # 3. The data.
    columns = network.num_drop_paths if config.drop_path_rate > 0 else 0
    train = create_dataset(config, "train", place.rank, place.world, uniform_columns=columns)
    val = create_dataset(config, "val", place.rank, place.world)

    # 4. The step.
    cast_amp(network, config.amp_level, config.keep_bn_fp32)
    if config.freeze == "backbone":
        freeze_backbone(network)
    updates = train.steps // config.accumulation_step
    rates = learning_rates(config, updates)[config.start_epoch * updates :]
    step = TrainOneStep(
        NetworkWithLoss(network, SoftTargetCrossEntropy()),
        create_optimizer(network, config, rates, native.update),
        loss_scale=None if config.is_dynamic_loss_scale else config.loss_scale,
        clip_norm=config.clip_global_norm_value if config.clip_global_norm else None,
        accumulation=config.accumulation_step,
        ema_decay=config.ema_decay,
        native=native.update,
    )
    step.set_train()
    # What is validated: on the CPU a copy whose batch norm is part of the convolutions, which is faster.
    judged = (
        fold_batch_norm(network) if config.device_target == "CPU" and config.amp_level in ("O0", "auto") else network
    )
    if config.freeze == "backbone":  # its batch norm keeps its statistics, its drop path is off
        network.set_train(False)

    # 5. Where to begin: afresh, or where a checkpoint ends; the first rank knows, the others hear of it.
    folder = output_folder(config)
    checkpoints = Checkpoints(
        folder / "ckpt_0", config.arch, config.keep_checkpoint_max, writes=place.is_first, kernels=str(native)
    )
    checkpoints.lock()
    saved = find_saved(checkpoints, config) if place.is_first else None
    if saved:
        afresh = saved.restore(network, step, config.flavour)
        if afresh:
            log.warning("resume: %d parameters start afresh, as %s: not in the checkpoint", len(afresh), afresh[0])
    hand_out(step, place)
    facts = hand_out_facts(saved.facts if saved else None, place)
    first, done, spent = config.start_epoch + 1, 0, 0.0
    if facts:
        checkpoints.best = facts["best"]
        first, done, spent = facts["next_epoch"], facts["next_done"], facts["seconds"]
        log.info("going on from %s, in epoch %d after step %d", saved and saved.path, first, done)

    def save(epoch: int, finished: bool) -> Path:
        average_statistics(step, place)
        check_identical(trained(step), place)
        path = checkpoints.save(network, step, config, epoch, done, finished, seconds=spent)
        outbox.send()
        return path

    # 6. Train.
    log.info(describe(config, network, train, val, rates))
    log.info("kernels: %s", f"our own, {native.network}" if native.network else "MindSpore's")
    metrics = Metrics(folder, first_epoch=first if facts else 1, writes=place.is_first)
    progress = Progress(updates, config.epochs, config.images_an_update, config.log_every, quiet=not place.is_first)
    cache = CompileCache(config, place, updates, columns)
    feed = Feed(step, train, config, cache, first, done * config.accumulation_step)
    told = False
    stop = stop or StopSignal()
    stop.arm()
    for epoch in range(first, config.epochs + 1):
        started = time.perf_counter() - spent
        progress.start(epoch, done)
        for batches_done, loss in feed.epoch(epoch, done * config.accumulation_step):
            if not told:
                log.info("first step %.1f s after the start", seconds_running())
                told = True
            if batches_done % config.accumulation_step:
                continue
            done = batches_done // config.accumulation_step
            step.check_health(rates)
            progress.step(done, float(loss.asnumpy()), step.learning_rate(rates), feed.wait_ms)
            due = config.save_steps and done % config.save_steps == 0 and done < updates
            signal_number = agree(stop.number or 0, place)
            if due or signal_number:
                spent = time.perf_counter() - started
                path = save(epoch, finished=False)
            if signal_number:
                progress.end()
                leave(signal_number, path)
        progress.end()
        spent = time.perf_counter() - started

        # 7. Validate, record and save.
        last = epoch == config.epochs
        scores = {}
        if last or (config.eval_every and epoch % config.eval_every == 0):
            try:
                scores = validate(network, judged, step, val, checkpoints, stop, place)
            except Interrupted:
                leave(stop.number, save(epoch, finished=False))
            log.info("epoch %d: val loss %.5f, top-1 %.5f, top-5 %.5f", epoch, *list(scores.values())[:3])
        totals = step.take_totals()
        totals["loss"] = add_up(totals["loss"], place) / place.world
        metrics.add(
            {
                "epoch": epoch,
                "step": epoch * updates,
                "lr": step.learning_rate(rates),
                **totals,
                **scores,
                "seconds": round(spent, 2),
                "img_s": round(updates * config.images_an_update / spent, 1),
                "wait_ms": round(feed.wait_ms, 2),
                "bad_images": add_up(train.bad, place),
            }
        )
        signal_number = agree(stop.number or 0, place)
        if last or signal_number or (config.save_every and epoch % config.save_every == 0):
            path = save(epoch, finished=True)
        if signal_number and not last:
            leave(signal_number, path)
        done, spent = 0, 0.0

    averaged = step.averaged_weights()
    with holding(network, averaged):
        path = checkpoints.save_last(network)
    outbox.send(last=True)
    log.info("%s weights: %s", "averaged" if averaged else "last", path)
    log.info("best weights: %s, top-1 %.5f", checkpoints.best_path, checkpoints.best)


def find_saved(checkpoints: Checkpoints, config: Config) -> Optional[Saved]:
    """The checkpoint that --resume asks for; None: none is asked for, or with auto there is none."""
    if not config.resume:
        return None
    if config.resume == "auto":
        saved, complaints = checkpoints.newest_good()
        for complaint in complaints:
            log.warning("%s; the one before it is taken", complaint)
        if saved is None:
            log.info("resume: no checkpoint in %s, starting afresh", checkpoints.folder)
            return None
    else:
        saved = read_saved(config.resume)
    if saved.facts.get("kernels") != checkpoints.kernels:
        then = saved.facts.get("kernels")
        log.warning("resume: other CPU kernels (%s, now %s): right, but not bit for bit", then, checkpoints.kernels)
    differences = saved.differences(config)
    for line in differences:
        log.warning("resume: %s", line)
    if differences and not config.resume_anyway:
        raise UserError(
            f"resume: {len(differences)} key(s) differ from {saved.path} in what changes the run "
            f"({'; '.join(differences)}); say --resume_anyway True to go on all the same"
        )
    return saved


def validate(
    network: "nn.Cell",
    judged: "nn.Cell",
    step: TrainOneStep,
    val: Batches,
    checkpoints: Checkpoints,
    stop: StopSignal,
    place: Place,
) -> dict[str, Any]:
    """Scores on val/ for metrics.jsonl, of the weights and of the averaged ones where there are; keeps the best.

    `judged`: the network itself, or a folded copy of it, which is brought up to date first.
    """
    average_statistics(step, place)
    report = stop.check if place.world == 1 else None  # several ranks must leave together, so they finish val/ first
    scores = {}
    for prefix, values in {"": None, "ema_": step.averaged_weights()}.items():
        if prefix and not values:
            continue
        with holding(network, values):
            if judged is not network:
                refold(network, judged)
            means = sum_totals(evaluate(judged, val.epoch(), report), place).means()
            scores.update({f"{prefix}val_loss": means["loss"], f"{prefix}top1": means["top1"]})
            scores.update({f"{prefix}top5": means["top5"]})
            if checkpoints.save_best(network, means["top1"]) and step.ema_decay:
                log.info("best so far: the %s weights", "averaged" if prefix else "plain")
    return scores


def leave(signal_number: int, path: Any) -> None:
    """End after a signal, with the checkpoint saved."""
    log.info("stopped by signal %d, saved %s; to go on, add --resume auto to the same command", signal_number, path)
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    listener = StopSignal().listen()
    run(lambda: main(stop=listener))
