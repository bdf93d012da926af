"""Write docs/reference.md: every command and every key, from the parsers and dataclasses that read them.

python docs/reference.py
"""

import argparse
import os
from pathlib import Path

from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, keys_in_words
from longbert.cli import build_parser
from longbert.finetuning.loop import FinetuningArguments
from longbert.finetuning.retrieval.collection import RetrievalArguments
from longbert.finetuning.retrieval.embedding import EmbeddingArguments
from longbert.finetuning.retrieval.reranking import RerankingArguments
from longbert.finetuning.tasks.classification import ClassificationArguments
from longbert.finetuning.tasks.multiple_choice import MultipleChoiceArguments
from longbert.finetuning.tasks.question_answering import QuestionAnsweringArguments
from longbert.finetuning.tasks.token_classification import TokenClassificationArguments


PAGE = Path(__file__).with_name("reference.md")
SCRIPTS = {
    "longbert train": (ModelArguments, DataArguments, PretrainingArguments),
    "longbert finetune classification": (ClassificationArguments, FinetuningArguments),
    "longbert finetune question_answering": (QuestionAnsweringArguments,),
    "longbert finetune token_classification": (TokenClassificationArguments,),
    "longbert finetune multiple_choice": (MultipleChoiceArguments,),
    "longbert finetune embedding": (RetrievalArguments, EmbeddingArguments),
    "longbert finetune reranking": (RerankingArguments,),
}


def page() -> str:
    """The page, in Markdown."""
    os.environ["COLUMNS"] = "110"  # of argparse
    parts = [
        "# Reference",
        "Made by `python docs/reference.py` from what the commands and scripts read; a test keeps it true.",
        "## Commands",
    ]
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        parts.append(f"### longbert {name}\n\n```text\n{command.format_help().strip()}\n```")
    parts.append("## Keys of the configs")
    parts.append(
        "Every script also takes the fields of transformers' `TrainingArguments` (`embedding` and `reranking`: "
        "those of sentence-transformers); `--help` prints them all. `ModelArguments` belong to every script, "
        "`FinetuningArguments` to every task but these two; `reranking` has the `RetrievalArguments` of `embedding`."
    )
    for script, types in SCRIPTS.items():
        parts.append(f"### {script}")
        parts += [f"```text\n{keys_in_words(each)}\n```" for each in types]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
