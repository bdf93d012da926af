"""Words of a text that nobody has split yet: as the data that a tagger was trained on was split."""

import unicodedata
from collections.abc import Callable, Sequence

from ...data.words import is_unspaced


Span = tuple[int, int]


def _is_mark(character: str) -> bool:
    """Whether a character belongs to the letter before: combining marks, and what joins letters without being seen."""
    return unicodedata.category(character).startswith("M") or character in "\u200c\u200d"


def _in_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LN"


def at_spaces(text: str) -> list[Span]:
    """Words are what stands between spaces."""
    return _spans(text, lambda before, character: True)


def at_punctuation(text: str) -> list[Span]:
    """Words end at spaces, and every punctuation mark is a word of its own."""
    return _spans(text, lambda before, character: _in_word(before) and _in_word(character))


def at_characters(text: str) -> list[Span]:
    """As `at_punctuation`, and characters of scripts without spaces are words of their own."""
    return _spans(
        text,
        lambda before, character: (
            _in_word(before) and _in_word(character) and not is_unspaced(before) and not is_unspaced(character)
        ),
    )


def _spans(text: str, joins: Callable[[str, str], bool]) -> list[Span]:
    """(start, end) of every word.

    Args:
        joins: (a letter, the next) -> whether they are of one word; combining marks always go with their letter.
    """
    spans: list[Span] = []
    letter = ""
    for place, character in enumerate(text):
        if character.isspace():
            letter = ""
        elif letter and (_is_mark(character) or joins(letter, character)):
            spans[-1] = (spans[-1][0], place + 1)
            letter = letter if _is_mark(character) else character
        else:
            spans.append((place, place + 1))
            letter = character
    return spans


WORD_SPLITTERS: dict[str, Callable[[str], list[Span]]] = {
    "punctuation": at_punctuation,
    "spaces": at_spaces,
    "characters": at_characters,
}


def splitter_of(documents: Sequence[Sequence[str]]) -> tuple[str, float]:
    """The name of the splitter that finds most of the words of documents again, and their share.

    Args:
        documents: lists of words, as in training data.
    """

    def found_again(name: str) -> float:
        found = sum(_found(WORD_SPLITTERS[name], words) for words in documents)
        return found / max(1, sum(map(len, documents)))

    shares = {name: found_again(name) for name in WORD_SPLITTERS}
    best = max(shares, key=lambda name: shares[name])
    return best, shares[best]


def _found(split: Callable[[str], list[Span]], words: Sequence[str]) -> int:
    """How many words are found again in the text that they make."""
    text, spans, end = "", set(), 0
    for word in words:
        # a space between words, but not between characters of scripts that have none
        apart = text and not (is_unspaced(text[-1]) and word and is_unspaced(word[0]))
        start = end + int(bool(apart))
        text += (" " if apart else "") + word
        end = start + len(word)
        spans.add((start, end))
    return len(spans & {*split(text)})
