"""Where the texts of a batch lie in the one row that attention runs over. Travels to the Hub beside the model.

`Flattening` puts the real tokens of a batch into one row, `[1, tokens]`, and back. Its `layout` is made once for all
layers of a forward pass, on the host: what the texts are comes there in one copy (`Texts.on_host`), and what kernels
need of it goes to the device in one copy.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .texts import FIRST, Texts, refuse_marks


@dataclass
class Window:
    """Which tokens a text longer than `longer_than` may see: `radius` to either side, and the global ones."""

    radius: int
    longer_than: int


class Shard:
    """The slice of a flattened batch that this process computes under sequence parallelism.

    Every process holds the whole batch. Attention is sent the keys and values of others that it sees (`halo.py`);
    nothing else needs tokens of another process. What the last layer gives is gathered. Gradients of what is sent or
    gathered are summed over the processes, so a loss that each process computes from the gathered hidden states trains
    correctly under DDP, which averages over processes.
    """

    def __init__(self, tokens: int, rank: int, size: int, group: dist.ProcessGroup | None = None):
        self.group, self.rank = group, rank
        self.bounds = [tokens * part // size for part in range(size + 1)]
        self.start, self.stop = self.bounds[rank], self.bounds[rank + 1]

    def take(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """This process's part of `[1, tokens, ...]`."""
        return None if tensor is None else tensor[:, self.start : self.stop]

    def divides(self, rows: slice) -> bool:
        """Whether several processes have a part of these tokens."""
        return any(rows.start < bound < rows.stop for bound in self.bounds)

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
        windowed: whether the text is long enough to be read through the window.
        has_gaps: whether tokens in its middle are left out, so that places are not ranks.
    """

    text: int
    queries: slice
    keys: slice
    offset: int
    windowed: bool
    has_gaps: bool

    @property
    def is_part(self) -> bool:
        """Whether some of the text's queries are computed elsewhere."""
        return self.queries.stop - self.queries.start < self.keys.stop - self.keys.start


@dataclass
class TextLayout:
    """Where the texts of a flattened batch `[1, tokens]` lie.

    Args:
        lengths: tokens of each text, in order; they sum to `tokens`.
        spans: the place of each text's last token plus 1, which is the text's length if no token in it is left out.
        bounds: `[texts + 1]`, where in the row each text begins, on the device.
        places: `[tokens]`, the place of every token in its text, on the host.
        window: what texts longer than the source may see; None for full attention, which needs not the next two.
        global_ranks: where in the row the global tokens are, in order.
        on_device: `[tokens]`, the place of every token; `[tokens]`, the number of its text; `[globals]`, where in the
            row the global tokens are.
        shard: what of the batch this process computes; None for all.
        plans: how attention is computed, made by the first layer of each kind (`kernels.py`).
        halos: what is exchanged for it between processes, the same (`halo.py`).
    """

    lengths: list[int]
    spans: list[int]
    bounds: torch.Tensor
    places: torch.Tensor
    window: Window | None = None
    global_ranks: list[int] = field(default_factory=list)
    on_device: tuple[torch.Tensor, ...] = ()
    shard: Shard | None = None
    plans: dict[Any, Any] = field(default_factory=dict)
    halos: dict[bool, Any] = field(default_factory=dict)

    @functools.cached_property
    def stretches(self) -> list[Stretch]:
        """The texts, or the parts of them, that are computed here."""
        whole = (0, sum(self.lengths))
        return list(self.stretches_of(*whole if self.shard is None else (self.shard.start, self.shard.stop)))

    def stretches_of(self, first: int, last: int) -> Iterator[Stretch]:
        """The texts, or the parts of them, in a slice of the row."""
        bounds = [0, *itertools.accumulate(self.lengths)]
        for text, (start, stop) in enumerate(itertools.pairwise(bounds)):
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                windowed = self.window is not None and self.spans[text] > self.window.longer_than
                yield Stretch(
                    text,
                    slice(begin - first, end - first),
                    slice(start, stop),
                    offset=begin - start,
                    windowed=windowed,
                    has_gaps=self.spans[text] > stop - start,
                )

    @property
    def radius(self) -> int:
        """How far a token sees through the window; 0 without one, when no text is read through it."""
        return 0 if self.window is None else self.window.radius

    @property
    def first(self) -> int:
        """Where in the row the tokens that are computed here begin."""
        return 0 if self.shard is None else self.shard.start


class Flattening:
    """Puts the real tokens of a batch into one row, and back.

    Args:
        texts: as from `read_texts`.
        window: of the layers that have one.
        global_tokens: how many of the first tokens of each text are global under the window.
        global_attention_mask: `[batch_size, seq_length]`, not 0 at further ones.
        group: a process group that shares the row's tokens.
    """

    def __init__(
        self,
        texts: Texts,
        window: Window | None = None,
        global_tokens: int = 0,
        global_attention_mask: torch.Tensor | None = None,
        group: Any = None,
    ):
        self.shape, device = texts.real.shape, texts.real.device
        known = texts.on_host.flatten()
        index = known.nonzero()[:, 0]
        firsts = (known[index] == FIRST).nonzero()[:, 0]
        bounds = F.pad(firsts, (0, 1), value=len(index))
        text = torch.repeat_interleave(bounds.diff())
        places = index - index[firsts][text]
        spans = places[bounds[1:] - 1] + 1
        refuse_marks(global_attention_mask, texts)
        for_device = [index, bounds]
        if window is not None:
            marked = torch.arange(len(index)) - firsts[text] < global_tokens
            if global_attention_mask is not None:
                marked |= global_attention_mask.bool().cpu().flatten()[index]
            for_device += [places, text, marked.nonzero()[:, 0]]
        # one copy, for each blocks the host
        there = torch.cat(for_device).to(device).split([len(numbers) for numbers in for_device])
        self.index = there[0]
        # fewer tokens than processes: each computes all, for BERT's layers cannot take none
        shared = group is not None and len(index) >= dist.get_world_size(group)
        shard = Shard(len(index), dist.get_rank(group), dist.get_world_size(group), group) if shared else None
        self.layout = TextLayout(bounds.diff().tolist(), spans.tolist(), there[1], places, window, shard=shard)
        if window is not None:
            self.layout.global_ranks, self.layout.on_device = for_device[-1].tolist(), there[2:]

    def flatten(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """`[batch_size or 1, seq_length, ...]` to `[1, tokens, ...]`."""
        if tensor is None:
            return None
        return tensor.expand(*self.shape, *tensor.shape[2:]).flatten(0, 1)[self.index][None]

    def pad(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[1, tokens, hidden_size]` to `[batch_size, seq_length, hidden_size]`, zero at padding."""
        padded = tensor.new_zeros(self.shape.numel(), tensor.shape[-1])
        return padded.index_copy(0, self.index, tensor[0]).unflatten(0, self.shape)
