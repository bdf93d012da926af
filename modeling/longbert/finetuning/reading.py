"""Ways to read a document that is longer than BERT: the long model, and what a reviewer asks to see beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from ..configuration_longbert import LongBertConfig
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
        extended: by the long model; else by the source at its own length.
        pooled: in several pieces, whose vectors are pooled.
        read: (ids without special tokens, tokens of a piece) -> pieces.
    """

    extended: bool
    pooled: bool
    read: Callable[[list[int], int], list[list[int]]]


STRATEGIES = {
    "long": Strategy(True, False, _first),
    "truncate": Strategy(False, False, _first),
    "head-tail": Strategy(False, False, _head_tail),
    "chunk-pool": Strategy(False, True, _windows),
}


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
