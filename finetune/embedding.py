"""Make an existing sentence encoder read long documents, compared with 512 tokens and chunks of 512.

accelerate launch --quiet finetune/embedding.py configs/finetune/X.yaml [key=value ...]
"""

from sentence_transformers import SentenceTransformerTrainingArguments

from longbert.arguments import ModelArguments, parse_config
from longbert.entry import start
from longbert.finetuning.retrieval.collection import RetrievalArguments
from longbert.finetuning.retrieval.embedding import EmbeddingArguments, run_embedding


def main(argv: list[str]) -> None:
    run_embedding(
        *parse_config(
            argv, ModelArguments, RetrievalArguments, EmbeddingArguments, SentenceTransformerTrainingArguments
        )
    )


if __name__ == "__main__":
    start(main)
