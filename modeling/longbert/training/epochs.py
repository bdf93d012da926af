"""Epochs of a run whose steps are planned beforehand, which Trainer takes for a single one."""

import dataclasses
import math
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from ..data.batches import StreamedPlan, TrainingPlan


KINDS = {"eval": "should_evaluate", "save": "should_save", "logging": "should_log"}


class EpochEnds(TrainerCallback):
    """Does what was asked for once an epoch where every row has been read once more, and says which epoch it is.

    Args:
        kinds: what is asked for once an epoch, of `KINDS`.
    """

    def __init__(self, plan: TrainingPlan | StreamedPlan, kinds: list[str]):
        self.plan, self.kinds = plan, kinds

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Trainer has written its own epoch into the state just before."""
        state.epoch = now = self.plan.epochs_after(state.global_step)
        before = self.plan.epochs_after(state.global_step - 1)
        if now is not None and before is not None and math.floor(now + 1e-9) > math.floor(before + 1e-9):
            for kind in self.kinds:
                setattr(control, KINDS[kind], True)


def by_plan(args: TrainingArguments, plan: TrainingPlan | StreamedPlan) -> tuple[TrainingArguments, list[str]]:
    """Settings by which Trainer itself does at the last step alone what is asked for once an epoch, and what that is.

    Raises:
        ValueError: the plan is of a stream, whose epochs are not known.
    """
    kinds = [kind for kind in KINDS if getattr(args, f"{kind}_strategy") == "epoch"]
    if kinds and plan.epochs_after(0) is None:
        names = ", ".join(f"{kind}_strategy" for kind in kinds)
        raise ValueError(f"{names}: where the length of an epoch is not known, as of a stream, it must be steps or no")
    never = {f"{kind}_strategy": "steps" for kind in kinds} | {f"{kind}_steps": plan.steps + 1 for kind in kinds}
    return dataclasses.replace(args, **never), kinds
