"""Exact attention in linear memory, and a window with global tokens. Travels to the Hub beside the model.

A batch is a set of texts: rows without their padding, or packed documents. `TextLayout` says where each one lies after
`flatten` has put all their tokens into one row, `[1, tokens]`, in which attention then runs text by text. No kernel
here ever holds an n x n tensor, forwards or backwards.

A window w lets token i see |i - j| <= w/2 and the global tokens, which see and are seen by all. It is an
approximation that BERT was not trained for, so it touches only texts longer than the source could read.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.utils import logging


try:  # CUDA, half precision; in torch since 2.10
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None


logger = logging.get_logger(__name__)

NAME = "longbert"
QUERIES_PER_CHUNK = 128


@dataclass
class Window:
    """Which tokens a text longer than `longer_than` may see: `radius` to either side, and the global ones."""

    radius: int
    longer_than: int


class Shard:
    """One process's stretch of a flattened batch whose tokens several processes share; all hold the whole batch.

    Attention then gathers the others' keys and values, and nothing else needs any but its own tokens. Gradients of
    what is gathered are summed over the processes, so a loss that each computes from the gathered hidden states
    trains right under DDP, which averages over the processes.
    """

    def __init__(self, tokens: int, group: dist.ProcessGroup):
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        self.group, self.rank = group, rank
        self.bounds = [tokens * part // size for part in range(size + 1)]
        self.start, self.stop = self.bounds[rank], self.bounds[rank + 1]

    def take(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """This process's part of `[1, tokens, ...]`."""
        return None if tensor is None else tensor[:, self.start : self.stop]

    def gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Every process's part along `dim`, in order, with gradients."""
        return _Gather.apply(tensor.transpose(0, dim), self).transpose(0, dim)


class _Gather(torch.autograd.Function):
    """Concatenates what the processes of a shard hold, `[part, ...]`; parts may differ by one in length."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, shard: Shard) -> torch.Tensor:
        ctx.shard = shard
        longest = max(stop - start for start, stop in itertools.pairwise(shard.bounds))
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in shard.bounds[1:]]
        dist.all_gather(parts, padded, group=shard.group)
        lengths = [stop - start for start, stop in itertools.pairwise(shard.bounds)]
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total, group=ctx.shard.group)
        return total[ctx.shard.start : ctx.shard.stop], None


@dataclass
class Stretch:
    """Queries of one text that are here: where they lie among the queries, and the text among the keys.

    Args:
        offset: rank in the text of the first query.
    """

    text: int
    queries: slice
    keys: slice
    offset: int


@dataclass
class TextLayout:
    """Where the texts of a flattened batch `[1, tokens]` lie.

    Args:
        lengths: tokens of each text, in order; they sum to `tokens`.
        global_tokens: `[tokens]` bool, which of them are global.
        window: what texts longer than the source may see; None for full attention.
        shard: what of the batch this process computes; None for all.
    """

    lengths: list[int]
    global_tokens: torch.Tensor
    window: Window | None = None
    shard: Shard | None = None
    block_mask: Any = None  # FlexAttention's, made once for all layers of a forward pass

    @functools.cached_property
    def stretches(self) -> list[Stretch]:
        """The texts, or the parts of them, that are computed here."""
        return list(self._stretches())

    def _stretches(self) -> Iterator[Stretch]:
        bounds = [0, *itertools.accumulate(self.lengths)]
        first, last = (0, bounds[-1]) if self.shard is None else (self.shard.start, self.shard.stop)
        for text, (start, stop) in enumerate(itertools.pairwise(bounds)):
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                yield Stretch(text, slice(begin - first, end - first), slice(start, stop), begin - start)

    @functools.cached_property
    def global_index(self) -> list[torch.Tensor]:
        """The ranks of the global tokens in each text."""
        return [marked.nonzero()[:, 0] for marked in self.global_tokens.split(self.lengths)]

    def per_token(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """For every token its text's number, its rank there, its text's length, whether it is global; `[tokens]`."""
        lengths = torch.tensor(self.lengths, device=device)
        texts = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        starts = lengths.cumsum(0) - lengths
        return texts, torch.arange(len(texts), device=device) - starts[texts], lengths[texts], self.global_tokens

    def is_windowed(self, length: int) -> bool:
        """Whether a text of `length` tokens is read through the window."""
        return self.window is not None and length > self.window.longer_than


def is_traced() -> bool:
    """Whether this run becomes a graph that serves other inputs too: no branch may depend on a tensor's values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def text_ids(
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, shape: tuple[int, int]
) -> torch.LongTensor | None:
    """Number the texts of a batch: `[batch_size, seq_length]`, -1 at padding; None where every row is one whole text.

    Without an `attention_mask`, `position_ids` that go back to 0 inside a row mark packed documents, as in
    transformers' `DataCollatorWithFlattening`. A row that attends to nothing attends to all, as BERT's softmax has it.
    """
    rows = torch.arange(shape[0])[:, None]
    if attention_mask is not None:
        attended = attention_mask.bool()
        attended = attended | ~attended.any(-1, keepdim=True)
        if bool(attended.all()):
            return None
        return torch.where(attended, rows.to(attended.device), -1)
    if position_ids is None or shape[1] == 1:
        return None
    starts = F.pad((position_ids[:, 1:] == 0) & (position_ids[:, :-1] > 0), (1, 0), value=False)
    if not is_traced() and not bool(starts.any()):
        return None
    starts = starts.expand(shape).clone()
    starts[:, 0] = True
    return starts.flatten().cumsum(0).view(shape) - 1


def global_marks(
    texts: torch.LongTensor, global_tokens: int, global_attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """`[batch_size, seq_length]` bool: the first tokens of every text, and those that the caller names."""
    index = torch.arange(texts.shape[1], device=texts.device).expand(texts.shape)
    new_text = F.pad(texts[:, 1:] != texts[:, :-1], (1, 0), value=True)
    # [0], not .values: transformers' ONNX exporter has cummax return a plain tuple
    ranks = index - index.masked_fill(~new_text, 0).cummax(-1)[0]
    marked = (ranks < global_tokens) & (texts >= 0)
    return marked if global_attention_mask is None else marked | global_attention_mask.reshape(texts.shape).bool()


class Flattening:
    """Puts the real tokens of a batch into one row, and back.

    Args:
        texts: `[batch_size, seq_length]`, as from `text_ids`.
    """

    def __init__(self, texts: torch.LongTensor):
        self.texts, self.shape = texts, texts.shape
        self.index = (texts.flatten() >= 0).nonzero()[:, 0]

    def flatten(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """`[batch_size or 1, seq_length, ...]` to `[1, tokens, ...]`."""
        if tensor is None:
            return None
        return tensor.expand(*self.shape, *tensor.shape[2:]).flatten(0, 1)[self.index][None]

    def pad(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[1, tokens, hidden_size]` to `[batch_size, seq_length, hidden_size]`, zero at padding."""
        padded = tensor.new_zeros(self.shape.numel(), tensor.shape[-1])
        return padded.index_copy(0, self.index, tensor[0]).unflatten(0, self.shape)

    def layout(
        self,
        window: Window | None,
        global_tokens: int,
        global_attention_mask: torch.Tensor | None,
        shard: Shard | None = None,
    ) -> TextLayout:
        """Where the texts lie in the row."""
        _, lengths = self.texts.flatten()[self.index].unique_consecutive(return_counts=True)
        marked = global_marks(self.texts, global_tokens, global_attention_mask).flatten()[self.index]
        return TextLayout(lengths.tolist(), marked, window, shard)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TextLayout, scaling: float, windowed: bool
) -> torch.Tensor:
    """Attention within each text of a flattened batch.

    Args:
        query, key, value: `[1, num_heads, tokens, head_dim]`, of this process's tokens where they are shared.
        windowed: whether this layer reads long texts through the layout's window, or in full.

    Returns:
        `[1, num_heads, tokens, head_dim]`.
    """
    if layout.shard is not None:
        key, value = layout.shard.gather(key, dim=2), layout.shard.gather(value, dim=2)
    window = layout.window if windowed and any(map(layout.is_windowed, layout.lengths)) else None
    if window is not None and query.is_cuda:
        return _flex(query, key, value, layout, scaling)
    if query.is_cuda and varlen_attn is not None and query.dtype != torch.float32:
        return _varlen(query, key, value, layout)
    outputs = []
    for stretch in layout.stretches:
        q, k, v = query[:, :, stretch.queries], key[:, :, stretch.keys], value[:, :, stretch.keys]
        if window is not None and layout.is_windowed(k.shape[2]):
            global_index = layout.global_index[stretch.text]
            outputs.append(WindowedAttention.apply(q, k, v, global_index, window.radius, scaling, stretch.offset))
        else:
            outputs.append(F.scaled_dot_product_attention(q, k, v, scale=scaling))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


class WindowedAttention(torch.autograd.Function):
    """A window with global tokens over one text, in chunks of queries; the backward pass recomputes each chunk.

    Only the inputs are kept, so memory and time grow linearly. Inputs `[1, num_heads, n, head_dim]`; queries may be
    some of the text's alone, from the rank `offset` on.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        global_index: torch.Tensor,
        radius: int,
        scaling: float,
        offset: int = 0,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value, global_index)
        ctx.radius, ctx.scaling, ctx.offset = radius, scaling, offset
        output = torch.empty_like(query)
        for part in _parts(query, key, global_index, radius, offset):
            output[:, :, part.queries] = part.attend(query, key, value, scaling)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, global_index = ctx.saved_tensors
        sums = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for part in _parts(query, key, global_index, ctx.radius, ctx.offset):
            part.attend_backward((query, key, value), gradients[0], sums, ctx.scaling)
        return (*sums, None, None, None, None)


@dataclass
class _Part:
    """Some queries, the stretch of keys near them, global keys from elsewhere, and what is hidden in the stretch."""

    queries: slice | torch.Tensor
    near: slice
    far: torch.Tensor
    mask: torch.Tensor | None

    def gather(self, key: torch.Tensor) -> torch.Tensor:
        near = key[:, :, self.near]
        return near if len(self.far) == 0 else torch.cat((near, key[:, :, self.far]), dim=2)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        return F.scaled_dot_product_attention(
            query[:, :, self.queries], self.gather(key), self.gather(value), attn_mask=self.mask, scale=scaling
        )

    def attend_backward(
        self, inputs: tuple[torch.Tensor, ...], gradient: torch.Tensor, sums: list[torch.Tensor], scaling: float
    ) -> None:
        query, key, value = inputs
        parts = (query[:, :, self.queries], self.gather(key), self.gather(value))
        with torch.enable_grad():
            q, k, v = (part.detach().requires_grad_() for part in parts)
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=scaling)
            found = torch.autograd.grad(output, (q, k, v), gradient[:, :, self.queries])
        sums[0][:, :, self.queries] += found[0]
        width = self.near.stop - self.near.start
        for total, part in zip(sums[1:], found[1:], strict=True):
            total[:, :, self.near] += part[:, :, :width]
            total[:, :, self.far] += part[:, :, width:]


def _parts(
    query: torch.Tensor, key: torch.Tensor, global_index: torch.Tensor, radius: int, offset: int
) -> list[_Part]:
    """Cut a text's queries into chunks with what each may see; global queries, which see all, come last."""
    length, device = key.shape[2], query.device
    is_global = torch.zeros(length, dtype=torch.bool, device=device)
    is_global[global_index] = True
    position = torch.arange(length, device=device)
    here = position[offset : offset + query.shape[2]]
    local, global_queries = here[~is_global[here]], here[is_global[here]]
    parts = []
    for start in range(0, len(local), QUERIES_PER_CHUNK):
        chunk = local[start : start + QUERIES_PER_CHUNK]
        first, last = int(chunk[0]), int(chunk[-1])
        near = slice(max(0, first - radius), min(length, last + radius + 1))
        keys = position[near]
        seen = ((chunk[:, None] - keys).abs() <= radius) | is_global[near]
        far = global_index[(global_index < near.start) | (global_index >= near.stop)]
        mask = F.pad(seen, (0, len(far)), value=True)
        gapless = last - first + 1 == len(chunk)
        queries = slice(first - offset, last + 1 - offset) if gapless else chunk - offset
        parts.append(_Part(queries, near, far, mask))
    if len(global_queries):
        parts.append(_Part(global_queries - offset, slice(0, length), global_index[:0], None))
    return parts


def visible(
    texts: torch.Tensor, ranks: torch.Tensor, lengths: torch.Tensor, global_tokens: torch.Tensor, window: Window | None
) -> Callable[[Any, Any], torch.Tensor]:
    """The rule of the window, once for every implementation: does the query at one index see the key at another?

    Args:
        texts, ranks, lengths, global_tokens: for every token the number of its text, its rank there, its text's
            length, and whether it is global.
    """

    def sees(query: Any, key: Any) -> torch.Tensor:
        same_text = texts[query] == texts[key]
        if window is None:
            return same_text
        near = (ranks[query] - ranks[key]).abs() <= window.radius
        unrestricted = (lengths[query] <= window.longer_than) | global_tokens[query] | global_tokens[key]
        return same_text & (near | unrestricted)

    return sees


def plain_mask(texts: torch.LongTensor, global_tokens: torch.Tensor, window: Window | None) -> torch.Tensor:
    """The same rule as an explicit mask, `[batch_size, 1, seq_length, seq_length]` bool, for eager and sdpa attention.

    Args:
        texts: `[batch_size, seq_length]`, as from `text_ids`.
        global_tokens: `[batch_size, seq_length]` bool.
    """
    lengths, ranks = (texts[:, :, None] == texts[:, None, :]).sum(-1), (texts >= 0).cumsum(-1)
    # all rows at once, as one long row: a loop over them would fix the batch size of a traced graph
    sees = visible(texts.flatten(), ranks.flatten(), lengths.flatten(), global_tokens.flatten(), window)
    index = torch.arange(texts.numel(), device=texts.device).view(texts.shape)
    return sees(index[:, :, None], index[:, None, :])[:, None]


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TextLayout, scaling: float
) -> torch.Tensor:
    from torch.nn.attention.flex_attention import create_block_mask

    if layout.block_mask is None:
        tokens, device = query.shape[2], query.device
        texts, ranks, lengths, marked = layout.per_token(device)
        sees = visible(texts, ranks, lengths, marked, layout.window)
        first = 0 if layout.shard is None else layout.shard.start
        layout.block_mask = create_block_mask(
            lambda batch, head, q, k: sees(q + first, k), None, None, tokens, key.shape[2], device.type, _compile=True
        )
    return _compiled_flex()(query, key, value, block_mask=layout.block_mask, scale=scaling)


def _varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TextLayout) -> torch.Tensor:
    stretches = layout.stretches
    texts = slice(stretches[0].keys.start, stretches[-1].keys.stop)
    (query_bounds, most_queries), (key_bounds, most_keys) = (
        _bounds([part.stop - part.start for part in parts], query.device)
        for parts in zip(*((stretch.queries, stretch.keys) for stretch in stretches), strict=True)
    )
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key[:, :, texts], value[:, :, texts]))
    return varlen_attn(q, k, v, query_bounds, key_bounds, most_queries, most_keys).transpose(0, 1)[None]


def _bounds(lengths: list[int], device: torch.device) -> tuple[torch.Tensor, int]:
    """Cumulative lengths `[texts + 1]` int32, as varlen kernels take them, and the largest length."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device), max(lengths)


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
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            hidden = torch.finfo(query.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, hidden)
        return eager_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output = attend(query, key, value, layout, scaling, windowed=not getattr(module, "reads_in_full", False))
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention_forward)
# without a mask function of its own, transformers would silently ignore padding on the plain path
AttentionMaskInterface.register(NAME, sdpa_mask)
