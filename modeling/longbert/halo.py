"""Attention of texts that several processes share: each is sent what its queries see. Travels to the Hub.

Through a window a process sees its neighbours' nearest keys and the global ones, however long the texts are. What
global queries see is everywhere: so they go to every process, which gives them its own keys' part, and the parts are
merged by their log-sum-exp. A text that is read in full is exchanged in full, between those who share it.
"""

import dataclasses
import itertools
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from .global_attention import FarLaunch, GlobalQueries
from .text_attention import Plan, in_its_own_dtype
from .text_layout import Shard, TextLayout


@dataclass
class Halo:
    """The keys that are here: this process's own, and those of others that its queries see, in the row's order.

    Args:
        place: `[tokens]` on the host, where among these keys a token of the row is, if it is here.
        sent: own tokens that others see, one process after the other.
        send, receive: how many go to each process and come from each.
        shared: the global queries of texts that are read through the window by several processes; None without any.
    """

    shard: Shard
    place: torch.Tensor
    sent: torch.Tensor
    send: list[int]
    receive: list[int]
    shared: "SharedQueries | None"

    def exchange(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[1, num_heads, own tokens, head_dim]` to that of the keys that are here."""
        return _Exchange.apply(tensor.transpose(0, 2), self).transpose(0, 2)

    def find(self, keys: slice) -> slice:
        """Where a slice of the row is, all of which is here."""
        start = int(self.place[keys.start])
        return slice(start, start + keys.stop - keys.start)

    def plan(self, plan: Plan) -> Plan:
        """A plan for the whole row's keys as one for those that are here; shared global queries are left out."""
        place, pieces = self.place.to(self.sent.device), plan.pieces
        crosses: list[Any] = []
        for cross in plan.crosses:
            if isinstance(cross, FarLaunch):
                ranks = {"ranks": place[cross.ranks], "globals_": place[cross.globals_]}
                crosses.append(dataclasses.replace(cross, **ranks))
            elif not isinstance(cross, GlobalQueries):
                crosses.append(dataclasses.replace(cross, ranks=place[cross.ranks]))
            elif self.shared is None or not self.shard.divides(cross.keys):
                crosses.append(dataclasses.replace(cross, keys=self.find(cross.keys)))
        return Plan([dataclasses.replace(piece, keys=self.find(piece.keys)) for piece in pieces], crosses)


@dataclass
class SharedQueries:
    """Global queries whose texts several processes share.

    Args:
        here: `[own]`, where among the own queries those of this process are.
        slots: `[own]`, their numbers among all.
        queries: all of them, beside the own keys.
    """

    shard: Shard
    here: torch.Tensor
    slots: torch.Tensor
    queries: GlobalQueries

    def merge(
        self, output: torch.Tensor, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], scaling: float
    ) -> torch.Tensor:
        """The output with those of these queries put in.

        Args:
            inputs: query, key and value of the own tokens.
        """
        query, key, value = inputs
        found = _SharedAttention.apply(query[:, :, self.here], key, value, self, scaling)
        return output.index_copy(2, self.here, found)

    def everywhere(self, own: torch.Tensor) -> torch.Tensor:
        """`[num_heads, own, head_dim]` of each process to that of all these queries."""
        whole = own.new_zeros(len(own), len(self.queries.here), own.shape[2])
        whole[:, self.slots] = own
        dist.all_reduce(whole, group=self.shard.group)
        return whole


def make_halo(layout: TextLayout, in_full: bool) -> Halo:
    """What a layer's queries see.

    Args:
        in_full: whether the layer reads all texts in full, too.
    """
    shard, device = layout.shard, layout.bounds.device
    assert shard is not None
    seen = [_seen(layout, *bounds, in_full) for bounds in itertools.pairwise(shard.bounds)]
    own = slice(shard.start, shard.stop)
    others = [part for part in range(len(seen)) if part != shard.rank]
    sent = [torch.zeros(0, dtype=torch.long) for _ in seen]
    receive = [0 for _ in seen]
    for part in others:
        sent[part] = seen[part][own].nonzero()[:, 0]
        receive[part] = int(seen[shard.rank][shard.bounds[part] : shard.bounds[part + 1]].sum())
    here = seen[shard.rank]
    here[own] = True
    shared = None if in_full else _shared_queries(layout, shard)
    return Halo(shard, here.cumsum(0) - 1, torch.cat(sent).to(device), [*map(len, sent)], receive, shared)


def _seen(layout: TextLayout, first: int, last: int, in_full: bool) -> torch.Tensor:
    """`[tokens]` bool, the keys that the queries of a slice of the row see; too many where a text has gaps."""
    seen = torch.zeros(sum(layout.lengths), dtype=torch.bool)
    for stretch in layout.stretches_of(first, last):
        keys = stretch.keys
        if stretch.windowed and not in_full:
            start = keys.start + stretch.offset
            stop = start + stretch.queries.stop - stretch.queries.start
            keys = slice(max(keys.start, start - layout.radius), min(keys.stop, stop + layout.radius))
        seen[keys] = True
    if not in_full:
        seen[torch.tensor(layout.global_ranks, dtype=torch.long)] = True
    return seen


def _shared_queries(layout: TextLayout, shard: Shard) -> SharedQueries | None:
    ranks: list[int] = []
    for stretch in layout.stretches_of(0, sum(layout.lengths)):
        if stretch.windowed and shard.divides(stretch.keys):
            bounds = (bisect_left(layout.global_ranks, bound) for bound in (stretch.keys.start, stretch.keys.stop))
            ranks += layout.global_ranks[slice(*bounds)]
    if not ranks:
        return None
    slots = [slot for slot, rank in enumerate(ranks) if shard.start <= rank < shard.stop]
    device, texts = layout.bounds.device, layout.on_device[1]
    where, here = torch.tensor(ranks, device=device), torch.tensor(slots, dtype=torch.long, device=device)
    others = texts[where, None] != texts[shard.start : shard.stop]
    queries = GlobalQueries(slice(0, shard.stop - shard.start), torch.arange(len(ranks), device=device), others)
    return SharedQueries(shard, where[here] - shard.start, here, queries)


class _Exchange(torch.autograd.Function):
    """The own tokens, `[own, ...]`, between those that other processes send."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, halo: Halo) -> torch.Tensor:
        ctx.halo = halo
        received = tensor.new_empty(sum(halo.receive), *tensor.shape[1:])
        sent = tensor[halo.sent].contiguous()
        dist.all_to_all_single(received, sent, halo.receive, halo.send, group=halo.shard.group)
        before = sum(halo.receive[: halo.shard.rank])
        return torch.cat((received[:before], tensor, received[before:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        halo, gradient = ctx.halo, gradients[0]
        before = sum(halo.receive[: halo.shard.rank])
        own = slice(before, before + halo.shard.stop - halo.shard.start)
        of_others = torch.cat((gradient[: own.start], gradient[own.stop :]))
        back = gradient.new_empty(len(halo.sent), *gradient.shape[1:])
        dist.all_to_all_single(back, of_others, halo.send, halo.receive, group=halo.shard.group)
        # several processes may see one token: their gradients are summed before they are rounded
        total = gradient[own].to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        return total.index_add_(0, halo.sent, back.to(total.dtype)).to(gradient.dtype), None


class _SharedAttention(torch.autograd.Function):
    """Global queries of a process, `[1, num_heads, own, head_dim]`, and all keys of their texts, wherever they are."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        shared: SharedQueries,
        scaling: float,
    ) -> torch.Tensor:
        group = shared.shard.group
        with in_its_own_dtype(query.device.type):
            inputs = shared.everywhere(query[0]), key[0], value[0]
            output = torch.empty_like(inputs[0], dtype=torch.promote_types(query.dtype, torch.float32))
            output, lse = shared.queries.merge(inputs, output, output.new_empty(output.shape[:2]), scaling)
            highest = lse.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
            share = (lse - highest).exp()[..., None]
            # a process that has no key of a text has no output for its queries
            sums = torch.cat((torch.where(share > 0, share * output, 0), share), dim=-1)
            dist.all_reduce(sums, group=group)
            output, total = sums[..., :-1] / sums[..., -1:], sums[..., -1]
        ctx.save_for_backward(*inputs, output, highest + total.log())
        ctx.shared, ctx.scaling = shared, scaling
        return output[None, :, shared.slots].to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, shared = ctx.saved_tensors, ctx.shared
        with in_its_own_dtype(gradients[0].device.type):
            found = [torch.zeros_like(tensor) for tensor in inputs[:3]]
            found[0] = found[0].to(inputs[3].dtype)
            gradient = shared.everywhere(gradients[0][0])
            shared.queries.backward(inputs, gradient, inputs[4], tuple(found), ctx.scaling)
            dist.all_reduce(found[0], group=shared.shard.group)
        of_query = found[0][:, shared.slots].to(inputs[0].dtype)
        return *(each[None] for each in (of_query, *found[1:])), None, None
