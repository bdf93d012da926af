"""A text cut into passages: where a paragraph, a line, a sentence or a word ends, and tokens allow it."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


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
