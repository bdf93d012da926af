"""The parts of continued pretraining, in the order in which train.py uses them."""

import dataclasses
import functools
import math
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging

from ..arguments import DataArguments, ModelArguments, PretrainingArguments, parse_schedule, write_config
from ..configuration_longbert import LongBertConfig
from ..data.batches import Phase, StreamedPlan, TrainingPlan
from ..data.documents import Documents
from ..data.masking import RowMasker, TokenMasker
from ..data.rows import RowCount, RowSettings, make_rows, tokenize
from ..evaluation import Prover
from ..modeling_longbert import LongBertForMaskedLM, LongBertForPreTraining
from ..saving import damage, refuse_occupied
from ..source import find_source, load_tokenizer
from .resuming import find_checkpoint
from .trainer import LongTrainer


logger = logging.get_logger(__name__)

PretrainingModel = LongBertForMaskedLM | LongBertForPreTraining


@dataclass
class Source:
    """Where a run starts: a checkpoint as it is (`native`) and as it will be (`config`), or a config alone.

    Args:
        path: the checkpoint; None from scratch.
    """

    path: str | None
    native: LongBertConfig
    config: LongBertConfig
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, arguments: ModelArguments) -> "Source":
        """Read configs and tokenizer; weights are read later."""
        if arguments.from_scratch:
            config = LongBertConfig.from_pretrained(arguments.model)
            return cls(None, config, config, load_tokenizer(find_source(str(arguments.tokenizer)), config))
        path = find_source(arguments.model)
        config = LongBertConfig.from_pretrained(path, **arguments.config_overrides())
        tokenizer = load_tokenizer(find_source(arguments.tokenizer or arguments.model), config)
        return cls(path, LongBertConfig.from_pretrained(path), config, tokenizer)

    def refuse_longer(self, run_args: PretrainingArguments) -> None:
        """Raise `ValueError` for rows that the model cannot reach to the end of, as it is or as it will be."""
        max_seq_length = run_args.max_seq_length
        if max_seq_length > self.config.max_position_embeddings:
            raise ValueError(
                f"max_seq_length={max_seq_length} is more than the model's {self.config.max_position_embeddings} "
                "positions: set max_position_embeddings"
            )
        if run_args.native_steps:
            schedule = run_args.native_length_schedule
            parse_schedule("native_length_schedule", schedule, self.native.max_position_embeddings)

    def chunk_length(self, max_seq_length: int) -> int:
        """What the proof's chunks are: the source's own length; from scratch 512, or half of what is read."""
        return self.native.pretrained_positions if self.path else min(512, max_seq_length // 2)

    def load(self, config: LongBertConfig, objective: str = "mlm") -> PretrainingModel:
        """The model to pretrain."""
        if self.path is None:
            return (LongBertForMaskedLM if objective == "mlm" else LongBertForPreTraining)(config)
        return load_for_pretraining(self.path, config, objective)


def load_for_pretraining(source: str, config: LongBertConfig, objective: str = "mlm") -> PretrainingModel:
    """A source with the heads of an objective; a missing MLM head begins as the identity, and a warning says so."""
    model_class = LongBertForMaskedLM if objective == "mlm" else LongBertForPreTraining
    model, info = model_class.from_pretrained(source, config=config, output_loading_info=True)
    if any(key.startswith("cls.predictions.transform") for key in info["missing_keys"]):
        # a token's vector then predicts the words nearest to it, which is far better than noise
        nn.init.eye_(model.cls.predictions.transform.dense.weight)
        logger.warning(
            f"{source} has no MLM head: a new one is added, which predicts poorly until it is trained. Set "
            "native_steps to train it at the source's own length first, or the proof compares with a source "
            "that cannot predict"
        )
    if any(key.startswith("cls.seq_relationship") for key in info["missing_keys"]):
        logger.warning(f"{source} has no next-sentence head: a new one is added, untrained")
    return model


def open_output(args: TrainingArguments, run_args: PretrainingArguments, *others: Any) -> str | None:
    """Make the output folder, with the resolved settings in it, and find what is to be resumed.

    Raises:
        FileExistsError: there is something in it, and nothing is to be resumed.
        ValueError: the checkpoint to resume is damaged.
    """
    if args.resume_from_checkpoint:
        raise ValueError("resume_from_checkpoint is called resume here: auto, or a checkpoint's folder")
    if args.process_index == 0 and not run_args.dry_run:
        if not run_args.resume:
            refuse_occupied(args.output_dir)
        write_config(Path(args.output_dir, "config.yaml"), *others, run_args, args)
    with args.main_process_first():
        return find_checkpoint(args.output_dir, run_args.resume, may_rename=args.process_index == 0)


def tokenize_for(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, run_args: PretrainingArguments
) -> Documents:
    """Tokens, with sentence boundaries where the objective needs them."""
    return tokenize(documents, tokenizer, sentences=run_args.objective != "mlm")


def make_plan(
    tokens: Documents,
    source: Source,
    data_args: DataArguments,
    run_args: PretrainingArguments,
    args: TrainingArguments,
) -> TrainingPlan | StreamedPlan:
    """What every step of the run reads; says on the way what became of the documents.

    A step has `per_device_train_batch_size` rows of `max_seq_length`, or as many tokens in shorter rows.
    """
    mask = TokenMasker(source.tokenizer, data_args.mlm_probability, data_args.whole_word_mask)
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
            print(RowCount.of(tokens, rows, length))
        if args.max_steps > 0:
            steps = share * args.max_steps
        elif isinstance(rows, datasets.Dataset):
            steps = share * args.num_train_epochs * len(rows) / (batch_size * batches_per_step)
        else:
            raise ValueError("streaming needs max_steps: how long an epoch is, is not known")
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
    """Train the source's head at its own length, with as many tokens a step; what comes out is the source.

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
        checkpoint = find_checkpoint(str(folder), run_args.resume and "auto", may_rename=args.process_index == 0)
        trainer.train_or_stop(checkpoint)
        trainer.save_whole(folder / "model")
    return dataclasses.replace(source, path=str(folder / "model"))


def _keep_attention(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Recompute everything but attention, whose output is small and whose computation alone grows with n²."""
    attends = "attention" in str(operation) and "backward" not in str(operation)
    return CheckpointPolicy.MUST_SAVE if attends else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(model: PretrainingModel, max_seq_length: int) -> str:
    """Switch gradient checkpointing on, keeping attention's outputs where attention dominates.

    Per token and layer, BERT's linear maps cost 24 hidden_size² FLOP forwards and full attention 4 n hidden_size, so
    attention dominates past n = 6 hidden_size, unless a window bounds n.

    Returns:
        What was done, in words.
    """
    settings: dict[str, Any] = {"use_reentrant": False}
    selective = model.config.attention_window is None and max_seq_length > 6 * model.config.hidden_size
    if selective:
        settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_attention)
    # the name since transformers 5.2x; 5.17 has the old one
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(settings)
    return "selective gradient checkpointing: attention is kept" if selective else "gradient checkpointing"


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
        f"memory at its peak: {_peak_memory(args.device) / 1e9:.2f} GB in this process\n"
        f"{rate:,} tokens a second, {real_rate:,} of them real, at {longest.max_seq_length:,} tokens a row\n"
        f"one evaluation: {evaluation:,.1f} s\n"
        f"expected wall time: {tokens / rate / 3600:,.2f} h of steps, evaluations and proof not counted"
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
