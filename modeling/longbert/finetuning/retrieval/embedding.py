"""Make an existing sentence encoder read long documents: untrained, with its new positions trained, or all of it.

The table has a row for each way: it reads the same documents in its own way and ranks them for the same queries.
"""

import collections
import dataclasses
import itertools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from sentence_transformers import (
    MultiVectorEncoder,
    MultiVectorEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base import BaseModel
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.base.training_args import BaseTrainingArguments
from sentence_transformers.multi_vector_encoder.losses import CachedMultiVectorMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from transformers import set_seed

from ...arguments import ModelArguments, described
from ...data.features import FRAME
from ...source import Source
from ...training.estimates import (
    Estimate,
    Part,
    on_trial,
    rate_of,
    try_training,
)
from ...training.freezing import freeze_pooler, select_parameters
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
from .collection import Retrieval, RetrievalArguments, read_retrieval, refuse_few, training_pairs
from .contrastive import EmbeddingTrainer, MultiVectorTrainer, PairCollator, PairTrainer, RetrievalEvaluator
from .encoders import KINDS, exchange_model, load_encoder, with_token_vectors
from .reading import Reading, TokenReading, read
from .reporting import fingerprints, lengths_of, reporter
from .ways import NAMES, Way, refuse_sizes, refuse_ways, way_of


OBJECTIVES: dict[bool, tuple[type, type]] = {  # by whether every token has a vector
    False: (EmbeddingTrainer, CachedMultipleNegativesRankingLoss),
    True: (MultiVectorTrainer, CachedMultiVectorMultipleNegativesRankingLoss),
}
TRAINED = {"none": "untrained", "positions": "positions trained", "all": "all trained"}


@dataclass(kw_only=True)
class EmbeddingArguments(ComparisonArguments):
    """How a long document is read, what of the encoder is trained, and how a run is kept safe."""

    strategies: list[str] = described(["long"], f"ways to read a document, of {NAMES}")
    train: list[str] = described(
        ["none"], "what to train of `long`, a row for each: none, positions (the rows past the source's), all"
    )
    train_baselines: bool = described(
        False, "with `train: all`, also train `truncate`, and let the trained encoder read chunks"
    )
    positions_learning_rate: float | None = described(
        None, "learning_rate of positions alone; they stand about ten times the rate of all weights"
    )
    position_sampling: str = described(
        "none", "offset: in training, documents stand anywhere in the model's reach, not only at its start"
    )
    mini_batch_size: int = described(
        8, "texts in memory at once in training; per_device_train_batch_size sets how many negatives there are"
    )
    # a contrastive loss comes near 0, where one hard batch is many times the mean
    max_loss_ratio: float = described(100.0, "stop if a loss is this many times the mean of the last 100 steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_ways(self.strategies)
        refuse_names("train", self.train, TRAINED)
        if self.position_sampling not in ("none", "offset"):
            raise ValueError(f"position_sampling must be none or offset, got {self.position_sampling!r}")
        for row in self.rows():
            needs = way_of(row.strategy).trained_as
            if row.trained and not row.trains and needs not in self.strategies[: self.strategies.index(row.strategy)]:
                raise ValueError(
                    f"{row.strategy} is read by the trained encoder of {needs}: put {needs} before it among "
                    f"strategies, got {', '.join(self.strategies)}"
                )
        if self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size must be at least 1, got {self.mini_batch_size}")

    def rows(self) -> list["Row"]:
        """The table's rows, in the order of the settings; the first is compared with the others."""
        rows = []
        for name in self.strategies:
            way = way_of(name)
            trains = self.train if way.extended else ["none"]
            if not way.extended and not way.as_shipped and self.train_baselines:
                trains = ["none", *({"all"} & {*self.train})]
            rows += [Row(name, each) for each in trains]
        return rows


@dataclass(frozen=True)
class Row:
    """How documents are read, and what of the encoder was trained."""

    strategy: str
    train: str

    @property
    def trained(self) -> bool:
        """Whether any weight was trained."""
        return self.train != "none"

    @property
    def trains(self) -> bool:
        """Whether the row's own encoder is trained; chunks are read by that of another."""
        return self.trained and not way_of(self.strategy).pooled

    @property
    def title(self) -> str:
        """Its name in the table."""
        named = self.trained or way_of(self.strategy).extended
        return f"{self.strategy}, {TRAINED[self.train]}" if named else self.strategy


@dataclass
class Comparison:
    """One test, read in several ways by encoders that were trained on the same pairs.

    Args:
        pairs: `query`, `document`, `id`, `length`; none where nothing is trained.
        validation: chooses the best checkpoint; None if the last one is kept.
    """

    source: Source
    test: Retrieval
    pairs: datasets.Dataset
    validation: Retrieval | None
    run_args: EmbeddingArguments
    args: SentenceTransformerTrainingArguments
    metric: Figures = field(default_factory=RetrievalMetric)
    readings: dict[Any, tuple[Reading | TokenReading, Cost]] = field(default_factory=dict)

    def run(self, row: Row) -> Run:
        """A row of the table."""
        folder = self._folder(row)
        return Run(
            row.title,
            folder,
            row.trains,
            predict=lambda: self._predictions(row, folder),
            estimate=lambda: self._estimate(row),
        )

    def _way(self, row: Row) -> Way:
        return way_of(row.strategy, self.source.native.pretrained_positions)

    def _folder(self, row: Row) -> Path:
        return Path(self.args.output_dir, row.strategy, row.train)

    def _predictions(self, row: Row, folder: Path) -> tuple[Lines, Cost]:
        """Load, extend, train, save, read and rank."""
        way = self._way(row)
        key = dataclasses.replace(way, nearest=False), row.train  # chunks are read once for their mean and their best
        if key not in self.readings:
            meter = RunMeter(self.args.device)
            encoder = self._encoder(row, folder, meter)
            start = time.perf_counter()
            reading = read(encoder, self.test, way, self.args.per_device_eval_batch_size)
            seconds = time.perf_counter() - start
            self.readings[key] = reading, meter.cost(seconds, reading.tokens, len(self.test.documents))
        reading, cost = self.readings[key]
        vectors, stored = reading.stored(way.nearest)
        cost = dataclasses.replace(cost, vectors=vectors, stored_bytes=stored)
        return self.test.lines(reading.similarities(way.nearest)), cost

    def _encoder(self, row: Row, folder: Path, meter: RunMeter) -> BaseModel:
        """The encoder of a row, trained and saved; chunks are read by the trained encoder of another way."""
        set_seed(self.args.seed)
        way = self._way(row)
        if row.trained and way.pooled:
            trained = self._folder(Row(way.trained_as, row.train))
            if cost := kept_cost(trained):
                meter.measured = {name: getattr(cost, name) for name in ("training_seconds", "training_tokens")}
            return self._in_chunks(trained, way)
        encoder = self._untrained(row)
        if row.trained:
            checkpoint = find_checkpoint(str(folder), self.run_args.resume, may_rename=self.args.process_index == 0)
            trainer = self._trainer(encoder, row, self._arguments(encoder, row, folder))
            if self.run_args.early_stopping_patience:
                trainer.add_callback(EarlyStopping(self.run_args.early_stopping_patience))
            meter.train(trainer, checkpoint)
            trainer.save_result()
        elif way.extended and self.args.process_index == 0:
            encoder.save_pretrained(str(folder))
        return encoder

    def _untrained(self, row: Row) -> BaseModel:
        """The source as a row's strategy reads with it."""
        way = self._way(row)
        encoder: BaseModel = load_encoder(self.source, self.args.prompts, str(self.args.device))
        if way.by_token:
            encoder = with_token_vectors(encoder)
        reader = Reader.of(way, self.source, self.run_args.max_length)
        length = encoder.max_seq_length if way.as_shipped else reader.at_once
        exchange_model(encoder, self.source, self.source.config if way.extended else self.source.native, length)
        return encoder

    def _in_chunks(self, trained: Path, way: Way) -> BaseModel:
        """A trained encoder that reads no more at once than a way does."""
        kind = MultiVectorEncoder if way.by_token else SentenceTransformer
        encoder = kind(str(trained), device=str(self.args.device))
        encoder.max_seq_length = Reader.of(way, self.source, self.run_args.max_length).at_once
        return encoder

    def _trainer(
        self,
        encoder: BaseModel,
        row: Row,
        args: BaseTrainingArguments,
        pairs: datasets.Dataset | None = None,
    ) -> PairTrainer:
        """The trainer of a row.

        Args:
            pairs: by default all.
        """
        way = self._way(row)
        if row.train == "positions":
            encoder.requires_grad_(False)  # other modules too may have weights
        select_parameters(encoder[0].model, [row.train])
        freeze_pooler(encoder[0].model)
        longest = min(max(self.pairs["length"]), encoder.max_seq_length)
        if longest >= self.run_args.checkpoint_from:
            checkpoint_activations(encoder[0].model, longest)
        offset = self.run_args.position_sampling == "offset" and way.extended
        trainer_class, loss_class = OBJECTIVES[way.by_token]
        loss = loss_class(
            encoder, mini_batch_size=self.run_args.mini_batch_size, gather_across_devices=args.world_size > 1
        )
        evaluator = None
        if self.validation is not None:
            evaluator = RetrievalEvaluator(self.metric, self.validation, way, args.per_device_eval_batch_size)
        return trainer_class(
            model=encoder,
            args=args,
            # the sampler takes any value that two pairs share for a duplicate
            train_dataset=(self.pairs if pairs is None else pairs).remove_columns("length"),
            data_collator=PairCollator(
                encoder.preprocess, prompts=args.prompts, reach=encoder.max_seq_length if offset else None
            ),
            loss=loss,
            evaluator=evaluator,
            max_loss_ratio=self.run_args.max_loss_ratio,
            closed_attention_learning_rate=self.run_args.closed_attention_learning_rate,
        )

    def _estimate(self, row: Row) -> Estimate:
        """Steps, where a row trains an encoder of its own, and readings, of documents of all lengths; and two steps of
        the longest, for their memory."""
        set_seed(self.args.seed)
        args, way = self.args, self._way(row)
        reset_peak_memory(args.device)
        encoder = self._untrained(row)
        parts = dict(NOTHING)
        training_rate, often = None, collections.Counter[str]()
        if row.trains:
            with tempfile.TemporaryDirectory() as folder:
                settings = on_trial(self._arguments(encoder, row, Path(folder)), folder)
                longest = _different(self.pairs, 2 * args.train_batch_size)
                steps, steps_an_epoch = self._steps()
                trial = try_training(
                    lambda settings, pairs: self._trainer(encoder, row, settings, pairs),
                    settings,
                    longest,
                    steps,
                    steps_an_epoch,
                )
            training_rate, often = trial.tokens_a_second, trial.often
            parts["training"] = Part(steps, self._tokens_a_step(encoder) / training_rate)
            parts["checkpoints"] = Part(often["save"], trial.seconds_a_checkpoint)
        rate = self._reading_rate(encoder, way)
        if self.validation is not None:
            parts["evaluations"] = Part(often["evaluate"], _tokens(self.validation, encoder, way) / rate)
        parts["test"] = Part(1, _tokens(self.test, encoder, way) / rate)
        return Estimate(
            parts=parts,
            peak_memory=peak_memory(args.device),
            memory_of=memory_of(args.device),
            training_rate=training_rate,
            prediction_rate=rate,
        )

    def _steps(self) -> tuple[int, int]:
        """Of the run, and of an epoch."""
        args = self.args
        an_epoch = math.ceil(len(self.pairs) / self._pairs_a_step())
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch), an_epoch

    def _pairs_a_step(self) -> int:
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _tokens_a_step(self, encoder: BaseModel) -> float:
        """That one process reads, on average."""
        queries = encoder.tokenizer(self.pairs["query"][:], verbose=False)["input_ids"]
        lengths = itertools.chain(self.pairs["length"], map(len, queries))
        read_of = (min(length, encoder.max_seq_length) for length in lengths)
        return sum(read_of) / len(self.pairs) * self._pairs_a_step() / self.args.world_size

    def _reading_rate(self, encoder: BaseModel, way: Way) -> float:
        """Tokens a second, in batches of documents of like length."""
        size = self.args.per_device_eval_batch_size
        names = sorted(self.test.documents, key=lambda name: -len(self.test.documents[name].ids))
        batches = [names[start : start + size] for start in range(0, len(names), size)]

        def of(some: Sequence[list[str]]) -> Retrieval:
            documents = {name: self.test.documents[name] for batch in some for name in batch}
            return Retrieval(documents, self.test.queries[:1], self.test.groups)

        return rate_of(
            batches, lambda some: _tokens(of(some), encoder, way), lambda some: read(encoder, of(some), way, size)
        )

    def _arguments(self, encoder: BaseModel, row: Row, folder: Path) -> BaseTrainingArguments:
        """One run's settings."""
        changes: dict[str, Any] = {
            "output_dir": str(folder),
            "hub_model_id": self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            "prompts": {kind: encoder.prompts[kind] for kind in KINDS},
            # a query's own document must never count as another's
            "batch_sampler": BatchSamplers.NO_DUPLICATES,
        }
        if row.train == "positions" and self.run_args.positions_learning_rate is not None:
            changes["learning_rate"] = self.run_args.positions_learning_rate
        best = choosing_the_best(self.run_args, self.args, self.metric)
        if not self._way(row).by_token:
            return dataclasses.replace(self.args, **changes, **best)
        told = {each.name: getattr(self.args, each.name) for each in dataclasses.fields(self.args) if each.init}
        return MultiVectorEncoderTrainingArguments(**{**told, **changes, **best})


def _different(pairs: datasets.Dataset, number: int) -> datasets.Dataset:
    """The pairs of the longest documents, no query or document twice."""
    lengths = pairs["length"][:]
    seen: set[str] = set()
    chosen: list[int] = []
    for place in sorted(range(len(pairs)), key=lambda place: -lengths[place]):
        texts = {pairs[place]["query"], pairs[place]["document"]}
        if not texts & seen:
            seen |= texts
            chosen.append(place)
        if len(chosen) == number:
            break
    return pairs.select(chosen)


def _tokens(retrieval: Retrieval, encoder: BaseModel, way: Way) -> int:
    """Tokens that are read of a test, prompts left out."""
    size = encoder.max_seq_length - FRAME
    pieces = [piece for document in retrieval.documents.values() for piece in way.pieces(document.ids, size)]
    queries = [query.ids[:size] for query in retrieval.queries]
    return sum(len(text) + FRAME for text in (*pieces, *queries))


def run_embedding(
    model_args: ModelArguments,
    retrieval_args: RetrievalArguments,
    run_args: EmbeddingArguments,
    args: SentenceTransformerTrainingArguments,
) -> None:
    """Check the examples, say how long they are, keep the settings, train and test every row, print what came out.

    Encoders and predictions lie in `output_dir/STRATEGY/{none,positions,all}`, the tables in `output_dir/results.md`
    and `results.json`.

    Raises:
        FileExistsError: there is something in `output_dir`, and nothing is to be resumed.
        ValueError: examples or settings that cannot be used, or several encoders to push.
    """
    rows = run_args.rows()
    if divides := division(args):
        raise ValueError(
            f"a sentence encoder cannot be divided by {divides}: launch with configs/accelerate/ddp.yaml, where "
            "mini_batch_size is what bounds the memory"
        )
    record = Record.claim(args, run_args, model_args, retrieval_args)
    _refuse_settings(model_args, args)
    choosing_the_best(run_args, args, RetrievalMetric())
    source = Source.of(model_args)
    source_length = source.native.pretrained_positions
    refuse_sizes(run_args.strategies, source_length)
    encoder = load_encoder(source)
    _refuse_pooling(run_args.strategies, encoder)
    test = read_retrieval(str(retrieval_args.test_folder), encoder.tokenizer, source_length, retrieval_args)
    pairs, validation = datasets.Dataset.from_list([]), None
    if any(row.trains for row in rows):
        pairs, validation = _training_examples(retrieval_args, run_args, args, encoder, source_length)
    record.begin(source.digest(), fingerprints(pairs, validation, test))
    if args.process_index == 0:
        modules = ", ".join(type(module).__name__ for module in encoder)
        print(f"{source.path}: {modules}, {encoder.max_seq_length} tokens")
    comparison = Comparison(source, test, pairs, validation, run_args, args)
    reach = max(Reader.of(way_of(row.strategy), source, run_args.max_length).at_once for row in rows)

    extended = [row.title for row in rows if way_of(row.strategy).extended]
    report = reporter(comparison.metric, test, source_length, reach, extended)
    runs = [*map(comparison.run, rows), run_of_words(test, args)]
    compare(runs, report, lengths_of(test), source_length, record)


def _refuse_settings(model_args: ModelArguments, args: SentenceTransformerTrainingArguments) -> None:
    """Raise `ValueError` for settings that an encoder cannot have."""
    if model_args.tokenizer is not None:
        raise ValueError("a sentence encoder brings its tokenizer along: leave tokenizer out")
    if not isinstance(args.prompts or {}, dict) or {*(args.prompts or {})} - {*KINDS}:
        raise ValueError(f"prompts must be a text for each of {', '.join(KINDS)}, got {args.prompts!r}")


def _refuse_pooling(strategies: Sequence[str], encoder: BaseModel) -> None:
    """Raise `ValueError` where passages are to be pooled from an encoder that does not pool tokens."""
    late = [name for name in strategies if way_of(name).late]
    pooling = getattr(encoder[1], "pooling_mode", None)
    if late and pooling != "mean":
        raise ValueError(
            f"{late[0]} takes the mean of a passage's tokens, and this encoder pools by {pooling}: leave {late[0]} "
            "out, or name an encoder that pools by mean"
        )


def _training_examples(
    retrieval_args: RetrievalArguments,
    run_args: EmbeddingArguments,
    args: SentenceTransformerTrainingArguments,
    encoder: BaseModel,
    source_length: int,
) -> tuple[datasets.Dataset, Retrieval | None]:
    """The pairs to train on, and the test that chooses the best checkpoint, if one is chosen."""
    evaluates = args.eval_strategy != "no"
    pairs, validation = training_pairs(retrieval_args, encoder.tokenizer, source_length, evaluates)
    refuse_few(pairs, args.train_batch_size)
    if (
        "positions" in run_args.train
        and run_args.position_sampling == "none"
        and max(pairs["length"]) <= source_length
    ):
        raise ValueError(
            f"no document of train_file has more than {source_length} tokens, so no new position would be trained: "
            "set position_sampling to offset, or train on longer documents"
        )
    return pairs, validation
