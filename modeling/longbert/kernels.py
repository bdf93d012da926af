"""Attention of the texts of a row, exact, by kernels that also return their log-sum-exp. Travels to the Hub.

What a token sees under a window is cut in two that share no pair. The band, |i - j| <= radius, is computed by torch's
own kernels, in `pieces`. Global keys from further away, and global queries, which see all, are small matrix products,
`crosses`. The parts are merged by their log-sum-exp. Backwards each part is given the merged output and log-sum-exp,
which makes its own gradients exact (the identity behind ring attention): nothing is computed forwards again.

    kernel      where                                          a piece is
    flash       CUDA from Ampere on, half precision            neighbouring texts, one launch
    efficient   other CUDA cards, fp32, texts with gaps        a chunk of queries and the keys near them
    cpu         CPU                                            the same
    plain       whatever else there is, in plain operations    the same
"""

import contextlib
import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .text_layout import Stretch, TextLayout


aten = torch.ops.aten

FLASH, EFFICIENT, CPU, PLAIN = "flash", "efficient", "cpu", "plain"
QUERIES_PER_CHUNK = {EFFICIENT: 512, CPU: 128, PLAIN: 128}
GLOBALS_PER_GROUP = 8  # global tokens of neighbouring texts that share one product, each hidden from the others' texts
SCORES_AT_ONCE = 2**20  # of a head, in such a product
ROWS_AT_ONCE = 2048  # tokens that are converted to fp32 at a time where no product of halves gives fp32
HALVES = (torch.float16, torch.bfloat16)


def kernel_for(device: str, dtype: torch.dtype, capability: tuple[int, int] | None, head_dim: int) -> str:
    """The kernel for tensors of a device and dtype.

    Args:
        capability: of a CUDA device, (8, 0) for an A100; None elsewhere, ROCm included.
        head_dim: a multiple of 8 on CUDA.
    """
    if device == "cpu":
        return CPU
    if device != "cuda" or capability is None or dtype not in (*HALVES, torch.float32):
        return PLAIN
    if capability >= (8, 0):
        return FLASH if dtype in HALVES and head_dim <= 256 else EFFICIENT
    return PLAIN if dtype == torch.bfloat16 else EFFICIENT


# ---- kernels: queries [1, num_heads, m, head_dim], keys and values [1, num_heads, n, head_dim] -> output and
# log-sum-exp [1, num_heads, m]; mask [1, 1, m, n] is added to the scores


def _cpu_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask, scale=scaling)


def _cpu_backward(
    gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, ...]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, *inputs, 0.0, False, attn_mask=mask, scale=scaling
    )


def _efficient_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    mask = None if mask is None else mask.expand(-1, query.shape[1], -1, -1)
    turned = (tensor.transpose(1, 2) for tensor in (query, key, value))
    output, lse, *_ = aten._efficient_attention_forward(
        *turned, mask, None, None, None, None, 0.0, 0, compute_log_sumexp=True, scale=scaling
    )
    return output.transpose(1, 2), lse[:, :, : query.shape[2]]


def _efficient_backward(
    gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, ...]:
    *inputs, lse = inputs
    mask = None if mask is None else mask.expand(-1, gradient.shape[1], -1, -1)
    gradient, query, key, value, output = (tensor.transpose(1, 2) for tensor in (gradient, *inputs))
    lse = F.pad(lse, (0, -lse.shape[2] % 32), value=math.inf)  # rows in multiples of 32, as its forward pass makes
    seed = torch.zeros((), dtype=torch.long, device=query.device)
    gradients = aten._efficient_attention_backward(
        gradient, query, key, value, mask, output, None, None, query.shape[1], key.shape[1], lse, 0.0, seed, seed,
        0, False, scale=scaling,
    )  # fmt: skip
    return tuple(tensor.transpose(1, 2) for tensor in gradients[:3])


def _plain_scores(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    scores = _precise(query) @ _precise(key).mT * scaling
    return scores if mask is None else scores + mask


def _plain_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = _plain_scores(query, key, mask, scaling)
    lse = scores.logsumexp(-1)
    return ((scores - lse[..., None]).exp() @ _precise(value)).to(query.dtype), lse


def _plain_backward(
    gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, ...]:
    gradient, query, key, value, output, lse = map(_precise, (gradient, *inputs))
    probabilities = (_plain_scores(query, key, mask, scaling) - lse[..., None]).exp()
    expected = (gradient * output).sum(-1, keepdim=True)
    of_scores = probabilities * (gradient @ value.mT - expected) * scaling
    return of_scores @ key, of_scores.mT @ query, probabilities.mT @ gradient


CHUNK_KERNELS = {
    CPU: (_cpu_forward, _cpu_backward),
    EFFICIENT: (_efficient_forward, _efficient_backward),
    PLAIN: (_plain_forward, _plain_backward),
}


# ---- pieces: the band, and texts read in full


@dataclass
class Chunk:
    """Some queries of one text and the keys near them, or all keys of a text that is read in full.

    Args:
        radius: of the window; None where every key is seen.
        ahead: rank in the text of the first query, less that of the first key.
        places: of the text's tokens in the queries' and in the keys' slice, where ranks do not tell them.
    """

    kernel: str
    queries: slice
    keys: slice
    radius: int | None = None
    ahead: int = 0
    places: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, masks: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return CHUNK_KERNELS[self.kernel][0](query, key, value, self.mask(query, masks), scaling)

    def backward(
        self, gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], scaling: float, masks: dict
    ) -> tuple[torch.Tensor, ...]:
        return CHUNK_KERNELS[self.kernel][1](gradient, inputs, self.mask(gradient, masks), scaling)

    def mask(self, like: torch.Tensor, masks: dict) -> torch.Tensor | None:
        """`[1, 1, queries, keys]`, 0 within the window and -inf outside.

        Args:
            masks: those of other chunks, most of which are the same.
        """
        if self.radius is None:
            return None
        if self.places is not None:
            return self._mask(*self.places, like)
        shape = (self.queries.stop - self.queries.start, self.keys.stop - self.keys.start)
        same = (*shape, self.ahead, like.dtype)
        if same not in masks:
            queries = torch.arange(self.ahead, self.ahead + shape[0], device=like.device)
            masks[same] = self._mask(queries, torch.arange(shape[1], device=like.device), like)
        return masks[same]

    def _mask(self, queries: torch.Tensor, keys: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        outside = (queries[:, None] - keys).abs() > self.radius
        # the efficient kernel wants rows that begin at multiples of 16 bytes
        mask = F.pad(outside, (0, -len(keys) % 16)).to(like.dtype)
        return mask.masked_fill_(mask.bool(), -math.inf)[None, None, :, : len(keys)]


@dataclass
class Launch:
    """Neighbouring texts that the flash kernel computes at once.

    Args:
        bounds: `[texts + 1]` int32 of the queries and of the keys, counted from the slices' starts.
        most: the most queries and keys that one of the texts has.
        window: how many keys before and after a query are seen, where the last query meets the last key; -1 for all.
    """

    queries: slice
    keys: slice
    bounds: tuple[torch.Tensor, torch.Tensor]
    most: tuple[int, int]
    window: tuple[int, int] = (-1, -1)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, masks: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        before, after = self.window
        output, lse, *_ = aten._flash_attention_forward(
            *map(_tokens_first, (query, key, value)), *self.bounds, *self.most, 0.0, False, False,
            scale=scaling, window_size_left=before, window_size_right=after,
        )  # fmt: skip
        return output.transpose(0, 1)[None], lse[None]

    def backward(
        self, gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], scaling: float, masks: dict
    ) -> tuple[torch.Tensor, ...]:
        *inputs, lse = inputs
        before, after = self.window
        unused = torch.zeros(
            2, dtype=torch.uint64, device=gradient.device
        )  # the state of dropout, of which there is none
        gradients = aten._flash_attention_backward(
            *map(_tokens_first, (gradient, *inputs)), lse[0].contiguous(), *self.bounds, *self.most, 0.0, False,
            unused, unused, scale=scaling, window_size_left=before, window_size_right=after,
        )  # fmt: skip
        return tuple(tensor.transpose(0, 1)[None] for tensor in gradients)


def _tokens_first(tensor: torch.Tensor) -> torch.Tensor:
    """`[1, num_heads, tokens, head_dim]` to `[tokens, num_heads, head_dim]`."""
    return tensor[0].transpose(0, 1)


# ---- crosses: pairs with a global token that are not in the band


@dataclass
class Cross:
    """The global tokens of neighbouring texts and the tokens of these texts.

    Args:
        ranks: `[globals]`, where the global tokens' keys are.
        here: `[global queries]`, where those of them that are computed here are among the queries.
        hidden: `[queries, globals]` bool, True where the band has the pair, or the text is another.
        others: `[global queries, keys]` bool, True where the text is another; None where there is but one.
    """

    queries: slice
    keys: slice
    ranks: torch.Tensor
    here: torch.Tensor
    hidden: torch.Tensor
    others: torch.Tensor | None

    def merge(
        self,
        inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor,
        lse: torch.Tensor,
        scaling: float,
    ) -> None:
        """Add what comes from far global keys to the band's output, and put in what global queries read.

        Args:
            inputs: query, key and value, `[num_heads, tokens, head_dim]`.
            output, lse: `[num_heads, tokens, head_dim]` and `[num_heads, tokens]`.
        """
        query, key, value = inputs
        far_keys, far_values = key[:, self.ranks], value[:, self.ranks]
        for rows, hidden in self._rows(query):
            scores = _scores(query[:, rows], far_keys, scaling).masked_fill_(hidden, -math.inf)
            merged = torch.logaddexp(lse[:, rows], scores.logsumexp(-1))
            probabilities = scores.sub_(merged[..., None]).exp_()
            share = (lse[:, rows] - merged).exp_()[..., None]
            output[:, rows] = _weighted(probabilities, far_values).add_(share * output[:, rows])
            lse[:, rows] = merged
        key, value = key[:, self.keys], value[:, self.keys]
        for here, others in self._global_queries():
            scores = self._global_scores(query[:, here], key, others, scaling)
            lse[:, here] = total = scores.logsumexp(-1)
            output[:, here] = _weighted(scores.sub_(total[..., None]).exp_(), value).to(output.dtype)

    def backward(
        self,
        inputs: tuple[torch.Tensor, ...],
        gradient: torch.Tensor,
        local: torch.Tensor,
        gradients: tuple[torch.Tensor, ...],
        scaling: float,
    ) -> None:
        """Add to the gradients of query, key and value, `[num_heads, tokens, head_dim]`.

        Args:
            inputs: query, key, value, output and log-sum-exp.
            local: the log-sum-exp, but inf for global queries, which makes their probabilities 0: see `merge`.
        """
        query, key, value, output, lse = inputs
        of_query, of_key, of_value = gradients
        far = key[:, self.ranks], value[:, self.ranks]
        sums = [torch.zeros_like(tensor, dtype=lse.dtype) for tensor in far]
        for rows, hidden in self._rows(query):
            scores = _scores(query[:, rows], far[0], scaling).masked_fill_(hidden, -math.inf)
            arguments = scores, far[1], gradient[:, rows], output[:, rows], local[:, rows], scaling
            probabilities, of_scores = _softmax_backward(*arguments)
            of_query[:, rows] += _weighted(of_scores, far[0])
            sums[0] += _weighted(of_scores.mT, query[:, rows])
            sums[1] += _weighted(probabilities.mT, gradient[:, rows])
        for total, addend in zip((of_key, of_value), sums, strict=True):
            total[:, self.ranks] = (total[:, self.ranks] + addend).to(total.dtype)
        key, value, of_key, of_value = (tensor[:, self.keys] for tensor in (key, value, of_key, of_value))
        for here, others in self._global_queries():
            scores = self._global_scores(query[:, here], key, others, scaling)
            arguments = scores, value, gradient[:, here], output[:, here], lse[:, here], scaling
            probabilities, of_scores = _softmax_backward(*arguments)
            of_query[:, here] = _weighted(of_scores, key).to(of_query.dtype)
            for rows in _slices(key.shape[1], _at_once(key)):
                of_key[:, rows] += _weighted(of_scores[:, :, rows].mT, query[:, here])
                of_value[:, rows] += _weighted(probabilities[:, :, rows].mT, gradient[:, here])

    def _rows(self, like: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Slices of the queries, and which far keys are hidden from them."""
        size = min(_at_once(like), 8 * ROWS_AT_ONCE, SCORES_AT_ONCE // len(self.ranks) + 1)
        for rows in _slices(len(self.hidden), size):
            start = self.queries.start
            yield slice(start + rows.start, start + rows.stop), self.hidden[rows]

    def _global_queries(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Parts of the global queries, and which keys are hidden from them."""
        size = SCORES_AT_ONCE // (self.keys.stop - self.keys.start) + 1
        for rows in _slices(len(self.here), size):
            yield self.here[rows], None if self.others is None else self.others[rows]

    @staticmethod
    def _global_scores(
        query: torch.Tensor, key: torch.Tensor, others: torch.Tensor | None, scaling: float
    ) -> torch.Tensor:
        scores = _scores(query, key, scaling)
        return scores if others is None else scores.masked_fill_(others, -math.inf)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _at_once(like: torch.Tensor) -> int:
    """Rows that take part in a product at once: on CUDA products of halves give fp32, elsewhere they are converted."""
    return ROWS_AT_ONCE if like.dtype in HALVES and not like.is_cuda else 2**62


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`[num_heads, m, k]` by `[num_heads, k, n]`, in fp32 or better."""
    if one.is_cuda and one.dtype in HALVES:
        return torch.bmm(one, other, out_dtype=torch.float32)
    return torch.bmm(_precise(one), _precise(other))


def _scores(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """`[num_heads, queries, keys]`, in fp32 or better."""
    parts = [_product(query, key[:, rows].mT) for rows in _slices(key.shape[1], _at_once(key))]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).mul_(scaling)


def _weighted(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`[num_heads, m, n]` in fp32 or better by `[num_heads, n, head_dim]` of any dtype, in fp32 or better."""
    if rows.is_cuda:  # the products of kernels round their weights too
        return _product(weights.to(rows.dtype), rows)
    return sum(_product(weights[:, :, part], rows[:, part]) for part in _slices(rows.shape[1], _at_once(rows)))


def _softmax_backward(
    scores: torch.Tensor,
    value: torch.Tensor,
    gradient: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and the gradients of unscaled scores, `[num_heads, queries, keys]`."""
    probabilities = scores.sub_(lse[..., None]).exp_()
    expected = (_precise(gradient) * output).sum(-1, keepdim=True)
    return probabilities, (_scores(gradient, value, 1.0) - expected).mul_(probabilities).mul_(scaling)


# ---- the whole


@dataclass
class Plan:
    """How the layers of one kind, those with the window or those without, compute a batch.

    Args:
        pieces: in order, of their queries and of their keys.
        crosses: what a window adds to them.
        masks: of chunks, kept for all layers.
    """

    pieces: list[Chunk | Launch]
    crosses: list[Cross]
    masks: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output `[1, num_heads, queries, head_dim]` and its log-sum-exp `[1, num_heads, queries]`."""
        if len(self.pieces) == 1 and not self.crosses:
            keys = self.pieces[0].keys
            return self.pieces[0].forward(query, key[:, :, keys], value[:, :, keys], scaling, self.masks)
        # laid out as the layer after attention wants it
        output = query.new_empty(1, *(query.shape[axis] for axis in (2, 1, 3))).transpose(1, 2)
        lse = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for piece in self.pieces:
            parts = query[:, :, piece.queries], key[:, :, piece.keys], value[:, :, piece.keys]
            found = piece.forward(*parts, scaling, self.masks)
            output[:, :, piece.queries], lse[:, :, piece.queries] = found
        for cross in self.crosses:
            cross.merge((query[0], key[0], value[0]), output[0], lse[0], scaling)
        return output, lse

    def backward(
        self, gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], scaling: float
    ) -> tuple[torch.Tensor, ...]:
        """Of query, key and value.

        Args:
            inputs: query, key, value, output and log-sum-exp.
        """
        query, key, value, output, lse = inputs
        local = lse.clone() if self.crosses else lse
        for cross in self.crosses:
            local[0][:, cross.here] = math.inf  # so that the band takes no gradient from global queries
        sums = [_Sums(tensor) for tensor in (query, key, value)]
        for piece in self.pieces:
            queries, keys = piece.queries, piece.keys
            parts = (query[:, :, queries], key[:, :, keys], value[:, :, keys], output[:, :, queries])
            found = piece.backward(gradient[:, :, queries], (*parts, local[:, :, queries]), scaling, self.masks)
            for total, where, part in zip(sums, (queries, keys, keys), found, strict=True):
                total.add(where, part, final=total is sums[0] or isinstance(piece, Launch))
        gradients = tuple(total.result() for total in sums)
        for cross in self.crosses:
            heads = tuple(tensor[0] for tensor in inputs)
            cross.backward(heads, gradient[0], local[0], tuple(each[0] for each in gradients), scaling)
        return gradients


class _Sums:
    """Sums gradients of tokens to which several pieces contribute.

    Adding many parts in half precision would round too often, so it is done in fp32, but not for all tokens at once:
    pieces come in order, and only the tokens from the latest piece's first one on are still `open`.
    """

    def __init__(self, like: torch.Tensor):
        self.like, self.total = like, None
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.start, self.open = 0, like.new_empty(*like.shape[:2], 0, like.shape[3], dtype=self.dtype)

    def add(self, where: slice, gradient: torch.Tensor, final: bool = False) -> None:
        """Add to a slice of the tokens.

        Args:
            final: no other piece contributes to them.
        """
        if self.total is None and final and where.stop - where.start == self.like.shape[2]:
            self.total = gradient
            return
        if self.total is None:
            self.total = torch.zeros_like(self.like)
        if final or self.dtype == self.like.dtype:
            self.total[:, :, where] += gradient
            return
        self._close(where.start)
        self.open = F.pad(self.open, (0, 0, 0, max(0, where.stop - self.start - self.open.shape[2])))
        self.open[:, :, where.start - self.start : where.stop - self.start] += gradient

    def _close(self, stop: int) -> None:
        """Round the sums of the tokens before `stop`."""
        closed = self.open[:, :, : stop - self.start]
        self.total[:, :, self.start : self.start + closed.shape[2]] += closed
        self.open, self.start = self.open[:, :, closed.shape[2] :], stop

    def result(self) -> torch.Tensor:
        if self.total is None:
            return torch.zeros_like(self.like)
        self._close(self.start + self.open.shape[2])
        return self.total


class TextAttention(torch.autograd.Function):
    """Attention by a plan, of queries `[1, num_heads, queries, head_dim]` and keys and values of all tokens.

    A second derivative is refused.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Plan, scaling: float
    ) -> torch.Tensor:
        with _in_its_own_dtype(query.device.type):
            output, lse = plan.forward(query, key, value, scaling)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.plan, ctx.scaling = plan, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with _in_its_own_dtype(gradients[0].device.type):
            return *ctx.plan.backward(gradients[0], ctx.saved_tensors, ctx.scaling), None, None


def _in_its_own_dtype(device: str) -> contextlib.AbstractContextManager:
    """No autocast, which would round what is in fp32 on purpose."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


# ---- planning


def make_plan(layout: TextLayout, kernel: str, windowed: bool) -> Plan:
    """How layers with the window, or without, compute a batch by a kernel."""
    pieces: list[Chunk | Launch] = []
    launches = itertools.groupby(layout.stretches, lambda stretch: _launch(layout, stretch, kernel, windowed))
    for launch, stretches in launches:
        if launch is None:
            for stretch in stretches:
                pieces += _chunks(layout, stretch, EFFICIENT if kernel == FLASH else kernel, windowed)
        else:
            pieces.append(_together(layout, list(stretches), launch))
    at_once = GLOBALS_PER_GROUP if kernel in (FLASH, EFFICIENT) else 1
    crosses = [_cross(layout, *group) for group in _groups(layout, at_once)] if windowed else []
    return Plan(pieces, crosses)


def _launch(layout: TextLayout, stretch: Stretch, kernel: str, windowed: bool) -> tuple | None:
    """What the texts of one launch have in common; None for a text that no launch can compute."""
    if kernel != FLASH:
        return None
    if not (windowed and stretch.windowed):
        return (-1, -1)
    if stretch.has_gaps:
        return None
    radius, length = layout.window.radius, layout.lengths[stretch.text]
    queries = stretch.queries.stop - stretch.queries.start
    if queries == length:
        return (radius, radius)
    # the kernel lets the last query meet the last key, which here is one that the last query barely sees
    after = min(radius, length - stretch.offset - queries)
    return (radius + after, radius - after, stretch.text)


def _together(layout: TextLayout, stretches: list[Stretch], launched: tuple) -> Launch:
    one, last = stretches[0], stretches[-1]
    queries = slice(one.queries.start, last.queries.stop)
    if len(launched) == 3:  # a part of one windowed text
        after = layout.window.radius - launched[1]
        start = one.keys.start + max(0, one.offset - layout.window.radius)
        keys = slice(start, one.keys.start + one.offset + queries.stop - queries.start + after)
        lengths = tuple(part.stop - part.start for part in (queries, keys))
        device = layout.bounds.device
        bounds = tuple(torch.arange(0, 2 * n, n, dtype=torch.int32, device=device) for n in lengths)
        return Launch(queries, keys, bounds, lengths, launched[:2])
    keys = slice(one.keys.start, last.keys.stop)
    bounds = layout.bounds[one.text : last.text + 2]
    of_queries = bounds.clamp(layout.first + queries.start, layout.first + queries.stop)
    bounds = ((of_queries - layout.first - queries.start).int(), (bounds - keys.start).int())
    most = tuple(
        max(part.stop - part.start for part in parts)
        for parts in ([each.queries for each in stretches], [each.keys for each in stretches])
    )
    return Launch(queries, keys, bounds, most, launched)


def _chunks(layout: TextLayout, stretch: Stretch, kernel: str, windowed: bool) -> Iterator[Chunk]:
    queries, size = stretch.queries.stop - stretch.queries.start, QUERIES_PER_CHUNK[kernel]
    if not (windowed and stretch.windowed):
        for rows in _slices(queries, size if kernel == PLAIN else queries):
            start = stretch.queries.start
            yield Chunk(kernel, slice(start + rows.start, start + rows.stop), stretch.keys)
        return
    radius, length, first_key = layout.window.radius, layout.lengths[stretch.text], stretch.keys.start
    starts = torch.arange(stretch.offset, stretch.offset + queries, size)
    stops = (starts + size).clamp(max=stretch.offset + queries)
    if stretch.has_gaps:
        places = layout.places[stretch.keys]
        lefts = torch.searchsorted(places, places[starts] - radius)
        rights = torch.searchsorted(places, places[stops - 1] + radius, right=True)
    else:
        lefts, rights = (starts - radius).clamp(min=0), (stops + radius).clamp(max=length)
    for start, stop, left, right in torch.stack((starts, stops, lefts, rights), dim=-1).tolist():
        rows = slice(*(stretch.queries.start - stretch.offset + rank for rank in (start, stop)))
        keys = slice(first_key + left, first_key + right)
        if stretch.has_gaps:
            places = layout.on_device[0]
            yield Chunk(kernel, rows, keys, radius, places=(places[first_key:][start:stop], places[keys]))
        else:
            all_seen = stop - 1 - left <= radius and right - 1 - start <= radius
            yield Chunk(kernel, rows, keys, None if all_seen else radius, start - left)


def _groups(layout: TextLayout, at_once: int) -> Iterator[tuple[list[Stretch], slice]]:
    """Neighbouring windowed texts, and where among the global tokens theirs are, at most so many of several texts."""
    group: list[Stretch] = []
    first = last = 0
    for stretch in [*layout.stretches, None]:
        start, stop = (
            (0, 0)
            if stretch is None or not stretch.windowed
            else (bisect_left(layout.global_ranks, bound) for bound in (stretch.keys.start, stretch.keys.stop))
        )
        if group and (start == stop or stop - first > at_once or stretch.text != group[-1].text + 1):
            yield group, slice(first, last)
            group = []
        if start < stop:
            first, last = (first if group else start), stop
            group.append(stretch)


def _cross(layout: TextLayout, stretches: list[Stretch], globals_: slice) -> Cross:
    places, texts, ranks = layout.on_device
    queries = slice(stretches[0].queries.start, stretches[-1].queries.stop)
    keys = slice(stretches[0].keys.start, stretches[-1].keys.stop)
    rows, ranks = slice(layout.first + queries.start, layout.first + queries.stop), ranks[globals_]
    begin, end = (bisect_left(layout.global_ranks[globals_], bound) for bound in (rows.start, rows.stop))
    near = (places[rows, None] - places[ranks]).abs() <= layout.window.radius
    others = None
    if len(stretches) > 1:
        near |= texts[rows, None] != texts[ranks]
        others = texts[ranks[begin:end], None] != texts[keys]
    return Cross(queries, keys, ranks, ranks[begin:end] - layout.first, near, others)
