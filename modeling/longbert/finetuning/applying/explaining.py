"""Which passages of a document decided: each is left out once, and what the model then says is compared.

The method is occlusion (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2) of text, erasure or leave-one-out (Li et
al. 2016, arXiv 1612.08220), here by passages (`occlusion.py` says how one is left out).

The passages that decided are also left out, and kept, all together: comprehensiveness and sufficiency of DeYoung et
al. 2020 (ERASER, arXiv 1911.03429, section 4), in which evidence that is there twice shows. Left out one by one, it
does not.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...data.documents import load_documents
from ...modeling_longbert import LongBertPreTrainedModel
from .occlusion import Judgement, Reading, Subject, subject_of
from .passages import Passage, cut_passages


PASSAGE_TOKENS = 96
FEWEST_TOKENS = 2
DECIDING_AT_MOST = 5
AGAINST_AT_MOST = 3
ROUNDING = 1e-3  # of what is explained, or of 1: contributions below it are rounding, not evidence


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
    reach, source_length = model.config.max_position_embeddings, model.config.pretrained_positions
    subject = subject_of(model, tokenizer, text, name, question, label, reach)
    reading = Reading(model, tokenizer)
    (plain,) = reading.copies([subject.rows([])], "reading")
    answer = subject.choose(plain)
    whole, limit = subject.judge(plain), subject.limit(source_length)
    passages = cut_passages(text, subject.spans, passage_tokens, subject.read, limit)
    seen = [number for number, passage in enumerate(passages) if passage.stop <= subject.read]

    def without(groups: list[list[int]], what: str) -> list[Judgement]:
        left_out = [[(passages[number].first, passages[number].stop) for number in group] for group in groups]
        return [subject.judge(read) for read in reading.copies([subject.rows(each) for each in left_out], what)]

    judged = dict(zip(seen, without([[number] for number in seen], "leaving passages out"), strict=True))
    falls = {number: whole.strength - judged[number].strength for number in seen}
    least = ROUNDING * max(1.0, abs(whole.strength))
    deciding = strongest(falls, least)
    against = sorted((number for number in seen if falls[number] < -least), key=falls.__getitem__)[:AGAINST_AT_MOST]
    rest = [number for number in seen if number not in deciding]
    left, alone = without([deciding, rest], "those that decided")
    truncated = None
    if 0 < limit < subject.read:
        ((short,),) = reading.copies([[subject.shortened(source_length)]], f"the first {source_length} tokens")
        truncated = subject.judge_shortened(short)
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
        against=against,
        comprehensiveness=whole.score - left.score,
        sufficiency=whole.score - alone.score,
        answer=answer,
        pieces=subject.pieces,
        copies=reading.rows,
        seconds=round(time.perf_counter() - began, 2),
        passage_tokens=passage_tokens,
        passages=[
            _described(number, passage, subject, limit) | _contributed(whole, judged.get(number))
            for number, passage in enumerate(passages)
        ],
    )


def _described(number: int, passage: Passage, subject: Subject, limit: int) -> dict[str, Any]:
    """Where a passage stands and what it says."""
    read = passage.stop <= subject.read
    return {
        "number": number,
        "start": passage.start,
        "end": passage.end,
        "text": subject.text[passage.start : passage.end],
        "first_token": passage.first,
        "tokens": passage.stop - passage.first,
        "read": read,
        "past_source_limit": passage.first >= limit,
        **(subject.about(passage) if read else {}),
    }


def _contributed(whole: Judgement, without: Judgement | None) -> dict[str, Any]:
    """By how much the prediction falls without a passage; nothing of one that was not read."""
    if without is None:
        return {}
    found: dict[str, Any] = {
        "contribution": whole.strength - without.strength,
        "score_without": without.score,
        "prediction_without": without.prediction,
    }
    if without.strengths:
        found["contributions"] = {
            each: strength - without.strengths[each] for each, strength in whole.strengths.items()
        }
    return found


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
