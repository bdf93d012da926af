"""Make an existing sentence encoder read long documents, compared with 512 tokens and chunks of 512.

accelerate launch finetune/embedding.py configs/finetune/X.yaml [key=value ...]
"""

import sys

from sentence_transformers import SentenceTransformerTrainingArguments

from longbert.arguments import USER_ERRORS, ModelArguments, in_one_line, parse_config
from longbert.finetuning.retrieval.collection import RetrievalArguments
from longbert.finetuning.retrieval.embedding import EmbeddingArguments, run_embedding
from longbert.training.safety import DivergedError


def main(argv: list[str]) -> None:
    run_embedding(
        *parse_config(
            argv, ModelArguments, RetrievalArguments, EmbeddingArguments, SentenceTransformerTrainingArguments
        )
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (*USER_ERRORS, DivergedError) as error:
        sys.exit(f"embedding.py: {in_one_line(error)}")
