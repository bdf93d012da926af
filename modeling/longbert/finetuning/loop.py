"""One loop for every task: the same examples and seeds over several ways to read a long document, and one table."""

import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import TrainingArguments, set_seed

from ..arguments import described
from ..data.batches import Collator, Phase, TrainingPlan
from ..source import Source
from ..training.freezing import select_parameters
from ..training.memory import checkpoint_activations, peak_memory, reset_peak_memory
from ..training.record import Record
from ..training.resuming import EarlyStopping, find_checkpoint
from ..training.sharding import refuse_division
from ..training.trainer import LongTrainer
from .comparison import ComparisonArguments, Run, choosing_the_best, compare, refuse_names
from .examples.splits import Split, fingerprints
from .results.costs import Cost, RunMeter, memory_of
from .results.estimates import Estimate, StepTimer, evaluations_of
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
    data = fingerprints(splits)
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
        """Two steps, and two batches of the test, at the longest."""
        set_seed(seed)
        task, args = self.task, self.args
        reset_peak_memory(args.device)
        rows = task.rows(split.train, reader, train=True)
        plan = _plan(rows, task.collator(reader), args, reader.at_once, seed)
        with tempfile.TemporaryDirectory() as folder:
            trial = _trial(plan, _longest(rows, args.per_device_train_batch_size * plan.batches_per_step))
            settings = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "push_to_hub": False}
            trial_args = _run_arguments(args, trial, seed, Path(folder), self.best)
            trial_args = dataclasses.replace(trial_args, load_best_model_at_end=False, **settings)
            trainer = self._trainer(self._model(reader), trial, split, reader, trial_args)
            timer = StepTimer.on(trainer)
            trainer.train()
        some = _longest(split.test, 2 * task.batch_size)
        start = time.perf_counter()
        task.predict(trainer.model, some, reader)
        seconds = time.perf_counter() - start
        rows_trained = plan.steps * args.per_device_train_batch_size * plan.batches_per_step
        evaluations = evaluations_of(_run_arguments(args, plan, seed, Path(args.output_dir), self.best), plan.steps)
        return Estimate(
            training_rate=timer.rate(),
            training_tokens=self._tokens(split.train, reader, train=True) / len(rows) * rows_trained / args.world_size,
            prediction_rate=self._tokens(some, reader) / seconds,
            evaluation_tokens=evaluations * self._tokens(split.validation, reader),
            test_tokens=self._tokens(split.test, reader),
            peak_memory=peak_memory(args.device),
            memory_of=memory_of(args.device),
        )


def _longest(rows: datasets.Dataset, number: int) -> datasets.Dataset:
    lengths = rows["length"][:]
    return rows.select(sorted(range(len(rows)), key=lambda row: -lengths[row])[:number])


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
