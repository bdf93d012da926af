"""Features: rows masked, framed and given positions. What is drawn for a row depends on its key and nothing else."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from .documents import Documents
from .features import FRAME, IGNORE_INDEX, Features, collate, framed, framed_labels
from .twins import leave_one_of_each, nearest_twins
from .words import CONTINUES, Segmenter, continues_word, is_unspaced


FAR_RATE = 2  # times as often as others; measured in docs/study.md, "Using length"
SAMPLE = 100  # rows or documents that a share is found in


def generator_for(*key: Any) -> torch.Generator:
    """A generator that the same key always starts in the same state."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class TokenMasker:
    """BERT's masking, drawn from a key: the same key masks a text in the same places, always.

    Of the `mlm_probability` of tokens, or of words, that are chosen, 80 % of the tokens become [MASK], 10 % a random
    token, 10 % stay.

    With `far`, masking is retrieval-aware: what can be copied from far away, and from nowhere nearer, is chosen twice
    as often, so that looking there pays. Of a token, or word, with such a place one place at least is left as it is,
    so that there is something to copy. Our own formulation, after the idea of retrieval-aware masking (arXiv
    2603.23508), which masks a tenth of the later half's tokens that the earlier half has too, and some first
    recurrences.

    Args:
        whole_word_mask: choose all the word pieces of a word or none.
        segmenter: finds the words of scripts that write no spaces between them.
        far: tokens past which the nearest twin of a token, or word, in its text is far; None masks all alike.

    Raises:
        ValueError: `whole_word_mask` with a tokenizer whose word pieces are not marked by ##.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mlm_probability: float,
        whole_word_mask: bool = False,
        segmenter: Segmenter | None = None,
        far: int | None = None,
    ):
        self.mlm_probability = mlm_probability
        self.segmenter = segmenter
        self.far = far
        self.pieces: list[str] = []
        if whole_word_mask:
            self.pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
            # a vocabulary of Chinese letters may have no piece that continues a word
            if segmenter is None and not any(piece.startswith(CONTINUES) for piece in self.pieces):
                raise ValueError("whole_word_mask needs a WordPiece tokenizer, whose vocabulary marks pieces by ##")
        # what is chosen here transformers' collator only replaces
        self.chooses = whole_word_mask or far is not None
        self.collator = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=1.0 if self.chooses else mlm_probability
        )

    def __call__(
        self, input_ids: list[int], *key: Any, second: int | None = None
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Masked ids and labels, both `[len(input_ids)]`; no id is treated as special.

        Args:
            second: where the second text of a pair begins, and with it a word.
        """
        self.collator.generator = generator_for(*key)
        hidden = self._hidden(input_ids, second)[None]
        masked, labels = self.collator.torch_mask_tokens(torch.tensor([input_ids]), special_tokens_mask=hidden)
        return masked[0], labels[0]

    def _hidden(self, input_ids: list[int], second: int | None) -> torch.LongTensor:
        """1 at tokens that the collator must leave alone, `[tokens]`."""
        if not self.chooses:
            return torch.zeros(len(input_ids), dtype=torch.long)
        words = self._words(input_ids, second)
        drawn = torch.rand(int(words.max()) + 1, generator=self.collator.generator)
        chosen = drawn < self.mlm_probability
        if self.far is not None:
            chosen = self._with_far_copies(drawn.numpy(), words.numpy(), input_ids, second)
        return (~chosen[words]).long()

    def _words(self, input_ids: list[int], second: int | None) -> torch.LongTensor:
        """The number of each token's word, `[tokens]`; without whole words each token is one."""
        if not self.pieces:
            return torch.arange(len(input_ids))
        continues = torch.tensor(continues_word([self.pieces[index] for index in input_ids], self.segmenter))
        continues[0 if second is None else second] = False
        return (~continues).cumsum(-1)

    def _with_far_copies(
        self, drawn: np.ndarray, words: np.ndarray, input_ids: list[int], second: int | None
    ) -> torch.BoolTensor:
        """Which words are chosen, `[words]`, of a number `drawn` for each. A pair's texts have no twins in common."""
        starts = np.searchsorted(words, np.arange(len(drawn)))
        stops = [*starts[1:].tolist(), len(input_ids)]
        numbers: dict[tuple[int, ...], int] = {}
        spelled = np.array(
            [
                numbers.setdefault((second is not None and start >= second, *input_ids[start:stop]), len(numbers))
                for start, stop in zip(starts.tolist(), stops, strict=True)
            ]
        )
        is_far = nearest_twins(spelled, places=starts) > self.far
        chosen = drawn < np.where(is_far, FAR_RATE * self.mlm_probability, self.mlm_probability)
        return torch.from_numpy(leave_one_of_each(chosen, drawn, spelled, is_far))


def masked_share(rows: Documents, masker: "RowMasker", seed: int) -> float:
    """The share of tokens that are predicted, special ones not counted, in the masks of a first epoch.

    Of many rows, and of a stream's, some are looked at.
    """
    some: Iterable[tuple[int, dict[str, Any]]]
    if isinstance(rows, datasets.IterableDataset):
        some = enumerate(itertools.islice(rows, SAMPLE))
    else:
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)).tolist()
        some = ((number, rows[number]) for number in chosen)
    masked, total = 0, 0
    for number, row in some:
        masked += int((masker(row, seed, 0, number)["labels"] != IGNORE_INDEX).sum())
        total += sum(map(len, row["texts"]))
    return masked / max(1, total)


def unspaced_share(tokens: Documents, tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of tokens that belong to scripts without spaces, in which ## marks no words.

    Of a stream, its first documents are looked at.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    unspaced = np.array([is_unspaced(piece.removeprefix(CONTINUES)) for piece in pieces])
    found, total = 0, 0
    rows = itertools.islice(tokens, SAMPLE) if isinstance(tokens, datasets.IterableDataset) else _ids(tokens)
    for row in rows:
        ids = np.asarray(row["input_ids"])
        found += int(unspaced[ids].sum())
        total += len(ids)
    return found / max(1, total)


def _ids(tokens: datasets.Dataset) -> Iterator[dict[str, np.ndarray]]:
    for batch in tokens.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=100):
        yield {"input_ids": pc.list_flatten(batch["input_ids"].combine_chunks()).to_numpy()}


@dataclass
class RowMasker:
    """Makes features of rows.

    Args:
        packing: rows hold several texts; `position_ids` that go back to 0 keep them apart.
        position_range: place each text at a random position below it, with [CLS] staying at 0 as in a long text,
            so that far positions learn from short rows; None to count from 0. After the idea of PoSE (Zhu et al.
            2024, arXiv 2309.10400, section 3).
    """

    tokenizer: PreTrainedTokenizerBase
    mask: TokenMasker
    packing: bool = False
    position_range: int | None = None

    def __call__(self, row: dict[str, Any], *key: Any) -> dict[str, torch.Tensor]:
        """Features of one row, `[tokens]` each; with a pair also `token_type_ids` and `next_sentence_label` `[]`."""
        texts = [self._text(ids, row.get("second"), *key, number) for number, ids in enumerate(row["texts"])]
        features = {name: torch.tensor([*chain(*(text[name] for text in texts))]) for name in texts[0]}
        if "second" in row:
            features["next_sentence_label"] = torch.tensor(row["next_sentence_label"])
        return features

    def _text(self, input_ids: list[int], second: int | None, *key: Any) -> Features:
        """One text masked and framed, or the pair whose second sentence begins at `second`."""
        masked, labels = (tensor.tolist() for tensor in self.mask(input_ids, *key, second=second))
        parts = [slice(None)] if second is None else [slice(second), slice(second, None)]
        features = framed(self.tokenizer, *(masked[part] for part in parts))
        features["labels"] = framed_labels(*(labels[part] for part in parts))
        if self.packing or self.position_range is not None:
            features["position_ids"] = self._positions(len(features["input_ids"]), *key).tolist()
        return features

    def batch(self, rows: list[dict[str, Any]], keys: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
        """A micro-batch of rows, each with its key, the names of its `documents` and its `text_lengths` in tokens."""
        features = [self(row, *key) for row, key in zip(rows, keys, strict=True)]
        batch: dict[str, Any] = collate(features, self.tokenizer, self.packing)
        batch["documents"] = sorted({name for row in rows for name in row["documents"]})
        batch["text_lengths"] = [len(text) + FRAME for row in rows for text in row["texts"]]
        return batch

    def _positions(self, length: int, *key: Any) -> torch.LongTensor:
        positions = torch.arange(length)
        if self.position_range is not None:
            room = self.position_range - length + 1
            positions[1:] += torch.randint(room, (), generator=generator_for(*key, "offset"))
        return positions
