"""What a task is: its examples, its model, its loss, its predictions."""

from abc import ABC, abstractmethod
from typing import Any

import datasets
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ...data.batches import Collator
from ...source import Source
from ..metrics import Figures
from ..strategies import Strategy


class Task(ABC):
    """What a script adds to the loop."""

    metric: Figures
    tokenizer: PreTrainedTokenizerBase

    @abstractmethod
    def encode(self, examples: datasets.Dataset) -> datasets.Dataset:
        """Tokenise, and give each example its `length`: the tokens of a model that reads it at once.

        Raises:
            ValueError: an example that cannot be used.
        """

    @abstractmethod
    def build(self, source: Source, strategy: Strategy) -> nn.Module:
        """The model of a strategy, with labels in its config."""

    @abstractmethod
    def collator(self, strategy: Strategy, max_length: int, long_length: int) -> Collator:
        """The collator: makes micro-batches, `max_length` tokens read at once; `labels` are what `loss` gets.

        Args:
            long_length: tokens that `long` reads; a strategy that pools pieces reads no more in all.

        Raises:
            ValueError: a strategy that the task cannot read by.
        """

    def training_rows(self, examples: datasets.Dataset, collator: Any) -> datasets.Dataset:
        """What a plan trains on: the examples, or the pieces they are read in, each with its `length`."""
        return examples

    @abstractmethod
    def loss(
        self, outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss in fp32, summed and divided by `num_items_in_batch`, so that it means the same for any split."""

    @abstractmethod
    def predict(self, model: nn.Module, examples: datasets.Dataset, collator: Any) -> list[dict[str, Any]]:
        """For each example its `id`, `prediction` and `reference`, as the metric takes them, and its `scores`."""

    def within(self, lines: list[dict[str, Any]], start: int, stop: int | None) -> list[dict[str, Any]]:
        """The predictions that are decided by tokens `start` to `stop - 1`; none where that cannot be known."""
        return []
