"""transformers' Trainer with what it lacks, each at a seam of its own. Serves pretraining and fine-tuning."""

import collections
import math
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints
from transformers.utils import logging

from ..data.batches import plan_loader
from ..saving import publish, set_aside
from .meter import Meter
from .resuming import SIGTERM_EXIT_STATUS, StopOnSigterm


logger = logging.get_logger(__name__)

LOSSES_REMEMBERED = 100
LOSSES_NEEDED = 20


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer a number, or has exploded."""


class LongTrainer(Trainer):
    """Trainer over a `TrainingPlan`, with whole checkpoints, a clean stop on SIGTERM and a guard against divergence.

    Args:
        evaluator: what `evaluate` calls: the model to its figures, such as a `Prover`'s `metrics`.
        max_loss_ratio: a step whose loss is so many times the mean of the last 100 has diverged.
        sequence_parallel_size: neighbouring processes that share a batch, a part of every text each.
    """

    control: TrainerControl

    def __init__(
        self,
        *args: Any,
        evaluator: Callable[[nn.Module], dict[str, float]],
        max_loss_ratio: float = 3.0,
        sequence_parallel_size: int = 1,
        **kwargs: Any,
    ):
        # Trainer asks for a dataset where it is to evaluate, and never looks at it here
        super().__init__(*args, eval_dataset=[], **kwargs)
        self.evaluator = evaluator
        self.max_loss_ratio = max_loss_ratio
        self.sequence_parallel_size = sequence_parallel_size
        self.meter = Meter(self.model.config)
        self.losses: collections.deque[float] = collections.deque(maxlen=LOSSES_REMEMBERED)
        self.step_loss = 0.0
        self.step_documents: list[str] = []
        self.aside: Path | None = None
        self.stopping = StopOnSigterm(self)
        self.add_callback(self.stopping)

    def train_or_stop(self, checkpoint: str | None = None) -> None:
        """Train; a run that SIGTERM has stopped ends the process, with an exit status that says so."""
        self.meter.reset()
        self.train(resume_from_checkpoint=checkpoint)
        if self.stopping.stopped:
            logger.warning(f"stopped by SIGTERM after step {self.state.global_step}, saved; go on with resume=auto")
            sys.exit(SIGTERM_EXIT_STATUS)

    # ---- data

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
            self.meter.add(batch, batch.pop("text_lengths"))
        pairs = [len(batch["next_sentence_label"]) for batch in batches if "next_sentence_label" in batch]
        if pairs:
            number = self.accelerator.gather(torch.tensor(sum(pairs), device=self.args.device)).sum()
            batches = [{**batch, "num_pairs_in_batch": number} for batch in batches]
        return batches, num_items_in_batch

    # ---- a step

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; what the next-sentence head says is counted for the log."""
        return_outputs = kwargs.pop("return_outputs", False)
        loss, outputs = super().compute_loss(model, inputs, *args, return_outputs=True, **kwargs)
        if "next_sentence_label" in inputs:
            self.meter.add_pairs(outputs.seq_relationship_logits.detach(), inputs["next_sentence_label"])
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As Trainer's.

        Raises:
            DivergedError: the loss is not finite.
        """
        loss = super().training_step(*args, **kwargs)
        value = loss.item()  # once: every look at a GPU's number waits for it
        if not math.isfinite(value):
            raise self._diverged(f"a loss of {value}")
        self.step_loss += value
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        """Called once a step, before the weights change."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's loss scaling finds its scale by overflowing, and skips those steps itself
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            raise self._diverged(f"a gradient norm of {float(norm)}")
        if len(self.losses) >= LOSSES_NEEDED and self.step_loss > self.max_loss_ratio * statistics.fmean(self.losses):
            raise self._diverged(
                f"a loss of {self.step_loss:.4g}, more than {self.max_loss_ratio} times the mean of the last "
                f"{len(self.losses)}"
            )
        self.losses.append(self.step_loss)
        self.step_loss = 0.0
        return norm

    def _diverged(self, what: str) -> DivergedError:
        last = get_last_checkpoint(self.args.output_dir)
        return DivergedError(
            f"step {self.state.global_step + 1} has {what}. Documents in it: {', '.join(self.step_documents)}. "
            + (f"Last good checkpoint: {last}" if last else "There is no checkpoint yet")
            + ". Look at the documents, or lower learning_rate or max_grad_norm, and go on with resume=auto"
        )

    # ---- what is logged

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

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As Trainer's, without position tables: a row that no batch visits must stay what it is."""
        return [name for name in super().get_decay_parameter_names(model) if "position_embeddings" not in name]

    # ---- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.aside) if self.aside else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.aside is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As Trainer's, but written aside, synced and renamed; the previous one goes once the new one is there."""
        run, name = Path(super()._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        aside = run / ".unfinished"
        try:
            if self.args.should_save:  # what a killed process may have left
                shutil.rmtree(aside, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self.aside = aside
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self.state.best_model_checkpoint == str(aside / name):
                    self.state.best_model_checkpoint = str(run / name)
                    self.state.save_to_json(str(aside / name / TRAINER_STATE_NAME))
                set_aside(run / name, "replaced")
                publish(aside / name, run / name)
        finally:
            self.aside = None
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def save_whole(self, folder: Path) -> None:
        """Save the model into a folder that appears whole or not at all."""
        aside = folder.with_name(f".{folder.name}.unfinished")
        self.save_model(str(aside))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish(aside, folder)
        self.accelerator.wait_for_everyone()
