"""Held out: documents, or pieces of them where there are few, that are never trained on."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import datasets

from .documents import Documents
from .parts import PART, in_parts


PIECE, SHORTEST = 100_000, 100  # characters of the pieces that few documents are read in, at most and at least


def split_held_out(documents: Documents, every: int, at_most: int | None = None) -> tuple[Documents, datasets.Dataset]:
    """Training and held-out documents: number 0, `every`, 2 `every`, ... are held out.

    Where there are fewer than `every` documents, they are read in pieces of whole lines or sentences, and pieces are
    held out instead: at most 100,000 characters each and, where they need not be shorter than 100, at least `every`.

    Args:
        at_most: the most held-out rows of a stream that are kept in memory.

    Raises:
        ValueError: `every` is too small, or the text is too short to be divided.
    """
    if every < 2:
        raise ValueError(f"held_out_every must be at least 2, got {every}")
    count = sum(1 for _ in itertools.islice((first for first in _firsts(documents) if first), every))
    in_pieces = count < every
    if in_pieces:
        documents = _in_pieces(documents, every)
    sides = partial(_held_pieces if in_pieces else _held_documents, every=every)
    if isinstance(documents, datasets.IterableDataset):
        training = _side(documents, sides, False)
        held_out = datasets.Dataset.from_list(list(itertools.islice(_side(documents, sides, True), at_most)))
        divided = next(iter(training), None) is not None
    else:
        held = list(sides(_firsts(documents)))
        training, held_out = (
            documents.select([index for index, is_held in enumerate(held) if is_held is side])
            for side in (False, True)
        )
        divided = len(training) > 0
        if in_pieces and divided:
            print(f"{len(held_out):,} of {len(held):,} pieces are held out")
    if not divided:
        raise ValueError("the text is too short to be divided into what is trained on and what is held out")
    return training, held_out


def _firsts(documents: Documents) -> Iterator[bool]:
    """Whether each row begins a document; a row is a document where nothing is said of parts."""
    if "part" not in (documents.column_names or ["part"]):
        yield from itertools.repeat(True, len(documents))
    elif isinstance(documents, datasets.IterableDataset):
        yield from (row["part"] == 0 for row in documents)
    else:
        for batch in documents.select_columns(["part"]).iter(batch_size=10_000):
            yield from (part == 0 for part in batch["part"])


def _held_documents(firsts: Iterator[bool], every: int) -> Iterator[bool]:
    """Whether each row belongs to a held-out document."""
    number = -1
    for first in firsts:
        number += first
        yield number % every == 0


def _held_pieces(firsts: Iterator[bool], every: int) -> Iterator[bool]:
    yield from (number % every == 0 for number, _ in enumerate(firsts))


def _side(
    documents: datasets.IterableDataset, sides: Callable[[Iterator[bool]], Iterator[bool]], held: bool
) -> datasets.IterableDataset:
    """The rows of a stream that are held out, or the others."""

    def rows() -> Iterator[dict[str, Any]]:
        for_sides, for_rows = itertools.tee(documents)
        firsts = (row["part"] == 0 for row in for_sides)
        yield from (row for row, is_held in zip(for_rows, sides(firsts), strict=True) if is_held is held)

    return datasets.IterableDataset.from_generator(rows, features=documents.features)


def _in_pieces(documents: Documents, every: int) -> Documents:
    """Few documents in pieces of like size."""
    total, enough = 0, every * PIECE
    for row in documents:
        total += len(row["text"])
        if total > enough:
            break
    size = max(SHORTEST, min(PIECE, total // every))
    print(
        f"there are fewer documents than held_out_every: {every}, so they are read in pieces of at most {size:,} "
        "characters, some of which are held out"
    )

    def cut(batch: dict[str, list]) -> dict[str, list]:
        (text,), (name,) = batch["text"], batch["document"]
        pieces = list(in_parts([text], size))
        first = batch["part"][0] * PART  # so that no two pieces of a document have the same number
        return {
            "text": pieces,
            "document": [name] * len(pieces),
            "part": [first + number for number in range(len(pieces))],
            "characters": [len(piece) for piece in pieces],
        }

    options: dict[str, Any] = {} if isinstance(documents, datasets.IterableDataset) else {"desc": "cutting to pieces"}
    return documents.map(cut, batched=True, batch_size=1, features=documents.features, **options)
