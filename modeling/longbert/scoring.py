"""Held-out texts with fixed masks, read whole or in chunks, and the scores of their masked tokens."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .data.features import IGNORE_INDEX, Features, collate, framed, framed_labels
from .data.masking import TokenMasker
from .intervals import Interval, Measured, difference_interval, measure, plain_interval, share_interval, sums_by_unit
from .source import PretrainingModel


NO_INTERVAL = (math.nan, math.nan)


@dataclass
class MaskedDocument:
    """A held-out text with its masks drawn once, so that every model and every way of reading predicts the same
    tokens."""

    input_ids: torch.LongTensor
    labels: torch.LongTensor

    @property
    def tokens(self) -> torch.LongTensor:
        """What stands there without the masks."""
        return torch.where(self.labels == IGNORE_INDEX, self.input_ids, self.labels)


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


def between(values: np.ndarray, start: int, stop: int | None) -> np.ndarray:
    """Which values are `start` to `stop - 1`; without `stop`, at least `start`."""
    return (values >= start) & (values < (np.inf if stop is None else stop))


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
        return self.of(between(self.position, start, stop))

    def of(self, chosen: np.ndarray) -> "Scores":
        """Some of the tokens, `[tokens]` bool."""
        return Scores(self.document[chosen], self.position[chosen], self.loss[chosen], self.correct[chosen])

    def summary(self) -> dict[str, Any]:
        """Mean loss and accuracy, NaN where there is no token, and the number of tokens; `loss_interval` is the 95 %
        interval of the loss over documents, whose tokens are not independent."""
        count = len(self.loss)
        return {
            "loss": float(self.loss.mean()) if count else math.nan,
            "loss_interval": plain_interval(self._measured(self.loss, 1.0)) if count else NO_INTERVAL,
            "accuracy": float(self.correct.mean()) if count else math.nan,
            "tokens": count,
        }

    def change_from(self, base: "Scores") -> dict[str, Any]:
        """How many times less or more than another reading's loss this one's is, -0.1 for a tenth less; and its 95 %
        interval over documents, which both have read."""
        if not len(self.loss):
            return {"change": math.nan, "change_interval": NO_INTERVAL}
        ratio = self._measured(self.loss, base.loss)
        low, high = plain_interval(ratio)
        return {"change": ratio.value - 1, "change_interval": (low - 1, high - 1)}

    def accuracy_interval(self) -> Interval:
        """The 95 % interval of the accuracy over documents."""
        if not len(self.loss):
            return NO_INTERVAL
        return share_interval(self._measured(self.correct, 1.0))

    def gain_over(self, base: "Scores") -> dict[str, Any]:
        """By how much more often this reading is right than another, .1 for ten points; and its 95 % interval over
        documents, which both have read."""
        if not len(self.loss):
            return {"gain": math.nan, "gain_interval": NO_INTERVAL}
        ours, theirs = (self._measured(each.correct, 1.0) for each in (self, base))
        # of shares, for where all documents agree Student's t would be certain, of however few
        return {"gain": ours.value - theirs.value, "gain_interval": difference_interval(ours, theirs, share_interval)}

    def _measured(self, values: np.ndarray, divisor: np.ndarray | float) -> Measured:
        """What the tokens of all documents have of one thing, as a share of what they have of another."""
        columns = np.stack(np.broadcast_arrays(values.astype(float), divisor), axis=-1)
        return measure(sums_by_unit(columns, self.document.tolist()), lambda each: each[..., 0] / each[..., 1])


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
