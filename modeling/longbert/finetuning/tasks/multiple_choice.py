"""The right one of several choices, by a context that may be longer than BERT reads.

A choice is read as [CLS] question choice [SEP] context [SEP]: the order of SQuAD, and of Longformer's multiple choice
(Beltagy et al. 2020, arXiv 2004.05150, section 6), so that question and choice stand where the source was trained
however long the context is, and in every window of it. Under an attention window they are global. BERT itself read
SWAG and RACE the other way round, which makes no difference at 512 tokens.

An example is as many rows as it has choices, and examples must have the same number of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import MultipleChoiceModelOutput

from ...arguments import described
from ...data.batches import Collator, Key
from ...data.masking import collate, second_segment
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForMultipleChoice
from ...source import Source
from ..examples import ExampleArguments, read_examples, refuse_empty
from ..loop import FinetuningArguments, length_at_once
from ..metrics import ChoiceMetric, Figures
from ..strategies import STRATEGIES, Strategy, marks_of_first, read_rows
from .task import Task


PAIR_FRAME = 3  # [CLS], [SEP] and [SEP]


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
    """Read a file of examples as `id`, `context`, `choices`, `label` and, where there are any, `question`."""
    names = ("context", "question", "choices", "label")
    columns = {name: getattr(arguments, f"{name}_column") for name in names}
    return read_examples(path, {**columns, "id": arguments.id_column, "group": arguments.group_column})


def choice_number(example: str, label: Any, choices: int) -> int:
    """The number of the right choice, given as a number or a letter.

    Raises:
        ValueError: there is no such choice.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:choices]
    text = str(label).strip().upper()
    if len(text) == 1 and text in letters:
        return letters.index(text)
    if text.isdecimal() and int(text) < choices:
        return int(text)
    raise ValueError(
        f"example {example} has the label {label!r}: the right one of its {choices} choices is given as 0 to "
        f"{choices - 1}, or as A to {letters[-1]}"
    )


class ChunkPoolForMultipleChoice(LongBertForMultipleChoice):
    """Reads windows of the context apart; a choice's score is the best of its windows'.

    The evidence lies in one of them (MaxP of Dai and Callan 2019, arXiv 1905.09217, section 3).
    """

    _auto_class = None  # a baseline, not one of the classes that travel to the Hub

    def forward(self, owner: torch.LongTensor, **kwargs: Any) -> MultipleChoiceModelOutput:
        """As `BertForMultipleChoice.forward`, over windows `[windows, choices, seq_length]`.

        Args:
            owner: `[windows]`, the number of the example, from 0 on, that a window is of.
        """
        scores = super().forward(**kwargs).logits
        best = scores.new_zeros(int(owner[-1]) + 1, scores.shape[1])
        index = owner[:, None].expand_as(scores)
        return MultipleChoiceModelOutput(logits=best.scatter_reduce(0, index, scores, "amax", include_self=False))


@dataclass
class ChoiceCollator:
    """Micro-batches of tokenised examples, `[examples, choices, seq_length]`.

    Args:
        max_length: tokens read at once.
        long_length: tokens that pooled windows have in all, at most.
    """

    tokenizer: PreTrainedTokenizerBase
    strategy: Strategy
    max_length: int
    long_length: int

    def batch(self, rows: list[dict[str, Any]], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch; where windows are pooled they stand for examples, and `owner` says whose each is."""
        pieces = [self._pieces(row) for row in rows]
        pairs = [
            (choice, piece)
            for row, some in zip(rows, pieces, strict=True)
            for piece in some
            for choice in row["choice_ids"]
        ]
        features = [self._features(*pair) for pair in pairs]
        tensors = collate(features, self.tokenizer)
        firsts = [len(choice) + 2 for choice, _ in pairs]
        tensors["global_attention_mask"] = marks_of_first(tensors["input_ids"], firsts)
        choices = len(rows[0]["choice_ids"])
        batch: dict[str, Any] = {name: tensor.unflatten(0, (-1, choices)) for name, tensor in tensors.items()}
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        if self.strategy.pooled:
            batch["owner"] = torch.tensor([number for number, some in enumerate(pieces) for _ in some])
        batch["documents"] = [row["id"] for row in rows]
        batch["text_lengths"] = [len(feature["input_ids"]) for feature in features]
        return batch

    def _pieces(self, row: dict[str, Any]) -> list[list[int]]:
        """The pieces of the context that are read, the same for every choice, as long as the longest choice leaves
        room for."""
        taken = max(map(len, row["choice_ids"])) + PAIR_FRAME
        until = self.long_length - taken if self.strategy.pooled else None
        return self.strategy.read(row["context_ids"][:until], self.max_length - taken)

    def _features(self, first: list[int], second: list[int]) -> dict[str, torch.Tensor]:
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return {
            "input_ids": torch.tensor([cls, *first, sep, *second, sep]),
            "token_type_ids": torch.tensor(
                [0] * (len(first) + 2) + [second_segment(self.tokenizer)] * (len(second) + 1)
            ),
        }


@dataclass
class MultipleChoice(Task):
    """The task of `finetune/multiple_choice.py`.

    Args:
        shortest: tokens that a strategy of the run reads at once, at least.
    """

    tokenizer: PreTrainedTokenizerBase
    shortest: int
    batch_size: int = 8
    metric: Figures = field(default_factory=ChoiceMetric)

    @classmethod
    def of(cls, source: Source, run_args: FinetuningArguments, batch_size: int) -> "MultipleChoice":
        """The task of a run."""
        lengths = [length_at_once(STRATEGIES[name], source, run_args) for name in run_args.strategies]
        return cls(source.tokenizer, min(lengths), batch_size)

    def encode(self, examples: datasets.Dataset) -> datasets.Dataset:
        """Tokenise, question and choice together, and turn labels into numbers.

        Raises:
            ValueError: an empty text, fewer than two choices or not as many as the others have, a label that is none
                of them, or a question and choice that leave no room for the context.
        """
        for column in {"context", "question"} & {*examples.column_names}:
            refuse_empty(examples, column)
        self._refuse_choices(examples)

        def tokens(row: dict[str, Any]) -> dict[str, Any]:
            texts = [" ".join(filter(None, (row.get("question"), choice))) for choice in row["choices"]]
            choice_ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            context_ids = self.tokenizer(row["context"], add_special_tokens=False, verbose=False)["input_ids"]
            taken = max(map(len, choice_ids)) + PAIR_FRAME
            if taken >= self.shortest:
                raise ValueError(
                    f"example {row['id']}: its question and choice have {taken - PAIR_FRAME} tokens, which leaves no "
                    f"room for the context in {self.shortest} tokens, what is read at once: shorten them, or leave "
                    "out the strategies that read no more than that"
                )
            return {
                "id": row["id"],
                "context_ids": context_ids,
                "choice_ids": choice_ids,
                "label": choice_number(row["id"], row["label"], len(choice_ids)),
                "length": len(context_ids) + taken,
            }

        return examples.map(tokens, remove_columns=examples.column_names, desc="tokenizing")

    @staticmethod
    def _refuse_choices(examples: datasets.Dataset) -> None:
        number: int | None = None
        for name, choices in zip(examples["id"], examples["choices"], strict=True):
            if not isinstance(choices, list) or len(choices) < 2:
                raise ValueError(f"example {name} must have a list of at least two choices, got {choices!r}")
            if any(not isinstance(choice, str) or not choice.strip() for choice in choices):
                raise ValueError(f"example {name} has an empty choice: {choices!r}")
            number = number or len(choices)
            if len(choices) != number:
                raise ValueError(
                    f"example {name} has {len(choices)} choices, others have {number}: all examples must have the "
                    "same number, so leave some out or add wrong ones"
                )

    def build(self, source: Source, strategy: Strategy) -> nn.Module:
        """A model that scores choices."""
        config = source.config if strategy.extended else source.native
        model_class = ChunkPoolForMultipleChoice if strategy.pooled else LongBertForMultipleChoice
        return model_class.from_pretrained(source.path, config=config)

    def collator(self, strategy: Strategy, max_length: int, long_length: int) -> Collator:
        """What makes micro-batches."""
        return ChoiceCollator(self.tokenizer, strategy, max_length, long_length)

    def loss(
        self,
        outputs: MultipleChoiceModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy over the choices of an example."""
        total = F.cross_entropy(at_least_fp32(outputs.logits), labels, reduction="sum")
        return per_item(total, labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def predict(self, model: nn.Module, examples: datasets.Dataset, collator: Collator) -> list[dict[str, Any]]:
        """For each example the number of the choice with the best score, of the right one, and all probabilities."""
        return [
            {
                "id": row["id"],
                "prediction": int(outputs["logits"].argmax(-1)),
                "reference": row["label"],
                "scores": outputs["logits"].softmax(-1).tolist(),
            }
            for row, outputs in read_rows(model, examples, collator, self.batch_size)
        ]
