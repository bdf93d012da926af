"""The models that are compared: (length, **config fields) -> one with random weights that reaches `length` tokens."""

import dataclasses
from typing import Any

import torch
from sides import NO_DROPOUT, SIZE
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BigBirdConfig,
    BigBirdModel,
    LongformerConfig,
    LongformerModel,
    ModernBertConfig,
    ModernBertModel,
)

from longbert import LongBertConfig, LongBertModel


WINDOW = 512
BIGBIRD_SCRAP = 1024  # up to (5 + 2 * 3) * 64 = 704 tokens a BigBird goes over to full attention, and stays there


def longbert(length: int, head: type = LongBertModel, **fields: Any) -> nn.Module:
    """Ours, of a source that reads 512 tokens: a window applies to longer texts only.

    Raises:
        ValueError: this longbert lacks a field; transformers would keep it on the config and ignore it.
    """
    unknown = fields.keys() - {field.name for field in dataclasses.fields(LongBertConfig)}
    if unknown:
        raise ValueError(f"this longbert has no config field {', '.join(sorted(unknown))}")
    reach = {"max_position_embeddings": max(length, 512), "pretrained_positions": 512}
    fields = {**reach, **SIZE, **NO_DROPOUT, **fields}
    return head(LongBertConfig(**fields))


def bert(length: int, head: type = BertModel, **fields: Any) -> nn.Module:
    fields = {"max_position_embeddings": length, **SIZE, **NO_DROPOUT, **fields}
    return head(BertConfig(**fields, attn_implementation="sdpa"))


class LongformerWithGlobalCls(LongformerModel):
    """Longformer as its own classification heads call it: token 0 sees and is seen by all."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        global_attention_mask = torch.zeros_like(input_ids)
        global_attention_mask[:, 0] = 1
        return super().forward(input_ids, global_attention_mask=global_attention_mask)


def longformer(length: int, **fields: Any) -> nn.Module:
    """Its positions start at `pad_token_id + 1`."""
    fields = {"attention_window": WINDOW, "max_position_embeddings": length + 2, **SIZE, **NO_DROPOUT, **fields}
    return LongformerWithGlobalCls(LongformerConfig(**fields))


def bigbird(length: int, **fields: Any) -> nn.Module:
    if length < BIGBIRD_SCRAP:
        raise ValueError(f"BigBird is not sparse at {length} tokens")
    sparse = {"attention_type": "block_sparse", "block_size": 64, "num_random_blocks": 3}
    return BigBirdModel(BigBirdConfig(max_position_embeddings=length, **sparse, **{**SIZE, **NO_DROPOUT, **fields}))


def modernbert(length: int, **fields: Any) -> nn.Module:
    """Its own MLP and rotary positions; every third layer is global. Without fields as large as it was released."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    config = ModernBertConfig(max_position_embeddings=length, pad_token_id=0, **tokens, **fields)
    return ModernBertModel._from_config(config, attn_implementation="sdpa")


def modernbert_of_our_size(length: int, **fields: Any) -> nn.Module:
    """With the hidden size, the layers and the window of the others."""
    fields = {**SIZE, "intermediate_size": ModernBertConfig.intermediate_size, "local_attention": WINDOW, **fields}
    return modernbert(length, **fields)
