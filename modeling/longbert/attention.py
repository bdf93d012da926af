"""Exact attention in linear memory, and a window with global tokens. Travels to the Hub beside the model.

A batch is a set of texts: rows without their padding, or packed documents (`texts.py`). `TextLayout` says where each
lies after `flatten` has put all their tokens into one row, `[1, tokens]`, in which attention then runs text by text.
No kernel here ever holds an n x n tensor, forwards or backwards.

A window w lets the token at place i of its text see |i - j| <= w/2 and the global tokens, which see and are seen by
all. BERT was not trained with a window, so it applies only to texts past the source's limit, whatever else is in the
batch. Places count from the text's first token, and include tokens in the middle of the text that a mask leaves out.
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
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.utils import logging

from .texts import Texts, global_marks


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
    """The slice of a flattened batch that this process computes under sequence parallelism.

    Every process holds the whole batch. Attention gathers the other processes' keys and values; nothing else needs
    tokens of another process. Gradients of what is gathered are summed over the processes, so a loss that each process
    computes from the gathered hidden states trains correctly under DDP, which averages over processes.
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
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total, group=ctx.shard.group)
        return total[ctx.shard.start : ctx.shard.stop], None


@dataclass
class Stretch:
    """The part of one text that this process computes: where its queries lie, and where the text's keys lie.

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
        spans: the place of each text's last token plus 1, which is the text's length if no token in it is left out.
        places: `[tokens]`, the place of every token in its text.
        global_tokens: `[tokens]` bool, which of them are global.
        window: what texts longer than the source may see; None for full attention.
        shard: what of the batch this process computes; None for all.
    """

    lengths: list[int]
    spans: list[int]
    places: torch.Tensor
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
        """For every token its text's number, its place there, its text's span, whether it is global; `[tokens]`."""
        lengths, spans = torch.tensor([self.lengths, self.spans], device=device)
        texts = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        return texts, self.places, spans[texts], self.global_tokens

    @functools.cached_property
    def windowed(self) -> list[bool]:
        """Which texts are long enough to be read through the window."""
        return [self.window is not None and span > self.window.longer_than for span in self.spans]


class Flattening:
    """Puts the real tokens of a batch into one row, and back.

    Args:
        texts: as from `read_texts`.
    """

    def __init__(self, texts: Texts):
        self.texts, self.shape = texts, texts.real.shape
        self.index = texts.real.flatten().nonzero()[:, 0]

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
        marked = global_marks(self.texts, global_tokens, global_attention_mask)
        ids, places, marked = (tensor.flatten()[self.index] for tensor in (self.texts.ids, self.texts.places, marked))
        _, lengths = ids.unique_consecutive(return_counts=True)
        spans = places[lengths.cumsum(0) - 1] + 1
        in_tokens, in_places = torch.stack((lengths, spans)).tolist()
        return TextLayout(in_tokens, in_places, places, marked, window, shard)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TextLayout, scaling: float, windowed: bool
) -> torch.Tensor:
    """Attention within each text of a flattened batch.

    Args:
        query, key, value: `[1, num_heads, tokens, head_dim]`, of this process's tokens only, under sequence
        parallelism.
        windowed: whether this layer reads long texts through the layout's window, or in full.

    Returns:
        `[1, num_heads, tokens, head_dim]`.
    """
    if layout.shard is not None:
        key, value = layout.shard.gather(key, dim=2), layout.shard.gather(value, dim=2)
    window = layout.window if windowed and any(layout.windowed) else None
    if window is not None and query.is_cuda and query.dtype != torch.float64:  # which these two kernels have not
        return _flex(query, key, value, layout, scaling)
    if query.is_cuda and varlen_attn is not None and query.dtype in (torch.float16, torch.bfloat16):
        return _varlen(query, key, value, layout)
    outputs = []
    for stretch in layout.stretches:
        q, k, v = query[:, :, stretch.queries], key[:, :, stretch.keys], value[:, :, stretch.keys]
        if window is not None and layout.windowed[stretch.text]:
            global_index, places = layout.global_index[stretch.text], layout.places[stretch.keys]
            outputs.append(
                WindowedAttention.apply(q, k, v, global_index, window.radius, scaling, stretch.offset, places)
            )
        else:
            outputs.append(F.scaled_dot_product_attention(q, k, v, scale=scaling))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


class WindowedAttention(torch.autograd.Function):
    """A window with global tokens over one text, in chunks of queries; the backward pass recomputes each chunk.

    Only the inputs are kept, so memory and time grow linearly. Inputs `[1, num_heads, n, head_dim]`; the queries may
    be a part of the text's, from its token number `offset` on. `places` `[n]`, in rising order, say where in the text
    each token stands; by default there are no gaps. A second derivative is refused.
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
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        places = torch.arange(key.shape[2], device=key.device) if places is None else places
        ctx.save_for_backward(query, key, value, global_index, places)
        ctx.radius, ctx.scaling, ctx.offset = radius, scaling, offset
        output = torch.empty_like(query)
        for part in _parts(query.shape[2], places, global_index, radius, offset):
            output[:, :, part.queries] = part.attend(query, key, value, scaling)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, global_index, places = ctx.saved_tensors
        of_query, sums = torch.zeros_like(query), [_KeySums(tensor, global_index) for tensor in (key, value)]
        for part in _parts(query.shape[2], places, global_index, ctx.radius, ctx.offset):
            found = part.gradients((query, key, value), gradients[0], ctx.scaling)
            of_query[:, :, part.queries] += found[0]
            for total, gradient in zip(sums, found[1:], strict=True):
                total.add(part, gradient)
        return (of_query, *(total.result() for total in sums), None, None, None, None, None)


@dataclass
class _Part:
    """Some queries, the keys near them, the global keys from elsewhere, and which of the near keys are hidden.

    Args:
        is_far: which of the global keys are the ones from elsewhere.
    """

    queries: slice | torch.Tensor
    near: slice
    far: torch.Tensor
    is_far: torch.Tensor
    mask: torch.Tensor | None

    def gather(self, key: torch.Tensor) -> torch.Tensor:
        near = key[:, :, self.near]
        return near if len(self.far) == 0 else torch.cat((near, key[:, :, self.far]), dim=2)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        return F.scaled_dot_product_attention(
            query[:, :, self.queries], self.gather(key), self.gather(value), attn_mask=self.mask, scale=scaling
        )

    def gradients(
        self, inputs: tuple[torch.Tensor, ...], gradient: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, ...]:
        """Of this part's queries, and of its gathered keys and values."""
        query, key, value = inputs
        parts = (query[:, :, self.queries], self.gather(key), self.gather(value))
        with torch.enable_grad():
            q, k, v = (part.detach().requires_grad_() for part in parts)
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=scaling)
            return torch.autograd.grad(output, (q, k, v), gradient[:, :, self.queries])


class _KeySums:
    """Sums the gradients of keys, or of values, to which many parts contribute.

    Adding many parts in half precision would round too often, so the sums are in fp32, but not for all keys at once.
    Parts come in order: only the keys near the latest part are still `open`, earlier keys are finished, and the global
    keys, to which every part contributes, are summed apart. So each key is rounded a few times, however long the text.
    """

    def __init__(self, keys: torch.Tensor, global_index: torch.Tensor):
        self.total, self.global_index = torch.zeros_like(keys), global_index
        self.dtype = torch.promote_types(keys.dtype, torch.float32)
        self.first_open = 0
        self.open, self.far = (
            keys.new_zeros(*keys.shape[:2], number, keys.shape[3], dtype=self.dtype)
            for number in (0, len(global_index))
        )

    def add(self, part: _Part, gradient: torch.Tensor) -> None:
        width = part.near.stop - part.near.start
        near, far = gradient[:, :, :width], gradient[:, :, width:]
        # global queries (no mask) come once
        if self.dtype == self.total.dtype or part.mask is None:
            self.total[:, :, part.near] += near
            self.total[:, :, part.far] += far
            return
        self._close(part.near.start)
        self.open = F.pad(self.open, (0, 0, 0, width - self.open.shape[2]))
        self.open += near
        self.far[:, :, part.is_far] += far

    def _close(self, stop: int) -> None:
        """Round the sums of the open keys before `stop`."""
        closed = self.open[:, :, : stop - self.first_open]
        self.total[:, :, self.first_open : self.first_open + closed.shape[2]] += closed
        self.open, self.first_open = self.open[:, :, closed.shape[2] :], stop

    def result(self) -> torch.Tensor:
        self._close(self.first_open + self.open.shape[2])
        self.total[:, :, self.global_index] += self.far.to(self.total.dtype)
        return self.total


def _parts(queries: int, places: torch.Tensor, global_index: torch.Tensor, radius: int, offset: int) -> list[_Part]:
    """Cut a text's queries into chunks with what each may see; global queries, which see all, come last."""
    length, device = len(places), places.device
    is_global = torch.zeros(length, dtype=torch.bool, device=device)
    is_global[global_index] = True
    here = torch.arange(offset, offset + queries, device=device)
    local, global_queries = here[~is_global[here]], here[is_global[here]]
    begin = torch.arange(0, len(local), QUERIES_PER_CHUNK, device=device)
    ends = torch.stack((local[begin], local[(begin + QUERIES_PER_CHUNK).clamp(max=len(local)) - 1]), dim=-1)
    reaches = places[ends] + torch.tensor([-radius, radius + 1], device=device)
    reaches, ends = torch.searchsorted(places, reaches).tolist(), ends.tolist()
    parts = []
    for chunk, (first, last), reach in zip(local.split(QUERIES_PER_CHUNK), ends, reaches, strict=False):
        near = slice(*reach)
        seen = ((places[chunk][:, None] - places[near]).abs() <= radius) | is_global[near]
        is_far = (global_index < near.start) | (global_index >= near.stop)
        far = global_index[is_far]
        mask = F.pad(seen, (0, len(far)), value=True)
        gapless = last - first + 1 == len(chunk)
        part_queries = slice(first - offset, last + 1 - offset) if gapless else chunk - offset
        parts.append(_Part(part_queries, near, far, is_far, mask))
    if len(global_queries):
        nowhere = torch.zeros_like(global_index, dtype=torch.bool)
        parts.append(_Part(global_queries - offset, slice(0, length), global_index[:0], nowhere, None))
    return parts


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
        texts, places, spans, marked = layout.per_token(device)
        sees = visible(texts, places, spans, marked, layout.window)
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


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as numbers to add to scores of `dtype`."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


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
    output = attend(query, key, value, layout, scaling, windowed=not getattr(module, "reads_in_full", False))
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention_forward)
# without a mask function of its own, transformers would silently ignore padding on the plain path
AttentionMaskInterface.register(NAME, sdpa_mask)
