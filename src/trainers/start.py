"""Where a run starts: in a folder that it has claimed, afresh or where a checkpoint ends.

All that is wrong with either is told here, before kernels and graph are compiled.
"""

import hashlib
import json
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from src.args import Config
from src.data.imagenet import TrainBatches
from src.distributed.ranks import Ranks
from src.errors import UserError
from src.files import is_regular
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
    held = checkpoints.holds_a_run()
    if held and not config.overwrite and (not config.resume or held != config.arch):
        onward = "--resume auto" if held == config.arch else f"--arch {held} --resume auto"
        raise UserError(
            f"{folder} holds a run of {held}: {onward} goes on with it, "
            "--train_url FOLDER trains elsewhere, --overwrite True removes it"
        )
    saved = _find_saved(config, checkpoints)
    run = saved.facts.get("run") if saved else None
    if saved:
        _check_same_run(config, saved, facts)
        others = checkpoints.of_other_runs(run) if run else []
        if others:
            raise UserError(
                f"resume: {folder} holds checkpoints of another run than {saved.path}, such as {others[0].name}, whose "
                "places this one's would take; move those of one of them away, or choose another train_url"
            )
    checkpoints.facts["run"] = run or secrets.token_hex(8)
    return Start(checkpoints, saved)


def _find_saved(config: Config, checkpoints: Checkpoints) -> Optional[Saved]:
    """The checkpoint that --resume asks for; None: none is asked for, or with auto there is none."""
    if config.resume != "auto":
        path = Path(config.resume)
        if config.resume and path.suffix not in (".ckpt", ".state"):
            raise UserError(
                f"resume: is {config.resume!r}; must be auto, or the path of a numbered checkpoint, such as "
                f"ckpt_0/{config.arch}-12_300.ckpt"
            )
        return read_saved(path.with_suffix(".ckpt")) if config.resume else None
    saved, complaints = checkpoints.newest_good()
    if saved is None and complaints:
        more = f" and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise UserError(
            f"resume: {checkpoints.folder} holds checkpoints, but none that a run can go on from "
            f"({'; '.join(complaints[:3])}{more}); to start afresh, move them away or choose another "
            "train_url; to start from the weights alone, name one as --pretrained"
        )
    last = checkpoints.folder / f"{config.arch}.ckpt"
    if saved is None and is_regular(last):
        raise UserError(
            f"resume: {checkpoints.folder} holds {last.name}, the weights of a run's end, and no checkpoint to go on "
            "from; to start afresh, move them away or choose another train_url; to start from them, --pretrained"
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
