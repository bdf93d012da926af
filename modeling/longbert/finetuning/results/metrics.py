"""Metrics as `evaluate.Metric` objects that need no network, with intervals.

`evaluate.load` fetches a script from the Hub even for accuracy; these are the same kind of object over scikit-learn,
scipy and seqeval.
"""

import collections
import math
import operator
import re
import string
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import chain
from statistics import fmean
from typing import Any

import datasets
import evaluate
import numpy as np
import seqeval.metrics
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, root_mean_squared_error

from ...intervals import (
    Interval,
    Measured,
    correlation_interval,
    difference_interval,
    measure,
    share_interval,
    sums_by_unit,
)
from ..examples.entities import to_iob2
from .classes import ByClass, Confusion, confusion_of_labels, of_entities, of_labels, of_vectors


def _info(prediction: Any, reference: Any, description: str) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": prediction, "references": reference})
    return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)


class Figures(evaluate.Metric):
    """A metric of several figures, each a function of (references, predictions); runs compete for the `primary`.

    Attributes:
        lower_is_better: figures of which less is better.
        interval: of what `measured` gives; by default that of a figure from 0 to 1.
    """

    primary: str
    figures: dict[str, Callable[[Any, Any], float]]
    lower_is_better: frozenset[str] = frozenset()
    interval: Callable[[Measured], Interval] = staticmethod(share_interval)

    @property
    def greater_is_better(self) -> bool:
        """Whether more of the primary figure is better."""
        return self.primary not in self.lower_is_better

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {name: float(figure(references, predictions)) for name, figure in self.figures.items()}

    def counts(self, prediction: Any, reference: Any) -> tuple[float, float]:
        """One example's share of the primary metric's numerator and denominator."""
        raise NotImplementedError

    def measured(self, predictions: Sequence, references: Sequence, units: Sequence[Hashable]) -> dict[str, Measured]:
        """The primary figure, and others that tables show with an interval, as `interval` takes them.

        Args:
            units: what each prediction belongs to of what was drawn independently.
        """
        counts = np.array([self.counts(*pair) for pair in zip(predictions, references, strict=True)], dtype=float)
        return {self.primary: measure(sums_by_unit(counts, units), _ratio)}

    def by_class(self, predictions: list, references: list, names: Sequence[str]) -> ByClass:
        """Figures for each class; none where there are no classes.

        Args:
            names: of the classes in the order of their numbers, where predictions are numbers.
        """
        return {}

    def confusion(self, predictions: list, references: list, names: Sequence[str]) -> Confusion | None:
        """How often each class is taken for each; None where an example has no single class."""
        return None


def _ratio(sums: np.ndarray) -> np.ndarray:
    """The first column as a share of the second; 0 of nothing."""
    part, whole = sums[..., 0], sums[..., 1]
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _correlation(sums: np.ndarray) -> np.ndarray:
    number, first, second, squares, other_squares, products = np.moveaxis(sums, -1, 0)
    scale = (number * squares - first**2) * (number * other_squares - second**2)
    none = np.full_like(scale, math.nan)  # of what does not vary there is none
    return np.divide(number * products - first * second, np.sqrt(np.maximum(scale, 0)), out=none, where=scale > 0)


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """The mean over the classes that are true or predicted; columns as `_class_counts` has them."""
    right, predicted_and_true = np.split(sums, 2, axis=-1)
    there = predicted_and_true > 0
    of_each = np.divide(2 * right, predicted_and_true, out=np.zeros_like(right), where=there)
    return of_each.sum(axis=-1) / there.sum(axis=-1)


def _class_counts(found: Sequence, truth: Sequence) -> np.ndarray:
    """`[labels, 2 * classes]`: for each class whether it is rightly predicted, then how often predicted and true."""
    classes = np.unique([*found, *truth])
    predicted, true = (np.asarray(each)[:, None] == classes for each in (found, truth))
    return np.concatenate([predicted & true, predicted.astype(int) + true], axis=1).astype(float)


class SingleLabelMetric(Figures):
    """Accuracy, macro and micro F1, Matthews correlation, of label numbers."""

    primary = "accuracy"
    figures = {
        "accuracy": accuracy_score,
        "macro_f1": partial(f1_score, average="macro", zero_division=0),
        "micro_f1": partial(f1_score, average="micro", zero_division=0),
        "mcc": matthews_corrcoef,
    }

    def counts(self, prediction: int, reference: int) -> tuple[float, float]:
        """Whether it is right, and 1."""
        return prediction == reference, 1

    def measured(self, predictions: Sequence, references: Sequence, units: Sequence[Hashable]) -> dict[str, Measured]:
        """The primary figure, and macro F1 where it is one of the figures."""
        measured = super().measured(predictions, references, units)
        if "macro_f1" in self.figures:
            counts = _class_counts(predictions, references)
            measured["macro_f1"] = measure(sums_by_unit(counts, units), _macro_f1)
        return measured

    def by_class(self, predictions: list, references: list, names: Sequence[str]) -> ByClass:
        """Of each label."""
        return of_labels(references, predictions, names)

    def confusion(self, predictions: list, references: list, names: Sequence[str]) -> Confusion | None:
        """Of the labels."""
        return confusion_of_labels(references, predictions, names)

    def _info(self) -> evaluate.MetricInfo:
        return _info(datasets.Value("int64"), datasets.Value("int64"), str(self.__doc__))


class ChoiceMetric(SingleLabelMetric):
    """Accuracy of choices by number; a number means another thing in every example, so there are no classes."""

    primary = "accuracy"
    figures = {"accuracy": accuracy_score}

    def by_class(self, predictions: list, references: list, names: Sequence[str]) -> ByClass:
        """None."""
        return {}

    def confusion(self, predictions: list, references: list, names: Sequence[str]) -> Confusion | None:
        """None."""
        return None


class MultiLabelMetric(Figures):
    """Macro and micro F1, and the share of examples whose labels are all right, of 0/1 vectors."""

    primary = "micro_f1"
    figures = {
        "micro_f1": lambda truth, found: f1_score(np.array(truth), np.array(found), average="micro", zero_division=0),
        "macro_f1": lambda truth, found: f1_score(np.array(truth), np.array(found), average="macro", zero_division=0),
        "accuracy": lambda truth, found: accuracy_score(np.array(truth), np.array(found)),
    }

    def counts(self, prediction: list[int], reference: list[int]) -> tuple[float, float]:
        """Twice the labels that are right, and those found and those true."""
        return 2 * sum(map(operator.and_, prediction, reference)), sum(prediction) + sum(reference)

    def by_class(self, predictions: list, references: list, names: Sequence[str]) -> ByClass:
        """Of each label."""
        return of_vectors(references, predictions, names)

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.Sequence(datasets.Value("int64"))
        return _info(vector, vector, str(self.__doc__))


class RegressionMetric(Figures):
    """Pearson's and Spearman's correlation, and the root mean squared error."""

    primary = "pearson"
    interval = staticmethod(correlation_interval)
    lower_is_better = frozenset({"rmse"})
    figures = {
        "pearson": lambda truth, found: pearsonr(found, truth).statistic if len(truth) > 1 else math.nan,
        "spearman": lambda truth, found: spearmanr(found, truth).statistic if len(truth) > 1 else math.nan,
        "rmse": root_mean_squared_error,
    }

    def measured(self, predictions: Sequence, references: Sequence, units: Sequence[Hashable]) -> dict[str, Measured]:
        """Pearson's correlation, of sums of powers."""
        found, truth = (np.array(each, dtype=float) - np.mean(each) for each in (predictions, references))
        counts = np.stack([np.ones_like(found), found, truth, found**2, truth**2, found * truth], axis=-1)
        return {self.primary: measure(sums_by_unit(counts, units), _correlation)}

    def _info(self) -> evaluate.MetricInfo:
        return _info(datasets.Value("float64"), datasets.Value("float64"), str(self.__doc__))


class SpanMetric(Figures):
    """SQuAD's exact match and token F1, the better of the answers that are given as right.

    Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1: lower case, without punctuation and articles. An empty
    prediction is right where there is no answer (Rajpurkar et al. 2018, arXiv 1806.03822).
    """

    primary = "f1"
    figures = {
        "exact_match": lambda truth, found: fmean(exact for exact, _ in map(span_scores, found, truth)),
        "f1": lambda truth, found: fmean(f1 for _, f1 in map(span_scores, found, truth)),
    }

    def counts(self, prediction: str, reference: list[str]) -> tuple[float, float]:
        """Its F1, and 1."""
        return span_scores(prediction, reference)[1], 1

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return _info(text, datasets.Sequence(text), str(self.__doc__))


def _of_entities(figure: Callable) -> Callable:
    return lambda truth, found: figure([*map(to_iob2, truth)], [*map(to_iob2, found)], zero_division=0)


class EntityMetric(Figures):
    """Precision, recall and F1 of whole entities in labels of words, of any scheme, as seqeval counts them."""

    primary = "f1"
    figures = {
        "f1": _of_entities(seqeval.metrics.f1_score),
        "precision": _of_entities(seqeval.metrics.precision_score),
        "recall": _of_entities(seqeval.metrics.recall_score),
        "accuracy": seqeval.metrics.accuracy_score,
    }

    def counts(self, prediction: list[str], reference: list[str]) -> tuple[float, float]:
        """Twice the entities that are right, and those found and those true."""
        found, truth = (set(get_entities(to_iob2(labels))) for labels in (prediction, reference))
        return 2 * len(found & truth), len(found) + len(truth)

    def by_class(self, predictions: list, references: list, names: Sequence[str]) -> ByClass:
        """Of each type of entity, whatever `names` are."""
        return of_entities([*map(to_iob2, references)], [*map(to_iob2, predictions)])

    def _info(self) -> evaluate.MetricInfo:
        labels = datasets.Sequence(datasets.Value("string"))
        return _info(labels, labels, str(self.__doc__))


class WordMetric(Figures):
    """Accuracy and macro F1 of words, those of all examples together, by their labels."""

    primary = "accuracy"
    figures = {
        "accuracy": lambda truth, found: accuracy_score([*chain(*truth)], [*chain(*found)]),
        "macro_f1": lambda truth, found: f1_score(
            [*chain(*truth)], [*chain(*found)], average="macro", zero_division=0
        ),
    }

    def counts(self, prediction: list[str], reference: list[str]) -> tuple[float, float]:
        """The words that are right, and all."""
        return sum(map(operator.eq, prediction, reference)), len(reference)

    def by_class(self, predictions: list, references: list, names: Sequence[str]) -> ByClass:
        """Of each label of words, whatever `names` are."""
        found, truth = [*chain(*predictions)], [*chain(*references)]
        labels = sorted({*found, *truth})
        return of_labels([*map(labels.index, truth)], [*map(labels.index, found)], labels)

    def _info(self) -> evaluate.MetricInfo:
        labels = datasets.Sequence(datasets.Value("string"))
        return _info(labels, labels, str(self.__doc__))


Ranking = Sequence[str | Sequence[str]]


class RetrievalMetric(Figures):
    """nDCG@10 (Järvelin and Kekäläinen 2002, doi 10.1145/582415.582418, binary gains) and the recall of the first and
    of the first ten, of ranked document ids, as BEIR averages them over queries (Thakur et al. 2021, arXiv
    2104.08663).

    In place of an id a list of ids that tie: a query's figure is then the mean over all their orders (McSherry and
    Najork 2008, doi 10.1007/978-3-540-78646-7_38), whatever the order of the files.
    """

    primary = "ndcg_at_10"
    figures = {
        "ndcg_at_10": lambda truth, found: fmean(map(ndcg, found, truth)),
        "recall_at_1": lambda truth, found: fmean(map(partial(recall, k=1), found, truth)),
        "recall_at_10": lambda truth, found: fmean(map(recall, found, truth)),
    }

    def compute(self, *, predictions: Sequence[Ranking], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """As every metric's."""
        return super().compute(predictions=[_ties(ranking) for ranking in predictions], references=references)

    def counts(self, prediction: Ranking, reference: list[str]) -> tuple[float, float]:
        """Its gain, and 1."""
        return ndcg(prediction, reference), 1

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("string"))
        return _info(datasets.Sequence(ids), ids, str(self.__doc__))


def _ties(ranking: Ranking) -> list[list[str]]:
    return [[each] if isinstance(each, str) else [*each] for each in ranking]


def ndcg(ranking: Ranking, relevant: Sequence[str], k: int = 10) -> float:
    """The discounted gain of the first `k` of a ranking, as a share of the best possible; 0 where nothing is
    relevant."""
    discounts = [1 / math.log2(rank + 2) for rank in range(k)]
    best = sum(discounts[: len({*relevant})])
    return _gain(ranking, relevant, discounts) / best if best else 0.0


def recall(ranking: Ranking, relevant: Sequence[str], k: int = 10) -> float:
    """The share of what is relevant that the first `k` of a ranking hold; 0 where nothing is."""
    return _gain(ranking, relevant, [1.0] * k) / max(1, len({*relevant}))


def _gain(ranking: Ranking, relevant: Sequence[str], weights: list[float]) -> float:
    """The sum of the ranks' weights at which relevant documents stand; of those that tie, its mean over all orders."""
    rank, gain = 0, 0.0
    for tied in _ties(ranking):
        gain += len({*relevant} & {*tied}) / len(tied) * sum(weights[rank : rank + len(tied)])
        rank += len(tied)
    return gain


def span_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1 of one prediction."""
    right = [*filter(None, map(normalize_answer, answers))] or [""]  # as SQuAD's own script leaves out what is nothing
    pairs = [(normalize_answer(prediction), answer) for answer in right]
    return max(float(found == truth) for found, truth in pairs), max(_overlap(*pair) for pair in pairs)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _overlap(found: str, truth: str) -> float:
    words, expected = found.split(), truth.split()
    if not words or not expected:
        return float(words == expected)
    common = sum((collections.Counter(words) & collections.Counter(expected)).values())
    return 2 * common / (len(words) + len(expected))


def interval_of(
    metric: Figures, predictions: Sequence, references: Sequence, units: Sequence[Hashable] | None = None
) -> Interval:
    """The 95 % interval of a metric's primary figure.

    Args:
        units: what each prediction belongs to of what was drawn independently, such as its example, where runs with
            several seeds predict it; by default itself.
    """
    units = range(len(predictions)) if units is None else units
    return metric.interval(metric.measured(predictions, references, units)[metric.primary])


def interval_of_difference(
    metric: Figures,
    predictions: Sequence,
    others: Sequence,
    references: Sequence,
    units: Sequence[Hashable] | None = None,
) -> Interval:
    """The 95 % interval of what `predictions` are better by than `others` of the same examples."""
    units = range(len(predictions)) if units is None else units
    first, second = (metric.measured(found, references, units)[metric.primary] for found in (predictions, others))
    better, worse = (first, second) if metric.greater_is_better else (second, first)
    return difference_interval(better, worse, metric.interval)
