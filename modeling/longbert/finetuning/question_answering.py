"""Questions to spans of a context that may be longer than what is read at once.

A context is read in windows that overlap by `stride`; the answer is the best span over all of them. Under an attention
window the question's tokens are global.
"""

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from ..arguments import described
from ..data.batches import Encoder, Key
from ..data.documents import resolve_path
from ..data.masking import collate
from ..modeling_longbert import LongBertForQuestionAnswering
from ..training.pretraining import Source
from .examples import ExampleArguments, Split, read_examples, refuse_empty
from .metrics import Figures, SpanMetric
from .reading import STRATEGIES, Strategy


@dataclass(kw_only=True)
class QuestionAnsweringArguments(ExampleArguments):
    """What the examples hold, and how an answer is chosen. SQuAD's own json needs no columns."""

    question_column: str = described("question", "column of the questions")
    context_column: str = described("context", "column of the contexts")
    answers_column: str = described("answers", "column of {text: [...], answer_start: [...]}, empty for no answer")
    merge_articles: bool = described(False, "SQuAD's json: all paragraphs of an article are one context")
    stride: int = described(128, "tokens that windows of a long context share")
    max_answer_length: int = described(30, "tokens of the longest answer")
    n_best: int = described(5, "answers kept in predictions")
    null_threshold: float = described(0.0, "no answer where its score is higher than the best span's by more")


def read_questions(path: str, arguments: QuestionAnsweringArguments) -> datasets.Dataset:
    """Read SQuAD's json, or a file with columns, as `id`, `question`, `context`, `answers`."""
    resolved = resolve_path(path)
    if resolved.endswith(".json"):
        content = json.loads(Path(resolved).read_text())
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
class QuestionEncoder:
    """Micro-batches of windows; `labels` are `[windows, 2]`, the first and last token of the answer, 0 for none."""

    tokenizer: PreTrainedTokenizerBase
    strategy: Strategy
    max_length: int

    def batch(self, rows: list[dict[str, Any]], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch of windows."""
        features = [{name: torch.tensor(row[name]) for name in ("input_ids", "token_type_ids")} for row in rows]
        batch: dict[str, Any] = collate(features, self.tokenizer)
        ranks = torch.arange(batch["input_ids"].shape[1])
        first = torch.tensor([row["first"] for row in rows])[:, None]
        batch["global_attention_mask"] = (ranks < first).long()
        batch["labels"] = torch.tensor([[row["start"], row["end"]] for row in rows])
        batch["documents"] = [row["id"] for row in rows]
        batch["text_lengths"] = [len(row["input_ids"]) for row in rows]
        return batch


@dataclass
class QuestionAnswering:
    """The task of `finetune/question_answering.py`."""

    tokenizer: PreTrainedTokenizerBase
    arguments: QuestionAnsweringArguments
    batch_size: int = 8
    metric: Figures = field(default_factory=SpanMetric)

    def prepare(self, split: Split) -> Split:
        """Tokenise.

        Raises:
            ValueError: an empty question or context, or an answer that is not where it is said to be.
        """
        parts = (self._prepare(examples) for examples in (split.train, split.validation, split.test))
        return Split(split.name, *parts)

    def _prepare(self, examples: datasets.Dataset) -> datasets.Dataset:
        for column in ("question", "context"):
            refuse_empty(examples, column)

        def encode(row: dict[str, Any]) -> dict[str, Any]:
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
            return {
                "question_ids": question,
                "context_ids": context["input_ids"],
                "begins": [begin for begin, _ in spans],
                "ends": [end for _, end in spans],
            }

        return examples.map(encode, desc="tokenizing")

    def windows(self, examples: datasets.Dataset, encoder: QuestionEncoder) -> datasets.Dataset:
        """A row for every window of every context; the first alone where the strategy does not pool pieces."""

        def cut(batch: dict[str, list]) -> dict[str, list]:
            made = [
                window
                for values in zip(*batch.values(), strict=True)
                for window in self._windows(dict(zip(batch, values, strict=True)), encoder)
            ]
            return {name: [window[name] for window in made] for name in made[0]}

        return examples.map(cut, batched=True, remove_columns=examples.column_names, desc="cutting windows")

    def _windows(self, example: dict[str, Any], encoder: QuestionEncoder) -> list[dict[str, Any]]:
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        question, context = example["question_ids"], example["context_ids"]
        size = encoder.max_length - len(question) - 3
        step = size - self.arguments.stride
        if step < 1:
            raise ValueError(
                f"example {example['id']}: a question of {len(question)} tokens and a stride of "
                f"{self.arguments.stride} leave no room in {encoder.max_length} tokens"
            )
        starts = range(0, max(1, len(context) - self.arguments.stride), step)
        begin, end = self._answer_tokens(example) or (-1, -1)
        first = len(question) + 2
        rows = []
        for start in starts if encoder.strategy is not STRATEGIES["truncate"] else starts[:1]:
            piece = context[start : start + size]
            inside = start <= begin and end < start + len(piece)
            rows.append(
                {
                    "id": example["id"],
                    "input_ids": [cls, *question, sep, *piece, sep],
                    "token_type_ids": [0] * first + [1] * (len(piece) + 1),
                    "first": first,
                    "piece": start,
                    "start": begin - start + first if inside else 0,
                    "end": end - start + first if inside else 0,
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

    def training_rows(self, examples: datasets.Dataset, encoder: QuestionEncoder) -> datasets.Dataset:
        """What a plan trains on."""
        return self.windows(examples, encoder)

    def build(self, source: Source, strategy: Strategy) -> nn.Module:
        """A model with a span head."""
        config = source.config if strategy.extended else source.native
        return LongBertForQuestionAnswering.from_pretrained(source.path, config=config)

    def encoder(self, strategy: Strategy, max_length: int, long_length: int) -> Encoder:
        """What makes micro-batches.

        Raises:
            ValueError: a strategy that would tear answers apart.
        """
        if strategy is STRATEGIES["head-tail"]:
            raise ValueError("head-tail would tear answers apart: strategies must be of long, truncate, chunk-pool")
        return QuestionEncoder(self.tokenizer, strategy, max_length)

    def loss(
        self,
        outputs: QuestionAnsweringModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy of start and end, the mean of both; where there is no answer they are [CLS]."""
        total = sum(
            F.cross_entropy(logits.float(), target, reduction="sum")
            for logits, target in zip((outputs.start_logits, outputs.end_logits), labels.unbind(-1), strict=True)
        )
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    @torch.no_grad()
    def predict(self, model: nn.Module, examples: datasets.Dataset, encoder: QuestionEncoder) -> list[dict[str, Any]]:
        """For each example the best span over its windows, the `n_best`, and whether the evidence is late.

        Late is past the first 512 tokens of question and context together, where nothing that truncates can see it.
        """
        was_training = model.training
        model.eval()
        windows = []
        rows = self.windows(examples, encoder)
        for batch_rows in rows.iter(batch_size=self.batch_size):
            some = [dict(zip(batch_rows, values, strict=True)) for values in zip(*batch_rows.values(), strict=True)]
            batch = encoder.batch(some)
            for name in ("labels", "documents", "text_lengths"):
                del batch[name]
            outputs = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
            scores = torch.stack((outputs.start_logits, outputs.end_logits), dim=1).float().cpu()
            windows += [(row, scores[index, :, : len(row["input_ids"])]) for index, row in enumerate(some)]
        model.train(was_training)
        grouped = {name: list(group) for name, group in groupby(windows, key=lambda window: window[0]["id"])}
        return [self._decide(example, grouped[example["id"]]) for example in examples]

    def _decide(self, example: dict[str, Any], windows: list[tuple[dict, torch.Tensor]]) -> dict[str, Any]:
        spans = [span for row, scores in windows for span in self._spans(row, scores)]
        best = heapq.nlargest(self.arguments.n_best, spans)
        null = min(float(scores[:, 0].sum()) for _, scores in windows)
        texts = [
            {
                "text": example["context"][example["begins"][first] : example["ends"][last]],
                "score": score,
                "answer_start": example["begins"][first],
            }
            for score, first, last in best
        ]
        answered = bool(best) and null - best[0][0] <= self.arguments.null_threshold
        answer = self._answer_tokens(example)
        position = None if answer is None else len(example["question_ids"]) + 2 + answer[0]
        return {
            "id": example["id"],
            "prediction": texts[0]["text"] if answered else "",
            "reference": list(example["answers"]["text"]),
            "scores": {"no answer": null, "n_best": texts},
            "late": position is not None and position >= 512,
            "evidence": position,
        }

    def _spans(self, row: dict[str, Any], scores: torch.Tensor) -> list[tuple[float, int, int]]:
        """(score, first, last context token) of the best spans of a window."""
        first, last = row["first"], len(row["input_ids"]) - 1
        starts, ends = scores[:, first:last]
        count = min(4 * self.arguments.n_best, len(starts))
        found = []
        for start in starts.topk(count).indices.tolist():
            reach = ends[start : start + self.arguments.max_answer_length]
            end = start + int(reach.argmax())
            found.append((float(starts[start] + ends[end]), row["piece"] + start, row["piece"] + end))
        return found
