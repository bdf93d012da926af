"""One loop for every task: the same examples and seeds over several ways to read a long document, and one table."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import TrainingArguments, set_seed

from ..arguments import described
from ..data.batches import Collator, Phase, TrainingPlan
from ..source import Source
from ..training.estimates import (
    Estimate,
    Part,
    Spread,
    checkpoint_seconds,
    forget,
    happenings,
    longest_of,
    on_trial,
    rate_of,
    try_steps,
)
from ..training.freezing import select_parameters
from ..training.memory import checkpoint_activations, memory_of, peak_memory, reset_peak_memory
from ..training.record import Record
from ..training.resuming import EarlyStopping, find_checkpoint
from ..training.sharding import refuse_division
from ..training.trainer import LongTrainer
from .comparison import ComparisonArguments, Run, choosing_the_best, compare, refuse_names
from .examples.splits import Split, fingerprints
from .results.costs import Cost, RunMeter
from .results.report import Lines, Report, score
from .strategies import STRATEGIES, Reader
from .tasks.task import Task


@dataclass(kw_only=True)
class FinetuningArguments(ComparisonArguments):
    """How a long document is read, and how a run is kept safe."""

    strategies: list[str] = described(["long"], f"ways to read a document, of {', '.join(STRATEGIES)}")
    seeds: int = described(1, "runs of each strategy and fold, with seed, seed + 1, ...")
    train_only: list[str] = described(
        ["all"], "all; positions (the rows past the source's); or regular expressions for parameter names"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_names("strategies", self.strategies, STRATEGIES)
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
    """What every script ends with: check the examples, train and test every strategy on every split with every seed,
    and print what came out. Models and predictions lie in `output_dir/STRATEGY/[FOLD/]seed-N`.

    Args:
        settings: further settings to write to `output_dir/config.yaml`.

    Raises:
        FileExistsError: there is something in `output_dir`, and nothing is to be resumed.
        ValueError: an example that cannot be used, a strategy that the task cannot read by, or several models to push.
    """
    refuse_division(args)
    record = Record.claim(args, run_args, *settings)
    readers = {name: Reader.of(STRATEGIES[name], source, run_args.max_length) for name in run_args.strategies}
    task.accept(readers)
    data, drawn_with = fingerprints(splits), _drawn_with(splits)
    at_once = min(reader.at_once for reader in readers.values())
    splits = [split.map(lambda examples: task.tokenize(examples, at_once)) for split in splits]
    finetuning = Finetuning(task, source, run_args, args, choosing_the_best(run_args, args, task.metric))
    record.begin(source.digest(), data)
    runs = [
        finetuning.run(name, reader, split, seed)
        for name, reader in readers.items()
        for split in splits
        for seed in range(args.seed, args.seed + run_args.seeds)
    ]
    source_length = source.native.pretrained_positions
    in_all = next(iter(readers.values())).in_all
    lengths = splits[0].everything()["length"][:]
    extended = [name for name, reader in readers.items() if reader.strategy.extended]

    def report(results: dict[str, Lines], costs: dict[str, Cost]) -> Report:
        return Report(
            task.metric,
            task.within,
            results,
            source_length,
            in_all,
            costs=costs,
            extended=extended,
            lengths=lengths,
            drawn_with=drawn_with,
        )

    compare(runs, report, lengths, source_length, record)


@dataclass
class Finetuning:
    """A task, what it is trained from, and how.

    Args:
        best: what chooses the best checkpoint.
    """

    task: Task
    source: Source
    run_args: FinetuningArguments
    args: TrainingArguments
    best: dict[str, Any]

    def run(self, name: str, reader: Reader, split: Split, seed: int) -> Run:
        """One strategy on one split with one seed."""
        folder = Path(self.args.output_dir, name, split.name, f"seed-{seed}")
        return Run(
            name,
            folder,
            True,
            predict=lambda: self._train_and_predict(reader, split, seed, folder),
            estimate=lambda: self._estimate(reader, split, seed),
        )

    def _train_and_predict(self, reader: Reader, split: Split, seed: int, folder: Path) -> tuple[Lines, Cost]:
        """Train, choose the best checkpoint, predict the test set."""
        set_seed(seed)
        task, run_args, args = self.task, self.run_args, self.args
        meter = RunMeter(args.device)
        model = self._model(reader)
        plan = _plan(task.rows(split.train, reader, train=True), task.collator(reader), args, reader.at_once, seed)
        trainer = self._trainer(model, plan, split, reader, _run_arguments(args, plan, seed, folder, self.best))
        if run_args.early_stopping_patience:
            trainer.add_callback(EarlyStopping(run_args.early_stopping_patience))
        meter.train(trainer, find_checkpoint(str(folder), run_args.resume, may_rename=args.process_index == 0))
        trainer.save_result()
        start = time.perf_counter()
        predictions = task.predict(trainer.model, split.test, reader)
        seconds = time.perf_counter() - start
        trainer.accelerator.wait_for_everyone()
        return predictions, meter.cost(seconds, self._tokens(split.test, reader), len(split.test))

    def _model(self, reader: Reader) -> nn.Module:
        """The model of a strategy, what is to be trained of it chosen."""
        task, run_args = self.task, self.run_args
        model = task.build(self.source, reader.strategy)
        task.tokenizer.model_max_length = model.config.max_position_embeddings  # it is saved beside this model
        # a baseline has no positions past its source's
        baseline_trains = ["all"] if run_args.train_only == ["positions"] else run_args.train_only
        select_parameters(model, run_args.train_only if reader.strategy.extended else baseline_trains)
        if reader.at_once >= run_args.checkpoint_from:
            checkpoint_activations(model, reader.at_once)
        return model

    def _trainer(
        self, model: nn.Module, plan: TrainingPlan, split: Split, reader: Reader, args: TrainingArguments
    ) -> LongTrainer:
        task = self.task
        return LongTrainer(
            model=model,
            args=args,
            train_dataset=plan,
            processing_class=task.tokenizer,
            compute_loss_func=task.loss,
            evaluator=lambda model: score(task.metric, task.predict(model, split.validation, reader)),
            max_loss_ratio=self.run_args.max_loss_ratio,
            closed_attention_learning_rate=self.run_args.closed_attention_learning_rate,
        )

    def _tokens(self, examples: datasets.Dataset, reader: Reader, train: bool = False) -> int:
        """How many tokens the model reads of examples."""
        collator = self.task.collator(reader)
        rows = self.task.rows(examples, reader, train)
        return sum(sum(collator.batch([row], ())["text_lengths"]) for row in rows)

    def _estimate(self, reader: Reader, split: Split, seed: int) -> Estimate:
        """Steps and predictions of all lengths, and two steps at the longest, for their memory."""
        set_seed(seed)
        task, args = self.task, self.args
        reset_peak_memory(args.device)
        rows = task.rows(split.train, reader, train=True)
        plan = _plan(rows, task.collator(reader), args, reader.at_once, seed)
        rows_a_step = args.per_device_train_batch_size * plan.batches_per_step
        model = self._model(reader)
        with tempfile.TemporaryDirectory() as folder:
            settings = on_trial(_run_arguments(args, plan, seed, Path(folder), self.best), folder)
            of_longest = _trial(plan, longest_of(rows, rows_a_step))
            trainer = self._trainer(model, of_longest, split, reader, dataclasses.replace(settings, max_steps=2))
            try_steps(trainer)
            forget(trainer)
            spread = Spread(plan.phases, plan.batches_per_step, plan.seed)
            trainer = self._trainer(model, spread, split, reader, settings)
            timed, often = try_steps(trainer), happenings(trainer, plan.steps)
            saving = checkpoint_seconds(trainer) if often["save"] else 0.0
        tokens_a_step = self._tokens(split.train, reader, train=True) / len(rows) * rows_a_step / args.world_size
        rate = self._prediction_rate(trainer.model, split.test, reader)
        return Estimate(
            parts={
                "training": Part(plan.steps, tokens_a_step / timed.tokens_a_second),
                "evaluations": Part(often["evaluate"], self._tokens(split.validation, reader) / rate),
                "checkpoints": Part(often["save"], saving),
                "test": Part(1, self._tokens(split.test, reader) / rate),
            },
            peak_memory=peak_memory(args.device),
            memory_of=memory_of(args.device),
            training_rate=timed.tokens_a_second,
            prediction_rate=rate,
        )

    def _prediction_rate(self, model: nn.Module, examples: datasets.Dataset, reader: Reader) -> float:
        """Tokens a second, in batches of like length as they are predicted."""
        lengths = examples["length"][:]
        order = sorted(range(len(examples)), key=lambda number: -lengths[number])
        size = self.task.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]

        def of(some: Sequence[list[int]]) -> datasets.Dataset:
            return examples.select([number for batch in some for number in batch])

        return rate_of(
            batches,
            lambda some: self._tokens(of(some), reader),
            lambda some: self.task.predict(model, of(some), reader),
        )


def _drawn_with(splits: list[Split]) -> dict[str, str]:
    """The group of each test example, which was drawn with the others of it."""
    tests = [split.test for split in splits if "group" in split.test.column_names]
    return {name: f"group {group}" for test in tests for name, group in zip(test["id"], test["group"], strict=True)}


def _trial(plan: TrainingPlan, rows: datasets.Dataset) -> TrainingPlan:
    """Two steps of a plan, over some rows."""
    (phase,) = plan.phases
    return TrainingPlan(
        [dataclasses.replace(phase, steps=2, rows=rows, lengths=None)], plan.batches_per_step, plan.seed
    )


def _plan(
    rows: datasets.Dataset, collator: Collator, args: TrainingArguments, max_length: int, seed: int
) -> TrainingPlan:
    batches_per_step = args.gradient_accumulation_steps * args.world_size
    rows_per_step = args.per_device_train_batch_size * batches_per_step
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(rows) / rows_per_step)
    lengths = rows["length"] if args.train_sampling_strategy == "group_by_length" else None
    phase = Phase(steps, max_length, args.per_device_train_batch_size, rows, collator, lengths)
    return TrainingPlan([phase], batches_per_step, seed)


def _run_arguments(
    args: TrainingArguments, plan: TrainingPlan, seed: int, folder: Path, best: dict[str, Any]
) -> TrainingArguments:
    """One run's settings."""
    changes: dict[str, Any] = {"output_dir": str(folder), "max_steps": plan.steps, "seed": seed}
    changes["hub_model_id"] = args.hub_model_id or Path(args.output_dir).absolute().name
    return dataclasses.replace(args, **changes, **best)
