"""Last step of run_infer_310.sh: the accuracy of the logits that the program wrote.

python postprocess.py --mindir_path DDRNet23.mindir --result_path result_Files \
    --label_file preprocess_Result/imagenet_label.json
"""

import argparse
import json
from pathlib import Path
from typing import Any, Optional

import numpy as np

from preprocess import read_spec
from src.errors import UserError, run
from src.evaluation.metrics import rank_of_label
from src.files import write_text

ENDING = "_0.bin"
SHOWN = 10  # classes in the table, names in a list
BLOCK = 1024  # images in memory at once


def main(argv: Optional[list[str]] = None) -> None:
    """Print the worst classes and the accuracy; write everything to report.json."""
    parser = argparse.ArgumentParser(description="Count top-1 and top-5 hits.", allow_abbrev=False)
    parser.add_argument("--mindir_path", required=True, help="exported network; its .json lies beside it")
    parser.add_argument("--result_path", default="result_Files", help="folder of logits, one file an image")
    parser.add_argument("--label_file", default="preprocess_Result/imagenet_label.json", help="from preprocess.py")
    parser.add_argument("--report", default="report.json", help="where the report goes")
    args = parser.parse_args(argv)

    spec = read_spec(args.mindir_path)
    labels = read_labels(args.label_file, spec["num_classes"])
    report = make_report(labels, Path(args.result_path), spec)
    write_text(args.report, json.dumps(report, indent=1) + "\n")
    print(table(report))
    for kind in ("missing", "surplus", "not_a_number"):
        names = report[kind]
        if names:
            more = ", ..." if len(names) > SHOWN else ""
            print(f"{kind.replace('_', ' ')}: {len(names)} ({', '.join(names[:SHOWN])}{more})")
    print(f"Top1 acc: {round(report['top1'], 5)}")
    print(f"Top5 acc: {round(report['top5'], 5)}")


def read_labels(path: str, num_classes: int) -> dict[str, int]:
    """The labels that preprocess.py wrote: `<class>/<file>` to an index below `num_classes`.

    Raises:
        UserError: the file is missing, malformed or empty, or a label is out of range.
    """
    try:
        labels = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); preprocess.py writes it") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); write it again with preprocess.py") from error
    if not isinstance(labels, dict) or not labels:
        raise UserError(f"{path}: holds no labels; write it again with preprocess.py")
    for name, label in labels.items():
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise UserError(f"{path}: the label of {name} must be from 0 to {num_classes - 1}, not {label!r}")
    return labels


def result_name(image: str) -> str:
    """`<class>/<file>` to the name of its result: `<class>__<file without its ending>_0.bin`."""
    folder, _, file = image.rpartition("/")
    return f"{folder}__{Path(file).stem}{ENDING}"


def make_report(labels: dict[str, int], folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Count every labelled image once; one without a result, or with a NaN in it, is wrong.

    Args:
        labels: `<class>/<file>` to class index.
        folder: the results.
        spec: of the network; its class names go into the report.

    Returns:
        images, top1, top5 (shares), per_class (name to images, top1, top5), worst (class names, the worst first),
        missing, not_a_number (images), surplus (files that belong to no image).

    Raises:
        UserError: the folder is missing, or a result has another size than the network's output.
    """
    if not folder.is_dir():
        raise UserError(f"--result_path {folder}: no such folder; the program writes it")
    count, images = spec["num_classes"], list(labels)
    names = spec["classes"] or [f"class {index}" for index in range(count)]
    label_of = np.fromiter(labels.values(), np.int64, len(labels))
    ranks = np.full(len(images), count)
    missing, not_a_number = [], []
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        logits = np.full((len(block), count), np.nan, np.float32)
        for row, image in zip(logits, block):
            try:
                read_result(folder / result_name(image), row)
            except FileNotFoundError:
                missing.append(image)
                continue
            if np.isnan(row).any():
                not_a_number.append(image)
        ranks[start : start + BLOCK] = rank_of_label(logits, label_of[start : start + BLOCK])

    per_class = {}
    for index in np.unique(label_of):
        own = ranks[label_of == index]
        per_class[names[index]] = {"images": len(own), "top1": share(own, 1), "top5": share(own, 5)}
    wanted = set(map(result_name, images))
    return {
        "images": len(images),
        "top1": share(ranks, 1),
        "top5": share(ranks, 5),
        "per_class": per_class,
        "worst": sorted(per_class, key=lambda name: (per_class[name]["top1"], per_class[name]["top5"]))[:SHOWN],
        "missing": missing,
        "not_a_number": not_a_number,
        "surplus": sorted(path.name for path in folder.glob(f"*{ENDING}") if path.name not in wanted),
    }


def read_result(path: Path, row: np.ndarray) -> None:
    """Fill `row`, float32 (num_classes,), from a result file; FileNotFoundError where there is none."""
    values = np.fromfile(path, np.float32)
    if values.shape != row.shape:
        raise UserError(f"{path}: holds {values.size} logits, but the network has {row.size} classes; run it again")
    row[:] = values


def share(ranks: np.ndarray, within: int) -> float:
    """Which share of the ranks is below `within`."""
    return float((ranks < within).mean())


def table(report: dict[str, Any]) -> str:
    """The worst classes as text."""
    width = max(len(name) for name in ["class", *report["worst"]])
    lines = [f"the worst of {len(report['per_class'])} classes", f"  {'class':{width}}  images    top-1    top-5"]
    for name in report["worst"]:
        entry = report["per_class"][name]
        lines.append(f"  {name:{width}}  {entry['images']:6}  {entry['top1']:7.2%}  {entry['top5']:7.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
