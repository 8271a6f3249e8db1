"""Measures of a class map against the truth, compared with scikit-learn's and with numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from onnx_fcn import OptionError
from onnx_fcn.running.confusion import MOST_CLASSES, Confusion


@given(st.integers(0, 1 << 32), st.integers(2, 9), st.sampled_from([np.uint8, np.int16, np.uint32, np.int64]))
def test_measures_are_scikit_learns(seed: int, classes: int, dtype: type) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (11, 13)).astype(dtype)
    found = np.where(random.random((11, 13)) < 0.6, truth, random.integers(0, classes, (11, 13)))
    confusion = Confusion.of(truth, found, classes)
    flat, labels = (truth.ravel(), found.ravel()), list(range(classes))
    np.testing.assert_array_equal(confusion.matrix, confusion_matrix(*flat, labels=labels))
    assert confusion.matrix.dtype == np.int64
    assert confusion.accuracy == pytest.approx(accuracy_score(*flat))
    ious = jaccard_score(*flat, labels=labels, average=None, zero_division=0)
    np.testing.assert_allclose(np.nan_to_num(confusion.iou), ious)
    present = np.unique(truth)
    assert confusion.mean_iou == pytest.approx(jaccard_score(*flat, labels=present, average="macro"))
    if set(np.unique(found)) <= set(present):  # scikit-learn warns otherwise
        assert confusion.mean_recall == pytest.approx(balanced_accuracy_score(*flat))


def test_what_is_counted_by_hand() -> None:
    """A class in neither has no measure; one in the prediction only has an IoU of 0, and does not lower the means."""
    truth = np.array([[0, 0, 0, 1], [1, 1, 255, 255]])
    found = np.array([[0, 0, 1, 1], [1, 2, 2, 0]])
    confusion = Confusion.of(truth, found, 4, ignore=255)
    np.testing.assert_array_equal(confusion.matrix, [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(confusion.iou, [2 / 3, 2 / 4, 0, np.nan])
    np.testing.assert_array_equal(confusion.recall, [2 / 3, 2 / 3, np.nan, np.nan])
    assert (confusion.pixels, confusion.accuracy) == (6, 4 / 6)
    assert confusion.mean_iou == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert confusion.mean_recall == pytest.approx(2 / 3)


def test_parts_add_up() -> None:
    random = np.random.default_rng(0)
    truth, found = random.integers(0, 3, (2, 40, 50))
    whole = Confusion.of(truth, found, 3)
    parts = Confusion.of(truth[:7], found[:7], 3) + Confusion.of(truth[7:], found[7:], 3)
    np.testing.assert_array_equal(parts.matrix, whole.matrix)
    with pytest.raises(OptionError, match="confusions of 3 and 4 classes cannot be added"):
        whole + Confusion.of(truth, found, 4)


def test_nothing_has_no_measure() -> None:
    empty = Confusion.of(np.full((2, 2), 255), np.zeros((2, 2), int), 3, ignore=255)
    assert empty.pixels == 0
    assert np.isnan([empty.accuracy, empty.mean_iou, empty.mean_recall, *empty.iou, *empty.recall]).all()


@pytest.mark.parametrize(
    ("truth", "found", "classes", "words"),
    [
        ([[0, 1]], [[0], [1]], 2, r"the truth has the shape \(1, 2\), and the prediction \(2, 1\)"),
        ([0, 2], [0, 1], 2, "the truth contains 2, and classes are numbered from 0 to 1"),
        ([0, -1], [0, 1], 2, "the truth contains -1, and"),
        ([0, 1], [0, 7], 2, "the prediction contains 7, and"),
        ([0], [0], 0, f"has from 1 to {MOST_CLASSES} classes, not 0"),
        ([0], [0], 1 << 20, f"has from 1 to {MOST_CLASSES} classes, not 1048576"),
    ],
)
def test_what_does_not_fit_is_refused(truth: list, found: list, classes: int, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Confusion.of(np.array(truth), np.array(found), classes)
