"""The right one of several choices, by a context that may be longer than BERT reads.

A choice is read as [CLS] question choice [SEP] context [SEP]: the order of SQuAD, and of Longformer's multiple choice
(Beltagy et al. 2020, arXiv 2004.05150, section 6), so that question and choice stand where the source was trained
however long the context is, and in every piece of it. Under an attention window they are global. BERT itself read
SWAG and RACE the other way round, which makes no difference at 512 tokens.

An example is as many rows as it has choices, and examples must have the same number of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import MultipleChoiceModelOutput

from ...arguments import described
from ...data.batches import Collator, Key
from ...data.features import PAIR_FRAME, framed
from ...data.files import is_missing
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForMultipleChoice
from ..examples.labels import MissingValueError, as_list, label_text
from ..examples.reading import ExampleArguments, as_text, named_columns, place_of, read_examples
from ..pieces import Outputs, PieceCollator, Row
from ..results.metrics import ChoiceMetric, Figures
from ..strategies import Reader
from .task import DocumentTask


@dataclass(kw_only=True)
class MultipleChoiceArguments(ExampleArguments):
    """What the examples hold."""

    context_column: str = described("context", "column of the contexts")
    question_column: str | None = described(None, "column of the questions; by default choices complete the context")
    choices_column: str = described("choices", "column of the choices, a list of texts")
    label_column: str = described(
        "label", "column of the right choice: its number, from 0 on, or its letter, from A on"
    )


def read_choices(path: str, arguments: MultipleChoiceArguments) -> datasets.Dataset:
    """Read a file of examples as `id`, `place`, `context`, `choices`, `label` and, where there are any, `question`."""
    names = ("context", "question", "choices", "label")
    columns = {**{name: getattr(arguments, f"{name}_column") for name in names}, **named_columns(arguments)}

    def parse(values: dict[str, Any]) -> dict[str, Any]:
        if is_missing(values["choices"]):
            raise MissingValueError("no choices")
        choices = as_list(values["choices"])
        if not isinstance(choices, list | tuple) or len(choices) < 2:
            raise ValueError(f"choices must be a list of at least two, got {values['choices']!r:.80}")
        texts: dict[str, Any] = {
            name: as_text(values[name], name) for name in ("context", "question") if name in values
        }
        named = [as_text(choice, "choice") for choice in choices]
        return {**texts, "choices": named, "label": choice_number(values["label"], len(named))}

    return read_examples(path, columns, parse, arguments)


def choice_number(label: Any, choices: int) -> int:
    """The number of the right choice, given as a number or a letter.

    Raises:
        MissingValueError: no choice is named.
        ValueError: there is no such choice.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:choices]
    text = label_text(label).upper()
    if len(text) == 1 and text in letters:
        return letters.index(text)
    if text.isdecimal() and int(text) < choices:
        return int(text)
    raise ValueError(
        f"the label is {label!r}: the right one of {choices} choices is given as 0 to {choices - 1}, or as A to "
        f"{letters[-1]}"
    )


class ChunkPoolForMultipleChoice(LongBertForMultipleChoice):
    """Reads pieces of the context apart; a choice's score is the best of its pieces'.

    The evidence lies in one of them (MaxP of Dai and Callan 2019, arXiv 1905.09217, section 3).
    """

    _auto_class = None  # a baseline, not one of the classes that travel to the Hub

    def forward(self, owner: torch.LongTensor, **kwargs: Any) -> MultipleChoiceModelOutput:
        """As `BertForMultipleChoice.forward`, over pieces `[pieces, choices, seq_length]`.

        Args:
            owner: `[pieces]`, the number of the example, from 0 on, that a piece is of.
        """
        scores = super().forward(**kwargs).logits
        best = scores.new_zeros(int(owner[-1]) + 1, scores.shape[1])
        index = owner[:, None].expand_as(scores)
        return MultipleChoiceModelOutput(logits=best.scatter_reduce(0, index, scores, "amax", include_self=False))


class ChoiceCollator(PieceCollator):
    """Micro-batches `[pieces, choices, seq_length]`: a piece is read with every choice."""

    def batch(self, rows: list[Row], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch; `owner` says which example a piece is of."""
        batch, choices = super().batch(rows, keys), len(rows[0]["choice_ids"])
        if self.pooled:
            batch["owner"] = batch["owner"][::choices]
        inputs = {"input_ids", "token_type_ids", "attention_mask", "global_attention_mask"} & {*batch}
        return {**batch, **{name: batch[name].unflatten(0, (-1, choices)) for name in inputs}}


@dataclass
class MultipleChoice(DocumentTask):
    """The task of `finetune/multiple_choice.py`."""

    model_class = LongBertForMultipleChoice
    pooling_model_class = ChunkPoolForMultipleChoice

    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 8
    metric: Figures = field(default_factory=ChoiceMetric)

    def tokenize(self, examples: datasets.Dataset, at_once: int) -> datasets.Dataset:
        """Tokenize, question and choice together, and turn labels into numbers.

        Raises:
            ValueError: not as many choices as the others have, or a question and choice that leave no room for the
                context.
        """
        self._refuse_choices(examples)

        def tokens(row: dict[str, Any]) -> dict[str, Any]:
            texts = [" ".join(filter(None, (row.get("question"), choice))) for choice in row["choices"]]
            choice_ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            context_ids = self.tokenizer(row["context"], add_special_tokens=False, verbose=False)["input_ids"]
            taken = max(map(len, choice_ids)) + PAIR_FRAME
            if taken >= at_once:
                raise ValueError(
                    f"{place_of(row)}: its question and choice have {taken - PAIR_FRAME} tokens, which leaves no "
                    f"room for the context in {at_once} tokens, what is read at once: shorten them, or leave "
                    "out the strategies that read no more than that"
                )
            return {
                "id": row["id"],
                "context_ids": context_ids,
                "choice_ids": choice_ids,
                "target": row["label"],
                "length": len(context_ids) + taken,
            }

        return examples.map(tokens, remove_columns=examples.column_names, desc="tokenizing")

    @staticmethod
    def _refuse_choices(examples: datasets.Dataset) -> None:
        number = len(examples[0]["choices"])
        for row in examples.select_columns([name for name in ("id", "place", "choices") if name in examples.features]):
            if len(row["choices"]) != number:
                raise ValueError(
                    f"{place_of(row)} has {len(row['choices'])} choices, others have {number}: all examples must have "
                    "the same number, so leave some out or add wrong ones"
                )

    def collator(self, reader: Reader) -> Collator:
        """The collator: cuts contexts into pieces and reads each with every choice."""
        return ChoiceCollator(self.tokenizer, lambda row: self.pieces(row, reader), reader.strategy.pooled)

    def pieces(self, example: Row, reader: Reader) -> list[Row]:
        """For every piece of the context its features with each choice; pieces are as long as the longest choice
        leaves room for."""
        taken = max(map(len, example["choice_ids"])) + PAIR_FRAME
        until = reader.in_all - taken if reader.strategy.pooled else None
        return [
            {**framed(self.tokenizer, choice, piece), "first": len(choice) + 2}
            for piece in reader.strategy.read(example["context_ids"][:until], reader.at_once - taken)
            for choice in example["choice_ids"]
        ]

    def loss(
        self,
        outputs: MultipleChoiceModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy over the choices of an example."""
        total = F.cross_entropy(at_least_fp32(outputs.logits), labels, reduction="sum")
        return per_item(total, labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def decide(self, example: Row, outputs: Outputs) -> dict[str, Any]:
        """The number of the choice with the best score, of the right one, and all probabilities."""
        return {
            "prediction": int(outputs["logits"].argmax(-1)),
            "reference": example["target"],
            "scores": outputs["logits"].softmax(-1).tolist(),
        }
