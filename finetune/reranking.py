"""Train a cross-encoder to rank long documents again, compared with 512 tokens and the best of chunks of 512.

accelerate launch --quiet finetune/reranking.py configs/finetune/X.yaml [key=value ...]
"""

from sentence_transformers import CrossEncoderTrainingArguments

from longbert.arguments import ModelArguments, parse_config
from longbert.entry import start
from longbert.finetuning.retrieval.collection import RetrievalArguments
from longbert.finetuning.retrieval.reranking import RerankingArguments, run_reranking


def main(argv: list[str]) -> None:
    run_reranking(
        *parse_config(argv, ModelArguments, RetrievalArguments, RerankingArguments, CrossEncoderTrainingArguments)
    )


if __name__ == "__main__":
    start(main)
