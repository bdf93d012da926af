"""The proof: MLM loss by position of an extended model and of its source in chunks, on the same tokens and masks."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .data.features import IGNORE_INDEX, Features, collate, framed, framed_labels
from .data.masking import TokenMasker
from .data.rows import RowSettings, make_rows, tokenize
from .intervals import Measured, measure, plain_interval, sums_by_unit
from .proof_rows import BEFORE
from .source import PretrainingModel
from .tables import strict_json, table, with_interval


NO_INTERVAL = (math.nan, math.nan)


@dataclass
class MaskedDocument:
    """A held-out text with its masks drawn once, so that every model and every way of reading predicts the same
    tokens."""

    input_ids: torch.LongTensor
    labels: torch.LongTensor


@dataclass
class Piece:
    """What a model reads at once, a whole text or a chunk: `features` between [CLS] and [SEP], and where in the text
    each of its tokens stands."""

    features: Features
    positions: torch.LongTensor


Cutter = Callable[[MaskedDocument], list[Piece]]


def mask_documents(
    rows: Iterable[list[int]], tokenizer: PreTrainedTokenizerBase, mlm_probability: float, seed: int
) -> list[MaskedDocument]:
    """Draw the fixed masks of held-out rows, `[tokens]` each without special tokens."""
    mask = TokenMasker(tokenizer, mlm_probability)
    return [MaskedDocument(*mask(row, seed, index)) for index, row in enumerate(rows)]


def framed_piece(
    tokenizer: PreTrainedTokenizerBase, input_ids: torch.LongTensor, labels: torch.LongTensor
) -> Features:
    """Some of a masked text's tokens with [CLS] and [SEP] around them, and their labels."""
    features = framed(tokenizer, input_ids.tolist())
    return {name: torch.tensor(ids) for name, ids in {**features, "labels": framed_labels(labels.tolist())}.items()}


def cutter(tokenizer: PreTrainedTokenizerBase, chunk_length: int | None = None) -> Cutter:
    """Leave a document whole, or cut it into chunks of at most `chunk_length` tokens, [CLS] and [SEP] counted."""

    def cut(document: MaskedDocument) -> list[Piece]:
        size = len(document.input_ids) if chunk_length is None else chunk_length - 2
        return [
            Piece(
                framed_piece(
                    tokenizer, document.input_ids[start : start + size], document.labels[start : start + size]
                ),
                # [CLS] is position 0 of the whole document; the frame of a later chunk has no place of its own
                torch.arange(start, min(start + size, len(document.input_ids)) + 2),
            )
            for start in range(0, len(document.input_ids), size)
        ]

    return cut


@dataclass
class Scores:
    """One entry for every masked token: the number of its document, its position there, its loss in nats, whether
    top-1 is right. Readings of the same documents have the same tokens in the same order."""

    document: np.ndarray
    position: np.ndarray
    loss: np.ndarray
    correct: np.ndarray

    def within(self, start: int, stop: int | None) -> "Scores":
        """The tokens at positions `start` to `stop - 1`."""
        chosen = (self.position >= start) & (self.position < (np.inf if stop is None else stop))
        return Scores(self.document[chosen], self.position[chosen], self.loss[chosen], self.correct[chosen])

    def summary(self) -> dict[str, Any]:
        """Mean loss and accuracy, NaN where there is no token, and the number of tokens; `loss_interval` is the 95 %
        interval of the loss over documents, whose tokens are not independent."""
        count = len(self.loss)
        return {
            "loss": float(self.loss.mean()) if count else math.nan,
            "loss_interval": plain_interval(self._measured(np.ones(count))) if count else NO_INTERVAL,
            "accuracy": float(self.correct.mean()) if count else math.nan,
            "tokens": count,
        }

    def change_from(self, base: "Scores") -> dict[str, Any]:
        """How many times less or more than another reading's loss this one's is, -0.1 for a tenth less; and its 95 %
        interval over documents, which both have read."""
        if not len(self.loss):
            return {"change": math.nan, "change_interval": NO_INTERVAL}
        ratio = self._measured(base.loss)
        low, high = plain_interval(ratio)
        return {"change": ratio.value - 1, "change_interval": (low - 1, high - 1)}

    def _measured(self, divisor: np.ndarray) -> Measured:
        """The loss of all documents as a share of something else that their tokens have."""
        sums = sums_by_unit(np.stack([self.loss, divisor], axis=-1), self.document.tolist())
        return measure(sums, lambda each: each[..., 0] / each[..., 1])


@torch.no_grad()
def score(
    model: PretrainingModel,
    documents: list[MaskedDocument],
    cut: Cutter,
    tokenizer: PreTrainedTokenizerBase,
    description: str | None = "scoring",
    pieces_at_once: int = 8,
) -> Scores:
    """Predict every masked token of every document once, document by document, the first token first.

    Args:
        description: of the progress bar; None shows none.
    """
    was_training = model.training
    model.eval()
    parts: list[tuple[torch.Tensor, ...]] = []
    for number, document in enumerate(tqdm(documents, desc=description, unit="document", disable=description is None)):
        pieces = cut(document)
        for first in range(0, len(pieces), pieces_at_once):
            some = pieces[first : first + pieces_at_once]
            batch = collate([piece.features for piece in some], tokenizer)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            labels = batch.pop("labels")
            logits, targets = model.labelled_logits(labels, **batch).float(), labels[labels != IGNORE_INDEX]
            positions = torch.cat([piece.positions[piece.features["labels"] != IGNORE_INDEX] for piece in some])
            losses = F.cross_entropy(logits, targets, reduction="none")
            parts.append((torch.full_like(positions, number), positions, losses, logits.argmax(-1) == targets))
    model.train(was_training)
    return Scores(*(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)))


def position_buckets(max_seq_length: int, source_length: int) -> list[tuple[int, int]]:
    """[0, n), [n, 2n), [2n, 4n), ... up to `max_seq_length`, where n is the source length."""
    edges = [0, source_length]
    while edges[-1] < max_seq_length:
        edges.append(edges[-1] * 2)
    return list(zip(edges, [*edges[1:-1], max_seq_length], strict=False))


@dataclass
class Proof:
    """The table that shows whether an extended model works, row by row, with the settings that it was measured by."""

    source_length: int
    max_seq_length: int
    documents: int
    rows: dict[str, Scores] = field(default_factory=dict)

    def columns(self) -> dict[str, tuple[int, int | None]]:
        """Position buckets, all positions that the source could not reach, and all."""
        buckets = position_buckets(self.max_seq_length, self.source_length)
        named = {f"{start}-{stop - 1}": (start, stop) for start, stop in buckets}
        return {**named, f"≥ {self.source_length}": (self.source_length, None), "all": (0, None)}

    def to_dict(self) -> dict:
        """Everything that the table and the picture show."""
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
        }

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
        """Loss, its difference to the chunks', and accuracy, by position."""
        rows = {
            name: [_in_words(cell) for cell in row["buckets"].values()] for name, row in self.to_dict()["rows"].items()
        }
        return (
            f"Held-out MLM loss (nats), its difference to {self.baseline}, both with 95 % intervals over texts, and "
            f"accuracy by position, {self.documents} texts of {self.source_length + 1} to {self.max_seq_length} "
            f"tokens, the same masks in every row:\n\n{table([*self.columns()], rows)}"
        )

    def save(self, folder: str | Path) -> None:
        """Write proof.md, proof.json and proof.png into `folder`."""
        from .plots import plot_losses

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


def _in_words(cell: dict[str, Any]) -> str:
    if not cell["tokens"]:
        return ""
    parts = [with_interval(cell["loss"], cell["loss_interval"])]
    if "change" in cell:
        percent = [100 * each for each in cell["change_interval"]]
        parts.append(with_interval(100 * cell["change"], (percent[0], percent[1]), "+", 1, " %"))
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
        self.proof = Proof(source_length, max_seq_length, len(self.texts))

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
