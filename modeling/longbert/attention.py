"""Exact attention in linear memory, and a window with global tokens. Travels to the Hub beside the model.

A batch is a set of texts: rows without their padding, or packed documents (`texts.py`). `TextLayout` says where each
lies after `flatten` has put all their tokens into one row, `[1, tokens]` (`text_layout.py`), in which attention then
runs text by text (`text_attention.py`). No kernel here ever holds an n x n tensor, forwards or backwards.

A window w lets the token at place i of its text see |i - j| <= w/2 and the global tokens, which see and are seen by
all. BERT was not trained with a window, so it applies only to texts past the source's limit, whatever else is in the
batch. Places count from the text's first token, and include tokens in the middle of the text that a mask leaves out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.utils import logging

from .blocked_attention import Blocks, attend_closed, attend_in_blocks, make_blocks
from .closed_attention import ClosedAttention
from .explicit_masks import additive, as_implemented, plain_mask
from .halo import Halo, make_halo
from .kernels import FLASH, kernel_of
from .text_attention import Plan, TextAttention, make_plan
from .text_layout import TextLayout, Window
from .texts import Texts, global_marks, is_traced, whole_rows


logger = logging.get_logger(__name__)

NAME = "longbert"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TextLayout,
    scaling: float,
    windowed: bool,
    far_gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention within each text of a flattened batch.

    Args:
        query, key, value: `[1, num_heads, tokens, head_dim]`, of this process's tokens only, under sequence
        parallelism.
        windowed: whether this layer reads long texts through the layout's window, or in full.
        far_gate: `[num_heads]`, of a layer that reads long texts in both ways (`closed_attention.py`).

    Returns:
        `[1, num_heads, tokens, head_dim]`.
    """
    head_dim = query.shape[-1]
    if query.is_cuda and head_dim % 8:  # zeros change no score and are cut off the output
        query, key, value = (F.pad(tensor, (0, -head_dim % 8)) for tensor in (query, key, value))
    own, halo = (query, key, value), None
    if layout.shard is not None:
        halo = _halo(layout, in_full=not windowed or far_gate is not None)
        key, value = halo.exchange(key), halo.exchange(value)
    kernel = kernel_of(query)
    windowed = windowed and any(stretch.windowed for stretch in layout.stretches)
    if kernel != FLASH and not windowed and layout.stretches:  # torch chooses among its kernels, text by text
        outputs = []
        for part in layout.stretches:
            keys = part.keys if halo is None else halo.find(part.keys)
            q, k, v = query[:, :, part.queries], key[:, :, keys], value[:, :, keys]
            outputs.append(F.scaled_dot_product_attention(q, k, v, scale=scaling))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    elif far_gate is not None and windowed:
        plans = _plan(layout, kernel, True, halo), _plan(layout, kernel, False, halo)
        output = ClosedAttention.apply(query, key, value, far_gate, plans, scaling)
    else:
        output = TextAttention.apply(query, key, value, _plan(layout, kernel, windowed, halo), scaling)
    if halo is not None and halo.shared is not None:
        output = halo.shared.merge(output, own, scaling)
    return output[..., :head_dim]


def _plan(layout: TextLayout, kernel: str, windowed: bool, halo: Halo | None) -> Plan:
    """Made by the first layer that needs it."""
    key = kernel, windowed, id(halo)
    if key not in layout.plans:
        plan = make_plan(layout, kernel, windowed)
        layout.plans[key] = plan if halo is None else halo.plan(plan)
    return layout.plans[key]


def _halo(layout: TextLayout, in_full: bool) -> Halo:
    """Made by the first layer that needs it."""
    if in_full not in layout.halos:
        layout.halos[in_full] = make_halo(layout, in_full)
    return layout.halos[in_full]


def told(
    config: Any,
    dtype: torch.dtype,
    texts: Texts | None,
    shape: tuple[int, int],
    device: torch.device,
    window: Window | None,
    global_attention_mask: torch.Tensor | None,
    in_blocks: bool,
) -> dict[str, Any]:
    """What layers are told of the texts where they run over rows as they are, as arguments of theirs.

    BERT's usual mask, unless texts are packed or windowed: then `attention_mask` is for reading in full, and
    `window_mask` or `blocks` for the window.

    Args:
        texts: of a batch of `shape`; None where every row is one.
        in_blocks: whether a window is computed in blocks, by "longbert" in a graph.
    """
    full = None if texts is None else texts.real
    if window is None and (texts is None or not texts.packed):
        return {"attention_mask": full[:, None, None] if in_blocks and full is not None else full}
    texts = texts or whole_rows(shape, device)
    marks = config.global_tokens, global_attention_mask
    if window is not None and in_blocks:
        needs_square = texts.packed and (config.full_attention_layers or config.closed_attention_layers)
        full = plain_mask(texts, texts.real, None) if needs_square else texts.real[:, None, None]
        return {"attention_mask": full, "blocks": make_blocks(texts, window, *marks)}
    masks = {"attention_mask": plain_mask(texts, texts.real, None)}
    if window is not None:
        masks["window_mask"] = plain_mask(texts, global_marks(texts, *marks), window)
    return {name: as_implemented(mask, config._attn_implementation, dtype) for name, mask in masks.items()}


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: TextLayout | None = None,
    blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attn_implementation="longbert"`: `[batch, heads, seq, head_dim]` to `[batch, seq, heads, head_dim]`.

    Attention dropout is never applied: no linear-memory kernel has it on every device. Hidden dropout stays.
    """
    if dropout > 0 and not is_traced():  # a graph cannot log: docs/attention.md says it
        logger.warning_once(
            f"attention_probs_dropout_prob={dropout} is not applied by attn_implementation='longbert', at any length; "
            "hidden_dropout_prob is. Choose 'sdpa' or 'eager' to have it, at n² memory"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kwargs.get("output_attentions"):
        if attention_mask is None and getattr(module, "is_causal", False):  # sdpa's kernel knows this without a mask
            shape = (query.shape[2], key.shape[2])
            attention_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril() if shape[0] > 1 else None
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            attention_mask = additive(attention_mask, query.dtype)
        return eager_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
    windowed = not getattr(module, "reads_in_full", False)
    far_gate = getattr(module, "far_gate", None)
    if blocks is not None and windowed:
        if far_gate is None:
            output = attend_in_blocks(query, key, value, blocks, scaling)
        else:
            output = attend_closed(query, key, value, blocks, attention_mask, far_gate, scaling)
        return output.transpose(1, 2).contiguous(), None
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output = attend(query, key, value, layout, scaling, windowed, far_gate)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention_forward)
# without a mask function of its own, transformers would silently ignore padding on the plain path
AttentionMaskInterface.register(NAME, sdpa_mask)
