"""Micro-batches: what every step of a run reads, decided by its number alone.

A run is a list of phases. Micro-batch i depends only on the rows and on (seed, i): not on what was read before it, nor
on the worker or process. So a run that was stopped continues exactly where it was.
"""

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from .masking import generator_for


Key = tuple[int, int, int]


class Collator(Protocol):
    """A collator: makes micro-batches of rows."""

    def batch(self, rows: list[dict[str, Any]], keys: Sequence[Key]) -> dict[str, Any]:
        """A micro-batch, with the names of its `documents` and its `text_lengths` in tokens."""


@dataclass
class Phase:
    """A number of optimizer steps over rows of one length.

    Args:
        rows: a dataset or a stream.
        batch_size: rows of a micro-batch.
        collator: makes a micro-batch of rows, each with its (seed, epoch, number).
        lengths: tokens of each row, where rows of like length are to share a micro-batch.
    """

    steps: int
    max_seq_length: int
    batch_size: int
    rows: datasets.Dataset | datasets.IterableDataset
    collator: "Collator"
    lengths: list[int] | None = None


class _Plan:
    """Phases one after another. An optimizer step is `batches_per_step` micro-batches, over all processes."""

    def __init__(self, phases: list[Phase], batches_per_step: int, seed: int):
        self.phases, self.batches_per_step, self.seed = phases, batches_per_step, seed
        self.starts = [0, *itertools.accumulate(phase.steps * batches_per_step for phase in phases)]

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return sum(phase.steps for phase in self.phases)

    def epochs_after(self, step: int) -> float | None:
        """How often the rows have been read by the end of a step; None where their number is not known."""
        epochs = 0.0
        for phase in self.phases:
            if not isinstance(phase.rows, datasets.Dataset):
                return None
            taken = min(step, phase.steps)
            epochs += taken * self.batches_per_step * phase.batch_size / len(phase.rows)
            step -= taken
        return epochs


class TrainingPlan(_Plan, Dataset):
    """Micro-batches by number. Every row is used once before any is used again, in an order drawn anew each time."""

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = next(number for number, stop in enumerate(self.starts[1:]) if index < stop)
        phase = self.phases[number]
        first = (index - self.starts[number]) * phase.batch_size
        keys = []
        for place in range(first, first + phase.batch_size):
            epoch, place = divmod(place, len(phase.rows))
            keys.append((self.seed, epoch, int(self._order(number, epoch)[place])))
        return phase.collator.batch([phase.rows[row] for _, _, row in keys], keys)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its run
    def _order(self, number: int, epoch: int) -> torch.Tensor:
        phase, generator = self.phases[number], generator_for(self.seed, number, epoch)
        if phase.lengths is not None:
            return torch.tensor(get_length_grouped_indices(phase.lengths, phase.batch_size, generator=generator))
        return torch.randperm(len(phase.rows), generator=generator)


class StreamedPlan(_Plan, IterableDataset):
    """The same over streams, for corpora larger than the disk cache. Every phase and every epoch starts its stream
    again, shuffled within `buffer_size` rows.

    Every process reads the whole stream and keeps its share, and a resumed run reads the stream from its start. Both
    are exact, and neither saves time.
    """

    def __init__(self, phases: list[Phase], batches_per_step: int, seed: int, buffer_size: int = 1000):
        super().__init__(phases, batches_per_step, seed)
        self.buffer_size = buffer_size
        self.rank, self.ranks = 0, 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for phase, numbered in itertools.islice(self._batches(), self.rank, None, self.ranks):
            keys, rows = zip(*numbered, strict=True)
            yield phase.collator.batch(list(rows), keys)

    def _batches(self) -> Iterator[tuple[Phase, list[tuple[Key, dict]]]]:
        for phase in self.phases:
            rows = self._rows(phase)
            for _ in range(phase.steps * self.batches_per_step):
                yield phase, list(itertools.islice(rows, phase.batch_size))

    def _rows(self, phase: Phase) -> Iterator[tuple[Key, dict]]:
        for epoch in itertools.count():
            # datasets' own shuffle also reorders files, after which the held-out documents would be others
            draw = random.Random(f"{self.seed} {epoch}")
            numbered = (((self.seed, epoch, number), row) for number, row in enumerate(phase.rows))
            buffer = list(itertools.islice(numbered, self.buffer_size))
            if not buffer:
                raise ValueError("the stream holds no documents")
            for item in numbered:
                place = draw.randrange(len(buffer))
                yield buffer[place]
                buffer[place] = item
            draw.shuffle(buffer)
            yield from buffer


class _Share(Sampler):
    """Every `ranks`-th micro-batch from `rank` on."""

    def __init__(self, length: int, rank: int, ranks: int):
        self.indices = range(rank, length, ranks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _only(batches: list[dict[str, Any]]) -> dict[str, Any]:
    (batch,) = batches
    return batch


def plan_loader(
    plan: TrainingPlan | StreamedPlan, rank: int, ranks: int, num_workers: int = 0, **options: Any
) -> DataLoader:
    """The micro-batches of one of `ranks` data-parallel processes, in order.

    Args:
        options: of `torch.utils.data.DataLoader`.
    """
    # of its own, so that loading draws nothing from the generator that dropout draws from
    options |= {"num_workers": num_workers, "generator": torch.Generator(), "collate_fn": _only}
    if isinstance(plan, StreamedPlan):
        plan.rank, plan.ranks = rank, ranks
        return DataLoader(plan, batch_size=1, **options)
    return DataLoader(plan, batch_size=1, sampler=_Share(len(plan), rank, ranks), **options)
