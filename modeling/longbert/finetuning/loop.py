"""One loop for every task: the same examples and seeds over several ways to read a long document, and one table."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.modeling_outputs import ModelOutput

from ..arguments import described, write_config
from ..data.batches import Encoder, Phase, TrainingPlan
from ..saving import damage, refuse_occupied, written_aside
from ..training.parameters import select_parameters
from ..training.pretraining import Source, checkpoint_activations
from ..training.resuming import find_checkpoint
from ..training.trainer import LongTrainer
from .examples import Split
from .metrics import Figures, interval_of
from .reading import STRATEGIES, Strategy


@dataclass(kw_only=True)
class FinetuningArguments:
    """How a long document is read, and how a run is kept safe."""

    strategies: list[str] = described(["long"], f"ways to read a document, of {', '.join(STRATEGIES)}")
    max_length: int | None = described(None, "tokens that `long` reads; by default all that the model reaches")
    seeds: int = described(1, "runs of each strategy and fold, with seed, seed + 1, ...")
    train_only: list[str] = described(["all"], "all, positions, or regular expressions for parameter names")
    checkpoint_from: int = described(4096, "texts of this many tokens or more train with gradient checkpointing")
    early_stopping_patience: int | None = described(None, "evaluations without gain before a run stops")
    resume: str | None = described(None, "auto: keep finished runs, go on with the one that was stopped")
    max_loss_ratio: float = described(10.0, "stop where a loss is so many times the mean of the last 100 steps")

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or not self.strategies:
            raise ValueError(f"strategies must be of {', '.join(STRATEGIES)}, got {unknown}")
        if self.resume not in (None, "auto"):
            raise ValueError(f"resume must be auto or left out, got {self.resume!r}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")


class Task(Protocol):
    """What a script adds: its examples, its model, its loss, its predictions."""

    metric: Figures
    tokenizer: PreTrainedTokenizerBase

    def build(self, source: Source, strategy: Strategy) -> nn.Module:
        """The model of a strategy, with labels in its config."""

    def training_rows(self, examples: datasets.Dataset, encoder: Encoder) -> datasets.Dataset:
        """What a plan trains on: the examples, or the pieces they are read in."""

    def encoder(self, strategy: Strategy, max_length: int, long_length: int) -> Encoder:
        """What makes micro-batches of examples, `max_length` tokens read at once; `labels` are what `loss` gets.

        Args:
            long_length: tokens that `long` reads; a strategy that pools pieces reads no more in all.
        """

    def loss(
        self, outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss in fp32, summed and divided by `num_items_in_batch`, so that it means the same for any split."""

    def predict(self, model: nn.Module, examples: datasets.Dataset, encoder: Encoder) -> list[dict[str, Any]]:
        """For each example its `id`, `prediction` and `reference`, as the metric takes them, and its `scores`; where a
        task can know, also `late`: what decides lies past token 512."""


def compare(
    task: Task, splits: list[Split], source: Source, run_args: FinetuningArguments, args: TrainingArguments
) -> str:
    """Train and test every strategy on every split with every seed.

    Returns:
        The table, which is also in `output_dir/results.md`, beside `results.json`.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for name in run_args.strategies:
        results[name] = []
        for split in splits:
            for seed in range(args.seed, args.seed + run_args.seeds):
                folder = Path(args.output_dir, name, split.name, f"seed-{seed}")
                results[name] += _one_run(task, split, name, source, run_args, args, seed, folder)
    figures = {name: _figures(task.metric, predictions) for name, predictions in results.items()}
    table = to_markdown(task.metric, figures)
    if args.process_index == 0:
        Path(args.output_dir, "results.md").write_text(table + "\n")
        Path(args.output_dir, "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    return table


def run_task(
    task: Task,
    splits: list[Split],
    lengths: list[int],
    source: Source,
    run_args: FinetuningArguments,
    args: TrainingArguments,
    *settings: Any,
) -> None:
    """What every script ends with: say how long the texts are, keep the settings, compare, print the table.

    Args:
        settings: what else belongs into `output_dir/config.yaml`.

    Raises:
        FileExistsError: there is something in `output_dir`, and nothing is to be resumed.
        ValueError: a strategy that the task cannot read by.
    """
    for name in run_args.strategies:
        task.encoder(STRATEGIES[name], source.native.pretrained_positions, source.native.pretrained_positions)
    if args.process_index == 0:
        if not run_args.resume:
            refuse_occupied(args.output_dir)
        write_config(Path(args.output_dir, "config.yaml"), *settings, run_args, args)
        print(length_histogram(lengths, source.native.pretrained_positions))
    table = compare(task, splits, source, run_args, args)
    if args.process_index == 0:
        print(table)


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
    finished = folder / "predictions"
    if run_args.resume and damage(finished) is None:
        return [json.loads(line) for line in (finished / "test.jsonl").read_text().splitlines()]
    set_seed(seed)
    strategy = STRATEGIES[name]
    reach = source.config.max_position_embeddings
    long_length = min(run_args.max_length or reach, reach)
    max_length = long_length if strategy.extended else source.native.pretrained_positions
    encoder = task.encoder(strategy, max_length, long_length)
    model = task.build(source, strategy)
    select_parameters(model, run_args.train_only if strategy.extended else ["all"])
    if max_length >= run_args.checkpoint_from:
        checkpoint_activations(model, max_length)
    plan = _plan(task.training_rows(split.train, encoder), encoder, args, max_length, seed)
    trainer = LongTrainer(
        model=model,
        args=_run_arguments(args, plan, seed, folder, task.metric.primary),
        train_dataset=plan,
        processing_class=task.tokenizer,
        compute_loss_func=task.loss,
        evaluator=lambda model: _score(task.metric, task.predict(model, split.validation, encoder)),
        max_loss_ratio=run_args.max_loss_ratio,
    )
    if run_args.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(run_args.early_stopping_patience))
    trainer.train_or_stop(find_checkpoint(str(folder), run_args.resume, may_rename=args.process_index == 0))
    trainer.save_model()
    predictions = task.predict(trainer.model, split.test, encoder)
    if trainer.is_world_process_zero():
        with written_aside(finished) as aside:
            (aside / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in predictions))
    trainer.accelerator.wait_for_everyone()
    return predictions


def _plan(
    examples: datasets.Dataset, encoder: Encoder, args: TrainingArguments, max_length: int, seed: int
) -> TrainingPlan:
    batches_per_step = args.gradient_accumulation_steps * args.world_size
    rows_per_step = args.per_device_train_batch_size * batches_per_step
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(examples) / rows_per_step)
    phase = Phase(steps, max_length, args.per_device_train_batch_size, examples, encoder)
    return TrainingPlan([phase], batches_per_step, seed)


def _run_arguments(
    args: TrainingArguments, plan: TrainingPlan, seed: int, folder: Path, primary: str
) -> TrainingArguments:
    """One run's settings; what is asked for once an epoch is done every so many steps, as a plan is one long epoch."""
    changes: dict[str, Any] = {"output_dir": str(folder), "max_steps": plan.steps, "seed": seed}
    epoch = max(1, round(plan.steps / args.num_train_epochs))
    for kind in ("eval", "save", "logging"):
        if getattr(args, f"{kind}_strategy") == "epoch":
            changes |= {f"{kind}_strategy": "steps", f"{kind}_steps": epoch}
    if args.load_best_model_at_end and args.metric_for_best_model in (None, "loss"):
        changes |= {"metric_for_best_model": primary, "greater_is_better": True}
    return dataclasses.replace(args, **changes)


def _score(metric: Figures, predictions: list[dict[str, Any]]) -> dict[str, float]:
    found, truth = ([line[key] for line in predictions] for key in ("prediction", "reference"))
    return metric.compute(predictions=found, references=truth)


def _figures(metric: Figures, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    found, truth = ([line[key] for line in predictions] for key in ("prediction", "reference"))
    figures: dict[str, Any] = {"interval": interval_of(metric, found, truth), "predictions": len(predictions)}
    late = [line for line in predictions if line.get("late")]
    if late:
        figures |= {"late": _score(metric, late)[metric.primary], "late_predictions": len(late)}
    return {**_score(metric, predictions), **figures}


def to_markdown(metric: Figures, figures: dict[str, dict[str, Any]]) -> str:
    """A row for each strategy: the metric's figures over all folds and seeds, the 95 % interval of the first, and
    the same on the late-evidence subset where there is one."""
    others = [name for name in metric.figures if name != metric.primary]
    titles = [f"{metric.primary} (95 % interval)", *others, "predictions"]
    late = next((row["late_predictions"] for row in figures.values() if "late" in row), None)
    if late:
        titles.append(f"{metric.primary}, evidence past token 512 ({late})")
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for name, row in figures.items():
        low, high = row["interval"]
        cells = [f"{row[metric.primary]:.3f} ({low:.3f} to {high:.3f})", *(f"{row[other]:.3f}" for other in others)]
        cells += [str(row["predictions"]), *([f"{row['late']:.3f}"] if late else [])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def length_histogram(lengths: list[int], window: int) -> str:
    """How many texts have up to `window` tokens, up to 2 `window`, 4 `window`, ..."""
    edges = [0, window]
    while edges[-1] < max(lengths):
        edges.append(2 * edges[-1])
    counts, _ = np.histogram(lengths, bins=[edge + 1 if edge else 0 for edge in edges])
    lines = [
        f"{low + 1:>7,} - {high:<7,} {count:>6,}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return "tokens            texts\n" + "\n".join(lines)
