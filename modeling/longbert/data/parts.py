"""Parts: a text separated into documents, and a long document cut where nothing is torn apart.

Texts come in pieces of any size and leave in parts, so that a file of any size fits into memory.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator

from .words import is_unspaced


PART = 1 << 20  # characters that are read and tokenized at once
LINE, EMPTY_LINE = "line", "empty-line"  # separators; any other is a regular expression
LONGEST_WORD = 1000  # characters; what is longer is no word, and may be cut
JOINER = "\u200d"

# where words stand apart a space follows the mark; Chinese has none, and writes its marks in full or in half width
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|(?<=[\u4e00-\u9fff][!?])")


def parse_separator(separator: str) -> re.Pattern | None:
    """The regular expression of a separator; None for `line` and `empty-line`.

    Raises:
        ValueError: it is none, or matches everywhere.
    """
    if separator in (LINE, EMPTY_LINE):
        return None
    try:
        pattern = re.compile(separator)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"document_separator must be {LINE}, {EMPTY_LINE} or a regular expression, got {separator!r}: {error}"
        ) from error
    if pattern.match(""):
        raise ValueError(f"document_separator {separator!r} matches every line: say how a heading begins")
    return pattern


def separated(pieces: Iterable[str], separator: str | None) -> Iterator[tuple[int, Iterator[str]]]:
    """The documents of a text, each with its number from 1 on, and in pieces; to be used one after the other.

    Number 0 is a text that is not separated, or what stands before its first heading.
    """
    if separator is None:
        yield 0, iter(pieces)
        return
    lines = _numbered(_lines(pieces), separator)
    empty = True
    for number, document in itertools.groupby(lines, key=lambda line: line[0]):
        empty = False
        yield number, (text for _, text in document)
    if empty:
        yield 0, iter(())


def _lines(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Lines with their ends, and whether each begins one: what is longer than a part comes in pieces."""
    rest, begins = "", True
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            yield line + "\n", begins
            begins = True
        if len(rest) > PART:
            yield rest, begins
            rest, begins = "", False
    if rest:
        yield rest, begins


def _numbered(lines: Iterable[tuple[str, bool]], separator: str) -> Iterator[tuple[int, str]]:
    """Each line with the number of its document; blank lines that only separate are left out."""
    pattern = parse_separator(separator)
    number, first, after_blank = 0, True, True
    for line, begins in lines:
        if not line.strip() and (pattern is None or first):
            after_blank = begins
            continue
        if pattern is None:
            number += begins and (separator == LINE or after_blank)
        elif begins and pattern.match(line):
            number += 1
        first, after_blank = False, False
        yield number, line.rstrip("\n") if separator == LINE else line


def in_parts(pieces: Iterable[str], size: int | None = PART) -> Iterator[str]:
    """A text in parts of at most `size` characters, which joined are the text; one part where `size` is None."""
    if size is None:
        yield "".join(pieces)
        return
    gathered: list[str] = []
    length, empty = 0, True
    for piece in _at_most(pieces, size):
        gathered.append(piece)
        length += len(piece)
        while length > size:
            text = "".join(gathered)
            place = place_to_cut(text, size)
            yield text[:place]
            gathered, length, empty = [text[place:]], length - place, False
    if length or empty:
        yield "".join(gathered)


def _at_most(pieces: Iterable[str], size: int) -> Iterator[str]:
    for piece in pieces:
        yield from (piece[start : start + size] for start in range(0, len(piece), size))


def place_to_cut(text: str, size: int) -> int:
    """The last place among the first `size` characters where a text longer than that is best cut.

    After a line; else after a sentence, a blank or, where there is none in their second half, between two letters
    of a script without spaces, but never before a mark that belongs to the letter before.
    """
    half = size // 2
    line = text.rfind("\n", half, size)
    if line >= 0:
        return line + 1
    sentence = max((match.end() for match in SENTENCE_END.finditer(text, half, size)), default=0)
    if sentence:
        return sentence
    words = text[half:size].rsplit(None, 1)
    if not words or len(words) == 2 or text[size - 1].isspace():
        return size - (len(words[-1]) if len(words) == 2 and not text[size - 1].isspace() else 0)
    nearest = range(size, max(half, size - LONGEST_WORD, 1) - 1, -1)
    letters = (place for place in nearest if _is_apart(text[place - 1], text[place]) and not _in_word(text, place))
    return next(letters, None) or next((place for place in nearest if _is_apart(text[place - 1], text[place])), size)


def _is_apart(before: str, after: str) -> bool:
    """Whether two characters are two: not a letter and its mark, nor emoji joined to one."""
    return before != JOINER and after != JOINER and not unicodedata.category(after).startswith("M")


def _in_word(text: str, place: int) -> bool:
    around = text[place - 1 : place + 1]
    return all(each.isalnum() and not is_unspaced(each) for each in around)
