"""Accuracy and loss, against hand-made cases and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, top_k_accuracy_score

from src.metrics import Totals, cross_entropy, in_words, rank_of_label


def test_ranks_break_ties_by_class_index_and_count_nan_as_wrong():
    logits = np.array([[1.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0], [np.nan, 9.0, 1.0, 1.0]])
    assert rank_of_label(logits, np.array([2, 0, 1])).tolist() == [1, 0, 4]


def test_totals_equal_scikit_learn_and_leave_padding_out():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((300, 20)).astype(np.float32), rng.integers(0, 20, 300)
    totals = Totals()
    totals.add(np.concatenate([logits[:200], rng.standard_normal((5, 20))]), np.concatenate([labels[:200], [-1] * 5]))
    totals.add(logits[200:], labels[200:])
    means = totals.means()
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(1, keepdims=True)
    assert totals.images == 300
    assert means["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert means["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(20)))
    assert means["loss"] == pytest.approx(log_loss(labels, shares, labels=range(20)))


def test_cross_entropy_of_large_logits_does_not_overflow():
    assert cross_entropy(np.array([[1000.0, 0.0]]), np.array([1]))[0] == pytest.approx(1000.0)


def test_top5_is_left_out_where_it_is_always_1():
    means = {"loss": 1.5, "top1": 0.25, "top5": 1.0}
    assert in_words(means, 5) == "val loss 1.50000, top-1 0.25000"
    assert in_words(means, 6) == "val loss 1.50000, top-1 0.25000, top-5 1.00000"
