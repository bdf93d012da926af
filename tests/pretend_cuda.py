"""A card that is not there: tensors that say they are on CUDA, compute on the CPU, and count what one would wait for.

What a forward pass costs beside its arithmetic can be counted anywhere: `Card` sees every operation of torch, and
knows which ones make the host wait (a value read, `nonzero`, a mask as an index, a copy back), which copy to the card
and block, and which mix tensors of the two. CUDA's attention operations, which no CPU has, are written out here in
plain arithmetic from their documentation: text by text, with the window's two sides and a log-sum-exp that is inf
where no key is seen. So plans made for the flash and the memory-efficient kernel run too, and are held against masks.
"""

import collections
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


DEVICE = torch.device("meta")  # torch without CUDA makes no tensor on "cuda"; this one needs no library
READS = {"_local_scalar_dense", "nonzero", "unique_consecutive", "_unique2", "unique_dim", "masked_select", "bincount"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
COPIES = {"_to_copy", "copy_"}


class OnCard(torch.Tensor):
    """A tensor of the card; `numbers` holds what is in it."""

    numbers: torch.Tensor
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnCard":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.numbers = inner
        return made

    def tolist(self) -> list:
        Card.current.count("waits", "tolist")
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return Card.current.run(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """While it is entered, there is a card. Counts by kind (`waits`, `copies`, `mixed`, `launches`) and operation."""

    current: "Card"

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)

    def __enter__(self) -> "Card":
        Card.current = self
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.run(func, args, kwargs or {})

    def count(self, kind: str, what: str) -> None:
        self.counts[kind][what] += 1

    def total(self, kind: str) -> int:
        return self.counts[kind].total()

    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        name = func.__name__.split(".")[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if not isinstance(tensor, OnCard) and tensor.dim()]
        there = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        result_is_there = device == DEVICE if device is not None else bool(there)
        self._count(name, args, kwargs, bool(here), bool(there), device)
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(OnCard, lambda tensor: tensor.numbers, (args, kwargs))
        result = OPERATIONS.get(str(func), func)(*args, **kwargs)
        return tree_map_only(torch.Tensor, OnCard, result) if result_is_there else result

    def _count(self, name: str, args: tuple, kwargs: dict, here: bool, there: bool, device: Any) -> None:
        if there and name in READS:
            self.count("waits", name)
        if there and name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.count("waits", name)
        if there and name in INDEXES and any(each is not None and each.dtype == torch.bool for each in args[1]):
            self.count("waits", "a mask as an index")
        if there and device is not None and device.type == "cpu":
            self.count("waits", "a copy to the host")
        if here and ((device == DEVICE and not there) or (there and name in (*COPIES, *INDEXES))):
            self.count("copies", name)
        elif here and there:
            self.count("mixed", name)
        if there:
            self.count("launches", name)


def on_card(what: Any) -> Any:
    """Tensors, or a model in place, as they are on the card."""
    if not isinstance(what, nn.Module):
        return tree_map_only(torch.Tensor, OnCard, what)
    for module in what.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnCard(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnCard(buffer)
    return what


# ---- CUDA's attention in plain arithmetic


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[tokens, heads, head_dim]` and `[heads, queries, keys]` to the output and `[heads, queries]`."""
    scores = torch.einsum("qhd,khd->hqk", query.double(), key.double()) * scale + bias
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse.isinf(), 0)[..., None]).exp()
    return torch.einsum("hqk,khd->qhd", weights, value.double()), lse.masked_fill(lse == -math.inf, math.inf)


def _gradients(
    gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, ...]:
    """Of query, key and value, given an output and a log-sum-exp that may be of more keys than these."""
    gradient, query, key, value, output = (tensor.double() for tensor in (gradient, *inputs[:4]))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale + bias
    weights = (scores - inputs[4].double()[..., None]).exp()
    expected = torch.einsum("qhd,qhd->hq", gradient, output)[..., None]
    of_scores = weights * (torch.einsum("qhd,khd->hqk", gradient, value) - expected) * scale
    return (
        torch.einsum("hqk,khd->qhd", of_scores, key),
        torch.einsum("hqk,qhd->khd", of_scores, query),
        torch.einsum("hqk,qhd->khd", weights, gradient),
    )


def _window_bias(queries: int, keys: int, before: int, after: int) -> torch.Tensor:
    """Which keys a query sees, the last query being where the last key is; -1 is no bound."""
    ahead = torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)
    hidden = ((before >= 0) & (ahead < -before)) | ((after >= 0) & (ahead > after))
    return torch.zeros(queries, keys, dtype=torch.float64).masked_fill(hidden, -math.inf)


def _texts(query_bounds: torch.Tensor, key_bounds: torch.Tensor, most: tuple[int, int]) -> list[tuple[slice, slice]]:
    assert query_bounds.dtype == key_bounds.dtype == torch.int32
    found = []
    for queries, keys in zip(*(itertools.pairwise(each.tolist()) for each in (query_bounds, key_bounds)), strict=True):
        assert queries[1] - queries[0] <= most[0]
        assert keys[1] - keys[0] <= most[1]
        found.append((slice(*queries), slice(*keys)))
    return found


def _flash_forward(
    query, key, value, query_bounds, key_bounds, most_queries, most_keys, dropout, causal, debug,
    *, scale, window_size_left, window_size_right,
):  # fmt: skip
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert query.shape[-1] % 8 == 0
    assert dropout == 0
    assert not causal
    output, lse = torch.full_like(query, math.nan), torch.full((query.shape[1], query.shape[0]), math.nan)
    for queries, keys in _texts(query_bounds, key_bounds, (most_queries, most_keys)):
        shape = (queries.stop - queries.start, keys.stop - keys.start)
        bias = _window_bias(*shape, window_size_left, window_size_right)
        found = _attend(query[queries], key[keys], value[keys], bias, scale)
        output[queries], lse[:, queries] = found[0].to(query.dtype), found[1].float()
    unused = torch.zeros(2, dtype=torch.uint64)
    return output, lse, unused, unused, unused


def _flash_backward(
    gradient, query, key, value, output, lse, query_bounds, key_bounds, most_queries, most_keys, dropout, causal,
    state, unused, *, scale, window_size_left, window_size_right,
):  # fmt: skip
    assert lse.is_contiguous()
    found = [torch.full_like(tensor, math.nan) for tensor in (query, key, value)]
    for queries, keys in _texts(query_bounds, key_bounds, (most_queries, most_keys)):
        shape = (queries.stop - queries.start, keys.stop - keys.start)
        bias = _window_bias(*shape, window_size_left, window_size_right)
        inputs = (query[queries], key[keys], value[keys], output[queries], lse[:, queries])
        for total, where, each in zip(
            found, (queries, keys, keys), _gradients(gradient[queries], inputs, bias, scale), strict=True
        ):
            total[where] = each.to(total.dtype)
    return tuple(found)


def _efficient_bias(bias: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
    if bias is None:
        return torch.zeros(())
    assert bias.dtype == query.dtype
    assert bias.stride(-2) * bias.element_size() % 16 == 0
    return bias[0].double()


def _efficient_forward(
    query, key, value, bias, query_bounds, key_bounds, most_queries, most_keys, dropout, mask_type,
    compute_log_sumexp, *, scale,
):  # fmt: skip
    assert query.dtype in (torch.float32, torch.float16, torch.bfloat16)
    output, lse = _attend(query[0], key[0], value[0], _efficient_bias(bias, query), scale)
    padded = torch.full((1, len(lse), -(-lse.shape[1] // 32) * 32), math.inf)
    padded[0, :, : lse.shape[1]] = lse
    return output[None].to(query.dtype), padded, torch.zeros(()), torch.zeros(()), query.shape[1], key.shape[1]


def _efficient_backward(
    gradient, query, key, value, bias, output, query_bounds, key_bounds, most_queries, most_keys, lse, dropout, seed,
    offset, mask_type, bias_requires_grad, *, scale,
):  # fmt: skip
    assert lse.shape[-1] % 32 == 0
    inputs = (query[0], key[0], value[0], output[0], lse[0, :, : query.shape[1]])
    found = _gradients(gradient[0], inputs, _efficient_bias(bias, query), scale)
    return *(each[None].to(query.dtype) for each in found), torch.zeros(())


def _product_in_fp32(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.bmm(one.float(), other.float()).to(dtype)


OPERATIONS: dict[str, Callable] = {
    "aten._flash_attention_forward.default": _flash_forward,
    "aten._flash_attention_backward.default": _flash_backward,
    "aten._efficient_attention_forward.default": _efficient_forward,
    "aten._efficient_attention_backward.default": _efficient_backward,
    "aten.bmm.dtype": _product_in_fp32,
}
