"""Where a run starts: in a folder that it has claimed, afresh or where a checkpoint ends.

All that is wrong with either is told here, before kernels and graph are compiled.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any, Optional

from src.args import Config
from src.data.imagenet import TrainBatches
from src.distributed.ranks import Ranks
from src.errors import UserError
from src.tools.get_misc import output_folder
from src.trainers.checkpoint import Checkpoints, Saved, read_saved

_log = logging.getLogger(__name__)


@dataclass
class Start:
    """A run's checkpoints, in a folder that is claimed, and the one that it goes on from, which rank 0 alone has."""

    checkpoints: Checkpoints
    saved: Optional[Saved]


def start_run(config: Config, train: TrainBatches, ranks: Ranks) -> Start:
    """Claim the run's folder, and read the checkpoint that --resume asks for.

    Args:
        config: reads train_url, resume, overwrite and what a checkpoint must agree in.
        train: the data, which must be those of the checkpoint.
        ranks: of which the first claims and reads.

    Raises:
        UserError: another run writes to the folder, it holds a run, or it cannot be written; the checkpoint is of
            another run, or damaged.
    """
    facts: dict[str, Any] = {
        "training images": train.size,
        "number of classes": len(train.classes),
        "class names (SHA-256)": hashlib.sha256(json.dumps(train.classes).encode()).hexdigest(),
    }
    folder = output_folder(config) / "ckpt_0"
    checkpoints = Checkpoints(folder, config.arch, config.keep_checkpoint_max, ranks.is_first, facts)
    checkpoints.lock()
    if not ranks.is_first:
        return Start(checkpoints, None)
    if not config.resume and not config.overwrite and checkpoints.holds_a_run():
        raise UserError(
            f"{folder} holds a run of {config.arch}: --resume auto goes on with it, "
            "--train_url FOLDER trains elsewhere, --overwrite True removes it"
        )
    saved = _find_saved(config, checkpoints)
    if saved:
        _check_same_run(config, saved, facts)
    return Start(checkpoints, saved)


def _find_saved(config: Config, checkpoints: Checkpoints) -> Optional[Saved]:
    """The checkpoint that --resume asks for; None: none is asked for, or with auto there is none."""
    if config.resume != "auto":
        return read_saved(config.resume) if config.resume else None
    saved, complaints = checkpoints.newest_good()
    if saved is None and complaints:
        more = f" and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise UserError(
            f"resume: {checkpoints.folder} holds checkpoints, but none that a run can go on from "
            f"({'; '.join(complaints[:3])}{more}); to start afresh, move them away or choose another "
            "train_url; to start from the weights alone, name one as --pretrained"
        )
    for complaint in complaints:
        _log.warning("%s; the one before it is taken", complaint)
    if saved is None:
        _log.info("resume: no checkpoint in %s, starting afresh", checkpoints.folder)
    return saved


def _check_same_run(config: Config, saved: Saved, facts: dict[str, Any]) -> None:
    differences = saved.differences(config)
    for name, value in facts.items():
        then = saved.facts.get(name, value)  # older ones know less
        if then != value:
            differences.append(f"{name} in data_url: {then} in the checkpoint, {value} now")
    if differences and not config.resume_anyway:
        raise UserError(
            f"resume: {len(differences)} key(s) differ from {saved.path} in what changes the run "
            f"({'; '.join(differences)}); say --resume_anyway True to go on all the same"
        )
    for line in differences:
        _log.warning("resume: %s", line)
