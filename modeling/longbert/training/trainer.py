"""transformers' Trainer over a plan of micro-batches. Serves pretraining and fine-tuning."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerControl

from ..data.batches import StreamedPlan, TrainingPlan, plan_loader
from .epochs import EpochEnds, by_plan
from .meter import Meter
from .safety import SafeTrainer


class LongTrainer(SafeTrainer):
    """A safe Trainer over a `TrainingPlan`, which logs what it does a second.

    Args:
        evaluator: a function from the model to its figures, such as `Prover.metrics`; `evaluate` calls it.
        sequence_parallel_size: how many neighbouring processes share a batch, each computing a part of every text.
    """

    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: TrainingPlan | StreamedPlan,
        *,
        evaluator: Callable[[nn.Module], dict[str, float]],
        sequence_parallel_size: int = 1,
        **kwargs: Any,
    ):
        args, once_an_epoch = by_plan(args, train_dataset)
        # Trainer asks for a dataset where it is to evaluate, and never looks at it here
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=[], **kwargs)
        self.add_callback(EpochEnds(train_dataset, once_an_epoch))
        self.evaluator = evaluator
        self.sequence_parallel_size = sequence_parallel_size
        self.meter = Meter(self.model.config)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; the meter starts counting."""
        self.meter.reset()
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """This process's share of the plan."""
        size = self.sequence_parallel_size
        return plan_loader(
            self.train_dataset,
            self.args.process_index // size,
            self.args.world_size // size,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def get_batch_samples(self, *args: Any) -> tuple[list, Any]:
        """One optimizer step's micro-batches; a sentence pair's loss too is divided by the pairs of the whole step."""
        batches, num_items_in_batch = super().get_batch_samples(*args)
        self.step_documents = sorted({name for batch in batches for name in batch.pop("documents")})
        for batch in batches:
            text_lengths = batch.pop("text_lengths")
            self.meter.add(batch, text_lengths)
            self.tokens_read += sum(text_lengths)
        pairs = [len(batch["next_sentence_label"]) for batch in batches if "next_sentence_label" in batch]
        if pairs:
            number = self.accelerator.gather(torch.tensor(sum(pairs), device=self.args.device)).sum()
            batches = [{**batch, "num_pairs_in_batch": number} for batch in batches]
        return batches, num_items_in_batch

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; what the next-sentence head says is counted for the log."""
        return_outputs = kwargs.pop("return_outputs", False)
        loss, outputs = super().compute_loss(model, inputs, *args, return_outputs=True, **kwargs)
        if "next_sentence_label" in inputs:
            self.meter.add_pairs(outputs.seq_relationship_logits.detach(), inputs["next_sentence_label"])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with throughput and next-sentence figures beside the training loss."""
        if "loss" in logs:
            logs |= self.meter.report(self.accelerator, logs["loss"], self.sequence_parallel_size)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """The evaluator's figures, logged as `eval_...`."""
        with self.meter.paused():
            found = self.evaluator(self.model)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
