"""What is kept of a network's answers, against SciPy, scikit-learn and what csv reads back."""

import csv
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_score, recall_score

from src.errors import UserError
from src.evaluation.confusion import (
    CLOSE_UP,
    _most_confused,
    by_likeness,
    class_scores,
    confused_pairs,
    confusion_matrix,
    write_class_scores,
    write_confusion,
)
from src.evaluation.predictions import Predictions, write_predictions
from src.evaluation.report import check_folder, interval
from tests.conftest import ROOT


def predict(logits: np.ndarray, labels: np.ndarray) -> Predictions:
    logits = np.asarray(logits, np.float32)
    predictions = Predictions(logits.shape[1])
    predictions.add(logits, np.asarray(labels))
    return predictions


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 400)
    labels[labels == 7] = 8  # a class without images
    logits = rng.standard_normal((400, 12)).astype(np.float32)
    logits[np.arange(400), labels] += 1.5
    logits[:, 3] -= 50  # a class that is never answered
    return logits, labels


def test_the_five_likeliest_and_their_probabilities_are_softmax_in_order(sample):
    logits, labels = sample
    predictions = Predictions(12)
    padded = np.concatenate([labels[:150], [-1] * 10])
    predictions.add(np.concatenate([logits[:150], logits[:10]]), padded)
    predictions.add(logits[150:], labels[150:])
    expected = scipy.special.softmax(logits.astype(np.float64), axis=1)
    order = np.argsort(-expected, axis=1)[:, :5]
    np.testing.assert_array_equal(predictions.classes, order)
    np.testing.assert_allclose(predictions.shares, np.take_along_axis(expected, order, 1), rtol=1e-6)
    np.testing.assert_array_equal(predictions.labels, labels)
    np.testing.assert_array_equal(predictions.ranks == 0, logits.argmax(1) == labels)


def test_an_answer_that_is_no_number_is_wrong_and_belongs_to_no_class():
    predictions = predict([[0, np.nan, 1], [0, np.inf, 1], [0, 2, 2]], [1, 1, 1])
    assert predictions.classes.tolist() == [[-1] * 3, [-1] * 3, [1, 2, 0]]
    assert predictions.ranks.tolist() == [3, 3, 0]
    assert confusion_matrix(predictions, 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert class_scores(predictions, confusion_matrix(predictions, 3))[1].top1 == pytest.approx(1 / 3)


@pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 3), (1, 2), (6, 2)])
def test_the_answers_of_several_ranks_come_in_the_order_of_the_images(size, world):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((size, 4)).astype(np.float32), rng.integers(0, 4, size)
    shares = [Predictions(4) for _ in range(world)]
    for rank, own in enumerate(shares):
        own.add(logits[rank::world], labels[rank::world])
    together, ready, sent = threading.Barrier(world), [None] * world, threading.local()

    def gather(values):
        ready[sent.rank] = values
        together.wait(10)
        gathered = np.stack(ready)
        together.wait(10)
        return gathered

    def work(rank):
        sent.rank = rank
        return shares[rank].gathered(gather, size)

    with ThreadPoolExecutor(world) as pool:
        results = list(pool.map(work, range(world)))
    expected = predict(logits, labels)
    for result in results:
        for name in ("labels", "ranks", "classes", "shares"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


def test_matrix_and_scores_equal_scikit_learn(sample):
    logits, labels = sample
    predictions = predict(logits, labels)
    matrix = confusion_matrix(predictions, 12)
    answers = logits.argmax(1)
    np.testing.assert_array_equal(matrix, sklearn_confusion(labels, answers, labels=range(12)))
    scores = class_scores(predictions, matrix)
    recall = recall_score(labels, answers, labels=range(12), average=None, zero_division=np.nan)
    precision = precision_score(labels, answers, labels=range(12), average=None, zero_division=np.nan)
    np.testing.assert_allclose([score.top1 for score in scores], recall)
    np.testing.assert_allclose([score.precision for score in scores], precision)
    top5 = (np.argsort(-logits, axis=1)[:, :5] == labels[:, None]).any(1)
    np.testing.assert_allclose(
        [score.top5 for score in scores], [top5[labels == i].mean() if i != 7 else np.nan for i in range(12)]
    )
    assert [score.images for score in scores] == np.bincount(labels, minlength=12).tolist()
    worst = scores[5]
    wrong = np.bincount(answers[(labels == 5) & (answers != 5)], minlength=12)
    assert (worst.mistaken_for, worst.mistaken) == (wrong.argmax(), wrong.max())


def test_pairs_are_the_largest_off_the_diagonal():
    matrix = np.array([[90, 7, 3], [0, 50, 0], [20, 0, 80]])
    assert confused_pairs(matrix, 2) == [(2, 0, 20, 0.2), (0, 1, 7, 0.07)]
    assert confused_pairs(matrix, 9)[2:] == [(0, 2, 3, 0.03)]
    assert confused_pairs(np.diag([3, 4]), 9) == []


def test_classes_that_are_taken_for_each_other_stand_together():
    matrix = np.diag(np.full(100, 40))
    for first in range(50):
        matrix[first, first + 50] = 5 + first % 3
    place = np.argsort(by_likeness(matrix))
    assert all(abs(place[first] - place[first + 50]) == 1 for first in range(50))
    matrix[10, 60] = 9
    chosen = _most_confused(matrix, by_likeness(matrix))
    assert len(chosen) == CLOSE_UP and {10, 60} <= set(chosen)
    assert by_likeness(np.eye(2, dtype=int)).tolist() == [0, 1]
    assert sorted(by_likeness(np.zeros((40, 40), int))) == list(range(40))


def test_tables_come_back_as_they_were_whatever_the_names(tmp_path, sample):
    names = ["plain", "two words", "红熊猫", 'quo"te', "com,ma", "new\nline", "<script>", "=1+1", "", "é", "a;b", "z"]
    logits, labels = sample
    predictions = predict(logits, labels)
    paths = [f"val/图 {index}, x.jpg" for index in range(400)]
    write_predictions(tmp_path / "a" / "p.csv", paths, predictions, names)
    with (tmp_path / "a" / "p.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:4] == ["path", "label", "class_1", "probability_1"] and len(head) == 12
    assert [row[0] for row in rows] == paths
    assert [row[1] for row in rows] == [names[label] for label in labels]
    assert [row[2] for row in rows] == [names[answer] for answer in logits.argmax(1)]
    assert float(rows[7][3]) == pytest.approx(scipy.special.softmax(logits[7].astype(float)).max(), abs=1e-6)

    matrix = confusion_matrix(predictions, 12)
    write_confusion(tmp_path / "c.csv", matrix, names)
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == names == [row[0] for row in rows]
    assert [list(map(int, row[1:])) for row in rows] == matrix.tolist()

    write_class_scores(tmp_path / "s.csv", class_scores(predictions, matrix), names)
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == names
    assert rows[7]["images"] == "0" and rows[7]["top1"] == ""
    assert float(rows[0]["top1"]) == pytest.approx(matrix[0, 0] / matrix[0].sum(), abs=1e-6)


def test_names_that_are_no_utf8_and_unknown_labels_are_written_too(tmp_path):
    predictions = Predictions(2)
    predictions.add(np.array([[0, 1], [np.nan, 0]], np.float32))
    write_predictions(tmp_path / "p.csv", ["a\udcff.png", "b.png"], predictions, ["x\udcfe", "y"])
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert rows == [[r"a\udcff.png", "", "y", "0.731059", r"x\udcfe", "0.268941"], ["b.png", "", "", "", "", ""]]


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (5, 10), (355, 360), (38299, 50000)])
def test_the_interval_is_wilsons(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert not math.isnan(interval(0, 0)[0])


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--report .*file/report: cannot be written \(Not a directory\)"):
        check_folder("--report", tmp_path / "file" / "report")
    check_folder("--report", tmp_path / "new" / "report")
    assert not list((tmp_path / "new" / "report").iterdir())


def test_two_evaluations_may_try_one_folder_at_once(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom src.evaluation.report import check_folder\n"
        "print(flush=True)\nsys.stdin.readline()\n"
        "for _ in range(100):\n    check_folder('--report', Path(sys.argv[1]))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        process.stdout.readline()
    errors = [process.communicate("go\n", timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert not list(tmp_path.iterdir())
