"""95 % intervals of figures that are computed from sums over units which were drawn independently: test examples with
all their predictions, or documents with all their tokens.

Each unit is left out in turn (the jackknife, Tukey 1958), which says how much each moves the figure; what several
predictions of one example have in common is counted once, whatever they have in common. From these follow
`share_interval` for figures from 0 to 1, `correlation_interval`, `plain_interval` for all others, and
`difference_interval` for two figures of the same units. benchmarks/coverage.py measures how often they are right.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit


LEVEL = 0.95
NORMAL = NormalDist().inv_cdf(0.5 + LEVEL / 2)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Measured:
    """A figure, and what each unit moves it by, `[units]`, which adds up to 0."""

    value: float
    moves: np.ndarray

    @property
    def units(self) -> int:
        """How many were drawn."""
        return len(self.moves)

    @property
    def variance(self) -> float:
        """Of the figure, if other units had been drawn; NaN for a single one, of which nothing is known."""
        return float((self.moves**2).sum()) if self.units > 1 else math.nan


def sums_by_unit(counts: np.ndarray, units: Sequence[Hashable]) -> np.ndarray:
    """`[units, columns]`, the sums of the rows of `counts` that belong to the same unit."""
    numbers: dict[Hashable, int] = {}
    of_each = [numbers.setdefault(unit, len(numbers)) for unit in units]
    if len(numbers) == len(counts):
        return counts
    sums = np.zeros((len(numbers), counts.shape[1]))
    np.add.at(sums, of_each, counts)
    return sums


def measure(sums: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> Measured:
    """A figure of all units, and of all but each.

    Args:
        sums: `[units, columns]`.
        figure: of sums over units, `[..., columns]` -> `[...]`.
    """
    whole = sums.sum(axis=0)
    without = np.asarray(figure(whole - sums)) if len(sums) > 1 else np.zeros(1)
    return Measured(float(figure(whole)), (without.mean() - without) * (len(sums) - 1) / len(sums))


def share_interval(measured: Measured) -> Interval:
    """Of a figure from 0 to 1: Wilson's score interval (1927) of a share of `n` that has the figure's variance.

    For one prediction an example and accuracy it is Wilson's own. Where a few units carry all of the variance, nothing
    is known of how alike their predictions are, so up to all of an example's errors are taken to come together: of `k`
    units that carry it (the effective number, Σu²² / Σu⁴) 1 / k² of what is missing to that is added.
    """
    value, moves = measured.value, measured.moves
    as_one = value * (1 - value) / measured.units  # as if all predictions of a unit were the same
    variance = as_one
    if moves.any():
        moves = moves / np.abs(moves).max()
        carried_by = (moves**2).sum() ** 2 / (moves**4).sum()
        variance = measured.variance + max(0.0, as_one - measured.variance) / carried_by**2
    number = value * (1 - value) / variance if variance > 0 else measured.units
    spread = NORMAL**2 / number
    centre = (value + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (value * (1 - value) + spread / 4)) / (1 + spread)
    return min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))


def correlation_interval(measured: Measured) -> Interval:
    """Of a figure from -1 to 1, symmetric on Fisher's scale (1921), its inverse hyperbolic tangent; NaN where the
    figure does not exist without one of the units."""
    value = measured.value
    if math.isnan(measured.variance):
        return math.nan, math.nan
    if not abs(value) < 1:
        return value, value
    half = NORMAL * math.sqrt(measured.variance) / (1 - value**2)
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)


def plain_interval(measured: Measured) -> Interval:
    """Of a figure of any size, by Student's t; NaN for a single unit."""
    if measured.units < 2:
        return math.nan, math.nan
    unbiased = measured.variance * measured.units / (measured.units - 1)
    half = float(stdtrit(measured.units - 1, 0.5 + LEVEL / 2)) * math.sqrt(unbiased)
    return measured.value - half, measured.value + half


def difference_interval(first: Measured, second: Measured, of_one: Callable[[Measured], Interval]) -> Interval:
    """Of the difference of two figures of the same units in the same order, from the interval of each and their
    correlation (Newcombe 1998, method 10; Zou and Donner 2008); NaN where one of them has none.

    Args:
        of_one: the interval of one figure.
    """
    (low, high), (other_low, other_high) = of_one(first), of_one(second)
    if not all(map(math.isfinite, (low, high, other_low, other_high))):
        return math.nan, math.nan
    lengths = math.sqrt((first.moves**2).sum() * (second.moves**2).sum())
    together = min(1.0, max(-1.0, float(first.moves @ second.moves) / lengths)) if lengths else 0.0

    def reach(ours: float, theirs: float) -> float:
        return math.sqrt(max(0.0, ours**2 - 2 * together * ours * theirs + theirs**2))

    difference = first.value - second.value
    return (
        difference - reach(first.value - low, other_high - second.value),
        difference + reach(high - first.value, second.value - other_low),
    )
