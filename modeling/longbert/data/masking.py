"""Features: rows masked, framed and given positions. What is drawn for a row depends on its key and nothing else."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from .rows import FRAME


IGNORE_INDEX = -100


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


def second_segment(tokenizer: PreTrainedTokenizerBase) -> int:
    """The `token_type_ids` of a pair's second text: 0 where the tokenizer knows of no segments, as RoBERTa's."""
    return int("token_type_ids" in tokenizer.model_input_names)


def frame(
    input_ids: torch.LongTensor, labels: torch.LongTensor, cls_token_id: int, sep_token_id: int
) -> dict[str, torch.LongTensor]:
    """Put [CLS] and [SEP] around a piece of masked text."""
    cls, sep, unlabelled = (torch.tensor([value]) for value in (cls_token_id, sep_token_id, IGNORE_INDEX))
    return {
        "input_ids": torch.cat((cls, input_ids, sep)),
        "labels": torch.cat((unlabelled, labels, unlabelled)),
    }


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
        special = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        texts = []
        for number, input_ids in enumerate(row["texts"]):
            masked, labels = self.mask(input_ids, *key, number)
            features = frame(masked, labels, *special)
            if "second" in row:
                features = self._pair(features, row["second"], row["next_sentence_label"])
            if self.packing or self.position_range is not None:
                features["position_ids"] = self._positions(len(features["input_ids"]), *key, number)
            texts.append(features)
        if len(texts) == 1:
            return texts[0]
        return {name: torch.cat([features[name] for features in texts]) for name in texts[0]}

    def batch(self, rows: list[dict[str, Any]], keys: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
        """A micro-batch of rows, each with its key, the names of its `documents` and its `text_lengths` in tokens."""
        features = [self(row, *key) for row, key in zip(rows, keys, strict=True)]
        batch: dict[str, Any] = collate(features, self.tokenizer, self.packing)
        batch["documents"] = sorted({name for row in rows for name in row["documents"]})
        batch["text_lengths"] = [len(text) + FRAME for row in rows for text in row["texts"]]
        return batch

    def _pair(self, features: dict[str, torch.Tensor], second: int, label: int) -> dict[str, torch.Tensor]:
        """Put [SEP] between the sentences."""
        middle = second + 1
        between = {"input_ids": self.tokenizer.sep_token_id, "labels": IGNORE_INDEX}
        paired = {
            name: torch.cat((tensor[:middle], torch.tensor([between[name]]), tensor[middle:]))
            for name, tensor in features.items()
        }
        in_second = torch.arange(len(paired["input_ids"])) > middle
        paired["token_type_ids"] = in_second.long() * second_segment(self.tokenizer)
        paired["next_sentence_label"] = torch.tensor(label)
        return paired

    def _positions(self, length: int, *key: Any) -> torch.LongTensor:
        positions = torch.arange(length)
        if self.position_range is not None:
            room = self.position_range - length + 1
            positions[1:] += torch.randint(room, (), generator=generator_for(*key, "offset"))
        return positions


def collate(
    features: list[dict[str, torch.Tensor]], tokenizer: PreTrainedTokenizerBase, packing: bool = False
) -> dict[str, torch.Tensor]:
    """Stack rows, `[rows, longest]`, padded on the right.

    Packed rows get no `attention_mask`: their padding is one more text, which no other text sees.
    """
    fill = {"input_ids": tokenizer.pad_token_id, "labels": IGNORE_INDEX, "token_type_ids": 0, "position_ids": 0}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in features], True, fill[name])
        for name in features[0]
        if name in fill
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in features])[:, None]
    past_end = torch.arange(batch["input_ids"].shape[1]) - lengths
    if packing:
        batch["position_ids"] = torch.where(past_end >= 0, past_end, batch["position_ids"])
    else:
        batch["attention_mask"] = (past_end < 0).long()
    if "next_sentence_label" in features[0]:
        batch["next_sentence_label"] = torch.stack([row["next_sentence_label"] for row in features])
    return batch
