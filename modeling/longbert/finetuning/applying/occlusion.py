"""A document read with some of its tokens left out, by a classifier or a question-answering model.

Tokens are left out by the attention mask: no token attends to them, nothing of them is pooled, and all other tokens
keep their positions. Of five ways to leave tokens out, Hase et al. 2021 (arXiv 2106.00786) found this and the [MASK]
token to disturb BERT least; [MASK] would put a hundred equal tokens in a row, which no model was trained on, and other
tokens would attend to them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ...data.batches import Key
from ...data.features import FRAME, PAIR_FRAME, framed
from ...modeling_longbert import LongBertPreTrainedModel
from ..examples.labels import REGRESSION, SINGLE
from ..pieces import Outputs, PieceCollator, Row, read_rows
from ..strategies import STRATEGIES, Reader
from ..tasks.classification import Classification
from ..tasks.question_answering import QuestionAnswering
from .passages import Passage, Range, token_spans
from .predicting import predictor_of


TOKENS_AT_ONCE = 16_384  # in a batch of copies


@dataclass(frozen=True)
class Judgement:
    """What the model says of a copy of the document.

    Args:
        strength: of what is explained: log-odds of a label or an answer, or the value itself.
        score: the same as a probability, or the value itself.
        prediction: as `longbert predict` says it.
        strengths: of every label.
    """

    strength: float
    score: float
    prediction: Any
    scores: dict[str, Any]
    strengths: dict[str, float]


class OcclusionCollator(PieceCollator):
    """Micro-batches of rows in which the attention mask leaves out the tokens that a row's `left_out` names."""

    def batch(self, rows: list[Row], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch `[rows, longest]`."""
        batch = super().batch(rows, keys)
        for number, row in enumerate(rows):
            for start, stop in row["left_out"]:
                batch["attention_mask"][number, start:stop] = 0
        return batch


class Subject(ABC):
    """A document as one kind of model reads it, with some of its tokens left out."""

    kind: str
    unit: str
    text: str
    spans: list[Range]
    read: int
    """How many of the document's tokens are read."""
    tokenizer: PreTrainedTokenizerBase
    explained: str
    pieces: int = 1

    @abstractmethod
    def choose(self, read: list[tuple[Row, Outputs]]) -> dict[str, Any] | None:
        """Settle what is explained, by what the model says of the whole document; the answer, where it is one."""

    @abstractmethod
    def limit(self, source_length: int) -> int:
        """How many of the document's tokens a model that reads `source_length` at once reads."""

    @abstractmethod
    def rows(self, left_out: Sequence[Range]) -> list[Row]:
        """What is read of a copy: pieces with something left out."""

    @abstractmethod
    def judge(self, read: list[tuple[Row, Outputs]]) -> Judgement:
        """What the model says of the copy with these rows."""

    @abstractmethod
    def shortened(self, source_length: int) -> Row:
        """The document cut as a model of `source_length` reads it."""

    @abstractmethod
    def judge_shortened(self, read: tuple[Row, Outputs]) -> dict[str, Any]:
        """`prediction` and `score` of that; the score is None where an answer is another than the explained one."""

    def about(self, passage: Passage) -> dict[str, Any]:
        """What else there is to say of a passage."""
        return {}


class Classified(Subject):
    """A text of a classifier.

    Args:
        label: what to explain; None for the label with the highest score.

    Raises:
        ValueError: the model has no such label.
    """

    def __init__(
        self, task: Classification, example: Row, text: str, spans: list[Range], at_once: int, label: str | None
    ):
        if label is not None and label not in task.labels:
            raise ValueError(f"this model has no label {label!r}: it has {', '.join(task.labels)}")
        self.kind = task.problem_type
        self.unit = "value" if task.problem_type == REGRESSION else "log-odds"
        self.task, self.example, self.text, self.spans, self.tokenizer = task, example, text, spans, task.tokenizer
        self.read = min(len(spans), at_once - FRAME)
        self.reader = Reader(STRATEGIES["long"], at_once, at_once)
        self.label = label

    def choose(self, read: list[tuple[Row, Outputs]]) -> None:
        ((_, outputs),) = read
        labels = self.task.labels
        best = 0 if self.task.problem_type == REGRESSION else int(outputs["logits"].argmax(-1))
        self.number = best if self.label is None else labels.index(self.label)
        self.explained = labels[self.number]

    def limit(self, source_length: int) -> int:
        return min(len(self.spans), source_length - FRAME)

    def rows(self, left_out: Sequence[Range]) -> list[Row]:
        (piece,) = self.task.pieces(self.example, self.reader)
        return [_row(piece, left_out, offset=1)]

    def judge(self, read: list[tuple[Row, Outputs]]) -> Judgement:
        ((_, outputs),) = read
        said = self.task.decide(self.example, outputs)
        strengths = log_odds(outputs["logits"], self.task.problem_type)
        strength = strengths[self.number]
        score = strength if self.unit == "value" else said["scores"][self.explained]
        return Judgement(
            strength,
            score,
            self.task.named(said["prediction"]),
            said["scores"],
            dict(zip(self.task.labels, strengths, strict=True)),
        )

    def shortened(self, source_length: int) -> Row:
        piece = framed(self.tokenizer, self.example["input_ids"][: source_length - FRAME])
        return _row(piece, [], offset=1)

    def judge_shortened(self, read: tuple[Row, Outputs]) -> dict[str, Any]:
        judged = self.judge([read])
        return {"prediction": judged.prediction, "score": judged.score}


class Answered(Subject):
    """A text that is asked a question."""

    kind = "question_answering"
    unit = "log-odds"

    def __init__(self, task: QuestionAnswering, example: Row, text: str, spans: list[Range], at_once: int):
        self.task, self.example, self.text, self.spans, self.tokenizer = task, example, text, spans, task.tokenizer
        self.read = len(spans)
        self.parts = task.pieces(example, Reader(STRATEGIES["long"], at_once, at_once))
        self.pieces = len(self.parts)
        self.plain: list[tuple[Row, Outputs]] = []
        self.answer: Range = (0, -1)  # the first and last token; none yet

    def choose(self, read: list[tuple[Row, Outputs]]) -> dict[str, Any]:
        """The best span: what `predict` answers, unless it says that there is none."""
        self.plain = read
        best = self.task.decide(self.example, read)["scores"]["n_best"][0]
        self.explained, start, end = best["text"], best["answer_start"], best["answer_start"] + len(best["text"])
        firsts = [token for token, begin in enumerate(self.example["begins"]) if begin == start]
        lasts = [token for token, stop in enumerate(self.example["ends"]) if stop == end]
        found = [
            (score, first, last, number)
            for first in firsts
            for last in lasts
            for number, (row, outputs) in enumerate(read)
            if (score := _span_score(row, outputs, first, last)) is not None
        ]
        _, first, last, self.part = max(found)
        self.answer = first, last
        return {"text": best["text"], "start": start, "end": end, "score": best["score"]}

    def limit(self, source_length: int) -> int:
        return min(len(self.spans), max(0, source_length - len(self.example["question_ids"]) - PAIR_FRAME))

    def rows(self, left_out: Sequence[Range]) -> list[Row]:
        first, last = self.answer
        around = [
            part for start, stop in left_out for part in ((start, min(stop, first)), (max(start, last + 1), stop))
        ]
        return [
            _row(part, around, part["first"] - part["start"], part["first"], number)
            for number, part in enumerate(self.parts)
            if not self.plain or any(_overlaps(part, start, stop) for start, stop in around)
        ]

    def judge(self, read: list[tuple[Row, Outputs]]) -> Judgement:
        changed = {row["part"]: (row, outputs) for row, outputs in read}
        together = [changed.get(number, plain) for number, plain in enumerate(self.plain)]
        said = self.task.decide(self.example, together)
        strength, score = self._span(*together[self.part])
        return Judgement(strength, score, said["prediction"], said["scores"], {})

    def _span(self, row: Row, outputs: Outputs) -> tuple[float, float]:
        """Log-odds and probability of the answer: start and end among all tokens of its piece."""
        logs = 0.0
        for name, token in zip(("start_logits", "end_logits"), self.answer, strict=True):
            place = token - row["start"] + row["first"]
            logs += float(outputs[name].double().log_softmax(-1)[place])
        return logs - math.log(max(-math.expm1(logs), 1e-300)), math.exp(logs)

    def shortened(self, source_length: int) -> Row:
        question, limit = self.example["question_ids"], self.limit(source_length)
        piece = framed(self.tokenizer, question, self.example["context_ids"][:limit])
        return _row({**piece, "first": len(question) + 2, "start": 0}, [], 0)

    def judge_shortened(self, read: tuple[Row, Outputs]) -> dict[str, Any]:
        said = self.task.decide(self.example, [read])
        inside = self.answer[1] < len(read[0]["input_ids"]) - read[0]["first"] - 1
        return {"prediction": said["prediction"], "score": self._span(*read)[1] if inside else None}

    def about(self, passage: Passage) -> dict[str, Any]:
        first, last = self.answer
        return {
            "holds_answer": passage.first <= last and first < passage.stop,
            "read_with_answer": _overlaps(self.parts[self.part], passage.first, passage.stop),
        }


def _span_score(row: Row, outputs: Outputs, first: int, last: int) -> float | None:
    offset, end = row["first"] - row["start"], len(row["input_ids"]) - 1
    if not row["first"] <= first + offset <= last + offset < end:
        return None
    return float(outputs["start_logits"][first + offset] + outputs["end_logits"][last + offset])


def _overlaps(part: Row, start: int, stop: int) -> bool:
    length = len(part["input_ids"]) - 1 - part["first"]
    return max(start, part["start"]) < min(stop, part["start"] + length)


def _row(piece: Row, left_out: Sequence[Range], offset: int, lowest: int = 1, number: int = 0) -> Row:
    """A row without the tokens `left_out` of the document.

    Args:
        offset: where in the row the document's token 0 stands, or would stand.
        lowest: the first place in the row that is the document's.
    """
    highest = len(piece["input_ids"]) - 1  # [SEP]
    moved = ((max(start + offset, lowest), min(stop + offset, highest)) for start, stop in left_out)
    kept = [[start, stop] for start, stop in moved if start < stop]
    return {**piece, "id": "", "part": number, "length": highest + 1, "left_out": kept or [[0, 0]]}


def log_odds(logits: torch.Tensor, problem_type: str) -> list[float]:
    """How strongly each label is predicted, from logits `[labels]`: log p / (1 - p), or the value itself.

    Odds tell two passages apart where both leave the probability at 0.999.
    """
    precise = logits.double()
    if problem_type != SINGLE or len(precise) == 1:
        return precise.tolist()
    others = precise.repeat(len(precise), 1)
    others.fill_diagonal_(-math.inf)
    return (precise - others.logsumexp(-1)).tolist()


def subject_of(
    model: LongBertPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    name: str,
    question: str | None,
    label: str | None,
    reach: int,
) -> Subject:
    predictor = predictor_of(model, tokenizer, question)
    task = predictor.task
    if not isinstance(task, (Classification, QuestionAnswering)):
        raise ValueError(
            f"explain needs a model that classifies texts or answers questions, got a {type(model).__name__}"
        )
    if not tokenizer.is_fast:
        raise ValueError(f"explain needs a tokenizer that says where its tokens stand, got {type(tokenizer).__name__}")
    asked = isinstance(task, QuestionAnswering)
    if asked and label is not None:
        raise ValueError("a question-answering model has no labels: leave --label out")
    if not asked and question is not None:
        raise ValueError("a classifier answers no questions: leave --question out")
    (example,) = task.tokenize(datasets.Dataset.from_list([{"id": name, **predictor.example(text)}]), reach)
    if isinstance(task, QuestionAnswering):
        begins, ends = example["begins"], example["ends"]
    else:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        begins, ends = ([span[side] for span in found["offset_mapping"]] for side in (0, 1))
    spans = token_spans(text, begins, ends)
    if not spans:
        raise ValueError(f"{name} has nothing that the tokenizer can read")
    if isinstance(task, QuestionAnswering):
        return Answered(task, example, text, spans, reach)
    return Classified(task, example, text, spans, reach, label)


class Reading:
    """Reads copies of a document, several at once, and counts them."""

    def __init__(self, model: LongBertPreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.rows = model, 0
        self.collator = OcclusionCollator(tokenizer, lambda row: [row])

    def copies(self, copies: list[list[Row]], what: str) -> list[list[tuple[Row, Outputs]]]:
        """Every copy's rows, with what the model says of them."""
        rows = [row for copy in copies for row in copy]
        self.rows += len(rows)
        read: Iterator[tuple[Row, Outputs]] = iter(self._read(rows, what))
        return [[next(read) for _ in copy] for copy in copies]

    def _read(self, rows: list[Row], what: str) -> list[tuple[Row, Outputs]]:
        found: list[tuple[Row, Outputs]] = []
        at_once = max(1, TOKENS_AT_ONCE // max((row["length"] for row in rows), default=1))
        with tqdm(total=len(rows), desc=what, unit="copy", disable=len(rows) < 3) as bar:
            for start in range(0, len(rows), at_once):
                some = datasets.Dataset.from_list(rows[start : start + at_once])
                found += read_rows(self.model, some, self.collator, at_once)
                bar.update(len(some))
        return found
