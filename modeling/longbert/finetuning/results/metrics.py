"""Metrics as `evaluate.Metric` objects that need no network, with bootstrap confidence intervals.

`evaluate.load` fetches a script from the Hub even for accuracy; these are the same kind of object over scikit-learn,
scipy and seqeval.
"""

import collections
import math
import operator
import re
import string
from collections.abc import Callable, Sequence
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

from ..examples.entities import to_iob2
from .classes import ByClass, Confusion, confusion_of_labels, of_entities, of_labels, of_vectors


def _info(prediction: Any, reference: Any, description: str) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": prediction, "references": reference})
    return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)


class Figures(evaluate.Metric):
    """A metric of several figures, each a function of (references, predictions); runs compete for the `primary`.

    Attributes:
        lower_is_better: figures of which less is better.
    """

    primary: str
    figures: dict[str, Callable[[Any, Any], float]]
    lower_is_better: frozenset[str] = frozenset()

    @property
    def greater_is_better(self) -> bool:
        """Whether more of the primary figure is better."""
        return self.primary not in self.lower_is_better

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {name: float(figure(references, predictions)) for name, figure in self.figures.items()}

    def counts(self, prediction: Any, reference: Any) -> tuple[float, float]:
        """One example's share of the primary metric's numerator and denominator."""
        raise NotImplementedError

    def resampling(self, predictions: Sequence, references: Sequence) -> Callable[[np.ndarray], float]:
        """A function from example numbers, which may repeat, to the primary figure of those examples. Each example is
        scored once, so thousands of draws are cheap."""
        counts = np.array([self.counts(*pair) for pair in zip(predictions, references, strict=True)], dtype=float)

        def primary(chosen: np.ndarray) -> float:
            part, whole = counts[chosen].sum(axis=0)
            return float(part / whole) if whole else 0.0

        return primary

    def by_class(self, predictions: list, references: list, names: Sequence[str]) -> ByClass:
        """Figures for each class; none where there are no classes.

        Args:
            names: of the classes in the order of their numbers, where predictions are numbers.
        """
        return {}

    def confusion(self, predictions: list, references: list, names: Sequence[str]) -> Confusion | None:
        """How often each class is taken for each; None where an example has no single class."""
        return None


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
    lower_is_better = frozenset({"rmse"})
    figures = {
        "pearson": lambda truth, found: pearsonr(found, truth).statistic if len(truth) > 1 else math.nan,
        "spearman": lambda truth, found: spearmanr(found, truth).statistic if len(truth) > 1 else math.nan,
        "rmse": root_mean_squared_error,
    }

    def resampling(self, predictions: Sequence, references: Sequence) -> Callable[[np.ndarray], float]:
        """A correlation is no ratio of sums, but quickly computed."""
        pairs = np.array([predictions, references])
        return lambda chosen: float(np.corrcoef(pairs[:, chosen])[0, 1])

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


class RetrievalMetric(Figures):
    """nDCG@10 (Järvelin and Kekäläinen 2002, doi 10.1145/582415.582418, binary gains) and the recall of the first and
    of the first ten, of ranked document ids, as BEIR averages them over queries (Thakur et al. 2021, arXiv
    2104.08663)."""

    primary = "ndcg_at_10"
    figures = {
        "ndcg_at_10": lambda truth, found: fmean(map(ndcg, found, truth)),
        "recall_at_1": lambda truth, found: fmean(map(partial(recall, k=1), found, truth)),
        "recall_at_10": lambda truth, found: fmean(map(recall, found, truth)),
    }

    def counts(self, prediction: list[str], reference: list[str]) -> tuple[float, float]:
        """Its gain, and 1."""
        return ndcg(prediction, reference), 1

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("string"))
        return _info(ids, ids, str(self.__doc__))


def ndcg(ranked: list[str], relevant: list[str], k: int = 10) -> float:
    """The discounted gain of the first `k` of a ranking, as a share of the best possible."""
    gain = sum(1 / math.log2(rank + 2) for rank, name in enumerate(ranked[:k]) if name in relevant)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(len(relevant), k)))


def recall(ranked: list[str], relevant: list[str], k: int = 10) -> float:
    """The share of what is relevant that the first `k` of a ranking hold."""
    return len({*ranked[:k]} & {*relevant}) / len(relevant)


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


def interval_of(
    metric: Figures, predictions: Sequence, references: Sequence, examples: Sequence[str] | None = None
) -> tuple[float, float]:
    """The 95 % interval of a metric's primary figure.

    Args:
        examples: of which example each prediction is, where some are predicted several times, by runs with several
            seeds; what is drawn is examples, each with all its predictions, which are not independent.
    """
    figure = metric.resampling(predictions, references)
    return _interval_over_examples(figure, examples or range(len(predictions)))


def interval_of_difference(
    metric: Figures,
    predictions: Sequence,
    others: Sequence,
    references: Sequence,
    examples: Sequence[str] | None = None,
) -> tuple[float, float]:
    """The 95 % interval of what `predictions` are better by than `others` of the same examples, drawn in pairs."""
    first, second = (metric.resampling(found, references) for found in (predictions, others))
    sign = 1 if metric.greater_is_better else -1
    return _interval_over_examples(
        lambda chosen: sign * (first(chosen) - second(chosen)), examples or range(len(predictions))
    )


def _interval_over_examples(statistic: Callable[[np.ndarray], float], examples: Sequence) -> tuple[float, float]:
    places = collections.defaultdict(list)
    for place, example in enumerate(examples):
        places[example].append(place)
    if len({*map(len, places.values())}) == 1:  # as often as not one each, and then quickly drawn
        square = np.array([*places.values()])
        return bootstrap_interval(lambda chosen: statistic(square[chosen].ravel()), len(square))
    of_each = [np.array(some) for some in places.values()]
    return bootstrap_interval(
        lambda chosen: statistic(np.concatenate([of_each[number] for number in chosen])), len(of_each)
    )
