"""What a run costs: seconds, tokens and memory, measured while it runs and kept beside its predictions."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ...training.memory import memory_of, peak_memory, reset_peak_memory
from ...training.safety import SafeTrainer


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run, or several together, took.

    Args:
        training_seconds: evaluations and checkpoints counted; what a kill has lost is not.
        training_tokens: without padding, over all processes.
        prediction_seconds: of the test alone.
        prediction_tokens: that the model read for it, those counted twice that pieces share.
        documents: of the test, each as often as it was read.
        peak_memory: bytes, of the first process.
        memory_of: whose it is: `process`, or a device's name.
        vectors: that an index of the test's documents holds, where it is a test of retrieval.
        stored_bytes: of such an index, in fp32.
    """

    training_seconds: float = 0.0
    training_tokens: int = 0
    prediction_seconds: float = 0.0
    prediction_tokens: int = 0
    documents: int = 0
    peak_memory: int = 0
    memory_of: str = "process"
    vectors: int = 0
    stored_bytes: int = 0

    @property
    def seconds_a_document(self) -> float:
        """Of prediction."""
        return self.prediction_seconds / max(1, self.documents)

    @property
    def tokens_a_document(self) -> float:
        """Read in prediction."""
        return self.prediction_tokens / max(1, self.documents)

    def of_a_document(self) -> list[str]:
        """The cells of `TITLES_OF_A_DOCUMENT`."""
        number = max(1, self.documents)
        return [
            f"{self.seconds_a_document:.3g}",
            f"{self.vectors / number:,.1f}".removesuffix(".0"),
            f"{self.stored_bytes / number:,.0f}",
        ]


def together(costs: Sequence[Cost]) -> Cost:
    """The cost of several runs: sums, and the highest of their peaks."""
    summed = {
        each.name: sum(getattr(cost, each.name) for cost in costs)
        for each in dataclasses.fields(Cost)
        if each.name not in ("peak_memory", "memory_of")
    }
    highest = max(costs, key=lambda cost: cost.peak_memory)
    return Cost(**summed, peak_memory=highest.peak_memory, memory_of=highest.memory_of)


class TrainingClock(TrainerCallback, ExportableState):
    """Seconds and tokens of a training run; its checkpoints carry them, so that a resumed run counts on."""

    def __init__(self, trainer: SafeTrainer):
        self.trainer = trainer
        self.before: dict[str, float] = {"seconds": 0.0, "tokens": 0}
        self.since = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, from what the checkpoint has counted."""
        kept = state.stateful_callbacks.get(type(self).__name__) or {}
        self.before = dict(kept.get("attributes", {}).get("counted", self.before))
        self.since = time.perf_counter()

    @property
    def counted(self) -> dict[str, float]:
        """Seconds and this process's tokens so far."""
        return {
            "seconds": self.before["seconds"] + time.perf_counter() - self.since,
            "tokens": self.before["tokens"] + self.trainer.tokens_read,
        }

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"counted": self.counted}}


class RunMeter:
    """Measures one run, from the building of its model to its last prediction."""

    def __init__(self, device: torch.device):
        self.device = device
        self.shared = not reset_peak_memory(device)
        self.measured: dict[str, Any] = {}

    def train(self, trainer: SafeTrainer, checkpoint: str | None) -> None:
        """Train, or go on from a checkpoint."""
        clock = TrainingClock(trainer)
        trainer.add_callback(clock)
        trainer.train_or_stop(checkpoint)
        counted = clock.counted
        tokens = torch.tensor(counted["tokens"], dtype=torch.int64, device=trainer.accelerator.device)
        self.measured["training_seconds"] = counted["seconds"]
        self.measured["training_tokens"] = int(trainer.accelerator.reduce(tokens))

    def cost(self, prediction_seconds: float, prediction_tokens: int, documents: int) -> Cost:
        """What the run has cost; here its peak is read."""
        return Cost(
            **self.measured,
            prediction_seconds=prediction_seconds,
            prediction_tokens=prediction_tokens,
            documents=documents,
            peak_memory=peak_memory(self.device),
            memory_of=memory_of(self.device) + (" since it began" if self.shared else ""),
        )


TITLES_OF_A_DOCUMENT = ("s a document", "vectors a document", "bytes a document")
TITLES = (
    "training, s",
    "tokens trained on",
    "prediction, s a test document",
    "tokens read of a test document",
    "peak memory, GB",
)


def cost_rows(costs: Mapping[str, Cost]) -> dict[str, list[str]]:
    """The cells of a table of costs, a row for each strategy."""
    return {
        name: [
            f"{cost.training_seconds:,.1f}" if cost.training_tokens else "",
            f"{cost.training_tokens:,}" if cost.training_tokens else "",
            f"{cost.seconds_a_document:.3g}",
            f"{cost.tokens_a_document:,.0f}",
            f"{cost.peak_memory / 1e9:.2f} ({cost.memory_of})",
        ]
        for name, cost in costs.items()
    }
