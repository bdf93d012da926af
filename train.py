"""Continued pretraining of a BERT past its last position, ending in a proof.

accelerate launch train.py configs/pretrain/demo.yaml [key=value ...]
"""

import sys
from pathlib import Path

from transformers import Trainer, TrainingArguments, set_seed

from longbert import LongBertConfig
from longbert.arguments import USER_ERRORS, DataArguments, ModelArguments, parse_config, write_config
from longbert.checkpoints import load_tokenizer, refuse_occupied
from longbert.data import MaskedRows, cut, load_documents, resolve_path, split_held_out, tokenize
from longbert.evaluation import Prover
from longbert.training import checkpoint_activations, load_for_mlm, mlm_trainer, native_arguments


def main(argv: list[str]) -> None:
    model_args, data_args, args = parse_config(argv, ModelArguments, DataArguments, TrainingArguments)
    source = resolve_path(model_args.model)
    native = LongBertConfig.from_pretrained(source)
    config = LongBertConfig.from_pretrained(source, **model_args.config_overrides())
    if args.process_index == 0:
        if not args.resume_from_checkpoint:
            refuse_occupied(args.output_dir)
        write_config(Path(args.output_dir, "config.yaml"), model_args, data_args, args)
    set_seed(args.seed)

    tokenizer = load_tokenizer(source, config)
    training, held_out = split_held_out(
        load_documents(data_args.data, data_args.text_column), data_args.held_out_every
    )
    tokens = tokenize(training, tokenizer)

    def rows(max_seq_length: int) -> MaskedRows:
        return MaskedRows(cut(tokens, max_seq_length), tokenizer, data_args.mlm_probability, args.seed)

    if data_args.native_steps:
        length = native.max_position_embeddings
        native_args = native_arguments(args, data_args.native_steps, data_args.max_seq_length // length)
        trainer = mlm_trainer(load_for_mlm(source, native), rows(length), tokenizer, native_args)
        trainer.train()
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        source = native_args.output_dir

    prover = Prover(
        held_out,
        tokenizer,
        window=native.max_position_embeddings,
        max_seq_length=data_args.max_seq_length,
        at_most=data_args.proof_documents,
        mlm_probability=data_args.mlm_probability,
        seed=args.seed,
    )
    model = load_for_mlm(source, config)
    if data_args.max_seq_length >= data_args.checkpoint_from:
        print(checkpoint_activations(model, data_args.max_seq_length))
    trainer = mlm_trainer(model, rows(data_args.max_seq_length), tokenizer, args)
    prover.chunked("source, chunked", load_for_mlm(source, native).to(args.device))
    prover.whole("extended, before training", model)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    prover.whole("extended, after training", model)
    prover.chunked("the same model, chunked", model)
    finish(trainer, prover)


def finish(trainer: Trainer, prover: Prover) -> None:
    """Save the model, its proof beside it, and push both where asked to."""
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(prover.proof.to_markdown())
        prover.proof.save(trainer.args.output_dir)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except USER_ERRORS as error:
        sys.exit(f"train.py: {error}")
