"""Ways to read a document that is longer than BERT reads: the long model, and the usual baselines."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import datasets
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from ..configuration_longbert import LongBertConfig
from ..data.batches import Collator
from ..modeling_longbert import LongBertForSequenceClassification


HEAD_TOKENS = 128  # of 510, the rest from the end: Sun et al. 2019 (arXiv 1905.05583), section 5.3.1


def _first(ids: list[int], size: int) -> list[list[int]]:
    return [ids[:size]]


def _head_tail(ids: list[int], size: int) -> list[list[int]]:
    head = HEAD_TOKENS * size // 510
    return [ids] if len(ids) <= size else [ids[:head] + ids[head - size :]]


def _windows(ids: list[int], size: int) -> list[list[int]]:
    return [ids[start : start + size] for start in range(0, max(1, len(ids)), size)]


@dataclass(frozen=True)
class Strategy:
    """How a document is read.

    Args:
        extended: the long model reads; else the source, at its own length.
        pooled: the document is read in several pieces, whose vectors are pooled.
        read: (ids without special tokens, tokens of a piece) -> pieces.
        first_alone: of a text in several pieces it reads the first and no other.
        skips_middle: it leaves out what lies between, so that answers and words there cannot be found.
    """

    extended: bool
    pooled: bool
    read: Callable[[list[int], int], list[list[int]]]
    first_alone: bool = False
    skips_middle: bool = False


STRATEGIES = {
    "long": Strategy(extended=True, pooled=False, read=_first),
    "truncate": Strategy(extended=False, pooled=False, read=_first, first_alone=True),
    "head-tail": Strategy(extended=False, pooled=False, read=_head_tail, skips_middle=True),
    "chunk-pool": Strategy(extended=False, pooled=True, read=_windows),
}


def overlapping(length: int, size: int, stride: int) -> range:
    """Where windows begin that are `size` tokens long, share `stride` of them, and together cover `length`.

    Whatever is at most `stride` tokens long lies whole in one of them.

    Raises:
        ValueError: windows would hold nothing but what they share.
    """
    if not 0 <= stride < size:
        raise ValueError(
            f"windows of {size} tokens cannot share {stride}: set a smaller stride, from 0 on, or read more at once"
        )
    return range(0, max(1, length - stride), size - stride)


def window_starts(strategy: Strategy, length: int, size: int, stride: int) -> range:
    """Where the windows begin that a strategy reads: `overlapping` ones, or the first alone where it truncates."""
    starts = overlapping(length, size, stride)
    return starts[:1] if strategy.first_alone else starts


def decided_tokens(starts: range, length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """The first token that each window decides, and the one past its last.

    A token is decided once: by the window from whose edges it is furthest, so two that overlap meet in the middle of
    what they share.
    """
    middles = [start + stride // 2 for start in starts[1:]]
    return list(pairwise([0, *middles, min(length, starts[-1] + size)]))


def window_rows(
    examples: datasets.Dataset, windows: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> datasets.Dataset:
    """A row for every window of every example, with the number of its `example`.

    Args:
        windows: an example -> its windows, one at least.
    """

    def cut(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        made = [
            {**window, "example": number}
            for number, *values in zip(numbers, *batch.values(), strict=True)
            for window in windows(dict(zip(batch, values, strict=True)))
        ]
        return {name: [window[name] for window in made] for name in made[0]}

    return examples.map(
        cut, with_indices=True, batched=True, remove_columns=examples.column_names, desc="cutting windows"
    )


def marks_of_first(input_ids: torch.LongTensor, firsts: list[int]) -> torch.LongTensor:
    """A `global_attention_mask` `[rows, seq_length]`: 1 at the first `firsts[row]` tokens, such as a question's."""
    return (torch.arange(input_ids.shape[1]) < torch.tensor(firsts)[:, None]).long()


@torch.no_grad()
def read_rows(
    model: nn.Module, rows: datasets.Dataset, collator: Collator, batch_size: int
) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Every row with what the model says of it, in fp32 on the CPU.

    Rows of like `length` are read together, the longest first: little padding is needed, and a lack of memory shows at
    once.
    """
    was_training = model.training
    model.eval()
    lengths = rows["length"][:]
    order = sorted(range(len(rows)), key=lambda number: -lengths[number])
    found: dict[int, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {}
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
        for place, number in enumerate(numbers):
            found[number] = some[place], {name: tensor[place] for name, tensor in outputs.items()}
    model.train(was_training)
    return [found[number] for number in range(len(rows))]


def read_windows(
    model: nn.Module, windows: datasets.Dataset, collator: Collator, batch_size: int
) -> list[list[tuple[dict[str, Any], dict[str, torch.Tensor]]]]:
    """What `read_rows` says of the rows of `window_rows`, together for each example."""
    read = read_rows(model, windows, collator, batch_size)
    return [list(group) for _, group in groupby(read, key=lambda window: window[0]["example"])]


class ChunkPoolForSequenceClassification(LongBertForSequenceClassification):
    """Reads pieces apart and classifies the mean and the maximum of their pooled vectors, side by side."""

    _auto_class = None  # a baseline, not one of the classes that travel to the Hub

    def __init__(self, config: LongBertConfig):
        super().__init__(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self._init_weights(self.classifier)

    def forward(self, owner: torch.LongTensor, **kwargs: Any) -> SequenceClassifierOutput:
        """As `BertForSequenceClassification.forward`, over pieces.

        Args:
            owner: `[pieces]`, the number of the document, from 0 on, that a piece is of.
        """
        pieces = self.bert(**kwargs).pooler_output
        documents = int(owner[-1]) + 1
        index = owner[:, None].expand_as(pieces)
        empty = pieces.new_zeros(documents, pieces.shape[1])
        pooled = [empty.scatter_reduce(0, index, pieces, kind, include_self=False) for kind in ("mean", "amax")]
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(torch.cat(pooled, dim=-1))))
