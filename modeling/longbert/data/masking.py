"""Features: rows masked, framed and given positions. What is drawn for a row depends on its key and nothing else."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from .features import FRAME, Features, collate, framed, framed_labels


def generator_for(*key: Any) -> torch.Generator:
    """A generator that the same key always starts in the same state."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class TokenMasker:
    """BERT's masking, drawn from a key: the same key masks a text in the same places, always.

    Of the `mlm_probability` of tokens, or of words, that are chosen, 80 % of the tokens become [MASK], 10 % a random
    token, 10 % stay.

    Args:
        whole_word_mask: choose all the word pieces of a word or none.

    Raises:
        ValueError: `whole_word_mask` with a tokenizer whose word pieces are not marked by ##.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float, whole_word_mask: bool = False):
        self.mlm_probability = mlm_probability
        self.collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability)
        self.continues_word: torch.Tensor | None = None
        if whole_word_mask:
            pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
            self.continues_word = torch.tensor([piece.startswith("##") for piece in pieces])
            if not self.continues_word.any():
                raise ValueError("whole_word_mask needs a WordPiece tokenizer, whose vocabulary marks pieces by ##")
            # whole words are chosen here, and transformers' collator only replaces what was chosen
            self.collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1.0)

    def __call__(self, input_ids: list[int], *key: Any) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Masked ids and labels, both `[len(input_ids)]`; no id is treated as special."""
        self.collator.generator = generator_for(*key)
        row = torch.tensor([input_ids])
        masked, labels = self.collator.torch_mask_tokens(row, special_tokens_mask=self._hidden(row))
        return masked[0], labels[0]

    def _hidden(self, row: torch.LongTensor) -> torch.LongTensor:
        """1 at tokens that the collator must leave alone."""
        if self.continues_word is None:
            return torch.zeros_like(row)
        words = (~self.continues_word[row]).cumsum(-1)
        chosen = torch.rand(int(words.max()) + 1, generator=self.collator.generator) < self.mlm_probability
        return (~chosen[words]).long()


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
        masked, labels = (tensor.tolist() for tensor in self.mask(input_ids, *key))
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
