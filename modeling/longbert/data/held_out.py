"""Held out: documents, or pieces of them where there are few, that are never trained on."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import datasets

from .documents import Documents, digest_of
from .parts import PART, in_parts


SPACE = 1 << 63  # of digests
PIECE, SHORTEST = 100_000, 100  # characters of the pieces that few documents are read in, at most and at least


def split_held_out(documents: Documents, every: int, at_most: int | None = None) -> tuple[Documents, datasets.Dataset]:
    """Training and held-out documents: about one in `every` is held out.

    Which ones depends on their texts alone, so that a corpus that grows, or whose files are renamed, never trains on
    what was held out before, and like documents are on one side.

    Where there are fewer than `every` documents, they are read in pieces of whole lines or sentences, and pieces are
    held out instead: at most 100,000 characters each and, where they need not be shorter than 100, at least `every`.

    Args:
        at_most: the most held-out rows of a stream that are kept in memory.

    Raises:
        ValueError: `every` is too small, or the text is too short to be divided.
    """
    if every < 2:
        raise ValueError(f"held_out_every must be at least 2, got {every}")
    in_pieces = sum(1 for _ in itertools.islice((part for part, _ in _facts(documents) if part == 0), every)) < every
    if in_pieces:
        documents = _in_pieces(documents, every)
    decide = partial(_deciding, in_pieces=in_pieces)
    limit = _limit(decide(_facts(documents)), every)
    if isinstance(documents, datasets.IterableDataset):
        training = _side(documents, decide, range(limit, SPACE))
        held_out = datasets.Dataset.from_list(
            list(itertools.islice(_side(documents, decide, range(limit)), at_most)), features=documents.features
        )
        return training, held_out
    held = [digest < limit for digest in decide(_facts(documents))]
    training, held_out = (
        documents.select([index for index, is_held in enumerate(held) if is_held is side]) for side in (False, True)
    )
    if in_pieces:
        print(f"{len(held_out):,} of {len(held):,} pieces are held out")
    return training, held_out


def _facts(documents: Documents) -> Iterator[tuple[int, int]]:
    """(number of the part in its document, digest) of each row; a row is a document where nothing is said of parts."""
    columns = documents.column_names or ["part", "digest"]
    if not {"part", "digest"} <= {*columns}:
        yield from ((0, digest_of(row["text"])) for row in documents)
    elif isinstance(documents, datasets.IterableDataset):
        yield from ((row["part"], row["digest"]) for row in documents)
    else:
        for batch in documents.select_columns(["part", "digest"]).iter(batch_size=10_000):
            yield from zip(batch["part"], batch["digest"], strict=True)


def _deciding(facts: Iterable[tuple[int, int]], in_pieces: bool) -> Iterator[int]:
    """The digest that decides on each row's side: its own, or its document's first part's."""
    decides = 0
    for part, digest in facts:
        decides = digest if in_pieces or part == 0 else decides
        yield decides


def _limit(digests: Iterable[int], every: int) -> int:
    """The digest below which a text is held out: one in `every` has such a one, and at least one and not all."""
    limit, smallest, largest = SPACE // every, SPACE, -1
    for digest in digests:
        smallest, largest = min(smallest, digest), max(largest, digest)
        if smallest < limit <= largest:
            return limit
    if smallest >= largest:
        raise ValueError(
            "the text is too short, or its documents are all alike: it cannot be divided into what is trained on and "
            "what is held out"
        )
    return min(max(limit, smallest + 1), largest)


def _side(
    documents: datasets.IterableDataset,
    decide: Callable[[Iterable[tuple[int, int]]], Iterator[int]],
    digests: range,
) -> datasets.IterableDataset:
    """The rows of a stream whose digests, or whose documents', are among these."""

    def rows() -> Iterator[dict[str, Any]]:
        for_sides, for_rows = itertools.tee(documents)
        facts = ((row["part"], row["digest"]) for row in for_sides)
        yield from (row for row, digest in zip(for_rows, decide(facts), strict=True) if digest in digests)

    return datasets.IterableDataset.from_generator(rows, features=documents.features)


def _in_pieces(documents: Documents, every: int) -> Documents:
    """Few documents in pieces of like size."""
    total, enough = 0, every * PIECE
    for row in documents:
        total += len(row["text"])
        if total > enough:
            break
    # halves of halves, so that a text that grows is cut where it was
    halved = max(0, math.ceil(math.log2(PIECE * every / max(1, total))))
    size = max(SHORTEST, PIECE >> halved)
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
            "digest": [digest_of(piece) for piece in pieces],
        }

    options: dict[str, Any] = {} if isinstance(documents, datasets.IterableDataset) else {"desc": "cutting to pieces"}
    return documents.map(cut, batched=True, batch_size=1, features=documents.features, **options)
