"""Answers to questions: every way in which public data writes them, and that there is none."""

from collections.abc import Iterator
from typing import Any

from ...data.files import is_missing
from .labels import as_list


Answers = dict[str, list]  # `text` and `answer_start`, as in SQuAD; both empty where there is no answer

TEXT, START = ("text", "answer_text"), ("answer_start", "start", "text_start")


def read_answers(value: Any, context: str, offset: int = 0) -> Answers:
    """A cell as SQuAD writes answers, each of them where it stands.

    Lists beside each other, a list of objects, one object, texts alone, or any of these written as text in a csv. That
    there is no answer may be said by null, by nothing, by an empty list, or by an empty text.

    Args:
        offset: of the text that starts are counted in, in `context`.

    Raises:
        ValueError: an answer that does not stand where it is said to be, or a text alone that stands nowhere or in
            several places.
    """
    found: Answers = {"text": [], "answer_start": []}
    for text, start in _pairs(as_list(value)):
        if is_missing(text):
            continue
        if not isinstance(text, str | int | float):
            raise ValueError(f"an answer must be a text, got {text!r:.80}")
        text = str(text)
        number = _whole(start)
        place = _only_place(text, context) if number is None or number < 0 else number + offset
        if context[place : place + len(text)] != text:
            raise ValueError(f"the answer {text!r:.80} is not at character {place} of its context")
        found["text"].append(text)
        found["answer_start"].append(place)
    return found


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    """(text, start) of every answer that a cell names; the start is None where it says none."""
    if isinstance(value, dict):
        texts, starts = (next((value[name] for name in names if name in value), None) for names in (TEXT, START))
        texts, starts = (each if isinstance(each, list | tuple) else [each] for each in (texts, starts))
        if starts == [None]:
            starts = [None] * len(texts)
        if len(texts) != len(starts):
            raise ValueError(f"{len(texts)} answers and {len(starts)} places where they start")
        yield from zip(texts, starts, strict=True)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _pairs(each)
    elif not is_missing(value):
        yield value, None


def _whole(start: Any) -> int | None:
    """Where an answer starts, given as a number or as text; None where nothing is given."""
    if is_missing(start):
        return None
    try:
        if float(start) == int(float(start)):
            return int(float(start))
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"answer_start must be the number of a character, got {start!r:.80}")


def _only_place(text: str, context: str) -> int:
    place = context.find(text)
    if place < 0:
        raise ValueError(f"the answer {text!r:.80} does not stand in its context")
    if context.find(text, place + 1) >= 0:
        raise ValueError(f"the answer {text!r:.80} stands in its context more than once: give its answer_start")
    return place
