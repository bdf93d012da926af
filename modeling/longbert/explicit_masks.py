"""Who sees whom as explicit masks, for attention that is told by a mask. Travels to the Hub beside the model.

They hold n x n entries, so they serve `sdpa` and `eager` asked for by name, `output_attentions`, and packed documents
read in full in a graph. Attention through a window in a graph takes masks of blocks instead (`blocked_attention.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .kernels import precise
from .text_layout import Window
from .texts import Texts


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
    """The same rule as an explicit mask, `[batch_size, 1, seq_length, seq_length]` bool.

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
    return (mask.to(dtype) - 1) * torch.finfo(dtype).max


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


def as_implemented(mask: torch.Tensor, implementation: str | None, dtype: torch.dtype) -> torch.Tensor:
    """An explicit mask in the form that `attn_implementation` takes: bool, or numbers to add to scores of `dtype`.

    Raises:
        ValueError: the implementation takes no explicit masks.
    """
    if implementation not in ("eager", "sdpa", "longbert"):
        raise ValueError(
            "a window, packed documents or a mask of 3 or 4 dimensions need attn_implementation 'longbert', "
            f"'sdpa' or 'eager', got {implementation!r}"
        )
    if mask.is_floating_point():  # -inf throughout a row would be NaN
        return mask.to(dtype).clamp(min=torch.finfo(dtype).min)
    return additive(mask, dtype) if implementation == "eager" else mask
