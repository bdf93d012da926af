"""The frame of every comparison: keep the settings, run what is not finished, say what came out, write cards, push."""

import collections
import dataclasses
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy, TrainingArguments

from ..arguments import RunArguments, described
from ..data.features import FRAME
from ..folders import damage, set_aside, written_aside
from ..publishing import command_line, push_run, refuse_stranger, write_card
from ..tables import strict_json
from ..training.estimates import Estimate
from ..training.record import Record
from .results.costs import Cost, together
from .results.estimates import estimate_table
from .results.metrics import Figures
from .results.report import Lines, Report, length_histogram
from .results.verdict import verdict


COST, TOLD = "cost.json", "told.json"  # beside a run's predictions: what they cost, and what was told


@dataclass(kw_only=True)
class ComparisonArguments(RunArguments):
    """How far a long document is read, and how a run is kept safe."""

    max_length: int | None = described(None, "tokens that `long` reads; by default all that the model reaches")
    checkpoint_from: int = described(4096, "texts of this many tokens or more train with gradient checkpointing")
    early_stopping_patience: int | None = described(None, "stop after this many evaluations without improvement")
    resume: str | None = described(None, "auto: keep finished runs and continue the one that was stopped")
    max_loss_ratio: float = described(10.0, "stop if a loss is this many times the mean of the last 100 steps")
    dry_run: bool = described(
        False, "try some steps and predictions of each strategy, say what all runs would cost, exit"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"early_stopping_patience must be at least 1, got {self.early_stopping_patience}")
        if self.max_length is not None and self.max_length <= FRAME:
            raise ValueError(
                f"max_length must leave room between [CLS] and [SEP]: at least {FRAME + 1}, got {self.max_length}"
            )
        if self.resume not in (None, "auto"):
            raise ValueError(f"resume must be auto or left out, got {self.resume!r}")


def refuse_names(setting: str, given: Sequence[str], known: Collection[str]) -> None:
    """Raise `ValueError` where a setting that lists what to compare has none, an unknown one, or one twice."""
    if not given or any(name not in known for name in given):
        raise ValueError(f"{setting} must be of {', '.join(known)}, got {', '.join(given) or 'none'}")
    if len({*given}) < len(given):
        raise ValueError(f"{setting} must name each once, got {', '.join(given)}")


def choosing_the_best(run_args: ComparisonArguments, args: TrainingArguments, metric: Figures) -> dict[str, Any]:
    """The settings of Trainer by which it keeps the best checkpoint and stops early: a figure of the task's metric.

    Raises:
        ValueError: the metric has no such figure, or nothing is evaluated to choose or to stop by.
    """
    if args.load_best_model_at_end and args.eval_strategy == IntervalStrategy.NO:
        raise ValueError(
            "load_best_model_at_end=true needs evaluations to choose by: set eval_strategy and save_strategy to "
            "epoch, or load_best_model_at_end to false"
        )
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
        predict: trains and saves the model, reads the test, and returns its predictions, and what that cost.
        estimate: what all of that would cost; writes nothing into `folder`.
    """

    row: str
    folder: Path
    trains: bool
    predict: Callable[[], tuple[Lines, Cost]]
    estimate: Callable[[], Estimate]


def compare(
    runs: list[Run],
    report: Callable[[dict[str, Lines], dict[str, Cost]], Report],
    lengths: list[int],
    source_length: int,
    record: Record,
) -> None:
    """Run them one after the other and say what came out.

    The tables are also in `output_dir/results.md`, beside `results.json`, `config.yaml` and pictures. A dry run says
    what all of it would cost instead, and writes nothing.

    Args:
        report: makes the report of every row's predictions, and of what the rows cost.
        lengths: of the texts, in tokens.
        record: of the whole; it has begun.

    Raises:
        ValueError: several models to push, or none.
    """
    args = record.args
    trained = [run for run in runs if run.trains]
    if args.push_to_hub and len(trained) != 1:
        rows = ", ".join(run.row for run in trained) or "none"
        raise ValueError(
            f"push_to_hub pushes one trained model, these settings train {len(trained)} ({rows}): name one strategy, "
            "one seed and no folds"
        )
    writes = args.process_index == 0
    if not record.is_kept:
        _say_what_it_costs(runs, lengths, source_length, writes)
        return
    if record.finished:
        if writes:
            _show(trained, args)
        return
    if args.push_to_hub:
        refuse_stranger()
    if writes:
        print(length_histogram(lengths, source_length))
    results: dict[str, Lines] = {}
    costs: dict[str, list[Cost]] = {}
    for run in runs:
        predictions, cost = _predictions(run, record, writes)
        results.setdefault(run.row, []).extend({**line, "run": run.folder.name} for line in predictions)
        costs.setdefault(run.row, []).append(cost)
    if not writes:
        return
    made = report(results, {row: together(some) for row, some in costs.items()})
    made.save(args.output_dir, verdict(made))
    for run in runs:
        if (run.folder / "config.json").exists():
            changes = record.changes_in_words(public=True)
            write_card(run.folder, run=args.output_dir, row=run.row, command=command_line(), changes=changes)
    record.finish()
    _show(trained, args)


def _show(trained: list[Run], args: TrainingArguments) -> None:
    """Print what has come out, and push it where asked to."""
    print(Path(args.output_dir, "results.md").read_text("utf-8"), end="")
    if args.push_to_hub:
        print(push_run(trained[0].folder, args))


def _say_what_it_costs(runs: list[Run], lengths: list[int], source_length: int, writes: bool) -> None:
    """Estimate one run of every row; the others of a row are like it."""
    counts = collections.Counter(run.row for run in runs)
    firsts = {run.row: run for run in reversed(runs)}
    estimates = {row: firsts[row].estimate() for row in counts}
    if writes:
        print(length_histogram(lengths, source_length))
        print(estimate_table(estimates, counts))


def _predictions(run: Run, record: Record, writes: bool) -> tuple[Lines, Cost]:
    """What a run predicts, and what it cost; what is finished is read instead."""
    folder = run.folder / "predictions"
    whole = damage(folder) is None
    if whole and (folder / TOLD).read_text("utf-8") == record.identity:
        lines = (folder / "test.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines], _cost(folder)
    predictions, cost = run.predict()
    if writes:
        set_aside(folder, "changed" if whole else "damaged")
        with written_aside(folder) as aside:
            (aside / "test.jsonl").write_text("".join(strict_json(line, None) for line in predictions), "utf-8")
            (aside / COST).write_text(strict_json(dataclasses.asdict(cost)), "utf-8")
            (aside / TOLD).write_text(record.identity, "utf-8")
    return predictions, cost


def kept_cost(folder: Path) -> Cost | None:
    """What a finished run has cost; None where it is not finished."""
    return None if damage(folder / "predictions") else _cost(folder / "predictions")


def _cost(predictions: Path) -> Cost:
    return Cost(**json.loads((predictions / COST).read_text("utf-8")))
