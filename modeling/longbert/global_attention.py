"""What a window's band leaves out: tokens and far global keys, and global queries. Travels to the Hub.

Few keys, or few queries. Query, key, value, output and gradient are `[num_heads, tokens, head_dim]` here, and a
log-sum-exp `[num_heads, tokens]`.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .kernels import HALVES, Launch, precise, slices


SCORES_AT_ONCE = 2**21  # of a head, in a product
ROWS_AT_ONCE = 2048  # tokens that are converted to fp32 at a time where no product of halves gives fp32


@dataclass
class FarKeys:
    """Tokens of neighbouring texts and those of these texts' global keys that are far from them, by products.

    Args:
        ranks: `[globals]`, where the global keys are.
        hidden: `[queries, globals]` bool, True where the band has the pair, or the text is another.
    """

    queries: slice
    ranks: torch.Tensor
    hidden: torch.Tensor

    def merge(
        self, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, lse: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and log-sum-exp of the band and these, in place."""
        query, key, value = inputs
        key, value = key[:, self.ranks], value[:, self.ranks]
        for rows, hidden in self._rows(query):
            scores = _scores(query[:, rows], key, scaling).masked_fill_(hidden, -math.inf)
            merged = torch.logaddexp(lse[:, rows], scores.logsumexp(-1))
            probabilities = scores.sub_(merged[..., None]).exp_()
            share = (lse[:, rows] - merged).exp_()[..., None]
            output[:, rows] = _weighted(probabilities, value).add_(share * output[:, rows])
            lse[:, rows] = merged
        return output, lse

    def backward(
        self,
        inputs: tuple[torch.Tensor, ...],
        gradient: torch.Tensor,
        local: torch.Tensor,
        gradients: tuple[torch.Tensor, ...],
        scaling: float,
    ) -> None:
        """Add to the gradients of query, key and value.

        Args:
            inputs: query, key, value, output and log-sum-exp.
            local: the log-sum-exp, but inf for global queries, which makes their probabilities 0.
        """
        query, key, value, output, lse = inputs
        key, value = key[:, self.ranks], value[:, self.ranks]
        sums = [torch.zeros_like(tensor, dtype=lse.dtype) for tensor in (key, value)]
        for rows, hidden in self._rows(query):
            scores = _scores(query[:, rows], key, scaling).masked_fill_(hidden, -math.inf)
            arguments = scores, value, gradient[:, rows], output[:, rows], local[:, rows], scaling
            probabilities, of_scores = _softmax_backward(*arguments)
            gradients[0][:, rows] += _weighted(of_scores, key)
            sums[0] += _weighted(of_scores.mT, query[:, rows])
            sums[1] += _weighted(probabilities.mT, gradient[:, rows])
        for total, addend in zip(gradients[1:], sums, strict=True):
            total[:, self.ranks] = (total[:, self.ranks] + addend).to(total.dtype)

    def _rows(self, like: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Slices of the queries, and which far keys are hidden from them."""
        size = min(_at_once(like), SCORES_AT_ONCE // len(self.ranks) + 1)
        for rows in slices(len(self.hidden), size):
            start = self.queries.start
            yield slice(start + rows.start, start + rows.stop), self.hidden[rows]


@dataclass
class FarLaunch:
    """Tokens and far global keys, by one launch of the flash kernel for all texts.

    Which global keys are far changes along a text only where one comes near or goes: between these places all queries
    have the same ones, as if they were a text of their own.

    Args:
        launch: of these stretches of queries.
        ranks: `[far keys]`, where in the row the keys of each stretch are.
        slots: `[far keys]`, the number of each among the row's global tokens.
        globals_: `[globals]`, where in the row these are.
    """

    launch: Launch
    ranks: torch.Tensor
    slots: torch.Tensor
    globals_: torch.Tensor

    def merge(
        self, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, lse: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and log-sum-exp of the band and these; in place where others' queries are there too."""
        rows, all_rows = self.launch.queries, output.shape[1]
        parts = inputs[0][:, rows], inputs[1][:, self.ranks], inputs[2][:, self.ranks]
        far_output, far_lse = (
            found[0] for found in self.launch.forward(tuple(part[None] for part in parts), scaling, {})
        )
        far_lse = far_lse.masked_fill(far_lse == math.inf, -math.inf)  # which the kernel says where there is no key
        merged = torch.logaddexp(lse[:, rows], far_lse)
        # two shares, not one and what it leaves: either may be so near to 1 that a half has no room for the other
        near, far = ((each - merged).exp_()[..., None].to(output.dtype) for each in (lse[:, rows], far_lse))
        whole = (far_output * far).addcmul_(output[:, rows], near)
        if rows.stop - rows.start == all_rows:
            return whole, merged
        output[:, rows], lse[:, rows] = whole, merged
        return output, lse

    def backward(
        self,
        inputs: tuple[torch.Tensor, ...],
        gradient: torch.Tensor,
        local: torch.Tensor,
        gradients: tuple[torch.Tensor, ...],
        scaling: float,
    ) -> None:
        """As `FarKeys.backward`."""
        query, key, value, output, _ = inputs
        rows = self.launch.queries
        parts = query[:, rows], key[:, self.ranks], value[:, self.ranks], output[:, rows], local[:, rows]
        found = self.launch.backward(gradient[None, :, rows], tuple(part[None] for part in parts), scaling, {})
        gradients[0][:, rows] += found[0][0]
        for total, each in zip(gradients[1:], found[1:], strict=True):
            sums = total[:, self.globals_].float().index_add_(1, self.slots, each[0].float())
            total[:, self.globals_] = sums.to(total.dtype)


@dataclass
class GlobalQueries:
    """The global queries of neighbouring texts, which see all of their texts.

    Args:
        here: `[global queries]`, where among the queries they are.
        others: `[global queries, keys]` bool, True where the text is another; None where there is but one.
    """

    keys: slice
    here: torch.Tensor
    others: torch.Tensor | None

    def merge(
        self, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, lse: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and log-sum-exp with those of global queries put in, in place."""
        query, key, value = inputs[0], inputs[1][:, self.keys], inputs[2][:, self.keys]
        for here, others in self._parts():
            scores = self._scores(query[:, here], key, others, scaling)
            lse[:, here] = total = scores.logsumexp(-1)
            output[:, here] = _weighted(scores.sub_(total[..., None]).exp_(), value).to(output.dtype)
        return output, lse

    def backward(
        self,
        inputs: tuple[torch.Tensor, ...],
        gradient: torch.Tensor,
        local: torch.Tensor,
        gradients: tuple[torch.Tensor, ...],
        scaling: float,
    ) -> None:
        """As `FarKeys.backward`."""
        query, key, value, output, lse = inputs
        key, value, of_key, of_value = (tensor[:, self.keys] for tensor in (key, value, *gradients[1:]))
        for here, others in self._parts():
            scores = self._scores(query[:, here], key, others, scaling)
            arguments = scores, value, gradient[:, here], output[:, here], lse[:, here], scaling
            probabilities, of_scores = _softmax_backward(*arguments)
            gradients[0][:, here] = _weighted(of_scores, key).to(gradients[0].dtype)
            _add_product(of_key, of_scores, query[:, here])
            _add_product(of_value, probabilities, gradient[:, here])

    def _parts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Parts of the global queries, and which keys are hidden from them."""
        size = SCORES_AT_ONCE // (self.keys.stop - self.keys.start) + 1
        for rows in slices(len(self.here), size):
            yield self.here[rows], None if self.others is None else self.others[rows]

    @staticmethod
    def _scores(query: torch.Tensor, key: torch.Tensor, others: torch.Tensor | None, scaling: float) -> torch.Tensor:
        scores = _scores(query, key, scaling)
        return scores if others is None else scores.masked_fill_(others, -math.inf)


def _at_once(like: torch.Tensor) -> int:
    """Rows that take part in a product at once: on CUDA products of halves give fp32, elsewhere they are converted."""
    return ROWS_AT_ONCE if like.dtype in HALVES and not like.is_cuda else 2**62


def _parts(many: torch.Tensor) -> Iterator[slice]:
    """Slices of `[num_heads, n, head_dim]` to multiply one by one."""
    length = many.shape[1]
    aligned = length - length % 8
    if many.is_cuda and 64 < aligned < length:  # CUDA multiplies other widths several times as slowly
        return iter((slice(0, aligned), slice(aligned, length)))
    return slices(length, _at_once(many))


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`[num_heads, m, k]` by `[num_heads, k, n]`, in fp32 or better."""
    if one.is_cuda and one.dtype in HALVES:
        return torch.bmm(one, other, out_dtype=torch.float32)
    return torch.bmm(precise(one), precise(other))


def _scores(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """`[num_heads, queries, keys]`, in fp32 or better."""
    found = [_product(query, key[:, rows].mT) for rows in _parts(key)]
    return (found[0] if len(found) == 1 else torch.cat(found, dim=-1)).mul_(scaling)


def _weighted(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`[num_heads, m, n]` in fp32 or better by `[num_heads, n, head_dim]` of any dtype, in fp32 or better."""
    found = [_product(_rounded(weights[:, :, part], rows), rows[:, part]) for part in _parts(rows)]
    return functools.reduce(torch.Tensor.add_, found)


def _add_product(total: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor) -> None:
    """Add `[num_heads, m, n]` in fp32 or better, turned, by `[num_heads, m, head_dim]` to `[num_heads, n, head_dim]`,
    rounding once."""
    for part in _parts(total):
        one = _rounded(weights[:, :, part], rows).mT
        if total.is_cuda:
            total[:, part].baddbmm_(one, rows)
        else:
            total[:, part] += _product(one, rows)


def _rounded(weights: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """On CUDA as its kernels round their weights too; elsewhere nothing is gained by it."""
    return weights.to(like.dtype) if like.is_cuda else weights


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
    expected = (precise(gradient) * output).sum(-1, keepdim=True)
    return probabilities, (_scores(gradient, value, 1.0) - expected).mul_(probabilities).mul_(scaling)
