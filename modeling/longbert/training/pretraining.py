"""The parts of continued pretraining, in the order in which train.py uses them."""

import dataclasses
import math
import tempfile
import time
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging

from ..arguments import DataArguments, PretrainingArguments
from ..data.batches import Phase, StreamedPlan, TrainingPlan
from ..data.documents import Documents
from ..data.masking import RowMasker, TokenMasker, unspaced_share
from ..data.rows import RowCount, RowSettings, make_rows, tokenize
from ..data.words import Segmenter
from ..folders import damage
from ..proof import Prover
from ..source import PretrainingModel, Source
from .memory import peak_memory
from .resuming import find_checkpoint
from .trainer import LongTrainer


logger = logging.get_logger(__name__)

UNSPACED_SHARE = 0.01  # of tokens: fewer are names and quotations in a text of another script


def tokenize_for(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments, run_args: PretrainingArguments
) -> Documents:
    """Tokens, with sentence boundaries where the objective needs them."""
    return tokenize(documents, tokenizer, run_args.objective != "mlm", data_args.skip_empty)


def make_mask(tokens: Documents, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> TokenMasker:
    """What masks the tokens of a run.

    Raises:
        ValueError: whole words are to be masked, and nothing tells the words of these texts.
    """
    segmenter = Segmenter(data_args.word_segmenter) if data_args.word_segmenter else None
    mask = TokenMasker(tokenizer, data_args.mlm_probability, data_args.whole_word_mask, segmenter)
    share = unspaced_share(tokens, tokenizer) if data_args.whole_word_mask else 0.0
    if share >= UNSPACED_SHARE and segmenter is None:
        raise ValueError(
            f"whole_word_mask: {share:.1%} of the tokens belong to scripts that write no spaces, where ## marks no "
            "words: set word_segmenter, such as rjieba for Chinese (pip install 'longbert[chinese]'), or "
            "whole_word_mask: false"
        )
    return mask


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
    mask = make_mask(tokens, source.tokenizer, data_args)
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
    length = source.native.max_position_embeddings
    folder = Path(args.output_dir, "native")
    if damage(folder / "model") is not None:
        native_run = dataclasses.replace(
            run_args,
            max_seq_length=length,
            length_schedule=run_args.native_length_schedule,
            position_sampling="none",
            train_only=["all"],
        )
        native_args = dataclasses.replace(
            args,
            output_dir=str(folder),
            max_steps=run_args.native_steps,
            per_device_train_batch_size=args.per_device_train_batch_size * max(1, run_args.max_seq_length // length),
            eval_strategy="no",
            load_best_model_at_end=False,
            push_to_hub=False,
        )
        native = dataclasses.replace(source, config=source.native)
        plan = make_plan(tokens, native, data_args, native_run, native_args)
        model = source.load(source.native, run_args.objective)
        trainer = make_trainer(model, plan, source, native_run, native_args, prover)
        trainer.train_or_stop(
            find_checkpoint(str(folder), run_args.resume and "auto", may_rename=args.process_index == 0)
        )
        trainer.save_whole(folder / "model")
    return dataclasses.replace(source, path=str(folder / "model"))


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
    model: PretrainingModel,
    plan: TrainingPlan | StreamedPlan,
    source: Source,
    run_args: PretrainingArguments,
    args: TrainingArguments,
    prover: Prover,
) -> str:
    """Two steps at the longest length, the first to warm up, and one evaluation: what would the run cost?"""
    longest = max(plan.phases, key=lambda phase: phase.max_seq_length)
    trial = type(plan)([dataclasses.replace(longest, steps=2)], plan.batches_per_step, plan.seed)
    with tempfile.TemporaryDirectory() as folder:
        trial_args = dataclasses.replace(
            args, output_dir=folder, save_strategy="no", eval_strategy="no", report_to="none", logging_steps=1
        )
        trainer = make_trainer(model, trial, source, run_args, trial_args, prover)
        trainer.train()
    rate = trainer.state.log_history[1]["tokens_per_second"]
    real_rate = trainer.state.log_history[1]["real_tokens_per_second"]
    tokens = (
        sum(phase.steps * phase.batch_size * phase.max_seq_length for phase in plan.phases) * plan.batches_per_step
    )
    start = time.perf_counter()
    prover.metrics(trainer.model)
    evaluation = time.perf_counter() - start
    return (
        f"dry run: {plan.steps:,} steps of {plan.phases[0].batch_size * plan.phases[0].max_seq_length:,} x "
        f"{plan.batches_per_step} tokens\n"
        f"memory at its peak: {peak_memory(args.device) / 1e9:.2f} GB in this process\n"
        f"{rate:,} tokens a second, {real_rate:,} of them real, at {longest.max_seq_length:,} tokens a row\n"
        f"one evaluation: {evaluation:,.1f} s\n"
        f"expected wall time: {tokens / rate / 3600:,.2f} h of steps, evaluations and proof not counted"
    )
