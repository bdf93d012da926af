"""Going on where a run was stopped: the newest whole checkpoint, and what Trainer forgets of it."""

import json
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..folders import damage, set_aside


logger = logging.get_logger(__name__)


class TrainedAlready(Exception):
    """The checkpoint is that of a training that has ended: there is no step left."""


def kept_attributes(callback: TrainerCallback, state: Any) -> dict[str, Any]:
    """What a checkpoint keeps of a callback, empty where a run begins."""
    kept = state.stateful_callbacks.get(type(callback).__name__) or {}
    return kept.get("attributes", {})


class EarlyStopping(EarlyStoppingCallback):
    """As transformers', whose count a resumed run would begin anew."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on counting."""
        super().on_train_begin(args, state, control, **kwargs)
        name = "early_stopping_patience_counter"
        self.early_stopping_patience_counter = kept_attributes(self, state).get(name, 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first step.

        Raises:
            TrainedAlready: the run had been stopped.
        """
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            raise TrainedAlready


class Progress(TrainerCallback, ExportableState):
    """What a run has come to and Trainer forgets: recent losses, the best checkpoint, that all steps are done.

    Args:
        losses: the trainer's own, of the last steps.
        checkpoint: that the run goes on from.
    """

    def __init__(self, losses: Any, checkpoint: str | None = None):
        self.losses, self.checkpoint = losses, checkpoint

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"losses": list(self.losses)}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember."""
        self.losses.extend(kept_attributes(self, state).get("losses", []))
        state.compute_steps(args, state.max_steps)  # a checkpoint's state brings those that it was told
        # Trainer looks for it where the run once was, and forgets it if that folder has been moved
        if self.checkpoint is not None and (best := best_of(self.checkpoint)):
            state.best_model_checkpoint = str(best)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first step, which Trainer would take once more of a stream.

        Raises:
            TrainedAlready: all steps are done.
        """
        if state.global_step >= state.max_steps:
            raise TrainedAlready


def best_of(checkpoint: str | Path) -> Path | None:
    """The best checkpoint so far, by what one says; it lies beside it."""
    file = Path(checkpoint, TRAINER_STATE_NAME)
    best = json.loads(file.read_text("utf-8")).get("best_model_checkpoint") if file.is_file() else None
    return Path(checkpoint).resolve().parent / Path(best).name if best else None


def problem_of(checkpoint: str | Path) -> str | None:
    """Why a run cannot go on from a checkpoint; None where it can."""
    if problem := damage(checkpoint):
        return problem
    if not any(Path(checkpoint).glob("rng_state*.pth")):  # as Trainer names it under every launcher
        return "was written with save_only_model, without what training goes on with"
    best = best_of(checkpoint)
    if best is not None and (problem := damage(best)):
        return f"its best checkpoint, {best.name}, {problem}"
    return None


def find_checkpoint(output_dir: str, resume: str | None, may_rename: bool, first: str | None = None) -> str | None:
    """The checkpoint that `resume` means: None, a folder, or "auto" for the newest whole one, if there is any.

    Args:
        may_rename: rename damaged checkpoints to `checkpoint-N.damaged`; true in one process only.
        first: the checkpoint that the run was begun from, where there is none in `output_dir`.

    Raises:
        ValueError: a folder was named that is not a whole checkpoint.
    """
    if resume is None:
        return None
    if resume != "auto":
        problem = problem_of(resume)
        if problem:
            raise ValueError(f"cannot resume from {resume}: {problem}. resume=auto takes the newest whole checkpoint")
        return resume
    while found := get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None:
        problem = problem_of(found)
        if problem is None:
            logger.warning(f"resuming from {found}")
            return found
        logger.warning(f"skipping {found}: {problem}")
        if not may_rename:
            raise RuntimeError(f"{found} is damaged in this process's view only")
        set_aside(found, "damaged")
    if first is not None:
        return find_checkpoint(output_dir, first, may_rename)
    logger.warning(f"resume=auto: no whole checkpoint in {output_dir}, starting from the beginning")
    return None
