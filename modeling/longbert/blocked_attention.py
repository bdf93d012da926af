"""A window's attention in blocks, for graphs that are compiled, traced or exported. Travels to the Hub.

A graph can neither choose kernels nor cut a batch by the values it is given, so every row is cut into blocks of equal
size. A block of queries sees three blocks of keys, its own and its neighbours', and the row's global tokens beside
them: [neighbours' keys | global keys], one softmax, by torch's SDPA over all blocks as one batch. A block is as long
as the longest text that is read in full, so such a text lies within its blocks' neighbours, and who sees whom there is
the same rule as everywhere (`visible`). Global queries are few, and see their whole row.

Time and memory are linear in the row's length, and all sizes are dynamic, so one graph serves every length.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .explicit_masks import visible
from .kernels import precise
from .text_layout import Window
from .texts import Texts, global_marks


@dataclass
class Blocks:
    """How a batch `[batch_size, seq_length]` is cut into blocks, for all layers of a forward pass.

    Args:
        size: tokens of a block.
        near: `[batch_size * blocks, 1, size, 3 * size + slots]` bool, which of its keys a query of a block sees.
        globals: `[batch_size, slots]`, the index in their row of its global tokens; in empty slots any index.
        all: `[batch_size, 1, slots, seq_length]` bool, which keys a global query sees; an empty slot sees all.
        slots: `[batch_size, seq_length]`, the slot of every global token.
        marked: `[batch_size, seq_length]` bool, the global tokens of texts that are read through the window.
    """

    size: Any
    near: torch.Tensor
    globals: torch.Tensor
    all: torch.Tensor
    slots: torch.Tensor
    marked: torch.Tensor

    def split(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[batch_size, seq_length, ...]` to `[batch_size * blocks, size, ...]`."""
        return _split(tensor, self.size).flatten(0, 1)

    def with_neighbours(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[batch_size, seq_length, ...]` to `[batch_size * blocks, 3 * size + slots, ...]`."""
        near = _neighbours(tensor, self.size)
        far = self.of_globals(tensor)[:, None].expand(-1, near.shape[1], *[-1] * (tensor.dim() - 1))
        return torch.cat((near, far), dim=2).flatten(0, 1)

    def of_globals(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[batch_size, seq_length, ...]` to `[batch_size, slots, ...]`."""
        return _take(tensor, self.globals)

    def join(self, blocks: torch.Tensor, of_globals: torch.Tensor) -> torch.Tensor:
        """What the blocks' queries and the global ones found, `[batch_size, seq_length, ...]`."""
        batch_size, length = self.marked.shape
        rows = blocks.unflatten(0, (batch_size, -1)).flatten(1, 2)[:, :length]
        marked = self.marked.view(batch_size, length, *[1] * (rows.dim() - 2))
        return torch.where(marked, _take(of_globals, self.slots), rows)


def make_blocks(
    texts: Texts,
    window: Window,
    global_tokens: int,
    global_attention_mask: torch.Tensor | None,
) -> Blocks:
    """The blocks of a batch.

    Without a `global_attention_mask` the number of slots follows from the shape alone: a row that is one text has
    `global_tokens`, and of packed documents no more are read through the window than fit into it. What such a mask
    holds is counted, which torch.compile does where `torch._dynamo.config.capture_scalar_outputs` is set.
    """
    batch_size, length = texts.real.shape
    size = _smaller(length, max(window.longer_than, window.radius))
    marked = global_marks(texts, global_tokens, global_attention_mask) & texts.real
    marked = marked & (texts.spans > window.longer_than)
    if global_attention_mask is not None:
        most = _as_size(marked.sum(-1).max(), length)
    else:
        most = global_tokens * (length // (window.longer_than + 1) if texts.packed else 1)

    # all rows as one, and behind them a token that is none: it fills what is left of a row's last block and of slots
    total = batch_size * length
    index = torch.arange(total, device=marked.device).view(batch_size, length)
    slots = torch.where(marked, marked.long().cumsum(-1) - 1, most)
    globals_ = index.new_full((batch_size, most + 1), total).scatter(1, slots, torch.where(marked, index, total))
    attributes = (texts.ids, texts.places, texts.spans, marked)
    ids, *others = (F.pad(each.expand(batch_size, length).flatten().long(), (0, 1), value=-2) for each in attributes)
    places, spans, is_global = others
    sees = visible(ids, places, spans, is_global > 0, window)

    queries = _split(index, size, total)[..., None]
    keys = _neighbours(index, size, total)[:, :, None]
    block = torch.arange(queries.shape[1], device=index.device)[:, None, None]
    far_keys = globals_[:, None, None]
    of_row = far_keys - index[:, :1, None, None]
    is_far = (of_row.div(size, rounding_mode="floor") - block).abs() > 1
    near = torch.cat((sees(queries, keys), sees(queries, far_keys) & is_far), dim=-1)
    return Blocks(
        size,
        near.flatten(0, 1)[:, None],
        globals_.sub(index[:, :1]).clamp(max=length - 1),
        (sees(globals_[:, :, None], index[:, None]) | (globals_ == total)[:, :, None])[:, None],
        slots,
        marked,
    )


def attend_in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Blocks,
    scaling: float,
) -> torch.Tensor:
    """Attention through the window, `[batch_size, num_heads, seq_length, head_dim]` to
    `[batch_size, seq_length, num_heads, head_dim]`."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    parts = (blocks.split(q), blocks.with_neighbours(k), blocks.with_neighbours(v))
    of_blocks = _attention(*(part.transpose(1, 2) for part in parts), blocks.near, scaling)
    of_globals = _attention(blocks.of_globals(q).transpose(1, 2), key, value, blocks.all, scaling)
    return blocks.join(of_blocks.transpose(1, 2), of_globals.transpose(1, 2))


def attend_closed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Blocks,
    mask: torch.Tensor,
    far_gate: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """A closed layer (`closed_attention.py`), shaped as `attend_in_blocks`.

    What it sees is (1 - e) of the window and e of everything, e = sigmoid(far_gate). So full attention is given one
    key more: its score is the window's log-sum-exp less far_gate, which is log((1 - e) / e) more, and the weight that
    it gets is the share of the window's output.

    Args:
        mask: of full attention, bool, `[batch_size, 1, 1 or seq_length, seq_length]`.
    """
    near, lse = attend_in_blocks(query, key, value, blocks, scaling), _log_sum_exp(query, key, blocks, scaling)
    head_dim = query.shape[-1]
    wider = (0, 8)  # kernels want widths in multiples of 8
    unit = (torch.arange(head_dim + 8, device=query.device) == head_dim).to(query.dtype)
    unit = unit.expand(*query.shape[:2], 1, -1)
    score = ((lse - precise(far_gate)) / scaling).transpose(1, 2).to(query.dtype)
    full = _attention(
        F.pad(query, wider) + score[..., None] * unit,
        torch.cat((F.pad(key, wider), unit), dim=2),
        torch.cat((F.pad(value, wider), unit), dim=2),
        F.pad(mask, (0, 1), value=True),
        scaling,
    ).transpose(1, 2)
    return full[..., :head_dim] + full[..., head_dim : head_dim + 1] * near


def _log_sum_exp(query: torch.Tensor, key: torch.Tensor, blocks: Blocks, scaling: float) -> torch.Tensor:
    """Of the scores that a token sees through the window, `[batch_size, seq_length, num_heads]`."""
    q, k = precise(query).transpose(1, 2), precise(key).transpose(1, 2)
    sides = (
        (blocks.split(q), blocks.with_neighbours(k), blocks.near),
        (blocks.of_globals(q), k, blocks.all),
    )
    found = [
        (queries.transpose(1, 2) @ keys.permute(0, 2, 3, 1) * scaling)
        .masked_fill(~mask, -torch.inf)
        .logsumexp(-1)
        .transpose(1, 2)
        for queries, keys, mask in sides
    ]
    return blocks.join(*found)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def _split(tensor: torch.Tensor, size: Any, fill: Any = 0) -> torch.Tensor:
    """`[batch_size, seq_length, ...]` to `[batch_size, blocks, size, ...]`, the last block filled up."""
    count = (tensor.shape[1] + size - 1) // size
    missing = count * size - tensor.shape[1]
    return torch.cat((tensor, _filled(tensor, missing, fill)), dim=1).unflatten(1, (count, size))


def _neighbours(tensor: torch.Tensor, size: Any, fill: Any = 0) -> torch.Tensor:
    """`[batch_size, seq_length, ...]` to `[batch_size, blocks, 3 * size, ...]`, each block between its two."""
    blocks = _split(tensor, size, fill)
    edge = _filled(tensor, size, fill)[:, None]
    return torch.cat(
        (torch.cat((edge, blocks[:, :-1]), dim=1), blocks, torch.cat((blocks[:, 1:], edge), dim=1)), dim=2
    )


def _filled(tensor: torch.Tensor, number: Any, fill: Any) -> torch.Tensor:
    """`[batch_size, number, ...]` of one value."""
    return tensor.new_full((tensor.shape[0], number, *tensor.shape[2:]), fill)


def _take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`[batch_size, n, ...]` at `[batch_size, m]`: `[batch_size, m, ...]`."""
    rows = torch.arange(tensor.shape[0], device=tensor.device)[:, None]
    return tensor[rows, index]


def _smaller(size: Any, most: int) -> Any:
    """The smaller of a dynamic size and a constant: `min` would fix it in the graph."""
    return size.clamp(max=most) if isinstance(size, torch.Tensor) else torch.sym_min(size, most)


def _as_size(number: torch.Tensor, most: Any) -> Any:
    """A computed number as a size: while jit traces, sizes are tensors."""
    if torch.jit.is_tracing():
        return number
    size = number.item()
    torch._check(size >= 0)
    torch._check(size <= most)
    return size
