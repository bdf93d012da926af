"""Figures by class: precision, recall, F1, how often it is true and predicted; and which is taken for which."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import seqeval.metrics.sequence_labeling as seqeval
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


ByClass = dict[str, dict[str, Any]]
Confusion = dict[str, list]
FIGURES = ("precision", "recall", "f1", "support", "predicted")
SHOWN = 20  # classes in a table; the others are summed up


def of_labels(truth: list[int], found: list[int], names: Sequence[str]) -> ByClass:
    """Of one label for each example, by number."""
    numbers = _numbers(truth, found, names)
    scored = precision_recall_fscore_support(truth, found, labels=numbers, zero_division=0)
    predicted = Counter(found)
    return _by_name([_name(names, number) for number in numbers], scored, [predicted[number] for number in numbers])


def of_vectors(truth: list[list[int]], found: list[list[int]], names: Sequence[str]) -> ByClass:
    """Of several labels for each example, as 0/1 vectors."""
    scored = precision_recall_fscore_support(np.array(truth), np.array(found), average=None, zero_division=0)
    predicted = np.array(found).sum(axis=0)
    return _by_name([_name(names, number) for number in range(len(truth[0]))], scored, predicted.tolist())


def of_entities(truth: list[list[str]], found: list[list[str]]) -> ByClass:
    """Of whole entities in IOB2 labels of words, by their type."""
    true, predicted = (Counter(kind for kind, _, _ in seqeval.get_entities(labels)) for labels in (truth, found))
    kinds = sorted({*true, *predicted})
    scored = seqeval.precision_recall_fscore_support(truth, found, average=None, zero_division=0)
    return _by_name(kinds, scored, [predicted[kind] for kind in kinds])


def confusion_of_labels(truth: list[int], found: list[int], names: Sequence[str]) -> Confusion:
    """`matrix[i][j]`: examples of label i that are taken for label j."""
    numbers = _numbers(truth, found, names)
    matrix = confusion_matrix(truth, found, labels=numbers)
    return {"labels": [_name(names, number) for number in numbers], "matrix": matrix.tolist()}


def _numbers(truth: list[int], found: list[int], names: Sequence[str]) -> list[int]:
    return sorted({*range(len(names)), *truth, *found})


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _by_name(names: list[str], scored: tuple, predicted: list[int]) -> ByClass:
    rows = zip(*(np.asarray(each).tolist() for each in scored), predicted, strict=True)
    return {name: dict(zip(FIGURES, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def shown_classes(by_class: ByClass) -> list[str]:
    """The classes that a table has room for, the most frequent first."""
    frequent = sorted(by_class, key=lambda name: -by_class[name]["support"])
    return frequent if len(frequent) <= SHOWN else frequent[: SHOWN - 1]


def summed_up(by_class: ByClass, names: Sequence[str]) -> dict[str, Any]:
    """Some classes taken together: what they all found, as a share of what was found and of what there was."""
    rows = [by_class[name] for name in names]
    support, predicted = (sum(row[key] for row in rows) for key in ("support", "predicted"))
    right = sum(row["recall"] * row["support"] for row in rows)
    figures = right / max(predicted, 1), right / max(support, 1), 2 * right / max(predicted + support, 1)
    return dict(zip(FIGURES, (*figures, support, predicted), strict=True))


def folded(confusion: Confusion, shown: Sequence[str]) -> Confusion:
    """A confusion matrix of the classes shown, in their order, the others summed up in the last row and column."""
    labels, matrix = confusion["labels"], np.array(confusion["matrix"])
    places = {label: shown.index(label) if label in shown else len(shown) for label in labels}
    size = len(shown) + any(label not in shown for label in labels)
    sums = np.zeros((size, size), dtype=int)
    for row, label in enumerate(labels):
        for column, other in enumerate(labels):
            sums[places[label], places[other]] += matrix[row, column]
    names = [*shown, *([f"{len(labels) - len(shown)} others"] if size > len(shown) else [])]
    return {"labels": names, "matrix": sums.tolist()}
