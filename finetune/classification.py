"""Fine-tune a classifier of long documents and compare it with the usual baselines.

accelerate launch --quiet finetune/classification.py configs/finetune/X.yaml [key=value ...]
"""

from transformers import TrainingArguments

from longbert.arguments import ModelArguments, parse_config
from longbert.entry import start
from longbert.finetuning.examples.splits import make_splits
from longbert.finetuning.loop import FinetuningArguments, run_task
from longbert.finetuning.tasks.classification import (
    Classification,
    ClassificationArguments,
    read_documents,
    targets_of,
)
from longbert.source import Source


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
    start(main)
