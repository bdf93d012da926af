"""Rows: documents as tokens, cut, paired or packed to what a model reads at once, and counted.

A row holds one or several texts. Each will be framed by [CLS] and [SEP]; the second sentence of a pair begins at
`second`. Everything here runs over datasets and streams alike, in batches of documents, and depends on nothing but
the documents and a seed.
"""

import bisect
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from .documents import Documents
from .features import FRAME, PAIR_FRAME


# where words stand apart a space follows the mark; Chinese has none, and writes its marks in full or in half width
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|(?<=[\u4e00-\u9fff][!?])")


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


def tokenize(documents: Documents, tokenizer: PreTrainedTokenizerBase, sentences: bool = False) -> Documents:
    """Token ids `input_ids` of whole documents, without special tokens; empty documents are left out.

    Args:
        sentences: also give `sentence_lengths`, tokens of each sentence: a line or, in documents of a single line,
            what ends in a full stop, question or exclamation mark.
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        # verbose=False: longer than model_max_length is what these documents are for
        if not sentences:
            ids = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
            return {"document": batch["document"], "input_ids": ids}
        split = [
            tokenizer(split_sentences(text), add_special_tokens=False, verbose=False)["input_ids"]
            for text in batch["text"]
        ]
        return {
            "document": batch["document"],
            "input_ids": [_joined(sentences) for sentences in split],
            "sentence_lengths": [[len(sentence) for sentence in sentences if sentence] for sentences in split],
        }

    tokens = _map(documents, encode, ["text"], "tokenizing")
    return tokens.filter(lambda ids: len(ids) > 0, input_columns=["input_ids"])


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
        return _map(tokens, _pairing(settings), ["document", "input_ids", "sentence_lengths"], "pairing")
    if not 0 <= settings.stride < settings.max_seq_length - FRAME:
        raise ValueError(
            f"stride must leave something new in a row of {settings.max_seq_length} tokens, got {settings.stride}"
        )
    rows = _map(tokens, _cutting(settings), ["document", "input_ids"], f"cutting at {settings.max_seq_length}")
    return _map(rows, _packing(settings), [], f"packing to {settings.max_seq_length}") if settings.packing else rows


def _map(documents: Documents, function: Callable, remove_columns: list[str], description: str) -> Documents:
    options: dict[str, Any] = {} if isinstance(documents, datasets.IterableDataset) else {"desc": description}
    return documents.map(function, batched=True, remove_columns=remove_columns, **options)


def _drawing(settings: RowSettings, document: str) -> random.Random:
    """What is drawn for a document depends on it alone, not on where in the corpus it stands."""
    return random.Random(f"{settings.seed} {settings.max_seq_length} {document}")


def _lengths(settings: RowSettings, size: int, draw: random.Random) -> Iterator[int]:
    """Lengths to cut at: `size`, or a shorter one as often as is set."""
    while True:
        yield draw.randint(2, size) if draw.random() < settings.short_seq_probability else size


def _cutting(settings: RowSettings) -> Callable[[dict[str, list]], dict[str, list]]:
    def cut(batch: dict[str, list]) -> dict[str, list]:
        texts, documents = [], []
        for document, ids in zip(batch["document"], batch["input_ids"], strict=True):
            start, stop = 0, 0
            for length in _lengths(settings, settings.max_seq_length - FRAME, _drawing(settings, document)):
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


def _pairing(settings: RowSettings) -> Callable[[dict[str, list]], dict[str, list]]:
    """Sentence pairs of whole documents, after BERT's create_pretraining_data.py, create_instances_from_document.

    Where that draws the random second sentence from all documents, this draws from a batch of 1,000.
    """
    budget = settings.max_seq_length - PAIR_FRAME

    def pair(batch: dict[str, list]) -> dict[str, list]:
        cut = [
            list(_sentences(ids, lengths, budget))
            for ids, lengths in zip(batch["input_ids"], batch["sentence_lengths"], strict=True)
        ]
        made: dict[str, list] = {"texts": [], "documents": [], "second": [], "next_sentence_label": []}
        for own, document in enumerate(batch["document"]):
            draw = _drawing(settings, document)
            others = cut[:own] + cut[own + 1 :]
            for first, second, label in _pairs(cut[own], others, settings, budget, draw):
                _truncate(first, second, budget, draw)
                made["texts"].append([first + second])
                made["documents"].append([document])
                made["second"].append(len(first))
                made["next_sentence_label"].append(label)
        return made

    return pair


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
    if settings.objective == "mlm+nsp" and not others:
        raise ValueError("objective 'mlm+nsp' draws sentences from other documents, and there is but one")
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
    """What became of the documents."""

    documents: int
    document_tokens: int
    rows: int
    row_tokens: int
    max_seq_length: int

    @classmethod
    def of(cls, tokens: datasets.Dataset, rows: datasets.Dataset, max_seq_length: int) -> "RowCount":
        """Count both; special tokens are not counted."""
        return cls(
            documents=len(tokens),
            document_tokens=_count(tokens, "input_ids"),
            rows=len(rows),
            row_tokens=_count(rows, "texts"),
            max_seq_length=max_seq_length,
        )

    def __str__(self) -> str:
        unused = 1 - self.row_tokens / (self.rows * self.max_seq_length)
        difference = self.row_tokens - self.document_tokens
        change = f", {difference:+,} by overlap or truncation" if difference else ", all used once"
        return (
            f"{self.documents:,} documents of {self.document_tokens:,} tokens{change}: {self.rows:,} rows of up to "
            f"{self.max_seq_length:,} tokens, {unused:.1%} of their room is padding"
        )


def _count(dataset: datasets.Dataset, column: str) -> int:
    """Numbers in a column of lists, or of lists of lists, read piece by piece."""
    total = 0
    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        lists = batch[column].combine_chunks()
        while hasattr(lists.type, "value_type") and hasattr(lists.type.value_type, "value_type"):
            lists = pc.list_flatten(lists)
        total += pc.sum(pc.list_value_length(lists)).as_py() or 0
    return total
