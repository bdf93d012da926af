"""Copy tokens: whether a model finds a word again that stood far away.

The mean loss hides it, for most masked tokens are told by their neighbours. What needs length are words that stood
elsewhere in the text and are rare enough that nothing near tells them. A copy token is a masked token that is not
among its document's 50 most frequent and that stands at least once more in the document, unmasked. Its distance is
that to the nearest such place, before it or after it. A chunk shorter than the distance cannot copy it.
"""

from typing import Any

import numpy as np

from .data.features import IGNORE_INDEX
from .data.twins import nearest_twins
from .intervals import Interval
from .proof_rows import PROVED
from .scoring import MaskedDocument, Scores, between
from .tables import percent, table


FREQUENT = 50
NEAREST = 32  # tokens; nearer ones share a column

Bounds = tuple[int, int | None]


def frequent_tokens(tokens: np.ndarray) -> np.ndarray:
    """The most frequent tokens of a document, which are no copy tokens; of equally frequent ones those of lower
    number."""
    found, counts = np.unique(tokens, return_counts=True)
    return found[np.argsort(-counts, kind="stable")[:FREQUENT]]


def copy_distances(document: MaskedDocument) -> np.ndarray:
    """The distance of every masked token, in tokens, `[masked tokens]`; 0 for those that are no copy tokens."""
    masked, tokens = (document.labels != IGNORE_INDEX).numpy(), document.tokens.numpy()
    distances = nearest_twins(tokens, visible=~masked)
    return np.where(np.isin(tokens, frequent_tokens(tokens)), 0, distances)[masked]


def distance_columns(max_seq_length: int, source_length: int) -> dict[str, Bounds]:
    """Distances in two-fold steps, and all that no chunk of the source's length can hold."""
    edges = [1, NEAREST]
    while edges[-1] < max_seq_length:
        edges.append(edges[-1] * 2)
    steps = zip(edges, [*edges[1:-1], max_seq_length], strict=False)
    return {
        **{f"{start}-{stop - 1}": (start, stop) for start, stop in steps if start < stop},
        f"≥ {source_length}": (source_length, None),
    }


class Copies:
    """The table of copy tokens of all readings of a proof.

    Args:
        rows: the readings.
        distances: of the tokens of each, `[tokens]`.
    """

    def __init__(self, rows: dict[str, Scores], distances: np.ndarray, columns: dict[str, Bounds]):
        self.rows, self.distances = rows, distances
        # a column that no token falls into says nothing
        self.columns = {title: bounds for title, bounds in columns.items() if between(distances, *bounds).any()}
        self.proved = next((name for name in PROVED if name in rows), next(iter(rows)))
        # the last to read in chunks is the model itself, where it has: its source is the first
        self.chunks = next((name for name in reversed(rows) if "chunked" in name), self.proved)

    def to_dict(self) -> dict[str, Any]:
        """Accuracy and loss of every reading by distance; of the proved one also what it gains over its chunks."""
        return {
            "frequent": FREQUENT,
            "beside": self.chunks,
            "rows": {
                name: {title: self._cell(name, *bounds) for title, bounds in self.columns.items()}
                for name in self.rows
            },
        }

    def _cell(self, name: str, start: int, stop: int | None) -> dict[str, Any]:
        chosen = between(self.distances, start, stop)
        scores, base = self.rows[name].of(chosen), self.rows[self.chunks].of(chosen)
        cell = {**scores.summary(), "accuracy_interval": scores.accuracy_interval()}
        compared = name == self.proved != self.chunks
        return {**cell, **(scores.gain_over(base) | scores.change_from(base) if compared else {})}

    def accuracies(self) -> dict[str, list[tuple[float, Interval]]]:
        """Of the proved reading and of its chunks, by column."""
        rows = self.to_dict()["rows"]
        return {
            name: [(cell["accuracy"], cell["accuracy_interval"]) for cell in rows[name].values()]
            for name in dict.fromkeys((self.chunks, self.proved))
        }

    def to_markdown(self) -> str:
        """Accuracy and loss by distance, and what length is worth there."""
        if not self.columns:
            return "None of the masked tokens can be copied: none that is rare stands a second time in its text."
        rows = self.to_dict()["rows"]
        shown = {"tokens": [f"{cell['tokens']:,}" for cell in next(iter(rows.values())).values()]}
        shown |= {
            name: [f"{cell['accuracy']:.3f}, {cell['loss']:.3f}" for cell in row.values()]
            for name, row in rows.items()
        }
        if self.proved != self.chunks:
            gained = rows[self.proved].values()
            shown["accuracy gained, in points"] = [percent(cell["gain"], cell["gain_interval"]) for cell in gained]
            shown["loss, beside"] = [percent(cell["change"], cell["change_interval"], " %") for cell in gained]
        return (
            f"Copy tokens: masked tokens that are not among their text's {FREQUENT} most frequent, by how many tokens "
            "away the nearest unmasked place is where the same token stands; accuracy and loss (nats), and in the "
            f"last rows {self.proved} beside {self.chunks}, with 95 % intervals over texts:\n\n"
            f"{table([*self.columns], shown)}"
        )
