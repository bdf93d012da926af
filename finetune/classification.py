"""Fine-tune a classifier of long documents, beside the baselines that a reviewer asks for.

accelerate launch finetune/classification.py configs/finetune/X.yaml [key=value ...]
"""

import sys
from pathlib import Path

from transformers import TrainingArguments

from longbert.arguments import USER_ERRORS, ModelArguments, parse_config, write_config
from longbert.finetuning.classification import Classification, ClassificationArguments
from longbert.finetuning.examples import make_splits
from longbert.finetuning.loop import FinetuningArguments, compare, length_histogram
from longbert.saving import refuse_occupied
from longbert.training.pretraining import Source
from longbert.training.trainer import DivergedError


def main(argv: list[str]) -> None:
    model_args, task_args, run_args, args = parse_config(
        argv, ModelArguments, ClassificationArguments, FinetuningArguments, TrainingArguments
    )
    source = Source.of(model_args)
    splits = make_splits(
        task_args, {"text": task_args.text_column, "label": task_args.label_column}, "label", args.seed
    )
    task = Classification.of(source.tokenizer, splits, task_args.problem_type, args.per_device_eval_batch_size)
    splits = [task.prepare(split) for split in splits]
    if args.process_index == 0:
        if not run_args.resume:
            refuse_occupied(args.output_dir)
        write_config(Path(args.output_dir, "config.yaml"), model_args, task_args, run_args, args)
        texts = [ids for part in (splits[0].train, splits[0].validation, splits[0].test) for ids in part["input_ids"]]
        print(length_histogram([len(ids) + 2 for ids in texts], source.native.pretrained_positions))
    table = compare(task, splits, source, run_args, args)
    if args.process_index == 0:
        print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (*USER_ERRORS, DivergedError) as error:
        sys.exit(f"classification.py: {error}")
