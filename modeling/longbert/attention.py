"""Exact attention in linear memory, and a window with global tokens. Travels to the Hub beside the model.

A batch is a set of texts: rows without their padding, or packed documents (`texts.py`). `TextLayout` says where each
lies after `flatten` has put all their tokens into one row, `[1, tokens]` (`text_layout.py`), in which attention then
runs text by text (`text_attention.py`). No kernel here ever holds an n x n tensor, forwards or backwards.

A window w lets the token at place i of its text see |i - j| <= w/2 and the global tokens, which see and are seen by
all. BERT was not trained with a window, so it applies only to texts past the source's limit, whatever else is in the
batch. Places count from the text's first token, and include tokens in the middle of the text that a mask leaves out.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.utils import logging

from .closed_attention import ClosedAttention
from .halo import Halo, make_halo
from .kernels import FLASH, kernel_of, precise
from .text_attention import Plan, TextAttention, make_plan
from .text_layout import TextLayout, Window
from .texts import Texts


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


def visible(
    texts: torch.Tensor, places: torch.Tensor, spans: torch.Tensor, global_tokens: torch.Tensor, window: Window | None
) -> Callable[[Any, Any], torch.Tensor]:
    """The window's rule, the same for every implementation: does the query at one index see the key at another?

    Args:
        texts, places, spans, global_tokens: for every token the number of its text, its place there, its text's
            span, and whether it is global.
    """

    def sees(query: Any, key: Any) -> torch.Tensor:
        same_text = texts[query] == texts[key]
        if window is None:
            return same_text
        near = (places[query] - places[key]).abs() <= window.radius
        unrestricted = (spans[query] <= window.longer_than) | global_tokens[query] | global_tokens[key]
        return same_text & (near | unrestricted)

    return sees


def plain_mask(texts: Texts, global_tokens: torch.Tensor, window: Window | None) -> torch.Tensor:
    """The same rule as an explicit mask, `[batch_size, 1, seq_length, seq_length]` bool, for eager and sdpa attention.

    Args:
        global_tokens: `[batch_size, seq_length]` bool.
    """
    # all rows at once, as one long row: a loop over them would fix the batch size of a traced graph
    ids, places, spans = texts.ids.flatten(), texts.places.flatten(), texts.spans.flatten()
    sees = visible(ids, places, spans, global_tokens.flatten(), window)
    index = torch.arange(texts.real.numel(), device=texts.real.device).view(texts.real.shape)
    return sees(index[:, :, None], index[:, None, :])[:, None]


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as numbers to add to scores of `dtype`."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def closed_mask(full: torch.Tensor, window: torch.Tensor, far_gate: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A closed layer's rule as an explicit mask of numbers, `[batch_size, num_heads, seq_length, seq_length]`.

    Args:
        full, window: who sees whom without and with the window, `[batch_size, 1, seq_length, seq_length]`, bool or
            numbers to add to the scores.
    """
    near = window if window.dtype == torch.bool else window == 0
    full = additive(full, dtype) if full.dtype == torch.bool else full
    bias = F.logsigmoid(precise(far_gate))[:, None, None].to(dtype)
    return torch.where(near, full, full + bias)


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: TextLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attn_implementation="longbert"`: `[batch, heads, seq, head_dim]` to `[batch, seq, heads, head_dim]`.

    Attention dropout is never applied: no linear-memory kernel has it on every device. Hidden dropout stays.
    """
    if dropout > 0:
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
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    windowed = not getattr(module, "reads_in_full", False)
    output = attend(query, key, value, layout, scaling, windowed, getattr(module, "far_gate", None))
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention_forward)
# without a mask function of its own, transformers would silently ignore padding on the plain path
AttentionMaskInterface.register(NAME, sdpa_mask)
