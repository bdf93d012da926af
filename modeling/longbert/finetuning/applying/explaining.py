"""Which passages of a document decided: each is left out once, and what the model then says is compared.

The method is occlusion (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2) of text, erasure or leave-one-out (Li et
al. 2016, arXiv 1612.08220), here by passages. A passage is left out by the attention mask: no token attends to its
tokens, nothing of them is pooled, and all other tokens keep their positions. Of five ways to leave tokens out, Hase et
al. 2021 (arXiv 2106.00786) found this and the [MASK] token to disturb BERT least; [MASK] would put a hundred equal
tokens in a row, which no model was trained on, and other tokens would attend to them.

The passages that decided are also left out, and kept, all together: comprehensiveness and sufficiency of DeYoung et
al. 2020 (ERASER, arXiv 1911.03429, section 4), in which evidence that is there twice shows. Left out one by one, it
does not.
"""

import json
import math
import re
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ...data.batches import Key
from ...data.documents import load_documents
from ...data.features import FRAME, PAIR_FRAME, framed
from ...modeling_longbert import LongBertPreTrainedModel
from ..examples.labels import REGRESSION, SINGLE
from ..pieces import Outputs, PieceCollator, Row, read_rows
from ..strategies import STRATEGIES, Reader
from ..tasks.classification import Classification
from ..tasks.question_answering import QuestionAnswering
from .predicting import predictor_of


PASSAGE_TOKENS = 96
FEWEST_TOKENS = 2
DECIDING_AT_MOST = 5
AGAINST_AT_MOST = 3
ROUNDING = 1e-3  # of what is explained, or of 1: contributions below it are rounding, not evidence
TOKENS_AT_ONCE = 16_384  # in a batch of copies

Range = tuple[int, int]

# What ends a sentence: in scripts that write spaces a mark before one, in others the mark alone; behind it may stand
# quotes and brackets. The marks are those of Unicode's property Sentence_Terminal for the scripts that BERTs read.
_ENDS_BEFORE_SPACE = ".!?\u2026\u061f\u06d4\u0589\u0964\u0965\u1362\u1367"
_ENDS = "\u3002\uff01\uff1f\uff0e\uff61\u104b\u17d4"
_CLAUSES = "\uff0c\u3001\uff1b\uff1a"  # Chinese commas and colons, where other scripts have a space
_CLOSING = "\"'\u2019\u201d\u00bb\\)\\]\u3009\u300b\u300d\u300f\u3011\uff09"
_BREAKS = {
    # a place between two passages is better, the higher its number
    4: re.compile(r"\n[^\S\n]*\n\s*"),
    3: re.compile(r"\n\s*"),
    2: re.compile(rf"[{_ENDS_BEFORE_SPACE}][{_CLOSING}]*\s+|[{_ENDS}][{_CLOSING}]*\s*"),
    1: re.compile(rf"\s+|[{_CLAUSES}]\s*"),
}


@dataclass(frozen=True)
class Passage:
    """Characters `start` to `end - 1` of a document; `first` to `stop - 1` of its tokens."""

    start: int
    end: int
    first: int
    stop: int


def token_spans(text: str, begins: Sequence[int], ends: Sequence[int]) -> list[Range]:
    """The characters of every token, without the space that some tokenizers count to the word behind it."""
    spans = []
    for begin, end in zip(begins, ends, strict=True):
        while begin < end and text[begin].isspace():
            begin += 1
        spans.append((begin, end))
    return spans


def cut_passages(
    text: str, spans: Sequence[Range], size: int, stop: int | None = None, limit: int | None = None
) -> list[Passage]:
    """Cut a text into passages of about `size` tokens, which together hold every character once.

    A passage ends at the best place among those that leave it at least a third of `size` tokens and at most all of
    them: the end of a paragraph, a line, a sentence, a word, and of equals the last.

    Args:
        spans: the characters of every token.
        stop: how many tokens are read; what follows is a last passage of its own.
        limit: a passage ends before this token.
    """
    stop = len(spans) if stop is None else min(stop, len(spans))
    ranks = _ranks(text, spans)
    bounds = [0]
    for end in sorted({stop} | ({limit} if limit is not None and 0 < limit < stop else set())):
        while end - bounds[-1] > size:
            bounds.append(_best_bound(ranks, bounds[-1], size, end))
        if bounds[-1] < end:
            bounds.append(end)
    bounds += [len(spans)] if stop < len(spans) else []
    starts = [0, *(spans[token][0] for token in bounds[1:-1]), len(text)]
    return [Passage(*places) for places in zip(starts, starts[1:], bounds, bounds[1:], strict=False)]


def _best_bound(ranks: dict[int, int], start: int, size: int, end: int) -> int:
    """Where a passage from `start` on ends, before `end`."""
    least = start + max(1, size // 3)
    fitting = [token for token in range(least, start + size + 1) if token in ranks]
    if not fitting:  # the tokens of one character, such as bytes of it, stay together
        fitting = [token for token in range(start + 1, least) if token in ranks][-1:]
    if not fitting:
        fitting = [next((token for token in range(start + size + 1, end) if token in ranks), end)]
    return max(fitting, key=lambda token: (ranks.get(token, 0), token))


def _ranks(text: str, spans: Sequence[Range]) -> dict[int, int]:
    """How good a place it is before each token at which a passage may begin."""
    ends = {rank: sorted({match.end() for match in found.finditer(text)}) for rank, found in _BREAKS.items()}
    ranks: dict[int, int] = {}
    reached = spans[0][1] if spans else 0
    for token in range(1, len(spans)):
        begin = spans[token][0]
        if begin >= reached:
            places = (rank for rank, places in ends.items() if _any_within(places, reached, begin))
            ranks[token] = max(places, default=0)
        reached = max(reached, spans[token][1])
    return ranks


def _any_within(places: list[int], low: int, high: int) -> bool:
    place = bisect_left(places, low)
    return place < len(places) and places[place] <= high


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


@dataclass(kw_only=True)
class Explanation:
    """What decided, as json has it and as the page shows it. Figures of tokens count the document's own.

    Args:
        explained: the label or the answer that the figures are about.
        unit: of contributions: log-odds, or value.
        source_limit: the character at which the source stops reading; None where it reads all.
        source_limit_token: how many of the document's tokens it reads.
        truncated: what the same model says of the tokens before that alone.
        deciding: numbers of the passages that decided, the strongest first.
        against: numbers of those that speak most against it.
        comprehensiveness: by how much the score falls without those that decided.
        sufficiency: by how much it falls where they alone are read.
        passages: `number`, `start`, `end`, `text`, `first_token`, `tokens`, `read`, `past_source_limit`, and, where
            it was read, `contribution`, `score_without`, `prediction_without`; for classifiers the `contributions` to
            every label, for questions `holds_answer` and `read_with_answer`.
        copies: how often the document, or a piece of it, was read.
    """

    document: str
    model: str
    task: str
    question: str | None
    prediction: Any
    scores: dict[str, Any]
    explained: str
    score: float
    strength: float
    unit: str
    tokens: int
    tokens_read: int
    reach: int
    source_length: int
    source_limit: int | None
    source_limit_token: int
    truncated: dict[str, Any] | None
    deciding: list[int]
    against: list[int]
    comprehensiveness: float
    sufficiency: float
    answer: dict[str, Any] | None
    pieces: int
    copies: int
    seconds: float
    passage_tokens: int
    passages: list[dict[str, Any]]

    def to_json(self) -> str:
        """All of it, as json that any parser takes: no figure is infinite."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class OcclusionCollator(PieceCollator):
    """Micro-batches of rows in which the attention mask leaves out the tokens that a row's `left_out` names."""

    def batch(self, rows: list[Row], keys: Sequence[Key] = ()) -> dict[str, Any]:
        """A micro-batch `[rows, longest]`."""
        batch = super().batch(rows, keys)
        for number, row in enumerate(rows):
            for start, stop in row["left_out"]:
                batch["attention_mask"][number, start:stop] = 0
        return batch


class _Subject(ABC):
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


class _Classified(_Subject):
    def __init__(self, task: Classification, example: Row, text: str, spans: list[Range], at_once: int):
        self.kind = task.problem_type
        self.unit = "value" if task.problem_type == REGRESSION else "log-odds"
        self.task, self.example, self.text, self.spans, self.tokenizer = task, example, text, spans, task.tokenizer
        self.read = min(len(spans), at_once - FRAME)
        self.reader = Reader(STRATEGIES["long"], at_once, at_once)

    def choose(self, label: str | None, outputs: Outputs) -> None:
        """Explain a label, or else the one with the highest score.

        Raises:
            ValueError: the model has no such label.
        """
        labels = self.task.labels
        if label is not None and label not in labels:
            raise ValueError(f"this model has no label {label!r}: it has {', '.join(labels)}")
        first_alone = self.task.problem_type == REGRESSION
        best = 0 if first_alone else int(outputs["logits"].argmax(-1))
        self.number = best if label is None else labels.index(label)
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


class _Answered(_Subject):
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
        """Explain the best span, and return it; it is what `predict` answers, unless it says that there is none."""
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


def explain(
    model: LongBertPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    name: str = "text",
    question: str | None = None,
    label: str | None = None,
    passage_tokens: int = PASSAGE_TOKENS,
) -> Explanation:
    """Which passages of a text decided what a classifier or a question-answering model says of it.

    A passage's `contribution` is by how much the log-odds of the predicted label (of regression, the value; of a
    question, the log-odds of the answer's span) fall when it is left out: above 0 it speaks for it, below 0 against.
    Of the passage that holds an answer the answer itself stays, as without it there is nothing to score. A
    question-answering model reads a text past its reach in pieces, and what does not stand in the answer's piece
    cannot move its score.

    Args:
        name: of the text, for messages.
        question: what a question-answering model is asked.
        label: explain this label; by default the one with the highest score.
        passage_tokens: the most tokens of a passage.

    Raises:
        ValueError: an empty text, a model for another task, no question where one is needed, or no such label.
    """
    began = time.perf_counter()
    if passage_tokens < FEWEST_TOKENS:
        raise ValueError(f"passage tokens must be at least {FEWEST_TOKENS}, got {passage_tokens}")
    reach = model.config.max_position_embeddings
    subject = _subject(model, tokenizer, text, name, question, label, reach)
    reading = _Reading(model, tokenizer)
    (plain,) = reading.copies([subject.rows([])], "reading")
    answer = None
    if isinstance(subject, _Classified):
        subject.choose(label, plain[0][1])
    elif isinstance(subject, _Answered):
        answer = subject.choose(plain)
    whole = subject.judge(plain)
    source_length = model.config.pretrained_positions
    limit = subject.limit(source_length)
    passages = cut_passages(text, subject.spans, passage_tokens, subject.read, limit)
    seen = [number for number, passage in enumerate(passages) if passage.stop <= subject.read]
    ranges = {number: (passages[number].first, passages[number].stop) for number in seen}
    copies = reading.copies([subject.rows([ranges[number]]) for number in seen], "leaving passages out")
    without = {number: subject.judge(read) for number, read in zip(seen, copies, strict=True)}
    falls = {number: whole.strength - judged.strength for number, judged in without.items()}
    least = ROUNDING * max(1.0, abs(whole.strength))
    deciding = strongest(falls, least)
    rest = [number for number in seen if number not in deciding]
    pair = [subject.rows([ranges[number] for number in numbers]) for numbers in (deciding, rest)]
    left, alone = (subject.judge(read).score for read in reading.copies(pair, "those that decided"))
    truncated = None
    if 0 < limit < subject.read:
        ((short,),) = reading.copies([[subject.shortened(source_length)]], f"the first {source_length} tokens")
        truncated = subject.judge_shortened(short)
    lines = []
    for number, passage in enumerate(passages):
        line: dict[str, Any] = {
            "number": number,
            "start": passage.start,
            "end": passage.end,
            "text": text[passage.start : passage.end],
            "first_token": passage.first,
            "tokens": passage.stop - passage.first,
            "read": number in without,
            "past_source_limit": passage.first >= limit,
        }
        if number in without:
            judged = without[number]
            line["contribution"] = falls[number]
            line["score_without"] = judged.score
            line["prediction_without"] = judged.prediction
            if judged.strengths:
                line["contributions"] = {
                    each: strength - judged.strengths[each] for each, strength in whole.strengths.items()
                }
            line.update(subject.about(passage))
        lines.append(line)
    return Explanation(
        document=name,
        model=model.name_or_path,
        task=subject.kind,
        question=question,
        prediction=whole.prediction,
        scores=whole.scores,
        explained=subject.explained,
        score=whole.score,
        strength=whole.strength,
        unit=subject.unit,
        tokens=len(subject.spans),
        tokens_read=subject.read,
        reach=reach,
        source_length=source_length,
        source_limit=subject.spans[limit][0] if limit < len(subject.spans) else None,
        source_limit_token=limit,
        truncated=truncated,
        deciding=deciding,
        against=sorted((number for number in seen if falls[number] < -least), key=falls.__getitem__)[:AGAINST_AT_MOST],
        comprehensiveness=whole.score - left,
        sufficiency=whole.score - alone,
        answer=answer,
        pieces=subject.pieces,
        copies=reading.rows,
        seconds=round(time.perf_counter() - began, 2),
        passage_tokens=passage_tokens,
        passages=lines,
    )


def one_text(path: str, text_column: str = "text", row: int | None = None) -> tuple[str, str]:
    """The name and the text of a file's document.

    Args:
        row: which of several, from 0 on.

    Raises:
        ValueError: there are several and no row is named, or there is no such row.
    """
    documents = load_documents([path], text_column, part_size=None)
    if row is None and len(documents) > 1:
        raise ValueError(f"{path} holds {len(documents)} texts: choose one, --row 0 to --row {len(documents) - 1}")
    row = row or 0
    if not 0 <= row < len(documents):
        raise ValueError(f"{path} holds {len(documents)} texts, counted from 0: there is no row {row}")
    return documents[row]["document"], documents[row]["text"]


def in_words(explained: Explanation) -> list[str]:
    """What is explained, and the passages that decided, a line each."""
    said = explained.prediction or "no answer" if explained.answer else explained.prediction
    unit = "" if explained.unit == "value" else " log-odds"
    lines = [f"prediction: {said}; explained: {explained.explained} ({explained.score:.3f})"]
    if explained.tokens_read < explained.tokens:
        lines.append(
            f"read: the first {explained.tokens_read} of {explained.tokens} tokens, all that the model reaches"
        )
    for number in explained.deciding:
        passage = explained.passages[number]
        place = f"tokens {passage['first_token'] + 1} to {passage['first_token'] + passage['tokens']}"
        past = f", past the source's {explained.source_length}" if passage["past_source_limit"] else ""
        text = " ".join(passage["text"].split())
        lines.append(
            f"{passage['contribution']:+.3f}{unit}, without it {passage['score_without']:.3f}: passage {number + 1}, "
            f"{place}{past}: {text:.80}"
        )
    if not explained.deciding:
        lines.append("no passage speaks for it: left out one by one, none weakens it")
    return lines


def strongest(contributions: dict[int, float], least: float = 0.0) -> list[int]:
    """The passages that decided: the strongest first, until they have half of all that speaks for the prediction, and
    five at most.

    Args:
        contributions: of passages, by number.
        least: what is not above it counts as nothing.
    """
    order = sorted((each for each in contributions if contributions[each] > least), key=lambda n: -contributions[n])
    half, found, total = sum(contributions[number] for number in order) / 2, [], 0.0
    for number in order[:DECIDING_AT_MOST]:
        if total >= half:
            break
        found.append(number)
        total += contributions[number]
    return found


def _subject(
    model: LongBertPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    name: str,
    question: str | None,
    label: str | None,
    reach: int,
) -> _Subject:
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
        return _Answered(task, example, text, spans, reach)
    return _Classified(task, example, text, spans, reach)


class _Reading:
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
