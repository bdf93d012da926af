"""What keeps a run safe: checkpoints whole or not there, a clean stop on signals, a guard against divergence."""

import collections
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, get_last_checkpoint, rotate_checkpoints
from transformers.utils import logging

from ..disclosure import hand_on_token
from ..errors import MendableError
from ..folders import put_files_in_place, put_in_place, set_aside
from ..publishing import push_run
from .resuming import Progress, TrainedAlready, problem_of
from .sharding import dividing, division
from .signals import StopOnSignal, StoppedBySignal


logger = logging.get_logger(__name__)

LOSSES_REMEMBERED = 100
LOSSES_NEEDED = 20
TOLD = ("initial_lr", "weight_decay", "betas", "eps")  # of a group of an optimizer's weights, by the settings
LEARNED = 0.05  # a mean loss below it is as good as none: one hard example is many times that, and no divergence


class DivergedError(MendableError):
    """The loss or the gradient is no longer a number, or has exploded."""


class SafeTrainer(Trainer):
    """Trainer with whole checkpoints, a clean stop on signals and a guard against divergence.

    As the first base of a class, before another Trainer, it adds the same to that Trainer.

    Args:
        max_loss_ratio: a step has diverged if its loss is this many times the mean of the last 100, or of 0.05 where
            that is less.
        closed_attention_learning_rate: of the weights that open closed layers.
    """

    def __init__(
        self,
        *args: Any,
        max_loss_ratio: float = 3.0,
        closed_attention_learning_rate: float = 0.05,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        hand_on_token(self.args)  # checkpoints hold the settings
        self.closed_attention_learning_rate = closed_attention_learning_rate
        if self.args.push_to_hub and self.args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(f"hub_strategy must be end or every_save, got {self.args.hub_strategy.value!r}")
        self.max_loss_ratio = max_loss_ratio
        self.losses: collections.deque[float] = collections.deque(maxlen=LOSSES_REMEMBERED)
        self.step_loss = 0.0
        self.step_documents: list[str] = []
        self.tokens_read = 0  # by this process, without padding; the trainers of batches count them
        self.aside: Path | None = None
        self.stopper = StopOnSignal(self)
        self.progress = Progress(self.losses)
        self.add_callback(self.stopper)
        self.add_callback(self.progress)

    def train_or_stop(self, checkpoint: str | None = None) -> None:
        """Train; a run that a signal has stopped ends the process, with an exit status that says so.

        Args:
            checkpoint: to go on from; one of a training that has ended is only loaded.
        """
        self.progress.checkpoint = checkpoint
        try:
            self.train(resume_from_checkpoint=checkpoint)
        except TrainedAlready:
            self._end()
        except StoppedBySignal:
            self.callback_handler.on_train_end(self.args, self.state, self.control)  # trackers write what they hold
            self.stopper.leave(self.state.global_step)
        if self.accelerator.check_trigger():  # a signal after the last step, in an evaluation
            self.stopper.leave(self.state.global_step)

    def _end(self) -> None:
        """As Trainer ends a training, after the last step."""
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if problem := problem_of(best):
            raise ValueError(f"the best checkpoint, {best}, {problem}: resume=auto makes it anew")
        super()._load_best_model()

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer's, which has DDP look for weights without a gradient at every step: no head or objective has
        any."""
        if self.args.ddp_find_unused_parameters is None:
            self.args.ddp_find_unused_parameters = False
        super().create_accelerator_and_postprocess()
        if division(self.args) == "FSDP" and not self.accelerator.is_fsdp2:
            logger.warning("accelerate divides parameters by FSDP on GPUs alone: here each process holds all of them")

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, which divides the model here where FSDP2 is on."""
        with dividing(self.model, self.accelerator):
            return super()._prepare_for_training(*args, **kwargs)

    # ---- a step

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
        usual = max(statistics.fmean(self.losses), LEARNED) if len(self.losses) >= LOSSES_NEEDED else math.inf
        if self.step_loss > self.max_loss_ratio * usual:
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

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As Trainer's, without position tables: a row that no batch visits must stay what it is."""
        return [name for name in super().get_decay_parameter_names(model) if "position_embeddings" not in name]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As Trainer's, but closed layers are opened at a rate of their own, which falls with the other."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        gates = [weight for name, weight in self.model.named_parameters() if name.endswith(".far_gate")]
        gates = [gate for gate in gates if gate.requires_grad]
        if is_new and gates:
            known = {*map(id, gates)}
            for group in optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if id(weight) not in known]
            optimizer.add_param_group(
                {"params": gates, "lr": self.closed_attention_learning_rate, "weight_decay": 0.0}
            )
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As Trainer's, but what the settings say of rates and decay stays, where a checkpoint was told otherwise."""
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        told = [{name: group[name] for name in TOLD if name in group} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        for group, said in zip(self.optimizer.param_groups, told, strict=True):
            group.update(said)
        if isinstance(self.lr_scheduler, LambdaLR):
            scheduler, groups = self.lr_scheduler, self.optimizer.param_groups
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
            scheduler._last_lr = [group["lr"] for group in groups]

    # ---- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.aside) if self.aside else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the checkpoint's model as at the end of the run, with its code and card. The run's other files stay
        here: Trainer would push them, and they can hold tokens. A push that fails does not end the run."""
        at_the_end = self.args.hub_strategy == HubStrategy.END
        if self.aside is None and not at_the_end and self.is_world_process_zero():
            try:
                push_run(checkpoint_folder, self.args)
            except (OSError, ValueError) as error:
                logger.warning(f"{checkpoint_folder} is not pushed, the run goes on: {error}")

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
            if self.state.best_model_checkpoint == str(aside / name):  # in every process: each loads it at the end
                self.state.best_model_checkpoint = str(run / name)
            if self.args.should_save:
                self.state.save_to_json(str(aside / name / TRAINER_STATE_NAME))
                set_aside(run / name, "replaced")
                put_in_place(aside / name, run / name)
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
        """Save the model into a folder that appears whole or not at all; a damaged one is set aside."""
        aside = folder.with_name(f".{folder.name}.unfinished")
        self._save_aside(aside)
        if self.args.should_save:
            set_aside(folder, "damaged")
            put_in_place(aside, folder)
        self.accelerator.wait_for_everyone()

    def save_result(self) -> None:
        """Save the model into the run's folder, beside what else is there; each file is there whole or not at all."""
        folder = Path(self.args.output_dir)
        aside = folder / ".model.unfinished"
        self._save_aside(aside)
        if self.args.should_save:
            put_files_in_place(aside, folder)
        self.accelerator.wait_for_everyone()

    def _save_aside(self, aside: Path) -> None:
        if self.args.should_save:  # what a killed process may have left
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(aside), _internal_call=True)  # else it pushes, before there is a card
        self.accelerator.wait_for_everyone()
