"""What a run would cost: a few of its steps and readings are tried, and counted as often as the run has them."""

import collections
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import datasets
import numpy as np
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback, TrainerControl, TrainerState

from ..data.batches import TrainingPlan
from .epochs import EpochEnds
from .safety import SafeTrainer
from .signals import StopOnSignal


SECONDS = 5.0  # that are spent on each thing that is tried, or as long as LEAST of it take
LEAST = 3
GOLDEN = (math.sqrt(5) - 1) / 2

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """Something that a run does so many times."""

    times: int
    seconds_each: float

    @property
    def seconds(self) -> float:
        """In all."""
        return self.times * self.seconds_each


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one run would cost, its start left out.

    Args:
        parts: what it does, by name.
        peak_memory: bytes.
        memory_of: whose it is.
        training_rate: tokens a second, without padding; None where nothing is trained.
        prediction_rate: the same of texts that are read and not trained on.
    """

    parts: dict[str, Part]
    peak_memory: int
    memory_of: str
    training_rate: float | None
    prediction_rate: float

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(part.seconds for part in self.parts.values())


class StepTimer(TrainerCallback):
    """Times a trainer's steps after the first, until they have taken long enough, and ends its training. Nothing is
    evaluated, saved or logged meanwhile."""

    def __init__(self, trainer: SafeTrainer, seconds: float):
        self.trainer, self.enough = trainer, seconds
        self.marks: list[tuple[float, int]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where a run has a single step, it is timed from its own beginning."""
        if not self.marks:
            self.marks.append((time.perf_counter(), 0))

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the clock."""
        self.marks.append((time.perf_counter(), self.trainer.tokens_read))
        _do_nothing_else(control)
        if len(self.marks) > 1 + LEAST and self.marks[-1][0] - self.marks[1][0] >= self.enough:
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Nothing is done then either."""
        _do_nothing_else(control)

    @property
    def _timed(self) -> list[tuple[float, int]]:
        return self.marks[1:] if len(self.marks) > 2 else self.marks

    @property
    def seconds_a_step(self) -> float:
        """With the loading of its batches."""
        return (self._timed[-1][0] - self._timed[0][0]) / (len(self._timed) - 1)

    @property
    def tokens_a_second(self) -> float:
        """Of this process, without padding."""
        (since, before), (until, after) = self._timed[0], self._timed[-1]
        return (after - before) / (until - since)


def _do_nothing_else(control: TrainerControl) -> None:
    control.should_evaluate = control.should_save = control.should_log = False


class Spread(TrainingPlan):
    """A plan whose steps come from all over another one, however few of them are taken."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, part = divmod(index, self.batches_per_step)
        return super().__getitem__(int(step * GOLDEN % 1 * self.steps) * self.batches_per_step + part)


def on_trial(args: TrainingArguments, folder: str) -> TrainingArguments:
    """The settings of a run that leaves nothing but what it writes into `folder`."""
    return dataclasses.replace(args, output_dir=folder, report_to="none", push_to_hub=False)


def try_steps(trainer: SafeTrainer, seconds: float = SECONDS) -> StepTimer:
    """Train for a few steps; a signal ends it at once."""
    timer = StepTimer(trainer, seconds)
    trainer.remove_callback(StopOnSignal)
    trainer.add_callback(timer)  # the last, which has the last word
    trainer.train()
    return timer


def happenings(trainer: SafeTrainer, steps: int, steps_an_epoch: int | None = None) -> collections.Counter[str]:
    """How often a run of so many steps would `evaluate` and `save`, as its own callbacks ask for it.

    Args:
        steps_an_epoch: where Trainer itself counts epochs.
    """
    args, state = trainer.args, TrainerState(max_steps=steps)
    state.compute_steps(args, steps)
    asking = [
        callback
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, DefaultFlowCallback | EpochEnds)
    ]
    counted = collections.Counter(evaluate=int(args.eval_on_start))
    for step in range(1, steps + 1):
        state.global_step, control = step, TrainerControl()
        for callback in asking:
            callback.on_step_end(args, state, control)
            if steps_an_epoch and (step % steps_an_epoch == 0 or step == steps):
                state.epoch = step / steps_an_epoch
                callback.on_epoch_end(args, state, control)
        counted.update(evaluate=control.should_evaluate, save=control.should_save)
    if args.save_strategy == "best":  # as often as an evaluation is the best so far
        counted["save"] = counted["evaluate"]
    return counted


def checkpoint_seconds(trainer: SafeTrainer) -> float:
    """How long a checkpoint takes, written into the trainer's folder."""
    start = time.perf_counter()
    trainer._save_checkpoint(trainer.model, trial=None)
    return time.perf_counter() - start


def rate_of(
    items: Sequence[Item], size: Callable[[Sequence[Item]], float], read: Callable[[Sequence[Item]], Any]
) -> float:
    """How much is read in a second: of the first item, which warms up, then of some from all over the list.

    Args:
        items: the largest first.
        size: of items together.
        read: takes its time with them.
    """
    first = _seconds(read, items[:1])
    number = min(len(items), max(LEAST, math.ceil(SECONDS / first)))
    some = [items[place] for place in np.linspace(0, len(items) - 1, number).round().astype(int)]
    return size(some) / _seconds(read, some)


def _seconds(read: Callable[[Sequence[Item]], Any], items: Sequence[Item]) -> float:
    start = time.perf_counter()
    read(items)
    return time.perf_counter() - start


def forget(trainer: SafeTrainer) -> None:
    """Give back what a trainer's optimizer holds, before another begins."""
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    gc.collect()


def longest_of(rows: datasets.Dataset, number: int) -> datasets.Dataset:
    """So many of the rows with the greatest `length`."""
    lengths = rows["length"][:]
    return rows.select(sorted(range(len(rows)), key=lambda row: -lengths[row])[:number])


@dataclass(frozen=True)
class Trial:
    """What a few steps of a run have shown.

    Args:
        tokens_a_second: in training, of one process.
        often: how often the run would `evaluate` and `save`.
        seconds_a_checkpoint: 0 where none is saved.
    """

    tokens_a_second: float
    often: collections.Counter[str]
    seconds_a_checkpoint: float


def try_training(
    make_trainer: Callable[[Any, Any], SafeTrainer], args: Any, longest: Any, steps: int, steps_an_epoch: int
) -> Trial:
    """Two steps of the longest examples, for their memory; then some of all, for their time.

    Args:
        make_trainer: (settings, examples or None for all) -> trainer.
        longest: examples enough for two steps.
    """
    trainer = make_trainer(dataclasses.replace(args, max_steps=2), longest)
    try_steps(trainer)
    forget(trainer)
    trainer = make_trainer(args, None)
    timed, often = try_steps(trainer), happenings(trainer, steps, steps_an_epoch)
    return Trial(timed.tokens_a_second, often, checkpoint_seconds(trainer) if often["save"] else 0.0)
