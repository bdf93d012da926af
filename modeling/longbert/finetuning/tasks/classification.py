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
from ...configuration_longbert import LongBertConfig
from ...data.features import FRAME, framed
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForSequenceClassification
from ..examples import ExampleArguments, Split, infer_labels, label_index, read_examples, refuse_empty, with_labels
from ..metrics import Figures, MultiLabelMetric, RegressionMetric, SingleLabelMetric
from ..pieces import Outputs, Row
from ..strategies import Reader
from .task import DocumentTask


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


@dataclass
class Classification(DocumentTask):
    """The task of `finetune/classification.py`.

    Args:
        labels: their names in the order of their numbers; for regression one, of the figure.
    """

    model_class = LongBertForSequenceClassification
    pooling_model_class = ChunkPoolForSequenceClassification

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

    def tokenize(self, examples: datasets.Dataset, at_once: int) -> datasets.Dataset:
        """Tokenize, and turn labels into numbers.

        Raises:
            ValueError: an empty text, or a label that the training set does not have.
        """
        refuse_empty(examples, "text")

        def numbers(batch: dict[str, list]) -> dict[str, list]:
            ids = self.tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
            targets = [self.target(*pair) for pair in zip(batch["id"], batch["label"], strict=True)]
            lengths = [len(document) + FRAME for document in ids]
            return {"id": batch["id"], "input_ids": ids, "target": targets, "length": lengths}

        return examples.map(numbers, batched=True, remove_columns=examples.column_names, desc="tokenizing")

    def target(self, example: str, value: Any) -> int | float | list[float]:
        """A label as the loss takes it."""
        if self.problem_type == "regression":
            return float(value)
        if self.problem_type == "single_label_classification":
            return label_index(self.labels, example, value)
        chosen = {label_index(self.labels, example, label) for label in value}
        return [float(number in chosen) for number in range(len(self.labels))]

    def configure(self, config: LongBertConfig) -> LongBertConfig:
        """With labels, and the problem that sets the loss."""
        config = with_labels(config, self.labels)
        config.problem_type = self.problem_type
        return config

    def pieces(self, example: Row, reader: Reader) -> list[Row]:
        """The features of the pieces that a document is read in."""
        until = reader.in_all if reader.strategy.pooled else None
        pieces = reader.strategy.read(example["input_ids"][:until], reader.at_once - FRAME)
        return [framed(self.tokenizer, piece) for piece in pieces]

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

    def decide(self, example: Row, outputs: Outputs) -> dict[str, Any]:
        """What is predicted and true, and a score for every label."""
        logits, target = outputs["logits"], example["target"]
        if self.problem_type == "regression":
            figure = float(logits[0])
            return {"prediction": figure, "reference": target, "scores": {"value": figure}}
        if self.problem_type == "single_label_classification":
            scores, prediction = logits.softmax(-1), int(logits.argmax(-1))
            return {"prediction": prediction, "reference": target, "scores": self._named(scores)}
        scores = logits.sigmoid()
        chosen = (scores > 0.5).long().tolist()
        return {"prediction": chosen, "reference": list(map(int, target)), "scores": self._named(scores)}

    def named(self, prediction: Any) -> Any:
        """A prediction in labels: one, those of several that are chosen, or the figure itself."""
        if self.problem_type == "regression":
            return prediction
        if self.problem_type == "single_label_classification":
            return self.labels[prediction]
        return [label for label, chosen in zip(self.labels, prediction, strict=True) if chosen]

    def _named(self, scores: torch.Tensor) -> dict[str, float]:
        return dict(zip(self.labels, scores.tolist(), strict=True))
