"""The proof: MLM loss by position of an extended model and of its source in chunks, on the same tokens and masks, and
what it copies from how far."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from .copies import Copies, copy_distances, distance_columns
from .data.features import IGNORE_INDEX
from .data.rows import RowSettings, make_rows, tokenize
from .proof_rows import BEFORE
from .scoring import Scores, cutter, mask_documents, score
from .source import PretrainingModel
from .tables import percent, strict_json, table, with_interval


def position_buckets(max_seq_length: int, source_length: int) -> list[tuple[int, int]]:
    """[0, n), [n, 2n), [2n, 4n), ... up to `max_seq_length`, where n is the source length."""
    edges = [0, source_length]
    while edges[-1] < max_seq_length:
        edges.append(edges[-1] * 2)
    return list(zip(edges, [*edges[1:-1], max_seq_length], strict=False))


@dataclass
class Proof:
    """The tables that show whether an extended model works, row by row, with the settings that it was measured by.

    Args:
        distances: of the tokens of every row, as from `copy_distances`.
    """

    source_length: int
    max_seq_length: int
    documents: int
    distances: np.ndarray
    rows: dict[str, Scores] = field(default_factory=dict)

    def columns(self) -> dict[str, tuple[int, int | None]]:
        """Position buckets, all positions that the source could not reach, and all."""
        buckets = position_buckets(self.max_seq_length, self.source_length)
        named = {f"{start}-{stop - 1}": (start, stop) for start, stop in buckets}
        return {**named, f"≥ {self.source_length}": (self.source_length, None), "all": (0, None)}

    def to_dict(self) -> dict:
        """Everything that the tables and the pictures show."""
        return {
            "source_length": self.source_length,
            "max_seq_length": self.max_seq_length,
            "documents": self.documents,
            "rows": {
                name: {
                    "buckets": {title: self._cell(name, bounds) for title, bounds in self.columns().items()},
                    "seams": self.seams(scores),
                }
                for name, scores in self.rows.items()
            },
            "copies": self.copies().to_dict(),
        }

    def copies(self) -> Copies:
        """The second table."""
        columns = distance_columns(self.max_seq_length, self.source_length)
        return Copies(self.rows, self.distances, columns)

    @property
    def baseline(self) -> str:
        """The row that the others are compared with: the first that reads chunks, else the first."""
        return next((name for name in self.rows if "chunked" in name), next(iter(self.rows)))

    def _cell(self, name: str, bounds: tuple[int, int | None]) -> dict[str, Any]:
        """All figures of a row at some positions."""
        scores, base = (self.rows[each].within(*bounds) for each in (name, self.baseline))
        return {**scores.summary(), **(scores.change_from(base) if name != self.baseline else {})}

    def seams(self, scores: Scores, reach: int = 16) -> dict[str, float]:
        """Mean loss within `reach` tokens of a multiple of the source length, and elsewhere past the first."""
        past = scores.within(self.source_length - reach, None)
        near = (past.position + reach) % self.source_length < 2 * reach
        return {
            "near": float(past.loss[near].mean()) if near.any() else math.nan,
            "elsewhere": float(past.loss[~near].mean()) if (~near).any() else math.nan,
        }

    def to_markdown(self) -> str:
        """Loss, its difference to the chunks', and accuracy, by position; and copy tokens by distance."""
        rows = {
            name: [_in_words(cell) for cell in row["buckets"].values()] for name, row in self.to_dict()["rows"].items()
        }
        return (
            f"Held-out MLM loss (nats), its difference to {self.baseline}, both with 95 % intervals over texts, and "
            f"accuracy by position, {self.documents} texts of {self.source_length + 1} to {self.max_seq_length} "
            f"tokens, the same masks in every row:\n\n{table([*self.columns()], rows)}\n\n"
            f"{self.copies().to_markdown()}"
        )

    def save(self, folder: str | Path) -> None:
        """Write proof.md, proof.json, proof.png and, where there are copy tokens, copies.png into `folder`."""
        from .plots import plot_by_distance, plot_losses

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "proof.md").write_text(self.to_markdown() + "\n", "utf-8")
        (folder / "proof.json").write_text(strict_json(self.to_dict()), "utf-8")
        # a model from scratch before training is so far from chunks that nothing else would show
        names = [self.baseline, *(name for name in self.rows if name not in (self.baseline, BEFORE))]
        rows = {name: self.rows[name] for name in names}
        lines = {name: (row.document, row.position, row.loss) for name, row in rows.items()}
        title = f"{self.documents} held-out texts, the same masks for all"
        plot_losses(lines, self.source_length, self.max_seq_length, title, folder / "proof.png")
        copies = self.copies()
        if copies.columns:
            plot_by_distance(copies.accuracies(), [*copies.columns], title, folder / "copies.png")


def _in_words(cell: dict[str, Any]) -> str:
    if not cell["tokens"]:
        return ""
    parts = [with_interval(cell["loss"], cell["loss_interval"])]
    if "change" in cell:
        parts.append(percent(cell["change"], cell["change_interval"], " %"))
    return ", ".join([*parts, f"{cell['accuracy']:.3f}"])


class Prover:
    """Held-out texts with fixed masks, and the proof that grows row by row as models read them.

    Args:
        documents: held-out documents, column `text`. Each is cut at `max_seq_length`; pieces that fit the
            `source_length` are left out, for there a chunked and a long reading are the same.
        source_length: tokens that the source reads, and that the chunked baseline reads at a time.
        at_most: texts to read, spread evenly over all there are.

    Raises:
        ValueError: no text is longer than the source length, or nothing is masked.
    """

    def __init__(
        self,
        documents: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source_length: int,
        max_seq_length: int,
        at_most: int,
        mlm_probability: float,
        seed: int,
    ):
        rows = make_rows(tokenize(documents, tokenizer), RowSettings(max_seq_length))
        texts = [text for (text,) in rows["texts"] if len(text) + 2 > source_length]
        if not texts:
            raise ValueError(
                f"none of the {len(documents)} held-out documents is longer than {source_length} tokens: longer "
                "positions cannot be proven on them"
            )
        chosen = np.unique(np.linspace(0, len(texts) - 1, min(at_most, len(texts))).astype(int))
        self.tokenizer = tokenizer
        self.texts = mask_documents([texts[index] for index in chosen], tokenizer, mlm_probability, seed)
        if not any((text.labels != IGNORE_INDEX).any() for text in self.texts):
            raise ValueError(
                f"none of the tokens of {len(self.texts)} texts is masked, so that there is nothing to predict: raise "
                f"mlm_probability, which is {mlm_probability:g}, or read more texts"
            )
        distances = np.concatenate([copy_distances(text) for text in self.texts])
        self.proof = Proof(source_length, max_seq_length, len(self.texts), distances)

    def chunked(self, name: str, model: PretrainingModel) -> None:
        """Add the row of a model that reads chunks of the source's length."""
        cut = cutter(self.tokenizer, self.proof.source_length)
        title = f"{name} at {self.proof.source_length}"
        self.proof.rows[title] = score(model, self.texts, cut, self.tokenizer, title)

    def metrics(self, model: PretrainingModel) -> dict[str, float]:
        """Loss and accuracy of a model that reads each text at once, over all positions and by position bucket."""
        scores = score(model, self.texts, cutter(self.tokenizer), self.tokenizer, "evaluating")
        summary = scores.summary()
        buckets = {
            f"loss_{title}": scores.within(*bounds).summary()["loss"]
            for title, bounds in self.proof.columns().items()
            if title != "all"
        }
        return {"loss": summary["loss"], "accuracy": summary["accuracy"], **buckets}

    def whole(self, name: str, model: PretrainingModel) -> None:
        """Add the row of a model that reads each text at once."""
        self.proof.rows[name] = score(model, self.texts, cutter(self.tokenizer), self.tokenizer, name)
