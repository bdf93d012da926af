"""Layers that begin closed: full attention whose heads learn what keys outside the window count. Travels to the Hub.

A full layer over rows that repeat does harm at first, and a run then spends its steps on mending it (docs/study.md). A
closed layer adds log sigmoid(g) to the scores of keys outside the window, g a weight of each head, `far_gate`: at
g = -4 a far key counts 0.018 of a near one, and training opens the heads that gain by it. In texts that are not read
through a window nothing is added.

With e = sigmoid(g), what a token sees is (1 - e) of the window and e of everything, so both are computed by the plans
there are, in linear memory, and merged by their log-sum-exp.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .kernels import precise
from .text_attention import Plan, in_its_own_dtype


class ClosedAttention(torch.autograd.Function):
    """Attention of queries `[1, num_heads, queries, head_dim]`, by a window's plan and a full one, and `[num_heads]`.

    A second derivative is refused.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        far_gate: torch.Tensor,
        plans: tuple[Plan, Plan],
        scaling: float,
    ) -> torch.Tensor:
        with in_its_own_dtype(query.device.type):
            gate = precise(far_gate)[None, :, None]
            found = [plan.forward(query, key, value, scaling) for plan in plans]
            shares = [lse + bias for (_, lse), bias in zip(found, _biases(gate), strict=True)]
            lse = torch.logaddexp(*shares)
            weighted = [(share - lse).exp()[..., None] * part for share, (part, _) in zip(shares, found, strict=True)]
            output = (weighted[0] + weighted[1]).to(query.dtype)
        (near, near_lse), (full, full_lse) = found
        ctx.save_for_backward(query, key, value, output, lse, near, near_lse, full, full_lse, gate)
        ctx.plans, ctx.scaling, ctx.dtype = plans, scaling, far_gate.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, output, lse, near, near_lse, full, full_lse, gate = ctx.saved_tensors
        gradient = gradients[0]
        with in_its_own_dtype(gradient.device.type):
            bias = F.logsigmoid(gate)
            of_near = ctx.plans[0].backward(gradient, (*inputs, output, lse), ctx.scaling)
            of_full = ctx.plans[1].backward(gradient, (*inputs, output, lse - bias), ctx.scaling)
            near_share = torch.sigmoid(-gate)[..., None]
            found = [(near_share * a + b).to(a.dtype) for a, b in zip(of_near, of_full, strict=True)]
            # d loss / d bias is the sum, over the keys outside the window, of their scores' gradients: those of all
            # keys, less those of the window's as the bias would weigh them
            at_output, at_near, at_full = ((precise(gradient) * part).sum(-1) for part in (output, near, full))
            of_bias = (full_lse + bias - lse).exp() * (at_full - at_output)
            of_bias = of_bias - (near_lse + bias - lse).exp() * (at_near - at_output)
            of_gate = (of_bias * torch.sigmoid(-gate)).sum((0, 2))
        return *found, of_gate.to(ctx.dtype), None, None


def _biases(gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithms of the window's share and of the full attention's."""
    return F.logsigmoid(-gate), F.logsigmoid(gate)


def closed_mask(full: torch.Tensor, window: torch.Tensor, far_gate: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same rule as an explicit mask of numbers, `[batch_size, num_heads, seq_length, seq_length]`.

    Args:
        full, window: who sees whom without and with the window, `[batch_size, 1, seq_length, seq_length]`, bool or
            numbers to add to the scores.
    """
    near = window if window.dtype == torch.bool else window == 0
    if full.dtype == torch.bool:
        full = torch.zeros_like(full, dtype=dtype).masked_fill(~full, torch.finfo(dtype).min)
    bias = F.logsigmoid(precise(far_gate))[:, None, None].to(dtype)
    return torch.where(near, full, full + bias)
