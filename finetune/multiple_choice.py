"""Fine-tune multiple choice over long contexts, compared with 512 tokens, head and tail, and chunks.

accelerate launch --quiet finetune/multiple_choice.py configs/finetune/X.yaml [key=value ...]
"""

from transformers import TrainingArguments

from longbert.arguments import ModelArguments, parse_config
from longbert.entry import start
from longbert.finetuning.examples.splits import make_splits
from longbert.finetuning.loop import FinetuningArguments, run_task
from longbert.finetuning.tasks.multiple_choice import MultipleChoice, MultipleChoiceArguments, read_choices
from longbert.source import Source


def main(argv: list[str]) -> None:
    model_args, task_args, run_args, args = parse_config(
        argv, ModelArguments, MultipleChoiceArguments, FinetuningArguments, TrainingArguments
    )
    source = Source.of(model_args)
    splits = make_splits(task_args, lambda path: read_choices(path, task_args), lambda _: None, args.seed)
    task = MultipleChoice(source.tokenizer, args.per_device_eval_batch_size)
    run_task(task, splits, source, run_args, args, model_args, task_args)


if __name__ == "__main__":
    start(main)
