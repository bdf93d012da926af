"""Rows: documents as tokens, cut, paired or packed to what a model reads at once, and counted.

A row holds one or several texts. Each will be framed by [CLS] and [SEP]; the second sentence of a pair begins at
`second`. Everything here runs over datasets and streams alike, in batches of documents, and depends on nothing but
the documents and a seed.
"""

import bisect
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from .documents import Documents, digest_of
from .features import FRAME, PAIR_FRAME
from .files import refuse_rows
from .parts import SENTENCE_END


BATCH = 1000  # the most documents that are worked on at once
AT_ONCE = 1 << 21  # the most characters or tokens of them, but for a document that has more
POOL = 64  # documents that are at hand for a batch of one document


@dataclass
class RowSettings:
    """How documents become rows of at most `max_seq_length` tokens, [CLS] and [SEP] counted.

    Args:
        stride: tokens that a row repeats of the one before, where a document is longer than a row.
        packing: put several short documents into one row; they do not see each other.
        objective: "mlm", or "mlm+nsp" or "mlm+sop" for rows of sentence pairs.
        short_seq_probability: share of rows cut at a random shorter length, as in BERT's pretraining.
        seed: of all random draws.
    """

    max_seq_length: int
    stride: int = 0
    packing: bool = False
    objective: str = "mlm"
    short_seq_probability: float = 0.0
    seed: int = 0


def tokenize(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, sentences: bool = False, skip_empty: bool = False
) -> Documents:
    """Token ids `input_ids` of documents, or of their parts, without special tokens.

    Args:
        sentences: also give `sentence_lengths`, tokens of each sentence: a line or, in documents of a single line,
            what ends in a full stop, question or exclamation mark.
        skip_empty: leave out documents of which the tokenizer makes nothing.

    Raises:
        ValueError: there are such documents, and they are not to be left out; of a stream once one is reached.
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        kept = {
            "document": batch["document"],
            "part": batch["part"] if "part" in batch else [0] * len(batch["text"]),
            "digest": batch["digest"] if "digest" in batch else list(map(digest_of, batch["text"])),
        }
        # verbose=False: longer than model_max_length is what these documents are for
        if not sentences:
            ids = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
            return {**kept, "input_ids": ids}
        split = [
            tokenizer(split_sentences(text), add_special_tokens=False, verbose=False)["input_ids"]
            for text in batch["text"]
        ]
        return {
            **kept,
            "input_ids": [_joined(sentences) for sentences in split],
            "sentence_lengths": [[len(sentence) for sentence in sentences if sentence] for sentences in split],
        }

    tokens = _map(documents, encode, "text", "tokenizing")
    return _without_empty(tokens, skip_empty)


def _without_empty(tokens: Documents, skip_empty: bool) -> Documents:
    """Tokens without documents and parts that have none, which is said."""
    what = "no text that the tokenizer knows"
    if isinstance(tokens, datasets.IterableDataset):

        def has_tokens(row: dict[str, Any]) -> bool:
            refuse_rows([] if row["input_ids"] or row["part"] or skip_empty else [row["document"]], what)
            return len(row["input_ids"]) > 0

        return tokens.filter(has_tokens)
    lengths = _lengths_of(tokens, "input_ids")
    if lengths.all():
        return tokens
    filled = tokens.select(np.flatnonzero(lengths))
    names = set(tokens.select(np.flatnonzero(lengths == 0))["document"])
    if len(filled):
        names -= set(filled.unique("document"))
    if not skip_empty:
        refuse_rows(sorted(names), what)
    elif names:
        print(f"{len(names):,} documents have {what}, and are left out: {'; '.join(sorted(names)[:5])}")
    return filled


def split_sentences(text: str) -> list[str]:
    """The lines of a text or, where there is but one, its sentences."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        lines = [sentence for sentence in SENTENCE_END.split(text) if sentence.strip()]
    return lines or [text]


def _joined(sentences: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(sentences))


def make_rows(tokens: Documents, settings: RowSettings) -> Documents:
    """Rows: `texts` `[texts][tokens]`, `documents` `[texts]`, and for pairs `second` and `next_sentence_label`.

    Raises:
        ValueError: settings that exclude each other.
    """
    if settings.objective != "mlm":
        if settings.packing or settings.stride:
            raise ValueError(f"packing and stride are for objective 'mlm', got {settings.objective!r}")
        return _map(tokens, _pairing(settings, _pool(tokens, settings)), "input_ids", "pairing")
    if not 0 <= settings.stride < settings.max_seq_length - FRAME:
        raise ValueError(
            f"stride must leave something new in a row of {settings.max_seq_length} tokens, got {settings.stride}"
        )
    rows = _map(tokens, _cutting(settings), "input_ids", f"cutting at {settings.max_seq_length}")
    return _map(rows, _packing(settings), None, f"packing to {settings.max_seq_length}") if settings.packing else rows


def _map(documents: Documents, function: Callable, sized: str | None, description: str) -> Documents:
    """What a function makes of batches of documents, in place of them.

    Args:
        sized: the column whose lengths bound a batch; None where rows are short.
    """
    if isinstance(documents, datasets.IterableDataset):
        return datasets.IterableDataset.from_generator(lambda: _mapped(documents, function, sized))
    longest = int(_lengths_of(documents, sized).max(initial=1)) if sized else 1
    most = min(BATCH, max(1, AT_ONCE // max(1, longest)))
    batches = -(-len(documents) // most)
    size = -(-len(documents) // max(1, batches))  # all of like size, so that none is left alone
    options = {"batch_size": max(1, size), "remove_columns": documents.column_names, "desc": description}
    return documents.map(function, batched=True, **options)


def _mapped(documents: Iterable[dict[str, Any]], function: Callable, sized: str | None) -> Iterator[dict[str, Any]]:
    """The same of a stream."""
    rows: list[dict[str, Any]] = []
    total = 0
    for row in itertools.chain(documents, [None]):
        if rows and (row is None or len(rows) == BATCH or (sized and total + len(row[sized]) > AT_ONCE)):
            made = function({name: [each[name] for each in rows] for name in rows[0]})
            for values in zip(*made.values(), strict=True):
                yield dict(zip(made, values, strict=True))
            rows, total = [], 0
        if row is not None:
            rows.append(row)
            total += len(row[sized]) if sized else 0


def _lengths_of(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """Lengths of the texts (in bytes) or lists of a column, `[rows]`, read piece by piece."""
    found = [np.zeros(0, dtype=np.int64)]
    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        values = batch[column].combine_chunks()
        is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        found.append((pc.binary_length if is_text else pc.list_value_length)(values).to_numpy(zero_copy_only=False))
    return np.concatenate(found)


def _drawing(settings: RowSettings, digest: int) -> random.Random:
    """What is drawn for a text depends on it alone, not on its file's name nor on where in the corpus it stands."""
    return random.Random(f"{settings.seed} {settings.max_seq_length} {digest}")


def _lengths(settings: RowSettings, size: int, draw: random.Random) -> Iterator[int]:
    """Lengths to cut at: `size`, or a shorter one as often as is set."""
    while True:
        yield draw.randint(2, size) if draw.random() < settings.short_seq_probability else size


def _cutting(settings: RowSettings) -> Callable[[dict[str, list]], dict[str, list]]:
    def cut(batch: dict[str, list]) -> dict[str, list]:
        texts, documents = [], []
        for document, digest, ids in zip(batch["document"], batch["digest"], batch["input_ids"], strict=True):
            start, stop = 0, 0
            for length in _lengths(settings, settings.max_seq_length - FRAME, _drawing(settings, digest)):
                stop = start + max(length, settings.stride + 1)
                texts.append([ids[start:stop]])
                documents.append([document])
                start = stop - settings.stride
                if stop >= len(ids):
                    break
        return {"texts": texts, "documents": documents}

    return cut


def _packing(settings: RowSettings) -> Callable[[dict[str, list]], dict[str, list]]:
    """Best fit, longest first: every text goes into the fullest row that still has room for it."""

    def pack(batch: dict[str, list]) -> dict[str, list]:
        texts, documents = [texts[0] for texts in batch["texts"]], [names[0] for names in batch["documents"]]
        rows: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (tokens left, row), sorted
        for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
            size = len(texts[index]) + FRAME
            place = bisect.bisect_left(room, (size, -1))
            if place == len(room):
                rows.append([])
                left, row = settings.max_seq_length, len(rows) - 1
            else:
                left, row = room.pop(place)
            rows[row].append(index)
            bisect.insort(room, (left - size, row))
        return {
            "texts": [[texts[index] for index in row] for row in rows],
            "documents": [[documents[index] for index in row] for row in rows],
        }

    return pack


Named = tuple[str, list[list[int]]]  # a document's name, and sentences of it


def _pool(tokens: Documents, settings: RowSettings) -> list[Named]:
    """Some sentences of several documents, for batches that hold but one; none where no objective needs them.

    Raises:
        ValueError: there is but one document.
    """
    if settings.objective != "mlm+nsp":
        return []
    rows: Iterable[dict[str, Any]]
    if isinstance(tokens, datasets.IterableDataset):
        rows = (next(group) for _, group in itertools.groupby(tokens, key=lambda row: row["document"]))
        rows = itertools.islice(rows, 2)
    else:
        rows = tokens.select(np.unique(np.linspace(0, max(0, len(tokens) - 1), POOL).astype(int)))
    pool = [(row["document"], _first_sentences(row, settings.max_seq_length - PAIR_FRAME)) for row in rows]
    if len({name for name, _ in pool}) < 2:
        raise ValueError(
            "objective 'mlm+nsp' draws sentences from other documents, and there is but one: set objective: mlm+sop, "
            "which needs no other, or document_separator, which makes documents of one text"
        )
    return pool


def _first_sentences(row: dict[str, Any], budget: int, rows: int = 16) -> list[list[int]]:
    """A document's first sentences, for about as many rows."""
    count = bisect.bisect_left(list(itertools.accumulate(row["sentence_lengths"])), rows * budget) + 1
    return list(_sentences(row["input_ids"], row["sentence_lengths"][:count], budget))


def _pairing(settings: RowSettings, pool: list[Named]) -> Callable[[dict[str, list]], dict[str, list]]:
    """Sentence pairs of whole documents, after BERT's create_pretraining_data.py, create_instances_from_document.

    Where that draws the random second sentence from all documents, this draws from a batch of at most 1,000, or from
    the pool where a batch holds parts of one document alone.
    """
    budget = settings.max_seq_length - PAIR_FRAME

    def pair(batch: dict[str, list]) -> dict[str, list]:
        cut: list[Named] = [
            (document, list(_sentences(ids, lengths, budget)))
            for document, ids, lengths in zip(
                batch["document"], batch["input_ids"], batch["sentence_lengths"], strict=True
            )
        ]
        made: dict[str, list] = {"texts": [], "documents": [], "second": [], "next_sentence_label": []}
        for (document, sentences), digest in zip(cut, batch["digest"], strict=True):
            draw = _drawing(settings, digest)
            others = _of_others(cut, document) or _of_others(pool, document)
            for first, second, label in _pairs(sentences, others, settings, budget, draw):
                _truncate(first, second, budget, draw)
                made["texts"].append([first + second])
                made["documents"].append([document])
                made["second"].append(len(first))
                made["next_sentence_label"].append(label)
        return made

    return pair


def _of_others(sentences: list[Named], document: str) -> list[list[list[int]]]:
    return [each for name, each in sentences if name != document]


def _sentences(ids: list[int], lengths: list[int], budget: int) -> Iterator[list[int]]:
    """The sentences of a document; one longer than half a row is halved until it is not, so that pairs can be made."""
    start = 0
    for length in lengths:
        parts = -(-length // max(1, budget // 2))
        for part in range(parts):
            yield ids[start + length * part // parts : start + length * (part + 1) // parts]
        start += length


def _pairs(
    sentences: list[list[int]], others: list[list[list[int]]], settings: RowSettings, budget: int, draw: random.Random
) -> Iterator[tuple[list[int], list[int], int]]:
    """(first, second, label) until the document is used up.

    The label is 0 for what follows in the document, 1 for another document's (NSP) or the reverse order (SOP).
    """
    lengths = _lengths(settings, budget, draw)
    start = 0
    while start < len(sentences):
        target, stop, total = next(lengths), start, 0
        while stop < len(sentences) and (total < target or stop == start):
            total += len(sentences[stop])
            stop += 1
        split = start + (draw.randint(1, stop - start - 1) if stop - start > 1 else 1)
        first, second = _joined(sentences[start:split]), _joined(sentences[split:stop])
        if settings.objective == "mlm+sop":
            if not second:
                second = first[len(first) // 2 :]
                first = first[: len(first) // 2]
            swapped = draw.random() < 0.5
            yield (second, first, 1) if swapped else (first, second, 0)
        elif not second or draw.random() < 0.5:
            stop = split  # what was meant to follow is used in the next row
            yield first, _random_sentences(draw.choice(others), target - len(first), draw), 1
        else:
            yield first, second, 0
        start = stop


def _random_sentences(sentences: list[list[int]], wanted: int, draw: random.Random) -> list[int]:
    """Consecutive sentences from a random place on, until they fill what is wanted."""
    taken: list[int] = []
    for sentence in sentences[draw.randrange(len(sentences)) :]:
        taken = taken + sentence
        if len(taken) >= wanted:
            break
    return taken


def _truncate(first: list[int], second: list[int], budget: int, draw: random.Random) -> None:
    """Drop tokens off the front or the back of the longer one, in place, until both fit."""
    while len(first) + len(second) > budget:
        longer = first if len(first) > len(second) else second
        del longer[0 if draw.random() < 0.5 else -1]


@dataclass
class RowCount:
    """What became of the documents' tokens; special tokens are not counted.

    Args:
        repeated: tokens that a row has from the one before, by the stride.
        added: tokens that pairs have from other documents.
        dropped: tokens that are in no row, because pairs were truncated.
    """

    documents: int
    document_tokens: int
    rows: int
    row_tokens: int
    max_seq_length: int
    repeated: int = 0
    added: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, tokens: datasets.Dataset, rows: datasets.Dataset, settings: RowSettings) -> "RowCount":
        """Count what `make_rows` made with these settings."""
        count = cls(
            documents=len(tokens.unique("document")),
            document_tokens=int(_lengths_of(tokens, "input_ids").sum()),
            rows=len(rows),
            row_tokens=0,
            max_seq_length=settings.max_seq_length,
        )
        texts = 0
        for batch in rows.with_format("arrow").iter(batch_size=1000):
            lengths = pc.list_value_length(pc.list_flatten(batch["texts"].combine_chunks())).to_numpy()
            texts += len(lengths)
            count.row_tokens += int(lengths.sum())
            if settings.objective == "mlm+nsp":
                foreign = batch["next_sentence_label"].to_numpy() == 1
                count.added += int((lengths - batch["second"].to_numpy())[foreign].sum())
        count.repeated = settings.stride * (texts - len(tokens))
        count.dropped = count.document_tokens + count.repeated + count.added - count.row_tokens
        return count

    def __str__(self) -> str:
        unused = 1 - self.row_tokens / (self.rows * self.max_seq_length)
        changes = {
            "dropped": self.dropped,
            "added from other documents": self.added,
            "read again where rows overlap": self.repeated,
        }
        said = ", ".join(f"{number:,} tokens {what}" for what, number in changes.items() if number)
        return (
            f"{self.documents:,} documents of {self.document_tokens:,} tokens, {said or 'all used once'}: "
            f"{self.rows:,} rows of up to {self.max_seq_length:,} tokens, {unused:.1%} of their room is padding"
        )
