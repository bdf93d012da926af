"""Stopping a run cleanly and finding where to go on."""

import signal
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import get_last_checkpoint
from transformers.training_args import TrainingArguments
from transformers.utils import logging

from ..folders import damage, set_aside


logger = logging.get_logger(__name__)

SIGTERM_EXIT_STATUS = 128 + signal.SIGTERM


class StoppedBySigterm(Exception):
    """SIGTERM stopped the run: it is saved, and nothing that belongs to its end may run."""


class StopOnSigterm(TrainerCallback):
    """On SIGTERM: finish the step, save, stop. All processes stop at the same step, whichever got the signal.

    Raises:
        StoppedBySigterm: after saving. If Trainer were only asked to stop, it would take the run for finished and,
        with `save_total_limit=1`, delete the checkpoint just saved and keep the best.
    """

    def __init__(self, trainer: Trainer):
        self.accelerator = trainer.accelerator
        self.stopped = False
        self._previous: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._previous = signal.signal(signal.SIGTERM, lambda *_: self.accelerator.set_trigger())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.accelerator.check_trigger():
            self.stopped = control.should_save = True

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        if self.stopped:
            raise StoppedBySigterm

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self._previous)


def find_checkpoint(output_dir: str, resume: str | None, may_rename: bool) -> str | None:
    """The checkpoint that `resume` means: None, a folder, or "auto" for the newest whole one, if there is any.

    Args:
        may_rename: rename damaged checkpoints to `checkpoint-N.damaged`; true in one process only.

    Raises:
        ValueError: a folder was named that is not a whole checkpoint.
    """
    if resume is None:
        return None
    if resume != "auto":
        problem = damage(resume)
        if problem:
            raise ValueError(f"cannot resume from {resume}: {problem}. resume=auto takes the newest whole checkpoint")
        return resume
    while found := get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None:
        problem = damage(found)
        if problem is None:
            logger.warning(f"resuming from {found}")
            return found
        logger.warning(f"skipping {found}: {problem}")
        if not may_rename:
            raise RuntimeError(f"{found} is damaged in this process's view only")
        set_aside(found, "damaged")
    logger.warning(f"resume=auto: no whole checkpoint in {output_dir}, starting from the beginning")
    return None
