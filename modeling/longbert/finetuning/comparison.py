"""The frame of every comparison: keep the settings, run what is not finished, print one table, write cards, push."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy, TrainingArguments

from ..arguments import RunArguments, described, write_config
from ..folders import damage, refuse_occupied, written_aside
from ..publishing import command_line, push_run, write_card
from .metrics import Figures
from .report import Lines, Report, length_histogram


@dataclass(kw_only=True)
class ComparisonArguments(RunArguments):
    """How far a long document is read, and how a run is kept safe."""

    max_length: int | None = described(None, "tokens that `long` reads; by default all that the model reaches")
    checkpoint_from: int = described(4096, "texts of this many tokens or more train with gradient checkpointing")
    early_stopping_patience: int | None = described(None, "stop after this many evaluations without improvement")
    resume: str | None = described(None, "auto: keep finished runs and continue the one that was stopped")
    max_loss_ratio: float = described(10.0, "stop if a loss is this many times the mean of the last 100 steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"early_stopping_patience must be at least 1, got {self.early_stopping_patience}")
        if self.resume not in (None, "auto"):
            raise ValueError(f"resume must be auto or left out, got {self.resume!r}")


def choosing_the_best(run_args: ComparisonArguments, args: TrainingArguments, metric: Figures) -> dict[str, Any]:
    """The settings of Trainer by which it keeps the best checkpoint and stops early: a figure of the task's metric.

    Raises:
        ValueError: the metric has no such figure, or nothing is evaluated to stop by.
    """
    if run_args.early_stopping_patience is not None and args.eval_strategy == IntervalStrategy.NO:
        raise ValueError(
            f"early_stopping_patience={run_args.early_stopping_patience} needs evaluations to stop by: set "
            "eval_strategy and save_strategy to epoch, and load_best_model_at_end to true"
        )
    asked = (args.metric_for_best_model or "loss").removeprefix("eval_")
    name = metric.primary if asked == "loss" else asked
    if name not in metric.figures:
        raise ValueError(f"metric_for_best_model must be one of {', '.join(metric.figures)}, got {asked!r}")
    return {"metric_for_best_model": name, "greater_is_better": name not in metric.lower_is_better}


@dataclass(frozen=True)
class Run:
    """One model of a comparison.

    Args:
        row: the table's row that its predictions count in.
        folder: of the model and its predictions.
        trains: whether it makes a model that can be pushed.
        predict: trains and saves the model, reads the test, and returns its predictions.
    """

    row: str
    folder: Path
    trains: bool
    predict: Callable[[], Lines]


def compare(
    runs: list[Run],
    report: Callable[[dict[str, Lines]], Report],
    lengths: list[int],
    source_length: int,
    run_args: ComparisonArguments,
    args: TrainingArguments,
    *settings: Any,
) -> None:
    """Run them one after the other and say what came out.

    The tables are also in `output_dir/results.md`, beside `results.json`, `config.yaml` and, where it is known what
    decides, a picture.

    Args:
        report: makes the report of every row's predictions.
        lengths: of the texts, in tokens.
        settings: further settings to keep.

    Raises:
        FileExistsError: there is something in `output_dir`, and nothing is to be resumed.
        ValueError: several models to push, or none.
    """
    trained = [run for run in runs if run.trains]
    if args.push_to_hub and len(trained) != 1:
        rows = ", ".join(run.row for run in trained) or "none"
        raise ValueError(
            f"push_to_hub pushes one trained model, these settings train {len(trained)} ({rows}): name one strategy, "
            "one seed and no folds"
        )
    writes = args.process_index == 0
    if writes:
        if not run_args.resume:
            refuse_occupied(args.output_dir)
        write_config(Path(args.output_dir, "config.yaml"), *settings, run_args, args)
        print(length_histogram(lengths, source_length))
    results: dict[str, Lines] = {}
    for run in runs:
        results.setdefault(run.row, []).extend(_predictions(run, run_args, writes))
    if not writes:
        return
    made = report(results)
    made.save(args.output_dir)
    print(made.to_markdown())
    for run in runs:
        if (run.folder / "config.json").exists():
            write_card(run.folder, run=args.output_dir, row=run.row, command=command_line())
    if args.push_to_hub:
        print(push_run(trained[0].folder, args))


def _predictions(run: Run, run_args: ComparisonArguments, writes: bool) -> Lines:
    """What a run predicts; what is finished is read instead."""
    if run_args.resume and (kept := kept_predictions(run.folder)) is not None:
        return kept
    predictions = run.predict()
    if writes:
        with written_aside(run.folder / "predictions") as aside:
            (aside / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in predictions), "utf-8")
    return predictions


def kept_predictions(folder: Path) -> Lines | None:
    """What a finished run has predicted; None where it is not finished."""
    if damage(folder / "predictions") is not None:
        return None
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text("utf-8").splitlines()]
