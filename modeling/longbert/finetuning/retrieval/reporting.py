"""What every comparison of retrieval records and reports."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import datasets

from ...data.features import FRAME
from ...data.fingerprints import Fingerprint, of_rows
from ..results.costs import Cost
from ..results.metrics import Figures
from ..results.report import Lines, Report, decided_within
from .collection import Retrieval


def fingerprints(pairs: datasets.Dataset, validation: Retrieval | None, test: Retrieval) -> dict[str, Fingerprint]:
    """Of the pairs to train on, and of the documents and queries of each test."""
    parts: dict[str, Iterable[Any]] = {"pairs": pairs}
    for name, retrieval in (("validation", validation), ("test", test)):
        if retrieval is not None:
            parts[f"{name} documents"] = [[name, vars(each)] for name, each in retrieval.documents.items()]
            parts[f"{name} queries"] = map(vars, retrieval.queries)
    return {name: of_rows(part) for name, part in parts.items()}


def lengths_of(test: Retrieval) -> list[int]:
    """Tokens of its documents, special tokens counted."""
    return [len(document.ids) + FRAME for document in test.documents.values()]


def reporter(
    metric: Figures, test: Retrieval, source_length: int, reach: int, extended: Collection[str]
) -> Callable[[dict[str, Lines], dict[str, Cost]], Report]:
    """Makes the report of a test.

    Args:
        reach: tokens that are read at most.
        extended: the rows in which the long model reads.
    """
    drawn_with = {query.id: query.documents[0] for query in test.queries}

    def report(results: dict[str, Lines], costs: dict[str, Cost]) -> Report:
        return Report(
            metric,
            decided_within,
            results,
            source_length,
            reach,
            test.groups,
            costs,
            extended,
            lengths_of(test),
            drawn_with,
        )

    return report
