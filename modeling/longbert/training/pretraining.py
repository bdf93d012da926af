"""The parts of continued pretraining, in the order in which train.py uses them."""

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging

from ..arguments import RETRIEVAL_AWARE, DataArguments, PretrainingArguments
from ..configuration_longbert import LongBertConfig
from ..data.batches import Phase, StreamedPlan, TrainingPlan
from ..data.documents import Documents
from ..data.masking import FAR_RATE, RowMasker, TokenMasker, masked_share, unspaced_share
from ..data.rows import RowCount, RowSettings, make_rows, tokenize
from ..data.words import Segmenter
from ..folders import damage
from ..proof import Prover
from ..scoring import MaskedDocument, cutter, score
from ..source import PretrainingModel, Source
from ..tables import table
from .estimates import (
    Estimate,
    Part,
    Spread,
    checkpoint_seconds,
    forget,
    happenings,
    on_trial,
    rate_of,
    try_steps,
)
from .freezing import select_parameters
from .memory import checkpoint_activations, memory_of, peak_memory
from .resuming import find_checkpoint
from .sequence_parallel import share_sequences
from .trainer import LongTrainer


logger = logging.get_logger(__name__)

UNSPACED_SHARE = 0.01  # of tokens: fewer are names and quotations in a text of another script


def tokenize_for(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments, run_args: PretrainingArguments
) -> Documents:
    """Tokens, with sentence boundaries where the objective needs them."""
    return tokenize(documents, tokenizer, run_args.objective != "mlm", data_args.skip_empty)


def make_mask(
    tokens: Documents, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments, reach: int
) -> TokenMasker:
    """What masks the tokens of a run.

    Args:
        reach: tokens past which, for retrieval-aware masking, it is far.

    Raises:
        ValueError: whole words are to be masked, and nothing tells the words of these texts.
    """
    segmenter = Segmenter(data_args.word_segmenter) if data_args.word_segmenter else None
    far = reach if data_args.masking == RETRIEVAL_AWARE else None
    mask = TokenMasker(tokenizer, data_args.mlm_probability, data_args.whole_word_mask, segmenter, far)
    share = unspaced_share(tokens, tokenizer) if data_args.whole_word_mask else 0.0
    if share >= UNSPACED_SHARE and segmenter is None:
        raise ValueError(
            f"whole_word_mask: {share:.1%} of the tokens belong to scripts that write no spaces, where ## marks no "
            "words: set word_segmenter, such as rjieba for Chinese (pip install 'longbert[chinese]'), or "
            "whole_word_mask: false"
        )
    return mask


def reach_of(config: LongBertConfig) -> int:
    """Tokens to each side that a token's window reaches; under full attention half of the source's length."""
    return (config.attention_window or config.pretrained_positions) // 2


def make_plan(
    tokens: Documents,
    source: Source,
    data_args: DataArguments,
    run_args: PretrainingArguments,
    args: TrainingArguments,
) -> TrainingPlan | StreamedPlan:
    """Plan what every step of the run reads, and print what became of the documents.

    A step has `per_device_train_batch_size` rows of `max_seq_length`, or as many tokens in shorter rows.
    """
    mask = make_mask(tokens, source.tokenizer, data_args, reach_of(source.config))
    reach = source.config.max_position_embeddings if run_args.position_sampling == "offset" else None
    masker = RowMasker(source.tokenizer, mask, data_args.packing, reach)
    short = data_args.short_seq_probability
    batches_per_step = args.gradient_accumulation_steps * args.world_size // run_args.sequence_parallel_size
    phases = []
    for share, length in run_args.phases():
        settings = RowSettings(
            max_seq_length=length,
            stride=data_args.stride,
            packing=data_args.packing,
            objective=run_args.objective,
            short_seq_probability=short if short is not None else 0.1 * (run_args.objective != "mlm"),
            seed=args.seed,
        )
        rows = make_rows(tokens, settings)
        batch_size = args.per_device_train_batch_size * run_args.max_seq_length // length
        if isinstance(rows, datasets.Dataset) and args.process_index == 0:
            print(RowCount.of(tokens, rows, settings))
        if mask.far is not None and args.process_index == 0:
            print(
                f"retrieval-aware masking: {masked_share(rows, masker, args.seed):.1%} of the tokens are predicted: "
                f"those whose nearest twin is more than {mask.far} tokens away are chosen {FAR_RATE} times as often"
            )
        if args.max_steps > 0:
            steps = share * args.max_steps
        elif isinstance(rows, datasets.Dataset):
            steps = share * args.num_train_epochs * len(rows) / (batch_size * batches_per_step)
        else:
            raise ValueError("streaming needs max_steps, because the length of an epoch is not known")
        phases.append(Phase(max(1, math.ceil(steps - 1e-9)), length, batch_size, rows, masker))
    if args.max_steps > 0:  # rounding up must not lengthen the run
        longest = max(phases, key=lambda phase: phase.steps)
        longest.steps -= sum(phase.steps for phase in phases) - args.max_steps
    plan_class = StreamedPlan if data_args.streaming else TrainingPlan
    return plan_class(phases, batches_per_step, args.seed)


def train_natively(
    source: Source,
    tokens: Documents,
    data_args: DataArguments,
    run_args: PretrainingArguments,
    args: TrainingArguments,
    prover: Prover,
) -> Source:
    """Train the source's MLM head at the source's own length; the result is the source that the run then extends.

    Kept in `output_dir/native`, where a resumed run finds it.
    """
    folder = Path(args.output_dir, "native")
    if damage(folder / "model") is not None:
        model, plan, native_run, native_args = _native_run(source, tokens, data_args, run_args, args)
        trainer = make_trainer(model, plan, source, native_run, native_args, prover)
        trainer.train_or_stop(
            find_checkpoint(str(folder), run_args.resume and "auto", may_rename=args.process_index == 0)
        )
        trainer.save_whole(folder / "model")
    return dataclasses.replace(source, path=str(folder / "model"))


def _native_run(
    source: Source,
    tokens: Documents,
    data_args: DataArguments,
    run_args: PretrainingArguments,
    args: TrainingArguments,
) -> tuple[PretrainingModel, TrainingPlan | StreamedPlan, PretrainingArguments, TrainingArguments]:
    """The model, plan and settings of the training at the source's own length."""
    length = source.native.max_position_embeddings
    native_run = dataclasses.replace(
        run_args,
        max_seq_length=length,
        length_schedule=run_args.native_length_schedule,
        position_sampling="none",
        train_only=["all"],
    )
    native_args = dataclasses.replace(
        args,
        output_dir=str(Path(args.output_dir, "native")),
        max_steps=run_args.native_steps,
        per_device_train_batch_size=args.per_device_train_batch_size * max(1, run_args.max_seq_length // length),
        eval_strategy="no",
        load_best_model_at_end=False,
        push_to_hub=False,
    )
    plan = make_plan(tokens, dataclasses.replace(source, config=source.native), data_args, native_run, native_args)
    return source.load(source.native, run_args.objective), plan, native_run, native_args


def prepare(
    source: Source,
    tokens: Documents,
    data_args: DataArguments,
    run_args: PretrainingArguments,
    args: TrainingArguments,
) -> tuple[PretrainingModel, TrainingPlan | StreamedPlan]:
    """The model, ready to be trained, and the plan of its training."""
    model = source.load(source.config, run_args.objective)
    print(select_parameters(model, run_args.train_only))
    share_sequences(model, run_args.sequence_parallel_size)
    if run_args.max_seq_length >= run_args.checkpoint_from:
        print(checkpoint_activations(model, run_args.max_seq_length))
    return model, make_plan(tokens, source, data_args, run_args, args)


def make_trainer(
    model: PretrainingModel,
    plan: TrainingPlan | StreamedPlan,
    source: Source,
    run_args: PretrainingArguments,
    args: TrainingArguments,
    prover: Prover,
) -> LongTrainer:
    """The trainer of a plan."""
    return LongTrainer(
        model=model,
        args=dataclasses.replace(args, max_steps=plan.steps),
        train_dataset=plan,
        processing_class=source.tokenizer,
        evaluator=prover.metrics,
        max_loss_ratio=run_args.max_loss_ratio,
        closed_attention_learning_rate=run_args.closed_attention_learning_rate,
        sequence_parallel_size=run_args.sequence_parallel_size,
    )


def dry_run(
    source: Source,
    tokens: Documents,
    data_args: DataArguments,
    run_args: PretrainingArguments,
    args: TrainingArguments,
    prover: Prover,
) -> str:
    """Try what the run would do, and say what that would cost; nothing is left of it."""
    with tempfile.TemporaryDirectory() as folder:
        args = on_trial(args, folder)
        parts: dict[str, Part] = {}
        if run_args.native_steps:
            model, plan, native_run, native_args = _native_run(source, tokens, data_args, run_args, args)
            trial = _Trial(model, plan, source, native_run, native_args, prover)
            parts |= {f"native {name}": part for name, part in trial.training().items()}
            del model, trial
        model, plan = prepare(source, tokens, data_args, run_args, args)
        trial = _Trial(model, plan, source, run_args, args, prover)
        parts |= trial.training()
        whole, chunks = trial.reading(None), trial.reading(prover.proof.source_length)
        estimate = Estimate(
            parts={
                **parts,
                "evaluations": Part(trial.often["evaluate"], whole),
                "readings of whole texts for the proof": Part(2, whole),
                "readings of chunks for the proof": Part(2 if source.path else 1, chunks),
            },
            peak_memory=peak_memory(args.device),
            memory_of=memory_of(args.device),
            training_rate=trial.rate,
            prediction_rate=sum(len(text.input_ids) for text in prover.texts) / whole,
        )
    rows = {
        name: [f"{part.times:,}", f"{part.seconds_each:,.3g}", f"{part.seconds / 3600:,.4f}"]
        for name, part in estimate.parts.items()
        if part.times
    }
    return (
        f"dry run, nothing is written: {plan.steps:,} steps of "
        f"{plan.phases[0].batch_size * plan.phases[0].max_seq_length:,} x {plan.batches_per_step} tokens\n\n"
        f"{table(('times', 's each', 'h'), rows)}\n\n"
        f"memory at its peak: {estimate.peak_memory / 1e9:.2f} GB ({estimate.memory_of})\n"
        f"tokens a second in each process, without padding: {estimate.training_rate:,.0f} in training at "
        f"{run_args.max_seq_length:,} tokens a row, {estimate.prediction_rate:,.0f} in evaluations\n"
        f"expected in all: {estimate.seconds / 3600:.4f} h after the start"
    )


class _Trial:
    """Some steps of each phase of a plan, and what they say of the whole.

    Attributes:
        often: how often the run would evaluate and save.
        rate: tokens a second in the steps of the longest rows.
    """

    def __init__(
        self,
        model: PretrainingModel,
        plan: TrainingPlan | StreamedPlan,
        source: Source,
        run_args: PretrainingArguments,
        args: TrainingArguments,
        prover: Prover,
    ):
        self.model, self.plan, self.prover = model, plan, prover
        self.make = partial(make_trainer, model, source=source, run_args=run_args, args=args, prover=prover)
        self.often = happenings(self.make(plan), plan.steps)
        self.rate = 0.0

    def training(self) -> dict[str, Part]:
        """The steps of every phase, and the checkpoints."""
        parts = {}
        plan_class = Spread if isinstance(self.plan, TrainingPlan) else StreamedPlan
        for phase in self.plan.phases:
            trainer = self.make(plan_class([phase], self.plan.batches_per_step, self.plan.seed))
            timed = try_steps(trainer)
            if phase.max_seq_length == max(each.max_seq_length for each in self.plan.phases):
                self.rate = timed.tokens_a_second
            parts[f"steps of {phase.max_seq_length:,} tokens a row"] = Part(phase.steps, timed.seconds_a_step)
            if phase is self.plan.phases[-1]:
                saving = checkpoint_seconds(trainer) if self.often["save"] else 0.0
            forget(trainer)
        return {**parts, "checkpoints": Part(self.often["save"], saving)}

    def reading(self, chunk_length: int | None) -> float:
        """Seconds in which the model reads the proof's texts, whole or in chunks."""
        texts = sorted(self.prover.texts, key=lambda text: -len(text.input_ids))
        tokenizer = self.prover.tokenizer

        def tokens(some: Sequence[MaskedDocument]) -> int:
            return sum(len(text.input_ids) for text in some)

        return tokens(texts) / rate_of(
            texts, tokens, lambda some: score(self.model, list(some), cutter(tokenizer, chunk_length), tokenizer)
        )
