"""Metrics as `evaluate.Metric` objects that need no network, with bootstrap confidence intervals.

`evaluate.load` fetches a script from the Hub even for accuracy; these are the same kind of object over scikit-learn,
scipy and seqeval.
"""

import collections
import re
import string
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import datasets
import evaluate
import numpy as np
import seqeval.metrics
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, root_mean_squared_error


def _info(prediction: Any, reference: Any, description: str) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": prediction, "references": reference})
    return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)


class Figures(evaluate.Metric):
    """A metric of several figures, each a function of (references, predictions); runs compete for the `primary`."""

    primary: str
    figures: dict[str, Callable[[Any, Any], float]]

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {name: float(figure(references, predictions)) for name, figure in self.figures.items()}

    def resampling(self, predictions: Sequence, references: Sequence) -> Callable[[np.ndarray], float]:
        """The primary figure of the examples with given numbers, which may repeat."""

        def primary(chosen: np.ndarray) -> float:
            truth, found = ([values[index] for index in chosen] for values in (references, predictions))
            return float(self.figures[self.primary](truth, found))

        return primary


class SingleLabelMetric(Figures):
    """Accuracy, macro and micro F1, Matthews correlation, of label numbers."""

    primary = "accuracy"
    figures = {
        "accuracy": accuracy_score,
        "macro_f1": partial(f1_score, average="macro", zero_division=0),
        "micro_f1": partial(f1_score, average="micro", zero_division=0),
        "mcc": matthews_corrcoef,
    }

    def _info(self) -> evaluate.MetricInfo:
        return _info(datasets.Value("int64"), datasets.Value("int64"), str(self.__doc__))


class MultiLabelMetric(Figures):
    """Macro and micro F1, and the share of examples whose labels are all right, of 0/1 vectors."""

    primary = "micro_f1"
    figures = {
        "micro_f1": lambda truth, found: f1_score(np.array(truth), np.array(found), average="micro", zero_division=0),
        "macro_f1": lambda truth, found: f1_score(np.array(truth), np.array(found), average="macro", zero_division=0),
        "accuracy": lambda truth, found: accuracy_score(np.array(truth), np.array(found)),
    }

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.Sequence(datasets.Value("int64"))
        return _info(vector, vector, str(self.__doc__))


class RegressionMetric(Figures):
    """Pearson's and Spearman's correlation, and the root mean squared error."""

    primary = "pearson"
    figures = {
        "pearson": lambda truth, found: pearsonr(found, truth).statistic,
        "spearman": lambda truth, found: spearmanr(found, truth).statistic,
        "rmse": root_mean_squared_error,
    }

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

    def resampling(self, predictions: Sequence, references: Sequence) -> Callable[[np.ndarray], float]:
        """As every metric's, with each example scored once."""
        scores = np.array([f1 for _, f1 in map(span_scores, predictions, references)])
        return lambda chosen: float(scores[chosen].mean())

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return _info(text, datasets.Sequence(text), str(self.__doc__))


class EntityMetric(Figures):
    """Precision, recall and F1 of whole entities, in IOB2 labels of words, as seqeval counts them."""

    primary = "f1"
    figures = {
        "f1": partial(seqeval.metrics.f1_score, zero_division=0),
        "precision": partial(seqeval.metrics.precision_score, zero_division=0),
        "recall": partial(seqeval.metrics.recall_score, zero_division=0),
        "accuracy": seqeval.metrics.accuracy_score,
    }

    def resampling(self, predictions: Sequence, references: Sequence) -> Callable[[np.ndarray], float]:
        """As every metric's, with each example's entities counted once."""
        pairs = [tuple(map(set, map(get_entities, pair))) for pair in zip(predictions, references, strict=True)]
        counts = np.array([(len(found & truth), len(found) + len(truth)) for found, truth in pairs])

        def f1(chosen: np.ndarray) -> float:
            right, all_ = counts[chosen].sum(axis=0)
            return float(2 * right / all_) if all_ else 0.0

        return f1

    def _info(self) -> evaluate.MetricInfo:
        labels = datasets.Sequence(datasets.Value("string"))
        return _info(labels, labels, str(self.__doc__))


def span_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Exact match and F1 of one prediction."""
    pairs = [(normalize_answer(prediction), normalize_answer(answer)) for answer in answers or [""]]
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


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], examples: int, seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of a statistic over examples drawn with replacement (Efron's percentile bootstrap).

    Args:
        statistic: of the examples with the given numbers `[examples]`.
    """
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, examples, examples)) for _ in range(draws)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def interval_of(metric: Figures, predictions: Sequence, references: Sequence) -> tuple[float, float]:
    """The 95 % interval of a metric's primary figure."""
    return bootstrap_interval(metric.resampling(predictions, references), len(predictions))


def interval_of_difference(
    metric: Figures, predictions: Sequence, others: Sequence, references: Sequence
) -> tuple[float, float]:
    """The 95 % interval of what `predictions` are better by than `others` of the same examples, drawn in pairs."""
    first, second = (metric.resampling(found, references) for found in (predictions, others))
    return bootstrap_interval(lambda chosen: first(chosen) - second(chosen), len(predictions))
