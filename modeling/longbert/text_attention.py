"""Exact attention within the texts of a row, through a window or in full, forwards and backwards. Travels to the Hub.

What a token sees through a window is cut in two that share no pair. The band, |i - j| <= radius, is computed by
torch's own kernels, in `pieces` (`kernels.py`). Global keys from further away, and global queries, are `crosses`
(`global_attention.py`). The parts are merged by their log-sum-exp; backwards each is given the merged output and
log-sum-exp, which makes its own gradients exact: nothing is computed forwards again.
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

from .global_attention import FarKeys, FarLaunch, GlobalQueries
from .kernels import EFFICIENT, FLASH, PLAIN, QUERIES_PER_CHUNK, Chunk, Launch, slices
from .text_layout import Stretch, TextLayout


GLOBALS_PER_GROUP = 8  # global tokens of neighbouring texts that share one product, each hidden from the others' texts
GLOBALS_AT_ONCE = 64  # of a text, past which a launch would gather too many copies of their keys
QUERIES_PER_SEGMENT = 2048  # so that the backward pass of such a launch has work for all of a card


@dataclass
class Plan:
    """How the layers of one kind, those with the window or those without, compute a batch.

    Args:
        pieces: in order, of their queries and of their keys.
        crosses: what a window adds to them.
        masks: of chunks, kept for all layers.
    """

    pieces: list[Chunk | Launch]
    crosses: list[FarKeys | FarLaunch | GlobalQueries]
    masks: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output `[1, num_heads, queries, head_dim]` and its log-sum-exp `[1, num_heads, queries]`."""
        output, lse = self._band(query, key, value, scaling)
        if self.crosses:
            output, lse = output[0], lse[0]
            for cross in self.crosses:
                output, lse = cross.merge((query[0], key[0], value[0]), output, lse, scaling)
            output, lse = output[None], lse[None]
        return output, lse

    def _band(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # a kernel's own output must not be written to: selective checkpointing may have kept it
        if len(self.pieces) == 1 and (not self.crosses or isinstance(self.crosses[0], FarLaunch)):
            keys = self.pieces[0].keys
            return self.pieces[0].forward((query, key[:, :, keys], value[:, :, keys]), scaling, self.masks)
        # laid out as the layer after attention wants it
        output = query.new_empty(1, *(query.shape[axis] for axis in (2, 1, 3))).transpose(1, 2)
        lse = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for piece in self.pieces:
            parts = query[:, :, piece.queries], key[:, :, piece.keys], value[:, :, piece.keys]
            found = piece.forward(parts, scaling, self.masks)
            output[:, :, piece.queries], lse[:, :, piece.queries] = found
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
            if isinstance(cross, GlobalQueries):
                local[0][:, cross.here] = math.inf  # so that the band takes no gradient from them
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
        self.like = like
        self.total: torch.Tensor | None = None
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.start, self.open = 0, like.new_empty(*like.shape[:2], 0, like.shape[3], dtype=self.dtype)

    def add(self, where: slice, gradient: torch.Tensor, final: bool = False) -> None:
        """Add to a slice of the tokens.

        Args:
            final: no other piece contributes to them.
        """
        if final and where.stop - where.start == self.like.shape[2]:
            self.total = gradient.to(self.like.dtype)
        elif final:
            self._zeroed()[:, :, where] = gradient.to(self.like.dtype)
        elif self.dtype == self.like.dtype:
            self._zeroed()[:, :, where] += gradient
        else:
            self._close(where.start)
            self.open = F.pad(self.open, (0, 0, 0, max(0, where.stop - self.start - self.open.shape[2])))
            self.open[:, :, where.start - self.start : where.stop - self.start] += gradient

    def _zeroed(self) -> torch.Tensor:
        if self.total is None:
            self.total = torch.zeros_like(self.like)
        return self.total

    def _close(self, stop: int) -> None:
        """Round the sums of the tokens before `stop`."""
        closed = self.open[:, :, : stop - self.start]
        if closed.shape[2]:
            self._zeroed()[:, :, self.start : self.start + closed.shape[2]] = closed
        self.open, self.start = self.open[:, :, closed.shape[2] :], stop

    def result(self) -> torch.Tensor:
        """The sums of all that was added, zero where nothing was."""
        self._close(self.start + self.open.shape[2])
        return self._zeroed()


class TextAttention(torch.autograd.Function):
    """Attention by a plan, of queries `[1, num_heads, queries, head_dim]` and keys and values of all tokens.

    A second derivative is refused.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Plan, scaling: float
    ) -> torch.Tensor:
        with in_its_own_dtype(query.device.type):
            output, lse = plan.forward(query, key, value, scaling)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.plan, ctx.scaling = plan, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with in_its_own_dtype(gradients[0].device.type):
            return *ctx.plan.backward(gradients[0], ctx.saved_tensors, ctx.scaling), None, None


def in_its_own_dtype(device: str) -> contextlib.AbstractContextManager:
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
    return Plan(pieces, list(_crosses(layout, kernel)) if windowed else [])


def _launch(layout: TextLayout, stretch: Stretch, kernel: str, windowed: bool) -> tuple | None:
    """What the texts of one launch have in common; None for a text that no launch can compute."""
    if kernel != FLASH:
        return None
    if not (windowed and stretch.windowed):
        return (-1, -1)
    if stretch.has_gaps:
        return None
    radius, length = layout.radius, layout.lengths[stretch.text]
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
        after = layout.radius - launched[1]
        start = one.keys.start + max(0, one.offset - layout.radius)
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
        for rows in slices(queries, size if kernel == PLAIN else queries):
            start = stretch.queries.start
            yield Chunk(kernel, slice(start + rows.start, start + rows.stop), stretch.keys)
        return
    radius, length, first_key = layout.radius, layout.lengths[stretch.text], stretch.keys.start
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


def _crosses(layout: TextLayout, kernel: str) -> Iterator[FarKeys | FarLaunch | GlobalQueries]:
    """What the band leaves out: first the far keys, then the global queries, whose rows are overwritten."""
    groups = list(_groups(layout, GLOBALS_PER_GROUP if kernel in (FLASH, EFFICIENT) else 1))
    if kernel == FLASH and groups and max(len(ranks) for ranks in _globals_of_texts(layout)) <= GLOBALS_AT_ONCE:
        yield from _far_launch(layout)
    else:
        for stretches, globals_ in groups:
            yield _far_keys(layout, stretches, globals_)
    for stretches, globals_ in groups:
        yield _global_queries(layout, stretches, globals_)


def _globals_of_texts(layout: TextLayout) -> Iterator[list[int]]:
    """For every stretch, the ranks in its text of the text's global tokens; none where it is read in full."""
    for stretch in layout.stretches:
        bounds = (bisect_left(layout.global_ranks, bound) for bound in (stretch.keys.start, stretch.keys.stop))
        ranks = layout.global_ranks[slice(*bounds)] if stretch.windowed else []
        yield [rank - stretch.keys.start for rank in ranks]


def _groups(layout: TextLayout, at_once: int) -> Iterator[tuple[list[Stretch], slice]]:
    """Neighbouring windowed texts, and where among the global tokens theirs are, at most so many of several texts.

    A text of which a part is computed elsewhere is alone.
    """
    group: list[Stretch] = []
    first = last = 0
    for stretch, ranks in zip(layout.stretches, _globals_of_texts(layout), strict=True):
        alone = any(each.is_part for each in (*group, stretch))
        if group and (not ranks or alone or last - first + len(ranks) > at_once):
            yield group, slice(first, last)
            group = []
        if ranks:
            start = bisect_left(layout.global_ranks, stretch.keys.start)
            first, last = (first if group else start), start + len(ranks)
            group.append(stretch)
    if group:
        yield group, slice(first, last)


def _far_keys(layout: TextLayout, stretches: list[Stretch], globals_: slice) -> FarKeys:
    places, texts, ranks = layout.on_device
    queries, ranks = slice(stretches[0].queries.start, stretches[-1].queries.stop), ranks[globals_]
    rows = slice(layout.first + queries.start, layout.first + queries.stop)
    hidden = (places[rows, None] - places[ranks]).abs() <= layout.radius
    if len(stretches) > 1:
        hidden |= texts[rows, None] != texts[ranks]
    return FarKeys(queries, ranks, hidden)


def _global_queries(layout: TextLayout, stretches: list[Stretch], globals_: slice) -> GlobalQueries:
    _, texts, ranks = layout.on_device
    keys = slice(stretches[0].keys.start, stretches[-1].keys.stop)
    computed = (layout.first + stretches[0].queries.start, layout.first + stretches[-1].queries.stop)
    here = ranks[globals_][slice(*(bisect_left(layout.global_ranks[globals_], bound) for bound in computed))]
    others = texts[here, None] != texts[keys] if len(stretches) > 1 else None
    return GlobalQueries(keys, here - layout.first, others)


def _far_launch(layout: TextLayout) -> Iterator[FarLaunch]:
    stretches = [stretch for stretch in layout.stretches if stretch.windowed]
    queries = slice(stretches[0].queries.start, stretches[-1].queries.stop)
    bounds, key_bounds, ranks = [0], [0], []
    for stretch, globals_ in zip(layout.stretches, _globals_of_texts(layout), strict=True):
        if stretch.queries.start < queries.start or stretch.queries.stop > queries.stop:
            continue
        for stop, far in _segments(layout, stretch, globals_):
            bounds.append(stretch.queries.start - queries.start + stop)
            ranks += [stretch.keys.start + rank for rank in far]
            key_bounds.append(len(ranks))
    slots = {rank: slot for slot, rank in enumerate(layout.global_ranks)}
    parts = [bounds, key_bounds, ranks, [slots[rank] for rank in ranks]]
    there = torch.tensor([*itertools.chain(*parts)]).to(layout.bounds.device).split([len(part) for part in parts])
    most = tuple(max(stop - start for start, stop in itertools.pairwise(part)) for part in parts[:2])
    launch = Launch(queries, slice(0, len(ranks)), (there[0].int(), there[1].int()), most)
    if ranks:
        yield FarLaunch(launch, there[2], there[3], layout.on_device[2])


def _segments(layout: TextLayout, stretch: Stretch, globals_: list[int]) -> Iterator[tuple[int, list[int]]]:
    """Where each segment of a stretch's queries ends, counted from its first, and the global ranks far from it."""
    first, count = stretch.offset, stretch.queries.stop - stretch.queries.start
    near = [_near(layout, stretch, rank) for rank in globals_]
    cuts = {*range(0, count, QUERIES_PER_SEGMENT), count, *(cut - first for reach in near for cut in reach)}
    for start, stop in itertools.pairwise(sorted(cut for cut in cuts if 0 <= cut <= count)):
        yield (
            stop,
            [rank for rank, (left, right) in zip(globals_, near, strict=True) if not left <= first + start < right],
        )


def _near(layout: TextLayout, stretch: Stretch, rank: int) -> tuple[int, int]:
    """From which rank of the text to which the band has a key."""
    radius = layout.radius
    if not stretch.has_gaps:
        return rank - radius, rank + radius + 1
    places = layout.places[stretch.keys]
    left = torch.searchsorted(places, places[rank] - radius)
    return int(left), int(torch.searchsorted(places, places[rank] + radius, right=True))
