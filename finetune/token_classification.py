"""Fine-tune labels of words, such as named entities, in long documents, compared with 512 tokens and with chunks.

accelerate launch --quiet finetune/token_classification.py configs/finetune/X.yaml [key=value ...]
"""

from transformers import TrainingArguments

from longbert.arguments import ModelArguments, parse_config
from longbert.entry import start
from longbert.finetuning.examples.splits import make_splits
from longbert.finetuning.loop import FinetuningArguments, run_task
from longbert.finetuning.tasks.token_classification import (
    TokenClassification,
    TokenClassificationArguments,
    read_words,
)
from longbert.source import Source


def main(argv: list[str]) -> None:
    model_args, task_args, run_args, args = parse_config(
        argv, ModelArguments, TokenClassificationArguments, FinetuningArguments, TrainingArguments
    )
    source = Source.of(model_args)
    splits = make_splits(task_args, lambda path: read_words(path, task_args), lambda _: None, args.seed)
    task = TokenClassification.of(source, splits, task_args.stride, args.per_device_eval_batch_size)
    run_task(task, splits, source, run_args, args, model_args, task_args)


if __name__ == "__main__":
    start(main)
