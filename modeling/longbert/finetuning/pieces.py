"""Pieces: what a model reads at once of a document, cut, batched, read and put together again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import datasets
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.batches import Collator, Key
from ..data.features import Features, collate
from ..errors import refuse_no_number
from .strategies import Strategy


Row = dict[str, Any]
Outputs = dict[str, torch.Tensor]


def overlapping(length: int, size: int, stride: int) -> range:
    """Where pieces begin that are `size` tokens long, share `stride` of them, and together cover `length`.

    Whatever is at most `stride` tokens long lies whole in one of them.

    Raises:
        ValueError: pieces would hold nothing but what they share.
    """
    if not 0 <= stride < size:
        raise ValueError(
            f"pieces of {size} tokens cannot share {stride}: set a smaller stride, from 0 on, or read more at once"
        )
    return range(0, max(1, length - stride), size - stride)


def piece_starts(strategy: Strategy, length: int, size: int, stride: int) -> range:
    """Where the pieces begin that a strategy reads: `overlapping` ones, or the first alone where it truncates."""
    starts = overlapping(length, size, stride)
    return starts[:1] if strategy.first_alone else starts


def decided_tokens(starts: range, length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """The first token that each piece decides, and the one past its last.

    A token is decided once: by the piece from whose edges it is furthest, so two that overlap meet in the middle of
    what they share.
    """
    middles = [start + stride // 2 for start in starts[1:]]
    return list(pairwise([0, *middles, min(length, starts[-1] + size)]))


def cut_pieces(examples: datasets.Dataset, cut: Callable[[Row], list[Row]]) -> datasets.Dataset:
    """A row for every piece of every example, with the `id` and the number of its `example`, and its `length`.

    Args:
        cut: an example -> its pieces, one at least.
    """

    def rows(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        made = []
        for number, *values in zip(numbers, *batch.values(), strict=True):
            example = dict(zip(batch, values, strict=True))
            for piece in cut(example):
                made.append({"id": example["id"], "example": number, "length": len(piece["input_ids"]), **piece})
        return {name: [row[name] for row in made] for name in made[0]}

    return examples.map(
        rows, with_indices=True, batched=True, remove_columns=examples.column_names, desc="cutting pieces"
    )


@dataclass
class PieceCollator:
    """Micro-batches of rows. `labels` are the rows' `target`, where they have one, or what the features bring along.

    Args:
        pieces: a row -> the features of its pieces; `first` among them is how many of a piece's first tokens are
            global under a window.
        pooled: the model pools a row's pieces; `owner` `[pieces]` says which row each is of.
    """

    tokenizer: PreTrainedTokenizerBase
    pieces: Callable[[Row], list[Features]]
    pooled: bool = False

    def batch(self, rows: list[Row], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch, with the names of its `documents` and its `text_lengths` in tokens."""
        pieces = [self.pieces(row) for row in rows]
        features = [piece for some in pieces for piece in some]
        batch: dict[str, Any] = collate(features, self.tokenizer)
        if "first" in features[0]:
            firsts = torch.tensor([piece["first"] for piece in features])
            batch["global_attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < firsts[:, None]).long()
        if "target" in rows[0]:
            batch["labels"] = torch.tensor([row["target"] for row in rows])
        if self.pooled:
            batch["owner"] = torch.tensor([number for number, some in enumerate(pieces) for _ in some])
        batch["documents"] = [row["id"] for row in rows]
        batch["text_lengths"] = [len(piece["input_ids"]) for piece in features]
        return batch


@torch.no_grad()
def read_rows(
    model: nn.Module, rows: datasets.Dataset, collator: Collator, batch_size: int
) -> list[tuple[Row, Outputs]]:
    """Every row with what the model says of it, in fp32 on the CPU.

    Rows of like `length` are read together, the longest first: little padding is needed, and a lack of memory shows at
    once.

    Raises:
        MendableError: the model says what is no number.
    """
    was_training = model.training
    model.eval()
    lengths = rows["length"][:]
    order = sorted(range(len(rows)), key=lambda number: -lengths[number])
    found: dict[int, tuple[Row, Outputs]] = {}
    for start in range(0, len(rows), batch_size):
        numbers = order[start : start + batch_size]
        some = [rows[number] for number in numbers]
        batch = collator.batch(some, ())
        inputs = {
            name: tensor.to(model.device)
            for name, tensor in batch.items()
            if name not in ("labels", "documents", "text_lengths")
        }
        outputs = {name: tensor.float().cpu() for name, tensor in model(**inputs).items()}
        refuse_no_number(outputs.values(), f"one of {', '.join(batch['documents'])}")
        for place, number in enumerate(numbers):
            found[number] = some[place], {name: tensor[place] for name, tensor in outputs.items()}
    model.train(was_training)
    return [found[number] for number in range(len(rows))]


def read_pieces(
    model: nn.Module, pieces: datasets.Dataset, collator: Collator, batch_size: int
) -> list[list[tuple[Row, Outputs]]]:
    """What `read_rows` says of the rows of `cut_pieces`, together for each example."""
    read = read_rows(model, pieces, collator, batch_size)
    return [list(group) for _, group in groupby(read, key=lambda piece: piece[0]["example"])]
