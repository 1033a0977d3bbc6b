"""report.html and its pictures: read by an HTML parser and by Pillow."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from src.data.listing import list_folder
from src.evaluation.confusion import _plot_labelled, draw_confusion
from src.evaluation.mistakes import draw_mistakes, sureness, surest_mistakes
from src.evaluation.names import with_words
from src.evaluation.predictions import Predictions
from src.evaluation.report import Evaluation, _rates_of, find_curves, write_report
from src.tools.schedulers import learning_rates
from tests.photos import make_config

HOSTILE = [
    "<script>alert(1)<",
    "new\nline",
    "红熊猫",
    '" onload="x',
    "a&amp;b",
    "\x1b[31mred",
    "plain",
    "café",
    "8",
    "9",
]
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """A page's elements and text; complains where one is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data + "\n"


def evaluate(samples, classes: int, right: float = 0.8) -> Predictions:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((len(samples), classes)).astype(np.float32)
    hit = rng.random(len(samples)) < right
    logits[np.arange(len(samples)), np.where(hit, samples.labels, (samples.labels + 1) % classes)] += 6
    predictions = Predictions(classes)
    predictions.add(logits, samples.labels)
    return predictions


def make_report(folder, digits, names, right=0.8, pretrained="", **keys):
    samples = list_folder(str(digits / "val"))
    samples.labels = samples.labels % len(names)
    predictions = evaluate(samples, len(names), right)
    config = make_config(digits, num_classes=len(names), pretrained=str(pretrained), **keys)
    top1, top5 = ((predictions.ranks < k).mean() for k in (1, 5))
    means = {"loss": 0.5, "top1": float(top1), "top5": float(top5)}
    write_report(folder, Evaluation(config, samples, predictions, means, names, names, {"runtime": "a & b"}))
    return samples, predictions, Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else_and_runs_nothing(digits, tmp_path):
    *_, page = make_report(tmp_path, digits, HOSTILE)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:image/", "#")) for value in sources)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    anchors = [value[1:] for name, value in page.attributes if name == "href"]
    ids = [value for name, value in page.attributes if name == "id"]
    assert anchors == ids == ["mistakes", "confusion", "classes", "confidence", "settings"]
    for value in sources:
        if value.startswith("data:"):
            Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))).load()
    assert all(value for name, value in page.attributes if name == "alt")


def test_names_are_text_whatever_they_hold(digits, tmp_path):
    *_, page = make_report(tmp_path, digits, HOSTILE, right=0.5)
    shown = [r"new\nline" if name == "new\nline" else r"\x1b[31mred" if "\x1b" in name else name for name in HOSTILE]
    assert all(name in page.text for name in shown)
    assert "\x1b" not in page.text


def test_the_figures_are_those_of_the_predictions(digits, tmp_path):
    samples, predictions, page = make_report(tmp_path, digits, [f"digit {i}" for i in range(10)])
    wrong = int((predictions.ranks > 0).sum())
    assert 2 < wrong < 12
    assert f"{1 - wrong / 30:.2%}" in page.text
    assert f"of {len(samples)} images wrong" in page.text
    assert page.tags.count("li") == 5 + wrong  # tiles, mistakes
    surest = surest_mistakes(predictions)
    shares = predictions.shares[surest, 0]
    assert len(surest) == wrong and (np.diff(shares) <= 0).all()
    files = re.findall(r"\d+\.png", page.text)
    assert files[:wrong] == [samples.path(index).rpartition("/")[2] for index in surest]
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [samples.path(index) for index in range(30)]
    assert sum(row["label"] != row["class_1"] for row in rows) == wrong


@pytest.mark.parametrize(
    ("classes", "right"), [(1, 1.0), (2, 1.0), (3, 0.0), (5, 0.5)], ids=["one class", "no mistake", "all wrong", "five"]
)
def test_few_classes_have_a_report_without_top5(digits, tmp_path, classes, right):
    _, predictions, page = make_report(tmp_path, digits, [str(index) for index in range(classes)], right=right)
    assert "top-5" not in page.text
    assert ("Every image that has an answer is named right" in page.text) == (not (predictions.ranks > 0).any())
    assert Image.open(tmp_path / "mistakes.png").size[0] > 300


def test_a_thousand_classes_fold_away_but_all_are_there(digits, tmp_path):
    samples = list_folder(str(digits / "val"))
    names = [f"n{index:08d}" for index in range(1000)]
    *_, page = make_report(tmp_path, digits, names, right=0.5)
    present = sorted(set(samples.labels.tolist()))
    assert all(names[index] in page.text for index in present)
    assert "990 classes have no image in val/" in page.text
    width, height = Image.open(tmp_path / "confusion.png").size
    assert 1000 < width < 1200 and 1900 < height < 2100


def test_the_picture_is_blue_for_right_and_red_for_wrong():
    def colours(matrix):
        pixels = np.asarray(Image.open(io.BytesIO(draw_confusion(np.array(matrix), ["a", "b"]))).convert("RGB"))
        blue = (pixels[..., 2] > pixels[..., 0].astype(int) + 40).sum()
        red = (pixels[..., 0] > pixels[..., 2].astype(int) + 40).sum()
        return blue, red

    blue, red = colours([[5, 0], [0, 5]])
    assert blue > 1000 and red == 0
    blue, red = colours([[0, 5], [5, 0]])
    assert blue == 0 and red > 1000


@pytest.mark.parametrize(
    ("names", "rotation"),
    [
        (["automobile", "dog", "ship"], 0),
        (["automobiles and lorries", "dog", "ship"], 90),
        (["红熊猫", "豹", "虎"], 0),
        ([str(index) for index in range(30)], 0),
        ([f"category {index}" for index in range(10)], 90),
    ],
)
def test_names_lie_along_the_picture_where_they_have_room(names, rotation):
    axes = Figure().subplots()
    _plot_labelled(axes, np.eye(len(names), dtype=int), np.ones(len(names), int), names)
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {rotation}


@pytest.mark.parametrize("classes", [30, 31, 250])
def test_any_number_of_classes_has_a_picture(classes):
    rng = np.random.default_rng(0)
    matrix = np.diag(np.full(classes, 9)) + rng.poisson(0.05, (classes, classes))
    picture = Image.open(io.BytesIO(draw_confusion(matrix, [f"class {index}" for index in range(classes)])))
    assert picture.size[0] > 800
    Image.open(io.BytesIO(draw_confusion(np.zeros((classes, classes), int), ["x"] * classes)))


def test_the_sheet_shows_each_mistake_enlarged_with_its_names(digits):
    samples = list_folder(str(digits / "val"))
    predictions = evaluate(samples, 10, right=0.5)
    surest = surest_mistakes(predictions, most=4)
    sheet = np.asarray(draw_mistakes(samples, predictions, surest, [str(index) for index in range(10)]))
    digit = np.asarray(Image.open(samples.path(surest[0])).convert("RGB"))
    np.testing.assert_array_equal(sheet[12 : 12 + 160, 12 : 12 + 160], digit.repeat(5, 0).repeat(5, 1))
    assert (sheet[184:202, 4:180, 0] > sheet[184:202, 4:180, 2].astype(int) + 60).any()  # the answer, in red


@pytest.mark.parametrize(("share", "words"), [(0.5, "50.0% sure"), (0.98649, "98.6% sure"), (0.99999, "99.9% sure")])
def test_no_wrong_answer_was_quite_sure(share, words):
    assert sureness(share) == words


def test_the_runs_curves_are_found_beside_or_above_the_weights_with_the_schedule_that_fits(tmp_path):
    config = make_config(tmp_path, epochs=3, warmup_length=1, pretrained=str(tmp_path / "run/ckpt_0/x.ckpt"))
    assert find_curves(config) is None
    (tmp_path / "run" / "ckpt_0").mkdir(parents=True)
    rates = learning_rates(config, 7)
    lines = [json.dumps({"epoch": e, "step": 7 * e, "lr": float(rates[min(7 * e, 20)])}) for e in (1, 2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines))
    records, found = find_curves(config)
    assert [record["epoch"] for record in records] == [1, 2]
    np.testing.assert_array_equal(found, rates)
    records, found = find_curves(config.model_copy(update={"base_lr": 0.3}))
    assert len(records) == 2 and found is None


def test_a_report_beside_a_run_has_its_curves(digits, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1, "step": 3, "lr": 0.1, "loss": 2.0}\nhalf a li')
    *_, page = make_report(tmp_path / "report", digits, list("abcdefghij"), pretrained=tmp_path / "run" / "x.ckpt")
    assert "The run's epoch, from its metrics.jsonl" in page.text


def test_words_stand_for_names_where_a_table_has_them(tmp_path):
    names = ["n1", "n2", "n3", "n4"]
    assert with_words(names, str(tmp_path)) == names
    (tmp_path / "names.csv").write_text('class,name\nn1,"tench, Tinca"\nn2,crane\nn3,crane\nother,x\nbad\n')
    assert with_words(names, str(tmp_path)) == ["tench", "crane (n2)", "crane (n3)", "n4"]
    (tmp_path / "names.csv").write_bytes(b"\xff\xfe\0")
    assert with_words(names, str(tmp_path)) == names


def test_a_record_of_more_updates_than_any_run_has_draws_no_schedule(tmp_path):
    assert _rates_of([{"epoch": 1, "step": 10**12, "lr": 0.1}], make_config(tmp_path)) is None
