"""Train a DDRNet classifier from one YAML file.

python train.py --ddr_config ./src/configs/ddrnet23_imagenet.yaml --device_id 0 --device_target Ascend
"""

import logging
import signal
from typing import Optional

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while MindSpore is imported ends it without its traceback

from src.args import parse_args
from src.assembly import build_network, build_step
from src.data import create_dataset
from src.data.data_utils.modelarts import stage
from src.data.settle import settle
from src.distributed.join import expected_rank, join
from src.errors import run
from src.models.architectures import ARCHITECTURES
from src.tools.cell import native_kernels
from src.tools.get_misc import describe
from src.trainers.compile_cache import CompileCache
from src.trainers.feed import Feed
from src.trainers.judge import Judge
from src.trainers.session import Session
from src.trainers.signals import StopSignal
from src.trainers.start import start_run


def main(argv: Optional[list[str]] = None, stop: Optional[StopSignal] = None) -> None:
    """Train, validate, save; docs/configuration.md explains every key. `stop`: listens for signals that end the run."""
    stop = stop or StopSignal()
    config, _ = parse_args(argv, "Train a DDRNet classifier; docs/configuration.md explains the keys.", purpose="train")

    # 1. What the run reads comes to this machine, then the ranks meet; only the first of them speaks and writes.
    config, outbox = stage(config, writes=expected_rank() == 0)
    config = settle(config)
    config, ranks = join(config)
    log = logging.getLogger()
    log.setLevel(logging.INFO if ranks.is_first else logging.WARNING)

    # 2. The data: images, targets, and the numbers that drop path draws by.
    columns = ARCHITECTURES[config.arch].residual_units if config.drop_path_rate > 0 else 0
    train = create_dataset(config, "train", ranks.rank, ranks.world, uniform_columns=columns)
    val = create_dataset(config, "val", ranks.rank, ranks.world)

    # 3. The run's folder, and the checkpoint that it goes on from.
    start = start_run(config, train, ranks)

    # 4. The network and the step that trains it.
    network = build_network(config)
    kernels = native_kernels(config)
    ranks.check_equal("cpu_kernels", kernels)
    step = build_step(config, network, train.updates, ranks)
    judge = Judge(config, network, step, val, ranks, stop)

    # 5. The run begins, afresh or where the checkpoint ends.
    session = Session(config, network, step, train, ranks, outbox, stop, start)
    session.resume()
    for line in describe(config, network, train, val, step.rates):
        log.info(line)
    log.info("kernels: %s", f"our own, {kernels}" if kernels.update else "MindSpore's")

    # 6. Epoch after epoch: train, validate, record, save.
    cache = CompileCache(config, ranks, train.updates, columns, step.saturation is not None, step.share_memory)
    feed = Feed(step, train, config, cache, session.cursor.epoch, session.cursor.done * config.accumulation_step)
    for _ in session.epochs():
        session.run_epoch(feed)
        session.finish_epoch(judge, feed)
    session.end()


if __name__ == "__main__":
    listener = StopSignal().listen()
    run(lambda: main(stop=listener))
