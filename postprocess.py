"""Last step of run_infer_310.sh: the accuracy of the logits that the program wrote.

python postprocess.py --mindir_path DDRNet23.mindir --result_path result_Files \
    --label_file preprocess_Result/imagenet_label.json
"""

import errno
import json
import os
from pathlib import Path
from typing import Any, Optional

import numpy as np

from src.errors import Parser, UserError, printable, run
from src.files import is_directory, is_name, open_regular, read_json, write_text
from src.metrics import rank_of_label, top5_note
from src.serving.description import json_beside, read_description
from src.serving.results import ENDING, result_names

MOST_BYTES = 2**30  # of the label file: those of ten million images fit
SHOWN = 10  # classes in the table, names in a list
BLOCK = 1024  # images in memory at once, and
BLOCK_LOGITS = 2**26  # logits


def main(argv: Optional[list[str]] = None) -> None:
    """Print the worst classes and the accuracy; write everything to report.json."""
    parser = Parser(description="Count top-1 and top-5 hits.", allow_abbrev=False)
    parser.add_argument("--mindir_path", required=True, help="exported network; its .json lies beside it")
    parser.add_argument("--result_path", default="result_Files", help="folder of logits, one file an image")
    parser.add_argument("--label_file", default="preprocess_Result/imagenet_label.json", help="from preprocess.py")
    parser.add_argument("--report", default="report.json", help="where the report goes")
    args = parser.parse_args(argv)

    description = read_description(args.mindir_path)
    for own in (args.label_file, args.mindir_path, json_beside(args.mindir_path)):
        if os.path.realpath(args.report) == os.path.realpath(own):
            raise UserError(f"--report {args.report}: is what is read; name another file")
    labels = read_labels(args.label_file, description["num_classes"])
    report = make_report(labels, Path(args.result_path), description)
    write_text(args.report, json.dumps(report, indent=1) + "\n")
    print(table(report))
    for kind in ("missing", "surplus", "not_finite"):
        names = report[kind]
        if names:
            more = ", ..." if len(names) > SHOWN else ""
            print(f"{kind.replace('_', ' ')}: {len(names)} ({', '.join(map(printable, names[:SHOWN]))}{more})")
    if note := top5_note(description["num_classes"]):
        print(note)
    print(f"Top1 acc: {round(report['top1'], 5)}")
    print(f"Top5 acc: {round(report['top5'], 5)}")


def read_labels(path: str, num_classes: int) -> dict[str, int]:
    """The labels that preprocess.py wrote: `<class>/<file>` to an index below `num_classes`.

    Raises:
        UserError: the file is missing, malformed or empty, or a label is out of range.
    """
    if not os.path.lexists(path):
        raise UserError(f"--label_file {path}: is missing; preprocess.py writes it")
    labels = read_json(path, MOST_BYTES)
    if not isinstance(labels, dict) or not labels:
        raise UserError(f"{path}: holds no labels; write it again with preprocess.py")
    for name, label in labels.items():
        if len(name) < 3 or name.count("/") != 1 or name.startswith("/") or name.endswith("/") or not is_name(name):
            raise UserError(f"{path}: '{printable(name)}' must be <class>/<file>; write it again with preprocess.py")
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < num_classes:
            shown = printable(label, 40)
            raise UserError(f"{path}: the label of {printable(name)} must be from 0 to {num_classes - 1}, not {shown}")
    return labels


def make_report(labels: dict[str, int], folder: Path, description: dict[str, Any]) -> dict[str, Any]:
    """Count every labelled image once; one without a result, or with a logit that is no finite number, is wrong.

    Args:
        labels: `<class>/<file>` to class index.
        folder: the results.
        description: of the network; its class names go into the report.

    Returns:
        images, top1, top5 (shares), per_class (name to images, top1, top5), worst (class names, the worst first),
        missing, not_finite (images), surplus (files that belong to no image).

    Raises:
        UserError: the folder is missing, two images would share a result, or a result cannot be read or has another
            size than the network's output.
    """
    if not is_directory(folder):
        raise UserError(f"--result_path {folder}: no such folder; the program writes it")
    count, images = description["num_classes"], list(labels)
    files = result_names(images)
    names = description["classes"] or [f"class {index}" for index in range(count)]
    label_of = np.fromiter(labels.values(), np.int64, len(labels))
    ranks = np.full(len(images), count)
    missing, not_finite = [], []
    step = max(1, min(BLOCK, BLOCK_LOGITS // count))
    for start in range(0, len(images), step):
        block = images[start : start + step]
        logits = np.full((len(block), count), np.nan, np.float32)
        for row, image, file in zip(logits, block, files[start:]):
            if not read_result(folder / file, row):
                missing.append(image)
            elif not np.isfinite(row).all():
                not_finite.append(image)
                row[:] = np.nan  # which ranks last
        ranks[start : start + step] = rank_of_label(logits, label_of[start : start + step])

    per_class = {}
    for index in np.unique(label_of):
        own = ranks[label_of == index]
        per_class[names[index]] = {"images": len(own), "top1": share(own, 1), "top5": share(own, 5)}
    wanted = set(files)
    return {
        "images": len(images),
        "top1": share(ranks, 1),
        "top5": share(ranks, 5),
        "per_class": per_class,
        "worst": sorted(per_class, key=lambda name: (per_class[name]["top1"], per_class[name]["top5"]))[:SHOWN],
        "missing": missing,
        "not_finite": not_finite,
        "surplus": _others(folder, wanted),
    }


def _others(folder: Path, wanted: set[str]) -> list[str]:
    try:
        return sorted({path.name for path in folder.iterdir() if path.name.endswith(ENDING)} - wanted)
    except OSError as error:
        raise UserError(f"--result_path {folder}: cannot be read ({error.strerror})") from error


def read_result(path: Path, row: np.ndarray) -> bool:
    """Fill `row`, float32 (num_classes,), from a result file; False where there is none.

    Raises:
        UserError: it is no regular file, cannot be read, or has another size.
    """
    try:
        with open_regular(path) as file:
            content = file.read(row.nbytes + 1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):  # longer than the program could write
            return False
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) != row.nbytes:
        held = f"more than {row.nbytes}" if len(content) > row.nbytes else f"{len(content)}"
        raise UserError(
            f"{path}: holds {held} bytes, but the network's {row.size} logits take {row.nbytes}; run the program again"
        )
    row[:] = np.frombuffer(content, np.float32)
    return True


def share(ranks: np.ndarray, within: int) -> float:
    """Which share of the ranks is below `within`."""
    return float((ranks < within).mean())


def table(report: dict[str, Any]) -> str:
    """The worst classes as text."""
    shown = {name: printable(name, 60) for name in report["worst"]}
    width = max(map(len, ["class", *shown.values()]))
    lines = [f"the worst of {len(report['per_class'])} classes", f"  {'class':{width}}  images    top-1    top-5"]
    for name in report["worst"]:
        entry = report["per_class"][name]
        lines.append(f"  {shown[name]:{width}}  {entry['images']:6}  {entry['top1']:7.2%}  {entry['top5']:7.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
