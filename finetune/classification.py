"""Fine-tune a classifier of long documents and compare it with the usual baselines.

accelerate launch finetune/classification.py configs/finetune/X.yaml [key=value ...]
"""

import sys

from transformers import TrainingArguments

from longbert.arguments import USER_ERRORS, ModelArguments, in_one_line, parse_config
from longbert.finetuning.examples.splits import make_splits
from longbert.finetuning.loop import FinetuningArguments, run_task
from longbert.finetuning.tasks.classification import (
    Classification,
    ClassificationArguments,
    read_documents,
    targets_of,
)
from longbert.source import Source
from longbert.training.safety import DivergedError


def main(argv: list[str]) -> None:
    model_args, task_args, run_args, args = parse_config(
        argv, ModelArguments, ClassificationArguments, FinetuningArguments, TrainingArguments
    )
    source = Source.of(model_args)
    splits = make_splits(
        task_args,
        lambda path: read_documents(path, task_args),
        lambda examples: targets_of(examples, task_args.problem_type),
        args.seed,
    )
    task = Classification.of(source, splits, task_args.problem_type, args.per_device_eval_batch_size)
    run_task(task, splits, source, run_args, args, model_args, task_args)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (*USER_ERRORS, DivergedError) as error:
        sys.exit(f"classification.py: {in_one_line(error)}")
