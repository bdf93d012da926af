"""Continued pretraining of a BERT past its last position, or pretraining of one from scratch, ending in a proof.

accelerate launch --quiet train.py configs/pretrain/demo.yaml [key=value ...] [--dry-run]
"""

from pathlib import Path

from transformers import TrainingArguments, set_seed

from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, parse_config
from longbert.data.documents import load_documents
from longbert.data.fingerprints import of_documents
from longbert.data.held_out import split_held_out
from longbert.entry import start
from longbert.proof import Prover
from longbert.proof_rows import AFTER, BEFORE, EXTENDED_AFTER, EXTENDED_BEFORE, SAME_CHUNKED, SOURCE_CHUNKED
from longbert.publishing import command_line, push_run, refuse_stranger, write_card
from longbert.source import Source
from longbert.training.pretraining import dry_run, make_trainer, prepare, tokenize_for, train_natively
from longbert.training.record import Record
from longbert.training.sharding import refuse_division
from longbert.training.trainer import LongTrainer


def main(argv: list[str]) -> None:
    model_args, data_args, run_args, args = parse_config(
        argv, ModelArguments, DataArguments, PretrainingArguments, TrainingArguments
    )
    if args.process_index == 0:
        print(f"{args.world_size} process{'es' * (args.world_size > 1)} on {args.device.type}")
    source = Source.of(model_args)
    source.refuse_longer(run_args)
    refuse_division(args)
    record = Record.claim(args, run_args, model_args, data_args)
    if args.push_to_hub and record.is_kept:
        refuse_stranger()
    set_seed(args.seed)

    documents = load_documents(
        data_args.data,
        data_args.text_column,
        data_args.streaming,
        settings=data_args,
        separator=data_args.document_separator,
    )
    record.begin(source.digest(), {"documents": of_documents(documents)})
    if record.finished:
        return show(args)
    training, held_out = split_held_out(documents, data_args.held_out_every, data_args.proof_documents)
    tokens = tokenize_for(training, source.tokenizer, data_args, run_args)
    prover = Prover(
        held_out,
        source.tokenizer,
        source_length=source.chunk_length(run_args.max_seq_length),
        max_seq_length=run_args.max_seq_length,
        at_most=data_args.proof_documents,
        mlm_probability=data_args.mlm_probability,
        seed=args.seed,
    )
    if run_args.dry_run:
        return print(dry_run(source, tokens, data_args, run_args, args, prover))
    if run_args.native_steps:
        source = train_natively(source, tokens, data_args, run_args, args, prover)
    model, plan = prepare(source, tokens, data_args, run_args, args)
    trainer = make_trainer(model, plan, source, run_args, args, prover)
    if source.path:
        prover.chunked(SOURCE_CHUNKED, source.load(source.native).to(args.device))
    # Trainer places it too, but not what is to be divided
    prover.whole(EXTENDED_BEFORE if source.path else BEFORE, model.to(args.device))
    trainer.train_or_stop(record.checkpoint())
    prover.whole(EXTENDED_AFTER if source.path else AFTER, model)
    prover.chunked(SAME_CHUNKED, model)
    finish(trainer, prover, record)
    show(args)


def finish(trainer: LongTrainer, prover: Prover, record: Record) -> None:
    """Save the model, its proof and its card beside it."""
    trainer.save_result()
    if trainer.is_world_process_zero():
        prover.proof.save(trainer.args.output_dir)
        write_card(trainer.args.output_dir, command=command_line(), changes=record.changes_in_words(public=True))
        record.finish()


def show(args: TrainingArguments) -> None:
    """Print the proof of a run that has ended, and push it where asked to."""
    if args.process_index == 0:
        print(Path(args.output_dir, "proof.md").read_text("utf-8"), end="")
        if args.push_to_hub:
            print(push_run(args.output_dir, args))


if __name__ == "__main__":
    start(main)
