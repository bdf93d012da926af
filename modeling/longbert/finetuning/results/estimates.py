"""A dry run's estimate: two steps and a prediction at the longest texts of a strategy, and what follows from them."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ...tables import table
from ...training.safety import SafeTrainer
from ...training.signals import StopOnSignal


TITLES = (
    "peak memory, GB",
    "tokens a second, training",
    "tokens a second, prediction",
    "training, h",
    "evaluations, h",
    "test, h",
    "all runs, h",
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one run would cost, without padding.

    Args:
        training_rate: tokens a second; None where nothing is trained.
        training_tokens: of all steps.
        prediction_rate: tokens a second.
        evaluation_tokens: of all evaluations together.
        test_tokens: of the test.
        peak_memory: bytes.
        memory_of: whose it is.
    """

    training_rate: float | None
    training_tokens: float
    prediction_rate: float
    evaluation_tokens: float
    test_tokens: float
    peak_memory: int
    memory_of: str

    @property
    def hours(self) -> tuple[float, float, float]:
        """Of training, of evaluations, of the test."""
        training = self.training_tokens / self.training_rate if self.training_rate else 0.0
        evaluations, test = (tokens / self.prediction_rate for tokens in (self.evaluation_tokens, self.test_tokens))
        return training / 3600, evaluations / 3600, test / 3600


class StepTimer(TrainerCallback):
    """The seconds of every optimizer step, and the tokens that the process had read by its end."""

    def __init__(self, trainer: SafeTrainer):
        self.trainer = trainer
        self.seconds: list[float] = []
        self.tokens: list[int] = []

    @classmethod
    def on(cls, trainer: SafeTrainer) -> "StepTimer":
        """A timer of a trainer that has nothing to save: a signal ends it at once."""
        timer = cls(trainer)
        trainer.remove_callback(StopOnSignal)
        trainer.add_callback(timer)
        return timer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; the batch has been read."""
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.started)
        self.tokens.append(self.trainer.tokens_read)

    def rate(self) -> float:
        """Tokens a second of the last step, the ones before it being a warm-up."""
        before = self.tokens[-2] if len(self.tokens) > 1 else 0
        return (self.tokens[-1] - before) / self.seconds[-1]


def evaluations_of(args: TrainingArguments, steps: int) -> int:
    """How many evaluations a run of so many steps has, by its `eval_steps`."""
    if args.eval_strategy == "no":
        return 0
    every = args.eval_steps or args.logging_steps
    return int(steps // (every if every >= 1 else max(1, math.ceil(every * steps))))


def estimate_table(estimates: Mapping[str, Estimate], counts: Mapping[str, int]) -> str:
    """A row for each strategy.

    Args:
        counts: how many runs, folds times seeds, each has.
    """
    rows, whole = {}, 0.0
    for name, each in estimates.items():
        training, evaluations, test = each.hours
        all_runs = counts[name] * (training + evaluations + test)
        whole += all_runs
        rows[name] = [
            f"{each.peak_memory / 1e9:.2f} ({each.memory_of})",
            f"{each.training_rate:,.0f}" if each.training_rate else "",
            f"{each.prediction_rate:,.0f}",
            *(f"{hours:.3f}" for hours in (training, evaluations, test)),
            f"{all_runs:.3f} ({counts[name]} run{'s' * (counts[name] > 1)})",
        ]
    return (
        "dry run, nothing is written: two steps and a prediction at the longest texts of each strategy\n\n"
        f"{table(TITLES, rows)}\n\n"
        f"expected in all: {whole:.3f} h, checkpoints not counted"
    )
