"""What `eval.py --report FOLDER` writes: tables, pictures, and one page that holds them all and needs nothing else."""

import io
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Optional

import numpy as np

from src.args import Config
from src.curves import plot_curves, read_metrics
from src.data.listing import Samples
from src.errors import UserError, printable
from src.evaluation.confusion import (
    ClassScore,
    class_scores,
    confused_pairs,
    confusion_matrix,
    draw_confusion,
    write_class_scores,
    write_confusion,
)
from src.evaluation.mistakes import data_uri, draw_mistakes, sureness, surest_mistakes, thumbnail_uri
from src.evaluation.predictions import UNKNOWN, Predictions, write_predictions
from src.files import atomic_write, is_regular, try_writing, write_text
from src.tools.schedulers import learning_rates

PAIRS = 20  # of confused classes in the page
OPEN = 20  # classes in the page's table before the rest is folded away
FEW = 40  # classes up to which nothing is folded away
THRESHOLDS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
_Z = 1.959964  # of a normal distribution, for 95 %


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a network on val/.

    Attributes:
        config: the configuration.
        samples: the images.
        predictions: what the network says of each, in their order.
        means: loss, top1 and top5.
        names: the classes' names, for the tables.
        words: what people call them, for the page and the pictures.
        computed: in what precision, where and by which runtime.
    """

    config: Config
    samples: Samples
    predictions: Predictions
    means: dict[str, float]
    names: Sequence[str]
    words: Sequence[str]
    computed: dict[str, str]


def check_folder(flag: str, folder: Path) -> None:
    """Make a folder for outputs before the work starts.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        try_writing(folder)
    except UserError as error:
        raise type(error)(f"{flag} {error}") from error


def write_report(folder: Path, evaluation: Evaluation) -> None:
    """Write predictions.csv, per_class.csv, confusion.csv, confusion.png, mistakes.png and report.html.

    Raises:
        UserError: the folder cannot be written to.
    """
    samples, predictions, names = evaluation.samples, evaluation.predictions, evaluation.names
    matrix = confusion_matrix(predictions, len(names))
    scores = class_scores(predictions, matrix)
    mistakes = surest_mistakes(predictions)
    picture = draw_confusion(matrix, evaluation.words)
    write_predictions(folder / "predictions.csv", map(samples.path, range(len(samples))), predictions, names)
    write_class_scores(folder / "per_class.csv", scores, names)
    write_confusion(folder / "confusion.csv", matrix, names)
    with atomic_write(folder / "confusion.png") as temporary:
        temporary.write_bytes(picture)
    with atomic_write(folder / "mistakes.png") as temporary:
        draw_mistakes(samples, predictions, mistakes, evaluation.words).save(temporary)
    write_text(folder / "report.html", page(evaluation, matrix, scores, mistakes, picture))


def page(
    evaluation: Evaluation, matrix: np.ndarray, scores: list[ClassScore], mistakes: list[int], picture: bytes
) -> str:
    """The report as one HTML page: pictures are data URIs, there is no script, and nothing is fetched."""
    config, means = evaluation.config, evaluation.means
    parts = {
        "Mistakes": _mistakes(evaluation, mistakes),
        "Confusion": _confusion(evaluation, matrix, picture),
        "Classes": _classes(evaluation, scores),
        "Confidence": _confidence(evaluation.predictions),
        "Training": _training(config),
        "Settings": _settings(evaluation),
    }
    parts = {title: content for title, content in parts.items() if content}
    links = "".join(f'<a href="#{title.lower()}">{title}</a>' for title in parts)
    sections = "".join(
        f'<section id="{title.lower()}"><h2>{title}</h2>{content}</section>' for title, content in parts.items()
    )
    data = config.set or Path(config.data_url).resolve().name
    title = f"{config.arch} on {data}: {means['top1']:.2%} top-1"
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{text(config.arch)} on {text(data)}</h1>
<p class="soft">{text(config.pretrained)}, evaluated {time.strftime("%d %B %Y, %H:%M %Z")}</p>
<nav aria-label="Parts of this report">{links}</nav>
</header>
<main>
{_tiles(evaluation, scores)}
{sections}
</main>
<footer>Written by eval.py. The tables lie beside this page as CSV files; the page itself needs no other file.</footer>
</body>
</html>
"""


def text(value: Any) -> str:
    """A value as HTML text: escaped, without control characters."""
    return escape(printable(value, 400))


def interval(hits: int, count: int) -> tuple[float, float]:
    """In what range a share lies with 95 % probability, by Wilson's score (J. Am. Stat. Assoc. 22, 1927)."""
    if not count:
        return 0.0, 1.0
    share, spread = hits / count, _Z * _Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def find_curves(config: Config) -> Optional[tuple[list[dict[str, Any]], Optional[np.ndarray]]]:
    """The records of the run that the weights come from, and its learning rates where the configuration has them.

    metrics.jsonl is looked for beside the weights and one folder above. None: there is none.
    """
    for folder in (Path(config.pretrained).parent, Path(config.pretrained).resolve().parent.parent):
        try:
            records = read_metrics(folder / "metrics.jsonl")
        except OSError:
            continue
        if records:
            return records, _rates_of(records, config)
    return None


def _rates_of(records: list[dict[str, Any]], config: Config) -> Optional[np.ndarray]:
    """The schedule that the configuration describes, where it is the one that the run recorded."""
    last = records[-1]
    step, epoch = last.get("step"), last["epoch"]
    if not isinstance(step, int) or step <= 0 or epoch <= 0 or step % epoch or epoch > config.epochs:
        return None
    try:
        rates = learning_rates(config, step // epoch)
    except UserError:  # more updates than any run has: the record is damaged
        return None
    return rates if all(_has(rates, record.get("step"), record.get("lr")) for record in records) else None


def _has(rates: np.ndarray, step: object, lr: object) -> bool:
    """Whether `lr` is the rate of the last of `step` updates or of the next."""
    if not isinstance(step, int) or not isinstance(lr, float) or not 0 < step <= len(rates):
        return False
    return any(math.isclose(rate, lr, rel_tol=1e-3, abs_tol=1e-9) for rate in rates[step - 1 : step + 1])


def _name(evaluation: Evaluation, index: int) -> str:
    return f"<bdi>{text(evaluation.words[index])}</bdi>"


def _tiles(evaluation: Evaluation, scores: list[ClassScore]) -> str:
    images, means = len(evaluation.samples), evaluation.means
    low, high = interval(round(means["top1"] * images), images)
    wrong = images - round(means["top1"] * images)
    tiles = [(f"{means['top1']:.2%}", f"top-1; 95 % sure: {low:.1%} to {high:.1%}")]
    if len(scores) > 5:
        tiles.append((f"{means['top5']:.2%}", "top-5"))
    filled = sum(score.images > 0 for score in scores)
    tiles += [
        (f"{wrong:,}", f"of {images:,} images wrong"),
        (f"{filled:,}", "classes" if filled == len(scores) else f"of {len(scores):,} classes have images"),
        (f"{means['loss']:.4f}", "loss (cross entropy)"),
    ]
    return '<ul class="tiles">' + "".join(f"<li><b>{a}</b><span>{b}</span></li>" for a, b in tiles) + "</ul>"


def _mistakes(evaluation: Evaluation, mistakes: list[int]) -> str:
    predictions, samples, words = evaluation.predictions, evaluation.samples, evaluation.words
    unanswered = int((predictions.classes[:, 0] == UNKNOWN).sum())
    numberless = f"<p>{unanswered:,} images have no answer, as a logit was not finite.</p>" if unanswered else ""
    if not mistakes:
        return numberless + "<p>Every image that has an answer is named right.</p>"
    items = []
    for index in mistakes:
        uri = thumbnail_uri(samples, index)
        pixels = ' class="pixels"' if uri.startswith("data:image/png") else ""
        label, answer = int(predictions.labels[index]), int(predictions.classes[index, 0])
        file = samples.path(index).rpartition("/")[2]
        items.append(
            f'<li><div class="frame"><img src="{uri}"{pixels} alt="Image {text(file)}"></div>'
            f'<span class="says" title="{text(words[answer])}">{_name(evaluation, answer)}</span>'
            f'<span title="{text(words[label])}">label: {_name(evaluation, label)}</span>'
            f'<span class="soft">{sureness(predictions.shares[index, 0])}</span>'
            f'<span class="file" title="{text(file)}"><bdi>{text(file)}</bdi></span></li>'
        )
    return (
        f"{numberless}<p>The {len(items)} wrong answers that the network was surest of, in red what it said. Look for "
        f'wrong labels and for classes that overlap first.</p><ul class="mistakes">{"".join(items)}</ul>'
    )


def _confusion(evaluation: Evaluation, matrix: np.ndarray, picture: bytes) -> str:
    pairs = confused_pairs(matrix, PAIRS)
    rows = [
        (_name(evaluation, pair.label), _name(evaluation, pair.answer), f"{pair.images:,}", f"{pair.share:.1%}")
        for pair in pairs
    ]
    head = (("shows", "name"), ("is taken for", "name"), ("images", "number"), ("of its class", "number"))
    table = _table(head, rows, f"The {len(pairs)} commonest mistakes.") if pairs else ""
    shown = _figure(picture, "Confusion matrix; its numbers are in confusion.csv.", large=len(matrix) > 12)
    return shown + table


def _classes(evaluation: Evaluation, scores: list[ClassScore]) -> str:
    shown = sorted((s for s in scores if s.images), key=lambda s: (s.top1, s.top5, -s.images))
    several = len(scores) > 5
    head = [("class", "name"), ("images", "number"), ("top-1", "number")]
    head += [("top-5", "number")] if several else []
    head += [("precision", "number"), ("most often mistaken for", "name")]

    def row(score: ClassScore) -> list[str]:
        bar = f'<span class="bar" aria-hidden="true"><i style="width:{score.top1:.0%}"></i></span>'
        bar += f'<span class="value">{score.top1:.1%}</span>'
        wrong = f"{_name(evaluation, score.mistaken_for)} ({score.mistaken:,})" if score.mistaken else ""
        cells = [_name(evaluation, score.label), f"{score.images:,}", bar]
        cells += [f"{score.top5:.1%}"] if several else []
        return [*cells, "" if math.isnan(score.precision) else f"{score.precision:.1%}", wrong]

    said = (
        "<p>The worst first. Top-1 is the share of a class's images that are named right, precision the share of the "
        "images named so that belong to it.</p>"
    )
    first = len(shown) if len(shown) <= FEW else OPEN
    table = said + _table(head, map(row, shown[:first]))
    if shown[first:]:
        rest = _table(head, map(row, shown[first:]))
        table += f"<details><summary>The other {len(shown) - first:,} classes</summary>{rest}</details>"
    without = [score for score in scores if not score.images]
    if without:
        some = ", ".join(_name(evaluation, score.label) for score in without[:10])
        table += f"<p>{len(without):,} classes have no image in val/: {some}{', …' if len(without) > 10 else ''}</p>"
    return table


def _confidence(predictions: Predictions) -> str:
    answered = predictions.classes[:, 0] != UNKNOWN
    shares, right = predictions.shares[answered, 0], predictions.ranks[answered] == 0
    if not len(shares):
        return ""
    rows = []
    for threshold in THRESHOLDS:
        sure = shares >= threshold
        accuracy = f"{right[sure].mean():.2%}" if sure.any() else ""
        rows.append((f"at least {threshold:.0%}" if threshold else "any", f"{sure.mean():.1%}", accuracy))
    head = (("probability of the answer", "name"), ("images", "number"), ("named right", "number"))
    return (
        f"<p>On average the network gives its answers {shares.mean():.1%} and is right in {right.mean():.1%}. "
        "Whoever lets it answer only where it is sure gets this:</p>" + _table(head, rows)
    )


def _training(config: Config) -> str:
    found = find_curves(config)
    if not found:
        return ""
    records, rates = found
    stream = io.BytesIO()
    plot_curves(records, rates).savefig(stream, format="png")
    epochs = "epoch" if len(records) == 1 else f"{len(records):,} epochs"
    return _figure(stream.getvalue(), f"The run's {epochs}, from its metrics.jsonl.", large=True)


def _settings(evaluation: Evaluation) -> str:
    config, samples = evaluation.config, evaluation.samples
    weights = Path(config.pretrained)
    rows = [
        ("weights", text(weights) + (f", {weights.stat().st_size / 1e6:,.1f} MB" if is_regular(weights) else "")),
        ("network", text(f"{config.arch}, flavour {config.flavour}, {len(evaluation.names):,} classes")),
        ("data", text(f"{samples.folder}, {len(samples):,} images")),
        ("input", text(f"{config.image_size} x {config.image_size} pixels")),
        ("crop", text(f"{config.crop_mode}, crop_pct {config.crop_pct:g}, {config.interpolation}")),
        *((name, text(value)) for name, value in evaluation.computed.items()),
    ]
    return _table((("", "name"), ("", "name")), [(f"{a}", b) for a, b in rows], headless=True)


def _table(
    head: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], caption: str = "", headless: bool = False
) -> str:
    """A table; head: (title, kind) of each column, rows: HTML, of which the first cell is the row's own title."""
    titles = "".join(f'<th scope="col" class="{kind}">{title}</th>' for title, kind in head)
    lines = []
    for first, *others in rows:
        cells = "".join(f'<td class="{kind}">{cell}</td>' for cell, (_, kind) in zip(others, head[1:]))
        lines.append(f'<tr><th scope="row" class="{head[0][1]}">{first}</th>{cells}</tr>')
    top = "" if headless else f"<thead><tr>{titles}</tr></thead>"
    said = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _figure(picture: bytes, caption: str, large: bool = False) -> str:
    """A PNG with what it shows."""
    kind = ' class="large"' if large else ""
    image = f'<img src="{data_uri(picture, "png")}"{kind} alt="{escape(caption)}">'
    return f'<figure><div class="wide">{image}</div><figcaption>{escape(caption)}</figcaption></figure>'
