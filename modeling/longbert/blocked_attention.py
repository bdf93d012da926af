"""A window's attention in blocks, for graphs that are compiled, traced or exported. Travels to the Hub.

A graph can neither choose kernels nor cut a batch by the values it is given, so every row is cut into blocks of equal
size. A block of queries sees three blocks of keys, its own and its neighbours', and the row's global tokens beside
them: [neighbours' keys | global keys], one softmax, by torch's SDPA over all blocks as one batch. A block is as long
as the longest text that is read in full, so such a text lies within its blocks' neighbours, and who sees whom there is
the same rule as everywhere (`visible`). Global queries are few, and see their whole row.

Time and memory are linear in the row's length, and all sizes are dynamic, so one graph serves every length. What goes
where is an index, made once for all layers: sizes that may be 0 or 1, as of what is missing from a row's last block,
would be fixed in an exported graph.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .explicit_masks import additive, visible
from .kernels import precise
from .text_layout import Window
from .texts import Texts, global_marks


@dataclass
class Blocks:
    """How a batch `[batch_size, seq_length]` is cut into blocks. Tokens are counted through all of its rows.

    Args:
        queries: `[blocks, size]`, the tokens of each block.
        keys: `[blocks, 3 * size + slots]`, those of its neighbours and itself, and its row's global tokens.
        sees: `[blocks, 1, size, 3 * size + slots]` bool, which of these each query sees.
        global_queries: `[batch_size, slots]`, each row's global tokens.
        sees_all: `[batch_size, 1, slots, seq_length]` bool, which keys of their row they see.
        outputs: `[batch_size, seq_length]`, where each token's own output is, among those of all queries and
            then of all global queries.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    sees: torch.Tensor
    global_queries: torch.Tensor
    sees_all: torch.Tensor
    outputs: torch.Tensor

    def join(self, of_blocks: torch.Tensor, of_globals: torch.Tensor) -> torch.Tensor:
        """`[blocks, num_heads, size, ...]` and `[batch_size, num_heads, slots, ...]` to
        `[batch_size, num_heads, seq_length, ...]`."""
        rows = [each.transpose(1, 2).flatten(0, 1).flatten(1) for each in (of_blocks, of_globals)]
        found = F.embedding(self.outputs, torch.cat(rows))
        return found.view(*found.shape[:2], of_blocks.shape[1], -1).transpose(1, 2)


def make_blocks(
    texts: Texts, window: Window, global_tokens: int, global_attention_mask: torch.Tensor | None
) -> Blocks:
    """The blocks of a batch.

    Without a `global_attention_mask` the number of slots follows from the shape alone: a row that is one text has
    `global_tokens`, and of packed documents no more are read through the window than fit into it. What such a mask
    holds is counted, which torch.compile does where `fullgraph` or `torch._dynamo.config.capture_scalar_outputs` is
    set.
    """
    batch_size, length = texts.real.shape
    device, none = texts.real.device, batch_size * length
    marked = global_marks(texts, global_tokens, global_attention_mask) & texts.real
    marked = marked & (texts.spans > window.longer_than)
    if global_attention_mask is not None:
        most = _as_size(marked.sum(-1).max(), length)
    else:
        most = global_tokens * (length // (window.longer_than + 1) if texts.packed else 1)

    # behind all tokens stands one that is none: it fills up what is left of slots and of a row's last block
    index = torch.arange(none, device=device).view(batch_size, length)
    ids, places, spans, is_global = (
        F.pad(each.expand(index.shape).flatten().int(), (0, 1), value=-2)
        for each in (texts.ids, texts.places, texts.spans, marked)
    )
    sees = visible(ids, places, spans, is_global > 0, window)
    # the last slot is for what is not global, and one more keeps their number from being 1
    slots = torch.where(marked, marked.long().cumsum(-1) - 1, most + 1)
    empty = index.new_full((batch_size, most + 2), none)
    global_queries = empty.scatter(1, slots, torch.where(marked, index, none))

    size = _smaller(length, max(window.longer_than, window.radius))
    count = (length - 1) // size + 1  # of a row's blocks
    blocks = torch.arange(batch_size * count, device=device)[:, None]
    row = blocks // count
    block = blocks - row * count

    def tokens(places: torch.Tensor) -> torch.Tensor:
        return torch.where((places >= 0) & (places < length), row * length + places, none)

    queries = tokens(block * size + torch.arange(size, device=device))
    near = tokens(block * size - size + torch.arange(3 * size, device=device))
    far = F.embedding(row[:, 0], global_queries)
    is_far = ((far - row * length) // size - block).abs() > 1
    sees_far = sees(queries[:, :, None], far[:, None]) & is_far[:, None]
    of_globals = blocks.shape[0] * size + torch.arange(batch_size, device=device)[:, None] * (most + 2) + slots
    of_blocks = torch.arange(batch_size, device=device)[:, None] * count * size + torch.arange(length, device=device)
    return Blocks(
        queries.clamp(max=none - 1),
        torch.cat((near, far), dim=1).clamp(max=none - 1),
        torch.cat((sees(queries[:, :, None], near[:, None]), sees_far), dim=-1)[:, None],
        global_queries.clamp(max=none - 1),
        # a query that saw nothing would be NaN
        (sees(global_queries[:, :, None], index[:, None]) | (global_queries == none)[:, :, None])[:, None],
        torch.where(marked, of_globals, of_blocks),
    )


def attend_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: Blocks, scaling: float
) -> torch.Tensor:
    """Attention through the window, `[batch_size, num_heads, seq_length, head_dim]`."""
    of_blocks = _attention(
        _take(query, blocks.queries), _take(key, blocks.keys), _take(value, blocks.keys), blocks.sees, scaling
    )
    of_globals = _attention(_take(query, blocks.global_queries), key, value, blocks.sees_all, scaling)
    return blocks.join(of_blocks, of_globals)


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
    score = ((lse - precise(far_gate)[:, None, None]) / scaling).to(query.dtype)
    full = _attention(
        F.pad(query, wider) + score * unit,
        torch.cat((F.pad(key, wider), unit), dim=2),
        torch.cat((F.pad(value, wider), unit), dim=2),
        F.pad(mask, (0, 1), value=True),
        scaling,
    )
    return full[..., :head_dim] + full[..., head_dim : head_dim + 1] * near


def _log_sum_exp(query: torch.Tensor, key: torch.Tensor, blocks: Blocks, scaling: float) -> torch.Tensor:
    """Of the scores that a token sees through the window, `[batch_size, num_heads, seq_length, 1]`."""
    query, key = precise(query), precise(key)
    sides = (
        (_take(query, blocks.queries), _take(key, blocks.keys), blocks.sees),
        (_take(query, blocks.global_queries), key, blocks.sees_all),
    )
    found = [
        (queries @ keys.mT * scaling).masked_fill(~sees, -torch.inf).logsumexp(-1, keepdim=True)
        for queries, keys, sees in sides
    ]
    return blocks.join(*found)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    if not torch.onnx.is_in_onnx_export():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    # ONNX's SDPA also looks for queries that see nothing, at a third of its time; here each sees itself at least
    return (query @ key.mT * scaling + additive(mask, query.dtype)).softmax(-1) @ value


def _take(tensor: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of `[batch_size, num_heads, seq_length, head_dim]` the tokens `[n, m]`: `[n, num_heads, m, head_dim]`."""
    found = F.embedding(tokens, tensor.transpose(1, 2).flatten(0, 1).flatten(1))  # its backward pass is the fastest
    return found.view(*tokens.shape, tensor.shape[1], tensor.shape[3]).transpose(1, 2)


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
