"""The likeliest classes of single images: any number of them, in batches, whatever some of the files are."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Optional, Union

import numpy as np
from tqdm import tqdm

from src.args import Config
from src.console import bar_size
from src.data.augment.transforms import EvalTransform
from src.data.image_files import UndecodableImage, read_image
from src.data.listing import EXTENSIONS
from src.data.rotation import rotation, rotation_note
from src.errors import printable
from src.evaluation.predictions import UNKNOWN, Predictions, write_predictions
from src.files import is_directory
from src.heartbeat import beat

BATCH = 32  # images that the network gets at once, at most: a few photographs should not wait for 512


def find_images(patterns: Sequence[str], note: Callable[[str], None] = print) -> Iterator[tuple[str, str]]:
    """The image files that files, folders and patterns mean, each with '' or with the reason why there is none.

    A folder means the images in it and in its folders, in order; a pattern such as 'photos/**/*.jpg' what it matches.

    Args:
        patterns: as typed.
        note: is told, in a line, which other files a folder holds.
    """
    for pattern in patterns:
        if os.path.lexists(pattern):
            matches = [pattern]
        elif glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (as typed, absolute or not)
        else:
            matches = []
        if not matches:
            yield pattern, "no file matches" if glob.has_magic(pattern) else "no such file"
        for match in matches:
            if not is_directory(match):
                yield match, ""
                continue
            inside, others = _images_below(match)
            if not inside:
                yield match, f"holds no image ({' '.join(EXTENSIONS)})"
            elif others:
                endings = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in sorted(others.items()))
                note(f"--images {printable(match, 4096)}: other files are left out: {printable(endings)}")
            yield from ((path, "") for path in inside)


def _images_below(folder: str) -> tuple[list[str], Counter]:
    """The images in a folder and its folders, and how many other files it has of each ending; hidden ones aside."""
    images: list[str] = []
    others: Counter[str] = Counter()
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            if name.lower().endswith(EXTENSIONS):
                images.append(os.path.join(root, name))  # noqa: PTH118 (keeps "./" as it was typed)
            else:
                others[Path(name).suffix.lower()] += 1
    return images, others


def classify(
    network: Callable[[np.ndarray], np.ndarray],
    patterns: Sequence[str],
    config: Config,
    names: Sequence[str],
    out: Optional[Path] = None,
    fixed_batch: Optional[int] = None,
) -> int:
    """Print the likeliest classes of each image, or write them to a CSV file; name what cannot be answered.

    Args:
        network: from images, float32 (N, 3, H, W), to logits (N, C).
        patterns: files, folders and patterns.
        config: reads the evaluation transform's keys and batch_size.
        names: of the classes.
        out: the CSV file; None: print.
        fixed_batch: how many images the network takes at once; None: any number.

    Returns:
        The exit code: 0, or 3 where something could not be answered; each such file has a line on standard error.
    """
    paths, failed = [], 0
    for path, reason in find_images(patterns, lambda line: print(line, file=sys.stderr)):
        if reason:
            failed += 1
            _complain(path, reason)
        else:
            paths.append(path)
    batch = fixed_batch or min(config.batch_size, BATCH, max(len(paths), 1))
    predictions, answered, rotated = Predictions(len(names)), [], 0
    with tqdm(total=len(paths), unit="img", disable=None if out else True, **bar_size()) as bar:
        for group, images, reasons, turned in _batches(paths, config, batch):
            rotated += turned
            logits = network(images)
            good = [place for place, reason in enumerate(reasons) if not reason]
            for place, reason in enumerate(reasons):
                if reason:
                    failed += 1
                    bar.clear()
                    _complain(group[place], reason)
            told = predictions if out else Predictions(len(names))
            told.add(logits[good])
            answered += [group[place] for place in good] if out else []
            if not out:
                _show([group[place] for place in good], told, names)
            beat()
            bar.update(len(group))
    for line in rotation_note(rotated, f"of {len(paths)} images"):
        print(line, file=sys.stderr)
    if out:
        write_predictions(out, answered, predictions, names)
        print(f"{out}: {len(answered):,} images")
    return 3 if failed else 0


def _batches(
    paths: Sequence[str], config: Config, batch: int
) -> Iterator[tuple[Sequence[str], np.ndarray, list[str], int]]:
    """The images in batches of one shape: paths, float32 (batch, 3, H, W), for each path '' or why it is none, and how
    many want to be turned.

    While the network works on one batch the next is decoded.
    """
    transform = EvalTransform(config)
    side = config.image_size

    def load(path: str, out: np.ndarray) -> tuple[str, bool]:
        try:
            encoded = read_image(path)
            transform(encoded, out)
        except (OSError, UndecodableImage) as error:
            return str(error), False
        return "", rotation(encoded) > 1

    def begin(start: int) -> tuple:
        group, images = paths[start : start + batch], np.zeros((batch, 3, side, side), np.float32)
        return group, images, [pool.submit(load, path, out) for path, out in zip(group, images)]

    with ThreadPoolExecutor(min(config.num_parallel_workers, len(os.sched_getaffinity(0)))) as pool:
        coming = begin(0)
        for start in range(0, len(paths), batch):
            group, images, loads = coming
            coming = begin(start + batch)
            reasons, turned = zip(*(load.result() for load in loads))
            yield group, images, list(reasons), sum(turned)


def _show(paths: Sequence[str], predictions: Predictions, names: Sequence[str]) -> None:
    """Print the answers; where nobody reads on, as behind `head`, end without a word."""
    lines = []
    for path, classes, shares in zip(paths, predictions.classes.tolist(), predictions.shares.tolist()):
        lines.append(printable(path, 4096))
        if classes[0] == UNKNOWN:
            lines.append("  no number: the network's answer is not finite")
            continue
        lines += [f"  {share:7.2%}  {printable(names[index])}" for index, share in zip(classes, shares)]
    print("\n".join(lines), end="\n" if lines else "", flush=True)
    if getattr(sys.stdout, "gone", False):
        sys.exit(141)  # as a program that SIGPIPE ends


def _complain(path: Union[str, Path], reason: str) -> None:
    print(f"error: --images {printable(path, 4096)}: {printable(reason)}", file=sys.stderr, flush=True)
