"""What every entry point needs around its work: memory, time, the outputs' folder."""

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from src.data.rotation import count_rotated, rotation_note

if TYPE_CHECKING:
    import numpy as np
    from mindspore import nn

    from src.args import Config
    from src.data import Batches


def seconds_running() -> float:
    """Seconds since the process was started, so with the time that its imports took; 0.0 where the system hides it."""
    try:
        after_boot = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot


def trim_memory() -> None:
    """Give back to the system what is free: compiling a training step leaves half a gigabyte in small pieces."""
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def output_folder(config: "Config") -> Path:
    """Where outputs go: train_url, or the current folder."""
    return Path(config.train_url or ".")


def describe(config: "Config", network: "nn.Cell", train: "Batches", val: "Batches", rates: "np.ndarray") -> list[str]:
    """What a run is about to do, in lines: the configuration and what follows from it."""
    defaults = type(config)().model_dump(mode="json")
    values = config.model_dump(mode="json").items()
    lines = [f"  {name}: {value if value != '' else repr(value)}" for name, value in values if value != defaults[name]]
    parameters = sum(parameter.size for parameter in network.trainable_params())
    peak = rates.max()
    rotated, looked_at = count_rotated(train.samples)
    alone = [f"only one class, {train.classes[0]}: there is nothing to tell apart"] if len(train.classes) == 1 else []
    return [
        "configuration, where it differs from the defaults:",
        *lines,
        f"network: {config.arch}, {parameters:,} trainable parameters",
        f"data: {train.size:,} training and {val.size:,} validation images in {len(train.classes):,} classes",
        *alone,
        *rotation_note(rotated, f"of {looked_at} training images looked at"),
        f"learning rate: at most {peak:.6g}, for a global batch of {config.images_an_update:,}",
        f"updates: {len(rates):,}",
    ]
