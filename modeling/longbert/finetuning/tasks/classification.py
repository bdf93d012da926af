"""Documents to labels: one of several, any of several, or a number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from ...arguments import described
from ...data.batches import Collator, Key
from ...data.masking import collate
from ...data.rows import FRAME
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForSequenceClassification
from ...source import Source
from ..examples import ExampleArguments, Split, infer_labels, label_index, read_examples, refuse_empty, with_labels
from ..metrics import Figures, MultiLabelMetric, RegressionMetric, SingleLabelMetric
from ..strategies import ChunkPoolForSequenceClassification, Strategy, read_rows
from .task import Task


@dataclass(kw_only=True)
class ClassificationArguments(ExampleArguments):
    """What the examples hold."""

    text_column: str = described("text", "column of the documents")
    label_column: str = described("label", "column of the labels: one, a list of them, or a number")
    problem_type: str | None = described(
        None, "single_label_classification, multi_label_classification or regression; by default as the labels look"
    )


def read_documents(path: str, arguments: ClassificationArguments) -> datasets.Dataset:
    """Read a file of examples as `id`, `text`, `label`."""
    columns = {"text": arguments.text_column, "label": arguments.label_column}
    return read_examples(path, {**columns, "id": arguments.id_column, "group": arguments.group_column})


METRICS: dict[str, type[Figures]] = {
    "single_label_classification": SingleLabelMetric,
    "multi_label_classification": MultiLabelMetric,
    "regression": RegressionMetric,
}


def infer_problem_type(values: Sequence[Any]) -> str:
    """Lists are several labels, numbers with a fraction are regression, anything else is one label."""
    if all(isinstance(value, list) for value in values):
        return "multi_label_classification"
    if any(isinstance(value, float) and value != int(value) for value in values):
        return "regression"
    return "single_label_classification"


@dataclass
class ClassificationCollator:
    """Micro-batches of tokenised examples with `label`.

    Args:
        max_length: tokens of a piece.
        long_length: tokens that pooled pieces have in all, at most.
    """

    tokenizer: PreTrainedTokenizerBase
    strategy: Strategy
    max_length: int
    long_length: int

    def batch(self, rows: list[dict[str, Any]], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch; where pieces are pooled, `owner` says whose each is."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        until = self.long_length if self.strategy.pooled else None
        pieces = [self.strategy.read(row["input_ids"][:until], self.max_length - FRAME) for row in rows]
        framed = [{"input_ids": torch.tensor([cls, *piece, sep])} for some in pieces for piece in some]
        batch: dict[str, Any] = collate(framed, self.tokenizer)
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        if self.strategy.pooled:
            batch["owner"] = torch.tensor([number for number, some in enumerate(pieces) for _ in some])
        batch["documents"] = [row["id"] for row in rows]
        batch["text_lengths"] = [len(feature["input_ids"]) for feature in framed]
        return batch


@dataclass
class Classification(Task):
    """The task of `finetune/classification.py`.

    Args:
        labels: their names in the order of their numbers; for regression one, of the figure.
    """

    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    problem_type: str
    batch_size: int = 8
    metric: Figures = field(init=False)

    def __post_init__(self) -> None:
        if self.problem_type not in METRICS:
            raise ValueError(f"problem_type must be one of {', '.join(METRICS)}, got {self.problem_type!r}")
        self.metric = METRICS[self.problem_type]()

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, splits: list[Split], problem_type: str | None, batch_size: int
    ) -> "Classification":
        """The task of some examples: labels are those of all training sets."""
        values = [value for split in splits for value in split.train["label"]]
        problem_type = problem_type or infer_problem_type(values)
        labels = ["value"] if problem_type == "regression" else infer_labels(values)
        return cls(tokenizer, labels, problem_type, batch_size)

    def encode(self, examples: datasets.Dataset) -> datasets.Dataset:
        """Tokenise, and turn labels into numbers.

        Raises:
            ValueError: an empty text, or a label that the training set does not have.
        """
        refuse_empty(examples, "text")

        def numbers(batch: dict[str, list]) -> dict[str, list]:
            ids = self.tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
            targets = [self.target(*pair) for pair in zip(batch["id"], batch["label"], strict=True)]
            lengths = [len(document) + FRAME for document in ids]
            return {"id": batch["id"], "input_ids": ids, "label": targets, "length": lengths}

        return examples.map(numbers, batched=True, remove_columns=examples.column_names, desc="tokenizing")

    def target(self, example: str, value: Any) -> int | float | list[float]:
        """A label as the loss takes it."""
        if self.problem_type == "regression":
            return float(value)
        if self.problem_type == "single_label_classification":
            return label_index(self.labels, example, value)
        chosen = {label_index(self.labels, example, label) for label in value}
        return [float(number in chosen) for number in range(len(self.labels))]

    def build(self, source: Source, strategy: Strategy) -> nn.Module:
        """A classifier on the source's encoder."""
        config = with_labels(source.config if strategy.extended else source.native, self.labels)
        config.problem_type = self.problem_type
        model_class = ChunkPoolForSequenceClassification if strategy.pooled else LongBertForSequenceClassification
        return model_class.from_pretrained(source.path, config=config)

    def collator(self, strategy: Strategy, max_length: int, long_length: int) -> Collator:
        """What makes micro-batches."""
        return ClassificationCollator(self.tokenizer, strategy, max_length, long_length)

    def loss(
        self,
        outputs: SequenceClassifierOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy, its binary form for every label, or the squared error."""
        logits = at_least_fp32(outputs.logits)
        if self.problem_type == "single_label_classification":
            total = F.cross_entropy(logits, labels, reduction="sum")
        elif self.problem_type == "multi_label_classification":
            total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        else:
            total = F.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="sum")
        return per_item(total, labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def predict(self, model: nn.Module, examples: datasets.Dataset, collator: Collator) -> list[dict[str, Any]]:
        """For each example what is predicted and true, and a score for every label."""
        return [
            {"id": row["id"], **self.decide(outputs["logits"]), "reference": self.plain(row["label"])}
            for row, outputs in read_rows(model, examples, collator, self.batch_size)
        ]

    def decide(self, logits: torch.Tensor) -> dict[str, Any]:
        """The prediction of one document, as the metric takes it, and its `scores`."""
        if self.problem_type == "regression":
            return {"prediction": float(logits[0]), "scores": {"value": float(logits[0])}}
        if self.problem_type == "single_label_classification":
            scores, prediction = logits.softmax(-1), int(logits.argmax(-1))
            return {"prediction": prediction, "scores": self._named(scores)}
        scores = logits.sigmoid()
        return {"prediction": (scores > 0.5).long().tolist(), "scores": self._named(scores)}

    def named(self, prediction: Any) -> Any:
        """A prediction in labels: one, those of several that are chosen, or the figure itself."""
        if self.problem_type == "regression":
            return prediction
        if self.problem_type == "single_label_classification":
            return self.labels[prediction]
        return [label for label, chosen in zip(self.labels, prediction, strict=True) if chosen]

    def plain(self, label: Any) -> Any:
        """A target as the metric takes it."""
        return list(map(int, label)) if self.problem_type == "multi_label_classification" else label

    def _named(self, scores: torch.Tensor) -> dict[str, float]:
        return dict(zip(self.labels, scores.tolist(), strict=True))
