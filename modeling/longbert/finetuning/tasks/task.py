"""What a task is: its examples, its model, its loss, its predictions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import datasets
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ...configuration_longbert import LongBertConfig
from ...data.batches import Collator
from ...modeling_longbert import LongBertPreTrainedModel
from ...source import Source
from ..pieces import Outputs, PieceCollator, Row, cut_pieces, read_pieces, read_rows
from ..results.metrics import Figures
from ..strategies import STRATEGIES, Reader, Strategy


HEADS = ("classifier.", "qa_outputs.")


class Task(ABC):
    """What a script adds to the loop.

    Attributes:
        model_class: reads a document, or a piece of it.
        pooling_model_class: reads pieces apart and pools them; None where predictions of pieces are put together.
        in_the_middle: what is lost with a strategy that skips the middle of a document; None if it can be used.
    """

    model_class: ClassVar[type[LongBertPreTrainedModel]]
    pooling_model_class: ClassVar[type[LongBertPreTrainedModel] | None] = None
    in_the_middle: ClassVar[str | None] = None

    metric: Figures
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    keeps_head: bool = True  # where the source has one for this task

    def accept(self, readers: Mapping[str, Reader]) -> None:
        """Check, before anything is read, that the task can be read in these ways.

        Args:
            readers: by the name of their strategy.

        Raises:
            ValueError: one of them loses what the task is about.
        """
        for name, reader in readers.items():
            if self.in_the_middle is not None and reader.strategy.skips_middle:
                fitting = ", ".join(name for name, strategy in STRATEGIES.items() if not strategy.skips_middle)
                raise ValueError(f"{name} {self.in_the_middle}: strategies must be of {fitting}")

    @abstractmethod
    def tokenize(self, examples: datasets.Dataset, at_once: int) -> datasets.Dataset:
        """Tokenize, and give each example its `length`: the tokens of a model that reads it at once.

        Args:
            at_once: the fewest tokens that a strategy of the run reads at once.

        Raises:
            ValueError: an example that cannot be used.
        """

    def configure(self, config: LongBertConfig) -> LongBertConfig:
        """A model's config as the task needs it."""
        return config

    def build(self, source: Source, strategy: Strategy) -> nn.Module:
        """The model of a strategy."""
        config = self.configure(source.config if strategy.extended else source.native)
        model_class = (strategy.pooled and self.pooling_model_class) or self.model_class
        model, info = model_class.from_pretrained(
            source.path, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
        others = [name for name, *_ in info["mismatched_keys"] if not name.startswith(HEADS)]
        if others:
            raise ValueError(f"{source.path}: weights of another size than its config says: {', '.join(others[:8])}")
        if not self.keeps_head:
            for name in HEADS:
                head = getattr(model, name.rstrip("."), None)
                if head is not None:
                    for parameter in head.parameters():
                        parameter._is_hf_initialized = False  # else transformers leaves what was loaded
                    model._init_weights(head)
        return model

    @abstractmethod
    def collator(self, reader: Reader) -> Collator:
        """The collator: makes micro-batches of rows; `labels` are what `loss` gets."""

    @abstractmethod
    def rows(self, examples: datasets.Dataset, reader: Reader, train: bool = False) -> datasets.Dataset:
        """What the model reads, row by row, each with its `length`.

        Args:
            train: leave out rows that have nothing to learn from.
        """

    @abstractmethod
    def loss(
        self, outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss in fp32, summed and divided by `num_items_in_batch`, so that it means the same for any split."""

    @abstractmethod
    def predict(self, model: nn.Module, examples: datasets.Dataset, reader: Reader) -> list[dict[str, Any]]:
        """For each example its `id`, `prediction` and `reference`, as the metric takes them, and its `scores`."""

    def within(self, lines: list[dict[str, Any]], start: int, stop: int | None) -> list[dict[str, Any]]:
        """The predictions that are decided by tokens `start` to `stop - 1`; none where that cannot be known."""
        return []


class DocumentTask(Task):
    """One answer for a document: a row is a document, and a model that reads it in pieces pools them."""

    @abstractmethod
    def pieces(self, example: Row, reader: Reader) -> list[Row]:
        """The features of the pieces that a document is read in."""

    @abstractmethod
    def decide(self, example: Row, outputs: Outputs) -> dict[str, Any]:
        """A document's `prediction`, `reference` and `scores`."""

    def collator(self, reader: Reader) -> Collator:
        """The collator: cuts documents into pieces."""
        return PieceCollator(self.tokenizer, lambda example: self.pieces(example, reader), reader.strategy.pooled)

    def rows(self, examples: datasets.Dataset, reader: Reader, train: bool = False) -> datasets.Dataset:
        """The documents themselves."""
        return examples

    def predict(self, model: nn.Module, examples: datasets.Dataset, reader: Reader) -> list[dict[str, Any]]:
        """For each document what is predicted and true, and the scores."""
        read = read_rows(model, examples, self.collator(reader), self.batch_size)
        return [{"id": row["id"], **self.decide(row, outputs)} for row, outputs in read]


class PieceTask(Task):
    """Answers somewhere in a document: a row is a piece, and the predictions of a document's pieces are put together.

    Pieces overlap by `stride` tokens.
    """

    stride: int

    @abstractmethod
    def pieces(self, example: Row, reader: Reader) -> list[Row]:
        """The pieces that a document is read in, as rows: features, and what `decide` needs."""

    @abstractmethod
    def decide(self, example: Row, pieces: list[tuple[Row, Outputs]]) -> dict[str, Any]:
        """A document's `prediction`, `reference` and `scores`."""

    def collator(self, reader: Reader) -> Collator:
        """The collator: a row is a piece already."""
        return PieceCollator(self.tokenizer, lambda piece: [piece])

    def rows(self, examples: datasets.Dataset, reader: Reader, train: bool = False) -> datasets.Dataset:
        """A row for every piece of every document; the first alone where the strategy truncates."""
        return cut_pieces(examples, lambda example: self.pieces(example, reader))

    def predict(self, model: nn.Module, examples: datasets.Dataset, reader: Reader) -> list[dict[str, Any]]:
        """For each document what is predicted and true, and the scores."""
        read = read_pieces(model, self.rows(examples, reader), self.collator(reader), self.batch_size)
        return [
            {"id": example["id"], **self.decide(example, pieces)}
            for example, pieces in zip(examples, read, strict=True)
        ]
