"""Documents to labels: one of several, any of several, or a number."""

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
from ...source import Source
from ..examples.labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    agree_on_labels,
    are_multi_hot,
    as_number,
    infer_labels,
    infer_problem_type,
    label_index,
    listed,
    read_label,
    refuse_thousands,
    with_labels,
)
from ..examples.reading import ExampleArguments, as_text, named_columns, read_examples
from ..examples.splits import Split
from ..pieces import Outputs, Row
from ..results.metrics import Figures, MultiLabelMetric, RegressionMetric, SingleLabelMetric
from ..strategies import Reader
from .task import DocumentTask


@dataclass(kw_only=True)
class ClassificationArguments(ExampleArguments):
    """What the examples hold."""

    text_column: str = described("text", "column of the documents")
    label_column: str = described(
        "label", "column of the labels: one, a list of them, a number, or a vector of 0 and 1"
    )
    label_separator: str | None = described(None, "between the labels of a cell that names several, such as ;")
    problem_type: str | None = described(None, f"{SINGLE}, {MULTI} or {REGRESSION}; by default as the labels look")


def read_documents(path: str, arguments: ClassificationArguments) -> datasets.Dataset:
    """Read a file of examples as `id`, `place`, `text`, `label`: a text, or a list of them."""
    columns = {"text": arguments.text_column, "label": arguments.label_column, **named_columns(arguments)}
    cells = []

    def parse(values: dict[str, Any]) -> dict[str, Any]:
        label = read_label(values["label"], arguments.label_separator)
        cells.append(values["label"])
        return {"text": as_text(values["text"], "text"), "label": label}

    examples = read_examples(path, columns, parse, arguments)
    try:
        refuse_thousands(cells)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return examples


def targets_of(examples: datasets.Dataset, problem_type: str | None) -> list[Any]:
    """What is spread evenly over training and test: the labels, or the numbers of a regression."""
    labels = examples["label"][:]
    if (problem_type or infer_problem_type(labels, examples["place"][:])) == REGRESSION:
        return [as_number(label) or 0.0 for label in labels]
    return labels


VECTOR = {"0": 0, "1": 1, "false": 0, "true": 1}  # what a vector of labels holds
METRICS: dict[str, type[Figures]] = {
    SINGLE: SingleLabelMetric,
    MULTI: MultiLabelMetric,
    REGRESSION: RegressionMetric,
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


@dataclass
class Classification(DocumentTask):
    """The task of `finetune/classification.py`.

    Args:
        labels: their names in the order of their numbers; for regression one, of the figure.
        multi_hot: the examples have vectors of 0 and 1, one number for each label.
    """

    model_class = LongBertForSequenceClassification
    pooling_model_class = ChunkPoolForSequenceClassification

    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    problem_type: str
    batch_size: int = 8
    keeps_head: bool = True
    multi_hot: bool = False
    metric: Figures = field(init=False)

    def __post_init__(self) -> None:
        if self.problem_type not in METRICS:
            raise ValueError(f"problem_type must be one of {', '.join(METRICS)}, got {self.problem_type!r}")
        self.metric = METRICS[self.problem_type]()

    @classmethod
    def of(cls, source: Source, splits: list[Split], problem_type: str | None, batch_size: int) -> "Classification":
        """The task of some examples: labels are those of all training sets, in the order of the source's own head, if
        it has one that knows them."""
        values = [value for split in splits for value in split.train["label"]]
        problem_type = problem_type or infer_problem_type(values)
        known = source.labels(cls.model_class)
        if problem_type == REGRESSION:
            print(f"{problem_type}: the labels are numbers")
            labels, keeps_head = agree_on_labels(known, ["value"], by_number=True)
            return cls(source.tokenizer, labels, problem_type, batch_size, keeps_head)
        multi_hot = problem_type == MULTI and are_multi_hot(values)
        found = [f"LABEL_{number}" for number in range(len(values[0]))] if multi_hot else infer_labels(values)
        labels, keeps_head = agree_on_labels(known, found, by_number=multi_hot)
        print(f"{problem_type} of {len(labels):,} labels: {listed(labels)}")
        return cls(source.tokenizer, labels, problem_type, batch_size, keeps_head, multi_hot)

    def tokenize(self, examples: datasets.Dataset, at_once: int) -> datasets.Dataset:
        """Tokenize, and turn labels into numbers.

        Raises:
            ValueError: a label that the training set does not have, or one that is no number in a regression.
        """

        def numbers(batch: dict[str, list]) -> dict[str, list]:
            ids = self.tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
            places = batch.get("place") or [f"example {name}" for name in batch["id"]]
            targets = [self.target(*pair) for pair in zip(places, batch["label"], strict=True)]
            lengths = [len(document) + FRAME for document in ids]
            return {"id": batch["id"], "input_ids": ids, "target": targets, "length": lengths}

        return examples.map(numbers, batched=True, remove_columns=examples.column_names, desc="tokenizing")

    def target(self, place: str, label: str | list[str]) -> int | float | list[float]:
        """A label as the loss takes it.

        Raises:
            ValueError: it does not fit the problem, or is not one of those seen in training.
        """
        if isinstance(label, list) != (self.problem_type == MULTI):
            wanted = "a list of labels" if self.problem_type == MULTI else "one label"
            raise ValueError(f"{place} has the label {label!r}: {self.problem_type} needs {wanted} in every row")
        if isinstance(label, list):
            return self._vector(place, label)
        if self.problem_type == SINGLE:
            return label_index(self.labels, place, label)
        number = as_number(label)
        if number is None:
            raise ValueError(f"{place} has the label {label!r}: {REGRESSION} needs a number in every row")
        return number

    def _vector(self, place: str, labels: list[str]) -> list[float]:
        """0 or 1 for each label."""
        if not self.multi_hot:
            chosen = {label_index(self.labels, place, label) for label in labels}
            return [float(number in chosen) for number in range(len(self.labels))]
        numbers = [VECTOR.get(label) for label in labels]
        if len(labels) != len(self.labels) or None in numbers:
            raise ValueError(
                f"{place} has the label {labels}: others have a vector of {len(self.labels)} numbers, 0 or 1 each"
            )
        return [float(number) for number in numbers if number is not None]

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
        if self.problem_type == SINGLE:
            total = F.cross_entropy(logits, labels, reduction="sum")
        elif self.problem_type == MULTI:
            total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        else:
            total = F.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="sum")
        return per_item(total, labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def decide(self, example: Row, outputs: Outputs) -> dict[str, Any]:
        """What is predicted and true, and a score for every label."""
        logits, target = outputs["logits"], example["target"]
        if self.problem_type == REGRESSION:
            figure = float(logits[0])
            return {"prediction": figure, "reference": target, "scores": {"value": figure}}
        if self.problem_type == SINGLE:
            scores, prediction = logits.softmax(-1), int(logits.argmax(-1))
            return {"prediction": prediction, "reference": target, "scores": self._named(scores)}
        scores = logits.sigmoid()
        chosen = (scores > 0.5).long().tolist()
        return {"prediction": chosen, "reference": list(map(int, target)), "scores": self._named(scores)}

    def named(self, prediction: Any) -> Any:
        """A prediction in labels: one, those of several that are chosen, or the figure itself."""
        if self.problem_type == REGRESSION:
            return prediction
        if self.problem_type == SINGLE:
            return self.labels[prediction]
        return [label for label, chosen in zip(self.labels, prediction, strict=True) if chosen]

    def _named(self, scores: torch.Tensor) -> dict[str, float]:
        return dict(zip(self.labels, scores.tolist(), strict=True))
