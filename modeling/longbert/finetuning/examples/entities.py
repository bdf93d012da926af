"""Entities in labels of words: IOB1, IOB2 (BIO), BIOES (IOBES) and BILOU, which differ in how they mark the ends.

After Ramshaw and Marcus 1995 (IOB1) and Ratinov and Roth 2009 (BILOU, section 4.2). Read as IOB2 they are one: a word
begins an entity if it says so, or if what came before is not of the same kind.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise


OUTSIDE = "O"
BEGINS, CONTINUES = {"B", "S", "U"}, {"I", "E", "L", "M"}
ALONE = {"S", "U"}  # an entity of one word, so that what follows is of another
LAST = {"E", "L"}


def mark_entities(labels: Iterable[str]) -> bool:
    """Whether labels mark entities of several words, rather than tag single words."""
    marks = {label.split("-", 1)[0] for label in labels if label != OUTSIDE and "-" in label}
    named = all(label == OUTSIDE or label[1:2] == "-" and len(label) > 2 for label in labels)
    return named and bool(marks) and marks <= BEGINS | CONTINUES


def to_iob2(labels: Sequence[str]) -> list[str]:
    """The same entities in IOB2, whatever the scheme; a mark that fits nothing begins an entity, as CoNLL's script
    counts it."""
    converted = [_begin_or_continue(before, label) for before, label in pairwise([OUTSIDE, *labels])]
    return converted


def _begin_or_continue(before: str, label: str) -> str:
    if label == OUTSIDE:
        return OUTSIDE
    (mark, kind), (mark_before, _, kind_before) = label.split("-", 1), before.partition("-")
    continued = mark in CONTINUES and kind == kind_before and mark_before not in ALONE | LAST
    return f"{'I' if continued else 'B'}-{kind}"


def first_malformed(labels: Sequence[str]) -> int | None:
    """The number of the first word that continues an entity which does not stand before it; None if there is none."""
    for number, (before, label) in enumerate(pairwise([OUTSIDE, *labels])):
        continues = label != OUTSIDE and label.split("-", 1)[0] in CONTINUES
        if continues and _begin_or_continue(before, label).startswith("B"):
            return number
    return None


def scheme_of(documents: Iterable[Sequence[str]]) -> str:
    """The scheme that documents are labelled in: IOB1, IOB2, BIOES or BILOU.

    In IOB1 an entity begins with I-, and with B- only where one of the same kind stands right before it.
    """
    documents = list(documents)
    marks = {label[0] for labels in documents for label in labels if label != OUTSIDE}
    if marks & {"L", "U"}:
        return "BILOU"
    if marks & {"E", "S"}:
        return "BIOES"
    starts = [
        (before, label)
        for labels in documents
        for before, label in pairwise([OUTSIDE, *labels])
        if label.startswith("B-")
    ]
    after_its_kind = all(before[2:] == label[2:] for before, label in starts)
    begun_by_i = any(first_malformed(labels) is not None for labels in documents)
    return "IOB1" if begun_by_i and after_its_kind else "IOB2"


def beginning_within(labels: Sequence[str], start: int, stop: int) -> list[str]:
    """IOB2 labels from word `start` on that keep every entity which begins before word `stop`, whole, and no other.

    Returns:
        `stop - start` labels, or more where the last entity goes on.
    """
    first = start
    while first < stop and labels[first].startswith("I-"):
        first += 1
    last = stop
    while first < stop and last < len(labels) and labels[last].startswith("I-"):
        last += 1
    return [OUTSIDE] * (first - start) + list(labels[first:last])
