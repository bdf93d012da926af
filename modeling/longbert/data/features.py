"""Features: token ids with special tokens around them, padded and stacked to a batch. Framing and collation are here
alone: pretraining, proof, tasks and encoders all come by."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


IGNORE_INDEX = -100
FRAME = 2  # [CLS] and [SEP]
PAIR_FRAME = 3  # [CLS], [SEP] and [SEP]

Features = dict[str, Any]  # a list of numbers for each input, or a tensor


def second_segment(tokenizer: PreTrainedTokenizerBase) -> int:
    """The `token_type_ids` of a pair's second text: 0 where the tokenizer knows of no segments, as RoBERTa's."""
    return int("token_type_ids" in tokenizer.model_input_names)


def framed(tokenizer: PreTrainedTokenizerBase, first: Sequence[int], second: Sequence[int] | None = None) -> Features:
    """[CLS] first [SEP] or, with `token_type_ids`, [CLS] first [SEP] second [SEP]."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if second is None:
        return {"input_ids": [cls, *first, sep]}
    segments = [0] * (len(first) + 2) + [second_segment(tokenizer)] * (len(second) + 1)
    return {"input_ids": [cls, *first, sep, *second, sep], "token_type_ids": segments}


def framed_labels(first: Sequence[int], second: Sequence[int] | None = None) -> list[int]:
    """The labels of what `framed` makes: special tokens have none."""
    rest = [] if second is None else [*second, IGNORE_INDEX]
    return [IGNORE_INDEX, *first, IGNORE_INDEX, *rest]


def collate(
    features: list[Features], tokenizer: PreTrainedTokenizerBase, packing: bool = False
) -> dict[str, torch.Tensor]:
    """Stack rows, `[rows, longest]`, padded on the right; other keys than a model's inputs and labels are left out.

    Packed rows get no `attention_mask`: their padding is one more text, which no other text sees.
    """
    fill = {"input_ids": tokenizer.pad_token_id, "labels": IGNORE_INDEX, "token_type_ids": 0, "position_ids": 0}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row[name]) for row in features], True, fill[name])
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
        batch["next_sentence_label"] = torch.tensor([row["next_sentence_label"] for row in features])
    return batch
