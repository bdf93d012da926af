"""Stopping a run cleanly: on a signal, or when what launched it is gone, it finishes the step, saves and ends."""

import os
import signal
import sys
from typing import Any

import psutil
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments
from transformers.utils import logging


logger = logging.get_logger(__name__)

# of a scheduler, of Ctrl-C, of a terminal that was closed, which Windows does not have
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "deepspeed")


class StoppedBySignal(Exception):
    """A signal stopped the run: it is saved, and nothing that belongs to its end may run."""


class StopOnSignal(TrainerCallback):
    """On SIGTERM, SIGINT or SIGHUP, or when the launcher was killed and nobody would notice the run any more: finish
    the step, save, stop. All processes stop at the same step, whichever got the signal. A second SIGINT stops at once.
    A signal that is ignored where the run is started stays ignored.

    Raises:
        StoppedBySignal: after saving. If Trainer were only asked to stop, it would take the run for finished and,
            with `save_total_limit=1`, delete the checkpoint just saved and keep the best.
    """

    def __init__(self, trainer: Trainer):
        self.accelerator = trainer.accelerator
        self.stopped = False
        self.received = signal.SIGTERM
        self.launcher = launcher()
        self._previous: dict[int, Any] = {}

    @property
    def exit_status(self) -> int:
        """As a shell gives it for a process that the signal has ended."""
        return 128 + self.received

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        meant = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        self._previous = {number: signal.signal(number, self._receive) for number in meant}

    def _receive(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)
        self.accelerator.set_trigger()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.launcher is not None and os.getppid() != self.launcher:
            logger.warning("the launcher is gone")
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():
            self.stopped = control.should_save = True

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        if self.stopped:
            raise StoppedBySignal

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def leave(self, step: int) -> None:
        """End the process, with an exit status that says why."""
        logger.warning(f"stopped by {self.received.name} after step {step}, saved; go on with resume=auto")
        sys.exit(self.exit_status)


def launcher() -> int | None:
    """The process that has launched this one and waits for it, if it is a launcher of training runs."""
    parent = os.getppid()
    try:
        words = psutil.Process(parent).cmdline()
    except psutil.Error:  # gone, or of another user
        return None
    return parent if any(name in word for word in words[:4] for name in LAUNCHERS) else None
