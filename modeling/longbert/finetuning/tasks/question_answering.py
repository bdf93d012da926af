"""Questions to spans of a context that may be longer than what is read at once.

A context is read in pieces that overlap by `stride`; the answer is the best span over all of them. Under an attention
window the question's tokens are global.
"""

import copy
import heapq
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from ...arguments import described
from ...configuration_longbert import LongBertConfig
from ...data.features import PAIR_FRAME, framed
from ...data.files import Record, find_files, is_missing, kind_of, read_text
from ...losses import at_least_fp32, per_item
from ...modeling_longbert import LongBertForQuestionAnswering
from ...source import Source
from ..examples.answers import read_answers
from ..examples.reading import ExampleArguments, as_text, named_columns, parse_rows, place_of, read_examples
from ..examples.splits import Split
from ..pieces import Outputs, Row, piece_starts
from ..results.metrics import Figures, SpanMetric
from ..results.report import decided_within
from ..strategies import Reader
from .task import PieceTask


USUAL_ANSWER = 30  # tokens; as in transformers' question-answering examples


@dataclass(kw_only=True)
class QuestionAnsweringArguments(ExampleArguments):
    """What the examples hold, and how an answer is chosen. SQuAD's own json needs no columns."""

    question_column: str = described("question", "column of the questions")
    context_column: str = described("context", "column of the contexts")
    answers_column: str = described("answers", "column of {text: [...], answer_start: [...]}, empty for no answer")
    merge_articles: bool = described(False, "SQuAD's json: all paragraphs of an article are one context")
    stride: int = described(128, "tokens that neighbouring pieces of a long context share")
    max_answer_length: int | None = described(
        None, "tokens of the longest answer; by default 30, or as many as the longest in train_file has"
    )
    n_best: int = described(5, "answers kept in predictions")
    null_threshold: float = described(
        0.0, "say that there is no answer if its score beats the best span's by more than this"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("stride", 0), ("max_answer_length", 1), ("n_best", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not math.isfinite(self.null_threshold):
            raise ValueError(f"null_threshold must be a number, got {self.null_threshold}")


def read_questions(path: str, arguments: QuestionAnsweringArguments) -> datasets.Dataset:
    """Read SQuAD's json, or a file with columns, as `id`, `place`, `question`, `context`, `answers`."""
    files = find_files(path)
    articles = {file: _articles(file, arguments) for file in files}

    def parse(values: dict[str, Any]) -> dict[str, Any]:
        question, context = (as_text(values[name], name) for name in ("question", "context"))
        answers = read_answers(values["answers"], context, values.get("offset", 0))
        if values.get("is_impossible") and answers["text"]:
            raise ValueError(f"is_impossible, but it has the answer {answers['text'][0]!r:.80}: leave out one of them")
        return {"question": question, "context": context, "answers": answers}

    if None not in articles.values():
        rows = (_squad(file, found or [], arguments.merge_articles) for file, found in articles.items())
        return parse_rows(path, chain.from_iterable(rows), parse, arguments)
    for file, found in articles.items():
        if found is not None:
            raise ValueError(f"{file} is SQuAD's json, and other files at {path} are not: read them apart")
    names = ("question", "context", "answers")
    columns = {**{name: getattr(arguments, f"{name}_column") for name in names}, **named_columns(arguments)}
    return read_examples(path, columns, parse, arguments)


def _articles(file: Path, arguments: QuestionAnsweringArguments) -> list[dict] | None:
    """The articles of SQuAD's json; None for another file."""
    if file.is_dir() or kind_of(file) != "json":
        return None
    try:
        content = json.loads("".join(read_text(file, arguments)))
    except (json.JSONDecodeError, RecursionError):
        return None
    articles = content.get("data") if isinstance(content, dict) else None
    first = articles[0] if isinstance(articles, list) and articles else None
    return articles if isinstance(first, dict) and "paragraphs" in first else None


def _squad(file: Path, articles: list[dict], merge: bool) -> Iterator[Record]:
    """The questions of SQuAD's json; `offset` is where a paragraph begins in its context."""
    for number, article in enumerate(articles, start=1):
        place = f"{file}, article {number}"
        paragraphs = _part(article, "paragraphs", list, place)
        texts = [_part(paragraph, "context", str, place) for paragraph in paragraphs]
        title = article.get("title")
        start = 0
        for paragraph, text in zip(paragraphs, texts, strict=True):
            for question in _part(paragraph, "qas", list, place):
                values = {
                    "group": place if is_missing(title) else str(title),
                    "question": _part(question, "question", object, place),
                    "context": "\n".join(texts) if merge else text,
                    "answers": question.get("answers"),
                    "is_impossible": question.get("is_impossible"),
                    "offset": start * merge,
                }
                if "id" in question:
                    values["id"] = question["id"]
                named = f"{file}, question {question['id']}" if "id" in question else place
                yield Record(named, values)
            start += len(text) + 1


def _part(content: Any, name: str, kind: type, place: str) -> Any:
    """What an object of SQuAD's json has by that name.

    Raises:
        ValueError: it lacks it, or is no object.
    """
    if not isinstance(content, dict) or not isinstance(content.get(name), kind) or name not in content:
        raise ValueError(f"{place}: {content!r:.80} has no {name!r}, as SQuAD's json has it")
    return content[name]


def _answer_lengths(tokenizer: PreTrainedTokenizerBase, splits: list[Split]) -> list[int]:
    """Tokens of every answer to train on."""
    texts = [text for split in splits for answers in split.train["answers"] for text in answers["text"]]
    different = [*dict.fromkeys(texts)]
    ids = tokenizer(different, add_special_tokens=False)["input_ids"] if texts else []
    lengths = dict(zip(different, map(len, ids), strict=True))
    return [lengths[text] for text in texts]


@dataclass
class QuestionAnswering(PieceTask):
    """The task of `finetune/question_answering.py`; its settings are those of `QuestionAnsweringArguments`.

    A piece's `target` is the first and last token of its answer, 0 for none.
    """

    model_class = LongBertForQuestionAnswering
    in_the_middle = "would tear answers apart"

    tokenizer: PreTrainedTokenizerBase
    stride: int = 128
    max_answer_length: int = USUAL_ANSWER
    n_best: int = 5
    null_threshold: float = 0.0
    batch_size: int = 8
    metric: Figures = field(default_factory=SpanMetric)

    @classmethod
    def of(
        cls, source: Source, splits: list[Split], arguments: QuestionAnsweringArguments, batch_size: int
    ) -> "QuestionAnswering":
        """The task as it is set; what is not set follows the training data."""
        lengths = _answer_lengths(source.tokenizer, splits)
        longest = arguments.max_answer_length or max(USUAL_ANSWER, max(lengths, default=0))
        longer = sum(length > longest for length in lengths)
        print(
            f"{len(lengths):,} answers to train on have up to {max(lengths, default=0)} tokens; {longer:,} "
            f"({longer / max(1, len(lengths)):.1%}) are longer than max_answer_length={longest}, and cannot be "
            "predicted whole"
        )
        names = ("stride", "n_best", "null_threshold")
        settings = {name: getattr(arguments, name) for name in names}
        return cls(source.tokenizer, batch_size=batch_size, max_answer_length=longest, **settings)

    def configure(self, config: LongBertConfig) -> LongBertConfig:
        """With what `longbert predict` needs to answer as here."""
        config = copy.deepcopy(config)
        names = ("stride", "max_answer_length", "n_best", "null_threshold")
        config.task_settings = {name: getattr(self, name) for name in names}
        return config

    def tokenize(self, examples: datasets.Dataset, at_once: int) -> datasets.Dataset:
        """Tokenize.

        Raises:
            ValueError: an answer longer than pieces share, which would be cut in two, or a question that leaves a
                piece no more than they share.
        """

        def tokens(row: dict[str, Any]) -> dict[str, Any]:
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
                "length": len(question) + len(context["input_ids"]) + PAIR_FRAME,
            }
            self._refuse_unread(row | encoded)
            self._refuse_cut(row | encoded)
            self._refuse_crowded(place_of(row), at_once - len(question) - PAIR_FRAME)
            return encoded

        return examples.map(tokens, desc="tokenizing")

    def _refuse_unread(self, example: dict[str, Any]) -> None:
        """What the tokenizer leaves nothing of cannot be asked, read or found."""
        answers = example["answers"]
        unread = [name for name in ("question", "context") if not example[f"{name}_ids"]]
        unread += ["answer"] if answers["text"] and not self._covering(example) else []
        if unread:
            text = answers["text"][0] if unread[0] == "answer" else example[unread[0]]
            raise ValueError(f"{place_of(example)}: the tokenizer can read nothing of its {unread[0]}, {text!r:.80}")

    def _refuse_cut(self, example: dict[str, Any]) -> None:
        begin, end = self._answer_tokens(example) or (0, 0)
        if end - begin >= self.stride:
            raise ValueError(
                f"{place_of(example)}: its answer of {end - begin + 1} tokens is longer than the stride of "
                f"{self.stride} that pieces share, and would be cut in two: set a greater stride"
            )

    def _refuse_crowded(self, place: str, room: int) -> None:
        if room <= self.stride:
            raise ValueError(
                f"{place}: its question leaves {max(room, 0)} tokens for the context, and pieces share "
                f"{self.stride}: shorten the question, set a smaller stride, or read more at once"
            )

    def pieces(self, example: Row, reader: Reader) -> list[Row]:
        """The question with every piece of the context."""
        question, context = example["question_ids"], example["context_ids"]
        size = reader.at_once - len(question) - PAIR_FRAME
        begin, end = self._answer_tokens(example) or (-1, -1)
        first = len(question) + 2
        rows = []
        for start in piece_starts(reader.strategy, len(context), size, self.stride):
            piece = context[start : start + size]
            inside = start <= begin and end < start + len(piece)
            target = [begin - start + first, end - start + first] if inside else [0, 0]
            rows.append({**framed(self.tokenizer, question, piece), "first": first, "start": start, "target": target})
        return rows

    @staticmethod
    def _answer_tokens(example: dict[str, Any]) -> tuple[int, int] | None:
        """The first and last context token of the first answer."""
        if not example["answers"]["text"]:
            return None
        inside = QuestionAnswering._covering(example)
        return inside[0], inside[-1]

    @staticmethod
    def _covering(example: dict[str, Any]) -> list[int]:
        """The context tokens of the first answer."""
        answers = example["answers"]
        begin = answers["answer_start"][0]
        end = begin + len(answers["text"][0])
        return [
            index
            for index, (left, right) in enumerate(zip(example["begins"], example["ends"], strict=True))
            if left < end and right > begin
        ]

    def loss(
        self,
        outputs: QuestionAnsweringModelOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy of start and end, the mean of both; where there is no answer they are [CLS].

        The model's logits are `hidden_at_padding`, so that a piece's loss does not depend on its micro-batch.
        """
        total = sum(
            F.cross_entropy(at_least_fp32(logits), target, reduction="sum")
            for logits, target in zip((outputs.start_logits, outputs.end_logits), labels.unbind(-1), strict=True)
        )
        return per_item(total, labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def within(self, lines: list[dict[str, Any]], start: int, stop: int | None) -> list[dict[str, Any]]:
        """The questions whose evidence begins there."""
        return decided_within(lines, start, stop)

    def decide(self, example: Row, pieces: list[tuple[Row, Outputs]]) -> dict[str, Any]:
        """The best span over the pieces of a context, the `n_best`, and at which token the evidence begins, counted in
        question and context together."""
        spans = [span for row, scores in pieces for span in self._spans(row, scores)]
        best = heapq.nlargest(self.n_best, spans)
        null = min(float(scores["start_logits"][0] + scores["end_logits"][0]) for _, scores in pieces)
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
            "prediction": texts[0]["text"] if answered else "",
            "reference": list(example["answers"]["text"]),
            "scores": {"no answer": null, "n_best": texts},
            "evidence": None if answer is None else len(example["question_ids"]) + 2 + answer[0],
        }

    def _spans(self, row: Row, scores: Outputs) -> list[tuple[float, int, int]]:
        """(score, first, last context token) of the best spans of a piece."""
        first, last = row["first"], len(row["input_ids"]) - 1
        starts, ends = (scores[name][first:last] for name in ("start_logits", "end_logits"))
        count = min(4 * self.n_best, len(starts))
        found = []
        for start in starts.topk(count).indices.tolist():
            reach = ends[start : start + self.max_answer_length]
            end = start + int(reach.argmax())
            found.append((float(starts[start] + ends[end]), row["start"] + start, row["start"] + end))
        return found
