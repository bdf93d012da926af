"""Figures by class are scikit-learn's and seqeval's own."""

import numpy as np
import pytest
import seqeval.metrics
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support

from longbert.finetuning.results.classes import SHOWN, folded, shown_classes, summed_up
from longbert.finetuning.results.metrics import (
    ChoiceMetric,
    EntityMetric,
    MultiLabelMetric,
    RegressionMetric,
    SingleLabelMetric,
    WordMetric,
)


def compare(found, report):
    for name, row in found.items():
        theirs = report[name]
        for ours, key in (
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "f1-score"),
            ("support", "support"),
        ):
            assert row[ours] == pytest.approx(theirs[key]), (name, ours)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [2, 7, 40])
def test_single_labels(seed, number):
    draw = np.random.default_rng(seed)
    names = [f"label {place}" for place in range(number)]
    # the last label is neither true nor predicted
    truth, found = (draw.integers(0, max(1, number - 1), 60).tolist() for _ in range(2))
    metric = SingleLabelMetric()
    rows = metric.by_class(found, truth, names)
    labels = list(range(number))
    compare(
        rows, classification_report(truth, found, labels=labels, target_names=names, output_dict=True, zero_division=0)
    )
    assert list(rows) == names
    matrix = metric.confusion(found, truth, names)
    assert matrix == {"labels": names, "matrix": confusion_matrix(truth, found, labels=labels).tolist()}
    assert [rows[name]["predicted"] for name in names] == [found.count(label) for label in labels]


@pytest.mark.parametrize("seed", range(5))
def test_several_labels(seed):
    draw = np.random.default_rng(seed)
    truth, found = (draw.integers(0, 2, (30, 6)).tolist() for _ in range(2))
    names = list("abcdef")
    theirs = classification_report(
        np.array(truth), np.array(found), target_names=names, output_dict=True, zero_division=0
    )
    compare(MultiLabelMetric().by_class(found, truth, names), theirs)


def tagged(draw, words):
    """Random IOB2 labels, some ill-formed, as a model may predict them."""
    return [str(draw.choice(["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC"])) for _ in range(words)]


@pytest.mark.parametrize("seed", range(5))
def test_entities(seed):
    draw = np.random.default_rng(seed)
    truth, found = ([tagged(draw, 30) for _ in range(10)] for _ in range(2))
    theirs = seqeval.metrics.classification_report(truth, found, output_dict=True, zero_division=0)
    rows = EntityMetric().by_class(found, truth, [])
    compare(rows, theirs)
    assert list(rows) == ["LOC", "ORG", "PER"]


def test_words():
    truth, found = [["x", "y"], ["x"]], [["x", "z"], ["y"]]
    flat = classification_report(["x", "y", "x"], ["x", "z", "y"], output_dict=True, zero_division=0)
    compare(WordMetric().by_class(found, truth, []), flat)


def test_choices_and_figures_have_no_classes():
    assert ChoiceMetric().by_class([0, 1], [1, 1], []) == RegressionMetric().by_class([0.0], [1.0], []) == {}
    assert ChoiceMetric().confusion([0, 1], [1, 1], []) is None


@pytest.mark.parametrize("seed", range(3))
def test_what_a_table_leaves_out_is_summed_up(seed):
    draw = np.random.default_rng(seed)
    number = 33
    names = [f"n{place}" for place in range(number)]
    truth, found = (np.minimum(draw.geometric(0.08, 400) - 1, number - 1).tolist() for _ in range(2))
    rows = SingleLabelMetric().by_class(found, truth, names)
    shown = shown_classes(rows)
    assert len(shown) == SHOWN - 1
    frequent = sorted((truth.count(label) for label in range(number)), reverse=True)
    assert [rows[name]["support"] for name in shown] == frequent[: SHOWN - 1]
    rest = [name for name in names if name not in shown]
    others = summed_up(rows, rest)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, found, labels=[names.index(name) for name in rest], average="micro", zero_division=0
    )
    assert [others[key] for key in ("precision", "recall", "f1")] == pytest.approx([precision, recall, f1])
    matrix = folded(SingleLabelMetric().confusion(found, truth, names), shown)
    assert matrix["labels"] == [*shown, f"{len(rest)} others"]
    for row, of in enumerate(matrix["labels"]):
        for column, taken in enumerate(matrix["labels"]):
            there = [of] if of in names else rest
            here = [taken] if taken in names else rest
            pairs = [(t, f) for t, f in zip(truth, found, strict=True) if names[t] in there and names[f] in here]
            assert matrix["matrix"][row][column] == len(pairs)
    assert np.sum(matrix["matrix"]) == 400


def test_all_classes_are_shown_where_there_is_room():
    rows = {f"c{place}": {"support": place} for place in range(SHOWN)}
    assert len(shown_classes(rows)) == SHOWN
