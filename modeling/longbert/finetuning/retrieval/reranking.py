"""Train a cross-encoder that reads whole documents, and compare it with what 512 tokens and chunks of 512 rank."""

import collections
import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from sentence_transformers import CrossEncoder, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import set_seed

from ...arguments import ModelArguments, described
from ...source import Source
from ...training.estimates import Estimate, Part, longest_of, on_trial, rate_of, try_training
from ...training.memory import checkpoint_activations, memory_of, peak_memory, reset_peak_memory
from ...training.record import Record
from ...training.resuming import EarlyStopping, find_checkpoint
from ...training.sharding import division
from ..comparison import ComparisonArguments, Run, choosing_the_best, compare, kept_cost, refuse_names
from ..results.costs import Cost, RunMeter
from ..results.metrics import Figures, RetrievalMetric
from ..results.report import Lines
from ..strategies import Reader
from .bm25 import NOTHING, run_of_words
from .collection import Retrieval, RetrievalArguments, read_retrieval, training_pairs
from .reporting import fingerprints, lengths_of, reporter
from .reranker import (
    Candidates,
    LabelledCollator,
    RerankingEvaluator,
    RerankingTrainer,
    label_pairs,
    load_reranker,
)
from .ways import WAYS


READ = ("long", "truncate", "chunk-max")


@dataclass(kw_only=True)
class RerankingArguments(ComparisonArguments):
    """How a long document is read with a query, what is learned from, and how a run is kept safe."""

    strategies: list[str] = described(
        ["long"],
        f"ways to read a document, of {', '.join(READ)}; chunk-max reads with what truncate trains",
    )
    train: bool = described(True, "false: the source is a reranker already, and only reads further")
    candidates: int = described(50, "documents that BM25 finds first, which are ranked again")
    negatives: int = described(4, "wrong documents for each pair to train on, those that BM25 finds first")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_names("strategies", self.strategies, READ)
        for name in ("candidates", "negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        before = self.strategies[: self.strategies.index("chunk-max")] if "chunk-max" in self.strategies else None
        if self.train and before is not None and "truncate" not in before:
            raise ValueError(
                "chunk-max reads with what truncate trains: put truncate before it among strategies, got "
                f"{', '.join(self.strategies)}"
            )


@dataclass
class Reranking:
    """One test, whose candidates are ranked again in several ways by rerankers that were trained on the same pairs.

    Args:
        pairs: to train on, labelled; none where nothing is trained.
        validation: chooses the best checkpoint; None if the last one is kept.
    """

    source: Source
    test: Candidates
    pairs: datasets.Dataset
    validation: Candidates | None
    run_args: RerankingArguments
    args: CrossEncoderTrainingArguments
    metric: Figures = field(default_factory=RetrievalMetric)

    def run(self, name: str) -> Run:
        """A row of the table."""
        trains = self.run_args.train and name != "chunk-max"
        return Run(
            name,
            self._folder(name),
            trains,
            predict=lambda: self._predictions(name, trains),
            estimate=lambda: self._estimate(name, trains),
        )

    def _folder(self, name: str) -> Path:
        return Path(self.args.output_dir, name)

    def _predictions(self, name: str, trains: bool) -> tuple[Lines, Cost]:
        """Load, extend, train, save, and rank again."""
        set_seed(self.args.seed)
        meter = RunMeter(self.args.device)
        reranker = self._trained(name, meter) if trains else self._finished(name, meter)
        start = time.perf_counter()
        scores = self.test.scores(reranker, WAYS[name], self.args.per_device_eval_batch_size)
        seconds, tokens = time.perf_counter() - start, _tokens(self.test, reranker, name)
        return self.test.test.lines(scores), meter.cost(seconds, tokens, len(self.test.test.documents))

    def _trained(self, name: str, meter: RunMeter) -> CrossEncoder:
        """A row's own reranker, trained and saved."""
        folder, reranker = self._folder(name), self._untrained(name)
        checkpoint = find_checkpoint(str(folder), self.run_args.resume, may_rename=self.args.process_index == 0)
        trainer = self._trainer(reranker, name, self._arguments(folder))
        if self.run_args.early_stopping_patience:
            trainer.add_callback(EarlyStopping(self.run_args.early_stopping_patience))
        meter.train(trainer, checkpoint)
        trainer.save_result()
        return reranker

    def _finished(self, name: str, meter: RunMeter) -> CrossEncoder:
        """What `truncate` has trained, or the source, which is a reranker."""
        if self.run_args.train:
            trained = self._folder("truncate")
            if cost := kept_cost(trained):
                meter.measured = {each: getattr(cost, each) for each in ("training_seconds", "training_tokens")}
            return CrossEncoder(str(trained), device=str(self.args.device))
        reranker = self._untrained(name)
        if WAYS[name].extended and self.args.process_index == 0:
            reranker.save_pretrained(str(self._folder(name)))
        return reranker

    def _untrained(self, name: str) -> CrossEncoder:
        """The source as a strategy reads with it."""
        way = WAYS[name]
        config = self.source.config if way.extended else self.source.native
        length = Reader.of(way, self.source, self.run_args.max_length).at_once
        return load_reranker(self.source, config, length, str(self.args.device), trained=not self.run_args.train)

    def _trainer(
        self,
        reranker: CrossEncoder,
        name: str,
        args: CrossEncoderTrainingArguments,
        pairs: datasets.Dataset | None = None,
    ) -> RerankingTrainer:
        """The trainer of a row.

        Args:
            pairs: by default all.
        """
        longest = min(max(self.pairs["length"]), reranker.max_seq_length)
        if longest >= self.run_args.checkpoint_from:
            checkpoint_activations(reranker[0].model, longest)
        evaluator = None
        if self.validation is not None:
            evaluator = RerankingEvaluator(self.metric, self.validation, WAYS[name], args.per_device_eval_batch_size)
        return RerankingTrainer(
            model=reranker,
            args=args,
            train_dataset=self.pairs if pairs is None else pairs,
            data_collator=LabelledCollator(reranker.preprocess, prompts=args.prompts),
            # one right document weighs as much as the wrong ones beside it
            loss=BinaryCrossEntropyLoss(reranker, pos_weight=torch.tensor(float(self.run_args.negatives))),
            evaluator=evaluator,
            max_loss_ratio=self.run_args.max_loss_ratio,
            closed_attention_learning_rate=self.run_args.closed_attention_learning_rate,
        )

    def _arguments(self, folder: Path) -> CrossEncoderTrainingArguments:
        """One run's settings."""
        hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        best = choosing_the_best(self.run_args, self.args, self.metric)
        return dataclasses.replace(self.args, output_dir=str(folder), hub_model_id=hub_model_id, **best)

    def _estimate(self, name: str, trains: bool) -> Estimate:
        """Steps, where a row trains a reranker of its own, and readings, of documents of all lengths; and two steps
        of the longest, for their memory."""
        set_seed(self.args.seed)
        reset_peak_memory(self.args.device)
        reranker = self._untrained(name) if trains or not self.run_args.train else self._untrained("truncate")
        parts, often, training_rate = dict(NOTHING), collections.Counter[str](), None
        if trains:
            a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            an_epoch = math.ceil(len(self.pairs) / a_step)
            steps = (
                self.args.max_steps if self.args.max_steps > 0 else math.ceil(self.args.num_train_epochs * an_epoch)
            )
            longest = longest_of(self.pairs, 2 * a_step)
            with tempfile.TemporaryDirectory() as folder:
                trial = try_training(
                    lambda settings, pairs: self._trainer(reranker, name, settings, pairs),
                    on_trial(self._arguments(Path(folder)), folder),
                    longest,
                    steps,
                    an_epoch,
                )
            training_rate, often = trial.tokens_a_second, trial.often
            read = sum(min(length, reranker.max_seq_length) for length in self.pairs["length"])
            tokens_a_step = read / len(self.pairs) * a_step / self.args.world_size
            parts["training"] = Part(steps, tokens_a_step / training_rate)
            parts["checkpoints"] = Part(often["save"], trial.seconds_a_checkpoint)
        rate = self._reading_rate(reranker, name)
        if self.validation is not None:
            parts["evaluations"] = Part(often["evaluate"], _tokens(self.validation, reranker, name) / rate)
        parts["test"] = Part(1, _tokens(self.test, reranker, name) / rate)
        return Estimate(
            parts=parts,
            peak_memory=peak_memory(self.args.device),
            memory_of=memory_of(self.args.device),
            training_rate=training_rate,
            prediction_rate=rate,
        )

    def _reading_rate(self, reranker: CrossEncoder, name: str) -> float:
        """Tokens a second, query by query."""

        def of(queries: Any) -> Candidates:
            some = torch.zeros_like(self.test.places)
            some[list(queries)] = self.test.places[list(queries)]
            return Candidates(self.test.test, some)

        return rate_of(
            range(len(self.test.places)),
            lambda queries: _tokens(of(queries), reranker, name),
            lambda queries: of(queries).scores(reranker, WAYS[name], self.args.per_device_eval_batch_size),
        )


def _tokens(candidates: Candidates, reranker: CrossEncoder, name: str) -> int:
    return sum(tokens for tokens, *_ in candidates.inputs(reranker, WAYS[name]))


def run_reranking(
    model_args: ModelArguments,
    retrieval_args: RetrievalArguments,
    run_args: RerankingArguments,
    args: CrossEncoderTrainingArguments,
) -> None:
    """Check the examples, say how long they are, keep the settings, train and test every row, print what came out.

    Rerankers and predictions lie in `output_dir/STRATEGY`, the tables in `output_dir/results.md` and `results.json`.

    Raises:
        FileExistsError: there is something in `output_dir`, and nothing is to be resumed.
        ValueError: examples or settings that cannot be used, or several rerankers to push.
    """
    if divides := division(args):
        raise ValueError(f"a reranker cannot be divided by {divides}: launch with configs/accelerate/ddp.yaml")
    record = Record.claim(args, run_args, model_args, retrieval_args)
    if model_args.tokenizer is not None:
        raise ValueError("a reranker brings its tokenizer along: leave tokenizer out")
    choosing_the_best(run_args, args, RetrievalMetric())
    source = Source.of(model_args)
    source_length = source.native.pretrained_positions
    reach = max(Reader.of(WAYS[name], source, run_args.max_length).at_once for name in run_args.strategies)
    if not run_args.train:
        load_reranker(source, source.native, source_length, trained=True)  # refuses what has no head
    test = read_retrieval(str(retrieval_args.test_folder), source.tokenizer, source_length, retrieval_args)
    pairs, validation = datasets.Dataset.from_list([]), None
    if run_args.train:
        pairs, validation = _training_examples(retrieval_args, run_args, args, source, reach)
    record.begin(source.digest(), fingerprints(pairs, validation, test))
    extended = [name for name in run_args.strategies if WAYS[name].extended]
    comparison = Reranking(
        source,
        Candidates.of(test, run_args.candidates),
        pairs,
        None if validation is None else Candidates.of(validation, run_args.candidates),
        run_args,
        args,
    )
    runs = [*map(comparison.run, run_args.strategies), run_of_words(test, args)]
    report = reporter(comparison.metric, test, source_length, reach, extended)
    compare(runs, report, lengths_of(test), source_length, record)


def _training_examples(
    retrieval_args: RetrievalArguments,
    run_args: RerankingArguments,
    args: CrossEncoderTrainingArguments,
    source: Source,
    reach: int,
) -> tuple[datasets.Dataset, Retrieval | None]:
    """The labelled pairs to train on, and the test that chooses the best checkpoint, if one is chosen."""
    evaluates, source_length = args.eval_strategy != "no", source.native.pretrained_positions
    pairs, validation = training_pairs(retrieval_args, source.tokenizer, source_length, evaluates)
    labelled = label_pairs(pairs, run_args.negatives, source.tokenizer, reach)
    if all(labelled["label"]):
        raise ValueError("train_file has one document, so no wrong one to tell it from: give it more")
    return labelled, validation
