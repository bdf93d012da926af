"""Intervals are the textbooks' own where there are any, and hold what they are of as often as they say."""

import math
import sys

import numpy as np
import pytest
from conftest import first_then_slow
from processes import ROOT
from scipy import stats
from sklearn.metrics import f1_score

from longbert.finetuning.results.metrics import (
    ChoiceMetric,
    EntityMetric,
    MultiLabelMetric,
    RegressionMetric,
    RetrievalMetric,
    SingleLabelMetric,
    SpanMetric,
    WordMetric,
    interval_of,
    interval_of_difference,
)
from longbert.intervals import difference_interval, measure, plain_interval, share_interval, sums_by_unit


sys.path.insert(0, str(ROOT / "benchmarks"))
from coverage import ACCURACIES, DOCUMENTS, EXAMPLES, SEEDS, WORLDS, Cell, coverage, coverage_of_the_proof


sys.path.pop(0)


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def shares(values):
    """The mean of one value an example."""
    return measure(np.stack([values, np.ones(len(values))], axis=-1), ratio)


# the textbooks' own


@pytest.mark.parametrize("right", [0, 1, 7, 15, 29, 30])
def test_of_one_prediction_an_example_it_is_wilsons(right):
    theirs = stats.binomtest(right, 30).proportion_ci(method="wilson")
    ours = interval_of(SingleLabelMetric(), [1] * right + [0] * (30 - right), [1] * 30)
    assert ours == (pytest.approx(theirs.low, abs=1e-12), pytest.approx(theirs.high, abs=1e-12))


def newcombe(both, first, second, neither):
    """Newcombe 1998 (Statistics in Medicine 17, 2635), method 10 without its correction, of a table of pairs."""
    number = both + first + second + neither
    rows = (both + first, both + second)
    (low, high), (other_low, other_high) = (
        stats.binomtest(row, number).proportion_ci(method="wilson") for row in rows
    )
    one, other = (row / number for row in rows)
    product = rows[0] * (number - rows[0]) * rows[1] * (number - rows[1])
    phi = (both * neither - first * second) / math.sqrt(product) if product else 0.0

    def root(a, b):
        return math.sqrt(a**2 - 2 * phi * a * b + b**2)

    return (
        one - other - root(one - low, other_high - other),
        one - other + root(high - one, other - other_low),
    )


@pytest.mark.parametrize("table", [(36, 12, 2, 0), (14, 5, 0, 22), (0, 10, 20, 0), (29, 1, 0, 0), (30, 0, 0, 0)])
def test_of_pairs_it_is_newcombes(table):
    ours, theirs = (
        [x for x, times in zip(pattern, table, strict=True) for _ in range(times)]
        for pattern in ((1, 1, 0, 0), (1, 0, 1, 0))
    )
    found = interval_of_difference(SingleLabelMetric(), ours, theirs, [1] * len(ours))
    assert found == pytest.approx(newcombe(*table), abs=1e-12)


def test_of_means_it_is_students():
    draw = np.random.default_rng(0)
    first, second = draw.normal(3, 2, (2, 25))
    theirs = stats.ttest_1samp(first, 0).confidence_interval()
    assert plain_interval(shares(first)) == pytest.approx((theirs.low, theirs.high))
    theirs = stats.ttest_rel(first, second).confidence_interval()
    assert difference_interval(shares(first), shares(second), plain_interval) == pytest.approx(
        (theirs.low, theirs.high)
    )


def test_of_a_correlation_it_is_fishers():
    draw = np.random.default_rng(0)
    first = draw.normal(size=3000)
    second = first + draw.normal(size=3000)
    theirs = stats.pearsonr(first, second).confidence_interval()
    ours = interval_of(RegressionMetric(), first.tolist(), second.tolist())
    assert ours == pytest.approx((theirs.low, theirs.high), abs=2e-3)


# what gives no interval: without one of these examples a correlation does not exist
NONE = {
    "one example": ([0.2], [0.9], [1.0]),
    "two examples": ([0.0, 1.0], [1.0, 0.0], [0.0, 1.0]),
    "truth that one example alone varies": ([0.1, 0.2, 0.1, 0.9], [0.3, 0.1, 0.2, 0.2], [0.0, 0.0, 0.0, 1.0]),
    "one prediction that differs": ([0.5, 0.5, 0.5, 0.6], [0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 2.0, 3.0]),
    "the same of all": ([0.5] * 4, [0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("name", NONE)
def test_where_there_is_no_interval_none_is_said(name):
    """One without width would leave out 0."""
    found, other, truth = NONE[name]
    assert all(map(math.isnan, interval_of(RegressionMetric(), found, truth)))
    assert all(map(math.isnan, interval_of_difference(RegressionMetric(), found, other, truth)))
    assert all(map(math.isnan, interval_of_difference(RegressionMetric(), other, found, truth)))


def test_a_single_document_has_no_interval_of_its_mean():
    one = shares([0.3])
    assert all(map(math.isnan, [*plain_interval(one), *difference_interval(one, shares([0.1]), plain_interval)]))


# properties of every metric


def labels(draw, number, of=4):
    return draw.integers(0, of, number).tolist()


def tags(draw, number):
    return [draw.choice(["O", "B-A", "I-A", "B-B"], draw.integers(1, 9)).tolist() for _ in range(number)]


def same_length(draw, truth):
    return [[word if draw.random() < 0.7 else "O" for word in words] for words in truth]


def cases():
    draw = np.random.default_rng(5)
    truth = labels(draw, 40)
    words = tags(draw, 40)
    vectors = draw.integers(0, 2, (40, 3)).tolist()
    figures = draw.normal(size=40).tolist()
    names = [str(each) for each in range(20)]
    texts = ["a red cat", "two dogs", "", "the end", "cat"]
    half = [value if draw.random() < 0.6 else 0 for value in truth]
    return {
        "labels": (SingleLabelMetric(), half, truth),
        "choices": (ChoiceMetric(), half, truth),
        "several labels": (MultiLabelMetric(), draw.integers(0, 2, (40, 3)).tolist(), vectors),
        "numbers": (RegressionMetric(), (np.array(figures) + draw.normal(size=40)).tolist(), figures),
        "answers": (SpanMetric(), draw.choice(texts, 40).tolist(), [[each] for each in draw.choice(texts, 40)]),
        "entities": (EntityMetric(), same_length(draw, words), words),
        "words": (WordMetric(), same_length(draw, words), words),
        "rankings": (
            RetrievalMetric(),
            [draw.permutation(names)[:10].tolist() for _ in range(40)],
            [draw.choice(names, 2, replace=False).tolist() for _ in range(40)],
        ),
    }


every_metric = pytest.mark.parametrize("case", cases())


@every_metric
def test_what_is_measured_is_the_figure(case):
    metric, found, truth = cases()[case]
    figures = metric.compute(predictions=found, references=truth)
    for name, measured in metric.measured(found, truth, range(40)).items():
        assert measured.value == pytest.approx(figures[name], abs=1e-12), name
        low, high = metric.interval(measured)
        assert -1 <= low < measured.value < high <= 1


@every_metric
def test_the_order_of_examples_changes_nothing(case):
    metric, found, truth = cases()[case]
    order = np.random.default_rng(1).permutation(40)
    turned = [found[place] for place in order], [truth[place] for place in order]
    assert interval_of(metric, *turned) == pytest.approx(interval_of(metric, found, truth))


@every_metric
def test_seeds_that_predict_the_same_are_one(case):
    """And examples of one group that are the same are one example."""
    metric, found, truth = cases()[case]
    thrice = interval_of(metric, found * 3, truth * 3, [*range(40)] * 3)
    assert thrice == pytest.approx(interval_of(metric, found, truth))
    low, high = interval_of(metric, found * 3, truth * 3)
    assert high - low < 0.7 * (thrice[1] - thrice[0])


@every_metric
def test_a_difference_has_two_sides(case):
    metric, found, truth = cases()[case]
    others = found[1:] + found[:1]
    if case in ("entities", "words"):  # as long as the truth
        others = [["O"] * len(words) for words in truth]
    low, high = interval_of_difference(metric, found, others, truth)
    assert interval_of_difference(metric, others, found, truth) == pytest.approx((-high, -low))
    low, high = interval_of(metric, found, truth)
    none = interval_of_difference(metric, found, found, truth)  # it is not known that they never differ
    assert none == (pytest.approx(-none[1]), pytest.approx(-none[0])) and none[1] - none[0] < (high - low) / 2


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("right", [0, 1])
def test_few_examples_that_are_all_alike_prove_little(number, right):
    low, high = interval_of(SingleLabelMetric(), [right] * number, [1] * number)
    assert (low, high) == ((0, pytest.approx(3.8415 / (number + 3.8415), rel=1e-4)) if not right else (low, 1))
    assert high - low > 0.4
    assert all(map(math.isnan, plain_interval(shares(np.ones(1)))))


@pytest.mark.parametrize("seed", range(20))
def test_macro_f1_is_scikit_learns(seed):
    draw = np.random.default_rng(seed)
    found, truth = labels(draw, 12, 5), labels(draw, 12, 5)
    assert SingleLabelMetric().measured(found, truth, range(12))["macro_f1"].value == pytest.approx(
        f1_score(truth, found, average="macro", zero_division=0)
    )


def test_units_are_summed_in_the_order_in_which_they_come():
    counts = np.arange(10.0).reshape(5, 2)
    assert sums_by_unit(counts, ["b", "a", "b", "c", "a"]).tolist() == [[4, 6], [10, 12], [6, 7]]
    assert sums_by_unit(counts, range(5)).tolist() == counts.tolist()


def test_a_few_errors_that_may_come_together_are_taken_to():
    """One wrong prediction of ten seeds' on thirty examples does not show that seeds err apart."""
    wrong = [0] + [1] * 299
    low, _ = share_interval(shares(np.array(wrong)))
    sums = sums_by_unit(np.stack([wrong, np.ones(300)], axis=-1), [*range(30)] * 10)
    together, _ = share_interval(measure(sums, ratio))
    assert together < 0.9 < 0.97 < low


# how often they are right


def check(cell, draws):
    for figure, found in coverage(cell, draws).items():
        assert 0.93 <= found.own <= 0.97, (figure, found)
        # of 30 examples, of which 1.5 are wrong, few differences can be told from 0 at all
        most = 1 if cell.examples == 30 and min(cell.accuracies) > 0.85 else 0.97
        assert 0.93 <= found.difference <= most, (figure, found)


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("world", [*WORLDS][:2])
def test_coverage(world, seeds):
    check(Cell(world, ACCURACIES[0], 30, seeds), draws=800)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("accuracies", ACCURACIES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_coverage_of_all(world, accuracies, examples, seeds):
    check(Cell(world, accuracies, examples, seeds), draws=2000 if examples == max(EXAMPLES) else 4000)


@pytest.mark.parametrize("documents", first_then_slow(DOCUMENTS[1:], 1))
def test_coverage_of_the_proof(documents):
    for found in coverage_of_the_proof(documents, draws=1500):
        assert 0.93 <= found <= 0.97
