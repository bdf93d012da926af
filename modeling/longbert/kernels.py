"""Torch's attention kernels that also return their log-sum-exp, behind one form. Travels to the Hub.

    kernel      where                                          computes at once
    flash       CUDA from Ampere on, half precision            neighbouring texts (`Launch`)
    efficient   other CUDA cards, fp32, texts with gaps        some queries and the keys near them (`Chunk`)
    cpu         CPU                                            the same
    plain       whatever else there is, in plain operations    the same

Given the output and log-sum-exp of more keys than its own, a kernel's backward pass gives its own keys' share of the
gradients, exactly: that is how parts are merged (the identity behind ring attention).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F


aten = torch.ops.aten

FLASH, EFFICIENT, CPU, PLAIN = "flash", "efficient", "cpu", "plain"
QUERIES_PER_CHUNK = {EFFICIENT: 512, CPU: 128, PLAIN: 128}
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


def kernel_of(query: torch.Tensor) -> str:
    """The kernel for a query of a card or processor that is here."""
    is_nvidia = query.is_cuda and torch.version.hip is None
    capability = torch.cuda.get_device_capability(query.device) if is_nvidia else None
    return kernel_for(query.device.type, query.dtype, capability, query.shape[-1])


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """In fp32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def slices(length: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows, the last one of what is left."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


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
    mask = None if mask is None else mask.expand(-1, gradient.shape[1], -1, -1)
    gradient, query, key, value, output = (tensor.transpose(1, 2) for tensor in (gradient, *inputs[:4]))
    lse = inputs[4]
    lse = F.pad(lse, (0, -lse.shape[2] % 32), value=math.inf)  # rows in multiples of 32, as its forward pass makes
    seed = torch.zeros((), dtype=torch.long, device=query.device)
    gradients = aten._efficient_attention_backward(
        gradient, query, key, value, mask, output, None, None, query.shape[1], key.shape[1], lse, 0.0, seed, seed,
        0, False, scale=scaling,
    )  # fmt: skip
    return tuple(tensor.transpose(1, 2) for tensor in gradients[:3])


def _plain_scores(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    scores = precise(query) @ precise(key).mT * scaling
    return scores if mask is None else scores + mask


def _plain_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = _plain_scores(query, key, mask, scaling)
    lse = scores.logsumexp(-1)
    return ((scores - lse[..., None]).exp() @ precise(value)).to(query.dtype), lse


def _plain_backward(
    gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, ...]:
    gradient, query, key, value, output, lse = map(precise, (gradient, *inputs))
    probabilities = (_plain_scores(query, key, mask, scaling) - lse[..., None]).exp()
    expected = (gradient * output).sum(-1, keepdim=True)
    of_scores = probabilities * (gradient @ value.mT - expected) * scaling
    return of_scores @ key, of_scores.mT @ query, probabilities.mT @ gradient


CHUNK_KERNELS: dict[str, tuple[Callable, Callable]] = {
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
        self, inputs: tuple[torch.Tensor, ...], scaling: float, masks: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return CHUNK_KERNELS[self.kernel][0](*inputs, self.mask(inputs[0], masks), scaling)

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
        self, inputs: tuple[torch.Tensor, ...], scaling: float, masks: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        before, after = self.window
        output, lse, *_ = aten._flash_attention_forward(
            *map(_tokens_first, inputs), *self.bounds, *self.most, 0.0, False, False,
            scale=scaling, window_size_left=before, window_size_right=after,
        )  # fmt: skip
        return output.transpose(0, 1)[None], lse[None]

    def backward(
        self, gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], scaling: float, masks: dict
    ) -> tuple[torch.Tensor, ...]:
        before, after = self.window
        unused = torch.zeros(2, dtype=torch.uint64, device=gradient.device)  # the state of dropout
        gradients = aten._flash_attention_backward(
            *map(_tokens_first, (gradient, *inputs[:4])), inputs[4][0].contiguous(), *self.bounds, *self.most, 0.0,
            False, unused, unused, scale=scaling, window_size_left=before, window_size_right=after,
        )  # fmt: skip
        return tuple(tensor.transpose(0, 1)[None] for tensor in gradients)


def _tokens_first(tensor: torch.Tensor) -> torch.Tensor:
    """`[1, num_heads, tokens, head_dim]` to `[tokens, num_heads, head_dim]`."""
    return tensor[0].transpose(0, 1)
