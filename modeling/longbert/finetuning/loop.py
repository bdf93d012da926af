"""One loop for every task: the same examples and seeds over several ways to read a long document, and one table."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed

from ..arguments import described, write_config
from ..data.batches import Collator, Phase, TrainingPlan
from ..folders import damage, refuse_occupied, written_aside
from ..publishing import command_line, push_run, write_card
from ..source import Source
from ..training.freezing import select_parameters
from ..training.memory import checkpoint_activations
from ..training.resuming import find_checkpoint
from ..training.trainer import LongTrainer
from .examples import Split
from .report import Report, length_histogram, score
from .strategies import STRATEGIES, Strategy
from .tasks.task import Task


@dataclass(kw_only=True)
class RunArguments:
    """How far a long document is read, and how a run is kept safe."""

    max_length: int | None = described(None, "tokens that `long` reads; by default all that the model reaches")
    checkpoint_from: int = described(4096, "texts of this many tokens or more train with gradient checkpointing")
    early_stopping_patience: int | None = described(None, "stop after this many evaluations without improvement")
    resume: str | None = described(None, "auto: keep finished runs and continue the one that was stopped")
    max_loss_ratio: float = described(10.0, "stop if a loss is this many times the mean of the last 100 steps")

    def __post_init__(self) -> None:
        if self.resume not in (None, "auto"):
            raise ValueError(f"resume must be auto or left out, got {self.resume!r}")


@dataclass(kw_only=True)
class FinetuningArguments(RunArguments):
    """How a long document is read, and how a run is kept safe."""

    strategies: list[str] = described(["long"], f"ways to read a document, of {', '.join(STRATEGIES)}")
    seeds: int = described(1, "runs of each strategy and fold, with seed, seed + 1, ...")
    train_only: list[str] = described(
        ["all"], "all; positions (the rows past the source's); or regular expressions for parameter names"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or not self.strategies:
            raise ValueError(f"strategies must be of {', '.join(STRATEGIES)}, got {unknown}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")


def run_task(
    task: Task,
    splits: list[Split],
    source: Source,
    run_args: FinetuningArguments,
    args: TrainingArguments,
    *settings: Any,
) -> None:
    """What every script ends with: check the examples, say how long they are, keep the settings, train and test every
    strategy on every split with every seed, and print what came out.

    The tables are also in `output_dir/results.md`, beside `results.json` and, where a task knows what decides, a
    picture; models and predictions lie in `output_dir/STRATEGY/[FOLD/]seed-N`.

    Args:
        settings: further settings to write to `output_dir/config.yaml`.

    Raises:
        FileExistsError: there is something in `output_dir`, and nothing is to be resumed.
        ValueError: an example that cannot be used, a strategy that the task cannot read by, or several models to push.
    """
    source_length = source.native.pretrained_positions
    for name in run_args.strategies:
        task.collator(STRATEGIES[name], source_length, source_length)
    if args.push_to_hub and len(run_args.strategies) * len(splits) * run_args.seeds > 1:
        raise ValueError("push_to_hub pushes one model: name one strategy, one seed and no folds")
    splits = [split.map(task.encode) for split in splits]
    if args.process_index == 0:
        if not run_args.resume:
            refuse_occupied(args.output_dir)
        write_config(Path(args.output_dir, "config.yaml"), *settings, run_args, args)
        print(length_histogram(splits[0].everything()["length"], source_length))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in run_args.strategies}
    folders: dict[Path, str] = {}
    for name, lines in results.items():
        for split in splits:
            for seed in range(args.seed, args.seed + run_args.seeds):
                folder = Path(args.output_dir, name, split.name, f"seed-{seed}")
                lines += _one_run(task, split, name, source, run_args, args, seed, folder)
                folders[folder] = name
    if args.process_index == 0:
        report = Report(task.metric, task.within, results, source_length, _long_length(source, run_args))
        report.save(args.output_dir)
        print(report.to_markdown())
        for folder, name in folders.items():
            write_card(folder, run=args.output_dir, row=name, command=command_line())
        if args.push_to_hub:
            print(push_run(next(iter(folders)), args))


def _long_length(source: Source, run_args: RunArguments) -> int:
    reach = source.config.max_position_embeddings
    return min(run_args.max_length or reach, reach)


def length_at_once(strategy: Strategy, source: Source, run_args: RunArguments) -> int:
    """Tokens that a strategy reads at once."""
    return _long_length(source, run_args) if strategy.extended else source.native.pretrained_positions


def _one_run(
    task: Task,
    split: Split,
    name: str,
    source: Source,
    run_args: FinetuningArguments,
    args: TrainingArguments,
    seed: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Train, choose the best checkpoint, predict the test set; what is finished is read instead."""
    if run_args.resume and (kept := kept_predictions(folder)) is not None:
        return kept
    set_seed(seed)
    strategy = STRATEGIES[name]
    max_length = length_at_once(strategy, source, run_args)
    collator = task.collator(strategy, max_length, _long_length(source, run_args))
    model = task.build(source, strategy)
    task.tokenizer.model_max_length = model.config.max_position_embeddings  # it is saved beside this model
    # a baseline has no positions past its source's
    baseline_trains = ["all"] if run_args.train_only == ["positions"] else run_args.train_only
    select_parameters(model, run_args.train_only if strategy.extended else baseline_trains)
    if max_length >= run_args.checkpoint_from:
        checkpoint_activations(model, max_length)
    plan = _plan(task.training_rows(split.train, collator), collator, args, max_length, seed)
    trainer = LongTrainer(
        model=model,
        args=_run_arguments(args, plan, seed, folder, task.metric.primary),
        train_dataset=plan,
        processing_class=task.tokenizer,
        compute_loss_func=task.loss,
        evaluator=lambda model: score(task.metric, task.predict(model, split.validation, collator)),
        max_loss_ratio=run_args.max_loss_ratio,
    )
    if run_args.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(run_args.early_stopping_patience))
    trainer.train_or_stop(find_checkpoint(str(folder), run_args.resume, may_rename=args.process_index == 0))
    trainer.save_model(_internal_call=True)
    predictions = task.predict(trainer.model, split.test, collator)
    if trainer.is_world_process_zero():
        keep_predictions(folder, predictions)
    trainer.accelerator.wait_for_everyone()
    return predictions


def kept_predictions(folder: Path) -> list[dict[str, Any]] | None:
    """What a finished run has predicted; None where it is not finished."""
    if damage(folder / "predictions") is not None:
        return None
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text("utf-8").splitlines()]


def keep_predictions(folder: Path, predictions: list[dict[str, Any]]) -> None:
    """Mark a run as finished."""
    with written_aside(folder / "predictions") as aside:
        (aside / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in predictions), "utf-8")


def _plan(
    examples: datasets.Dataset, collator: Collator, args: TrainingArguments, max_length: int, seed: int
) -> TrainingPlan:
    batches_per_step = args.gradient_accumulation_steps * args.world_size
    rows_per_step = args.per_device_train_batch_size * batches_per_step
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(examples) / rows_per_step)
    lengths = examples["length"] if args.train_sampling_strategy == "group_by_length" else None
    phase = Phase(steps, max_length, args.per_device_train_batch_size, examples, collator, lengths)
    return TrainingPlan([phase], batches_per_step, seed)


def _run_arguments(
    args: TrainingArguments, plan: TrainingPlan, seed: int, folder: Path, primary: str
) -> TrainingArguments:
    """One run's settings; what is asked for once an epoch is done every so many steps, as a plan is one long epoch."""
    changes: dict[str, Any] = {"output_dir": str(folder), "max_steps": plan.steps, "seed": seed}
    changes["hub_model_id"] = args.hub_model_id or Path(args.output_dir).absolute().name
    epoch = max(1, round(plan.steps / args.num_train_epochs))
    for kind in ("eval", "save", "logging"):
        if getattr(args, f"{kind}_strategy") == "epoch":
            changes |= {f"{kind}_strategy": "steps", f"{kind}_steps": epoch}
    if args.load_best_model_at_end and args.metric_for_best_model in (None, "loss"):
        changes |= {"metric_for_best_model": primary, "greater_is_better": True}
    return dataclasses.replace(args, **changes)
