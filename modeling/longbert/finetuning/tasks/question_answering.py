"""Questions to spans of a context that may be longer than what is read at once.

A context is read in windows that overlap by `stride`; the answer is the best span over all of them. Under an attention
window the question's tokens are global.
"""

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from ...arguments import described
from ...data.batches import Collator, Key
from ...data.masking import collate, second_segment
from ...folders import resolve_path
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForQuestionAnswering
from ...source import Source
from ..examples import ExampleArguments, read_examples, refuse_empty
from ..metrics import Figures, SpanMetric
from ..report import decided_within
from ..strategies import Strategy, marks_of_first, read_windows, window_rows, window_starts
from .task import Task


@dataclass(kw_only=True)
class QuestionAnsweringArguments(ExampleArguments):
    """What the examples hold, and how an answer is chosen. SQuAD's own json needs no columns."""

    question_column: str = described("question", "column of the questions")
    context_column: str = described("context", "column of the contexts")
    answers_column: str = described("answers", "column of {text: [...], answer_start: [...]}, empty for no answer")
    merge_articles: bool = described(False, "SQuAD's json: all paragraphs of an article are one context")
    stride: int = described(128, "tokens that neighbouring pieces of a long context share")
    max_answer_length: int = described(30, "tokens of the longest answer")
    n_best: int = described(5, "answers kept in predictions")
    null_threshold: float = described(
        0.0, "say that there is no answer if its score beats the best span's by more than this"
    )


def read_questions(path: str, arguments: QuestionAnsweringArguments) -> datasets.Dataset:
    """Read SQuAD's json, or a file with columns, as `id`, `question`, `context`, `answers`."""
    resolved = resolve_path(path)
    if resolved.endswith(".json"):
        content = json.loads(Path(resolved).read_text("utf-8"))
        if isinstance(content, dict) and "data" in content:
            return datasets.Dataset.from_list(list(_squad(content["data"], arguments.merge_articles)))
    names = ("question", "context", "answers")
    columns = {name: getattr(arguments, f"{name}_column") for name in names}
    return read_examples(path, {**columns, "id": arguments.id_column, "group": arguments.group_column})


def _squad(articles: list[dict], merge: bool) -> Any:
    for article in articles:
        whole = "\n".join(paragraph["context"] for paragraph in article["paragraphs"])
        start = 0
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question["answers"]
                yield {
                    "id": str(question["id"]),
                    "group": article.get("title", ""),
                    "question": question["question"],
                    "context": whole if merge else paragraph["context"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] + start * merge for answer in answers],
                    },
                }
            start += len(paragraph["context"]) + 1


@dataclass
class QuestionCollator:
    """Micro-batches of windows; `labels` are `[windows, 2]`, the first and last token of the answer, 0 for none."""

    tokenizer: PreTrainedTokenizerBase
    strategy: Strategy
    max_length: int

    def batch(self, rows: list[dict[str, Any]], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch of windows."""
        features = [{name: torch.tensor(row[name]) for name in ("input_ids", "token_type_ids")} for row in rows]
        batch: dict[str, Any] = collate(features, self.tokenizer)
        batch["global_attention_mask"] = marks_of_first(batch["input_ids"], [row["first"] for row in rows])
        batch["labels"] = torch.tensor([[row["start"], row["end"]] for row in rows])
        batch["documents"] = [row["id"] for row in rows]
        batch["text_lengths"] = [len(row["input_ids"]) for row in rows]
        return batch


@dataclass
class QuestionAnswering(Task):
    """The task of `finetune/question_answering.py`; its settings are those of `QuestionAnsweringArguments`."""

    tokenizer: PreTrainedTokenizerBase
    stride: int = 128
    max_answer_length: int = 30
    n_best: int = 5
    null_threshold: float = 0.0
    batch_size: int = 8
    metric: Figures = field(default_factory=SpanMetric)

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, arguments: QuestionAnsweringArguments, batch_size: int
    ) -> "QuestionAnswering":
        """The task as it is set."""
        names = ("stride", "max_answer_length", "n_best", "null_threshold")
        return cls(tokenizer, batch_size=batch_size, **{name: getattr(arguments, name) for name in names})

    def encode(self, examples: datasets.Dataset) -> datasets.Dataset:
        """Tokenise.

        Raises:
            ValueError: an empty question or context, an answer that is not where it is said to be, or one longer than
                windows share, which would be cut in two.
        """
        for column in ("question", "context"):
            refuse_empty(examples, column)

        def tokens(row: dict[str, Any]) -> dict[str, Any]:
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
                if row["context"][start : start + len(text)] != text:
                    raise ValueError(
                        f"example {row['id']}: the answer {text!r} is not at character {start} of its context"
                    )
            question = self.tokenizer(row["question"], add_special_tokens=False)["input_ids"]
            context = self.tokenizer(
                row["context"], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            spans = context["offset_mapping"]
            encoded = {
                "question_ids": question,
                "context_ids": context["input_ids"],
                "begins": [begin for begin, _ in spans],
                "ends": [end for _, end in spans],
                "length": len(question) + len(context["input_ids"]) + 3,
            }
            self._refuse_cut(row | encoded)
            return encoded

        return examples.map(tokens, desc="tokenizing")

    def _refuse_cut(self, example: dict[str, Any]) -> None:
        begin, end = self._answer_tokens(example) or (0, 0)
        if end - begin >= self.stride:
            raise ValueError(
                f"example {example['id']}: its answer of {end - begin + 1} tokens is longer than the stride of "
                f"{self.stride} that pieces share, and would be cut in two: set a greater stride"
            )

    def windows(self, examples: datasets.Dataset, collator: QuestionCollator) -> datasets.Dataset:
        """A row for every window of every context; the first alone where the strategy does not pool pieces."""
        return window_rows(examples, lambda example: self._windows(example, collator))

    def _windows(self, example: dict[str, Any], collator: QuestionCollator) -> list[dict[str, Any]]:
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        question, context = example["question_ids"], example["context_ids"]
        size = collator.max_length - len(question) - 3
        starts = window_starts(collator.strategy, len(context), size, self.stride)
        begin, end = self._answer_tokens(example) or (-1, -1)
        first = len(question) + 2
        rows = []
        for start in starts:
            piece = context[start : start + size]
            inside = start <= begin and end < start + len(piece)
            rows.append(
                {
                    "id": example["id"],
                    "input_ids": [cls, *question, sep, *piece, sep],
                    "token_type_ids": [0] * first + [second_segment(self.tokenizer)] * (len(piece) + 1),
                    "first": first,
                    "piece": start,
                    "start": begin - start + first if inside else 0,
                    "end": end - start + first if inside else 0,
                    "length": first + len(piece) + 1,
                }
            )
        return rows

    @staticmethod
    def _answer_tokens(example: dict[str, Any]) -> tuple[int, int] | None:
        """The first and last context token of the first answer."""
        answers = example["answers"]
        if not answers["text"]:
            return None
        begin = answers["answer_start"][0]
        end = begin + len(answers["text"][0])
        inside = [
            index
            for index, (left, right) in enumerate(zip(example["begins"], example["ends"], strict=True))
            if left < end and right > begin
        ]
        return inside[0], inside[-1]

    def training_rows(self, examples: datasets.Dataset, collator: QuestionCollator) -> datasets.Dataset:
        """What a plan trains on."""
        return self.windows(examples, collator)

    def build(self, source: Source, strategy: Strategy) -> nn.Module:
        """A model with a span head."""
        config = source.config if strategy.extended else source.native
        return LongBertForQuestionAnswering.from_pretrained(source.path, config=config)

    def collator(self, strategy: Strategy, max_length: int, long_length: int) -> Collator:
        """What makes micro-batches.

        Raises:
            ValueError: a strategy that would tear answers apart.
        """
        if strategy.skips_middle:
            raise ValueError("head-tail would tear answers apart: strategies must be of long, truncate, chunk-pool")
        return QuestionCollator(self.tokenizer, strategy, max_length)

    def loss(
        self,
        outputs: QuestionAnsweringModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy of start and end, the mean of both; where there is no answer they are [CLS].

        The model's logits are `hidden_at_padding`, so that a window's loss does not depend on its micro-batch.
        """
        total = sum(
            F.cross_entropy(at_least_fp32(logits), target, reduction="sum")
            for logits, target in zip((outputs.start_logits, outputs.end_logits), labels.unbind(-1), strict=True)
        )
        return per_item(total, labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def predict(
        self, model: nn.Module, examples: datasets.Dataset, collator: QuestionCollator
    ) -> list[dict[str, Any]]:
        """For each example the best span over its windows, the `n_best`, and at which token the evidence begins,
        counted in question and context together."""
        read = read_windows(model, self.windows(examples, collator), collator, self.batch_size)
        return [self._decide(example, windows) for example, windows in zip(examples, read, strict=True)]

    def within(self, lines: list[dict[str, Any]], start: int, stop: int | None) -> list[dict[str, Any]]:
        """The questions whose evidence begins there."""
        return decided_within(lines, start, stop)

    def _decide(self, example: dict[str, Any], windows: list[tuple[dict, dict[str, torch.Tensor]]]) -> dict[str, Any]:
        spans = [span for row, scores in windows for span in self._spans(row, scores)]
        best = heapq.nlargest(self.n_best, spans)
        null = min(float(scores["start_logits"][0] + scores["end_logits"][0]) for _, scores in windows)
        texts = [
            {
                "text": example["context"][example["begins"][first] : example["ends"][last]],
                "score": score,
                "answer_start": example["begins"][first],
            }
            for score, first, last in best
        ]
        answered = bool(best) and null - best[0][0] <= self.null_threshold
        answer = self._answer_tokens(example)
        return {
            "id": example["id"],
            "prediction": texts[0]["text"] if answered else "",
            "reference": list(example["answers"]["text"]),
            "scores": {"no answer": null, "n_best": texts},
            "evidence": None if answer is None else len(example["question_ids"]) + 2 + answer[0],
        }

    def _spans(self, row: dict[str, Any], scores: dict[str, torch.Tensor]) -> list[tuple[float, int, int]]:
        """(score, first, last context token) of the best spans of a window."""
        first, last = row["first"], len(row["input_ids"]) - 1
        starts, ends = (scores[name][first:last] for name in ("start_logits", "end_logits"))
        count = min(4 * self.n_best, len(starts))
        found = []
        for start in starts.topk(count).indices.tolist():
            reach = ends[start : start + self.max_answer_length]
            end = start + int(reach.argmax())
            found.append((float(starts[start] + ends[end]), row["piece"] + start, row["piece"] + end))
        return found
