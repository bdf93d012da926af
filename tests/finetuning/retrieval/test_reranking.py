"""Reranking: the candidates are BM25's first, scores are CrossEncoder's own, and a run trains, resumes and is read."""

import importlib.util
import json
import os
import random
import signal

import pytest
import torch
import yaml
from conftest import assert_close, assert_equal
from datasets import Dataset
from processes import ROOT
from sentence_transformers import CrossEncoder
from transformers import BertForSequenceClassification

from longbert import LongBertForSequenceClassification
from longbert.arguments import ModelArguments
from longbert.errors import MendableError
from longbert.finetuning.retrieval.bm25 import read_words
from longbert.finetuning.retrieval.collection import read_retrieval, write_retrieval
from longbert.finetuning.retrieval.reranker import Candidates, RerankingTrainer, label_pairs, load_reranker
from longbert.finetuning.retrieval.reranking import RerankingArguments
from longbert.finetuning.retrieval.ways import WAYS
from longbert.folders import damage
from longbert.source import Source


THINGS = ["gold", "iron", "silver", "copper", "wood", "stone", "glass", "paper"]
WAYS_READ = ("long", "truncate", "chunk-max")
NOISE = ["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """`pairs.jsonl`, and `test` with two documents of each thing, which stands past the source's 64 tokens."""
    folder, draw = tmp_path_factory.mktemp("reranking"), random.Random(0)
    texts = [" ".join([*draw.choices(NOISE, k=90), thing, *draw.choices(NOISE, k=20)]) for thing in THINGS]
    corpus = [{"id": thing, "text": text} for thing, text in zip(THINGS, texts, strict=True)]
    corpus.append({"id": "copy", "text": corpus[0]["text"]})
    queries = [{"id": thing, "text": f"the {thing}", "document": thing, "evidence": 400} for thing in THINGS]
    write_retrieval(folder / "test", corpus, queries)
    pairs = [{"query": f"the {thing}", "document": text} for thing, text in zip(THINGS, texts, strict=True)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


@pytest.fixture(scope="module")
def source(tiny_source):
    return Source.of(ModelArguments(model=str(tiny_source), max_position_embeddings=192, attention_window=32))


def rerank(desk, source, out, **changes):
    """Run the script in this process; where its results are."""
    settings = {
        "model": source.path,
        "max_position_embeddings": 192,
        "attention_window": 32,
        "hidden_dropout_prob": 0.1,
        "train_file": str(desk / "pairs.jsonl"),
        "test_folder": str(desk / "test"),
        "strategies": ["long"],
        "negatives": 2,
        "output_dir": str(out),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**settings, **changes}))
    spec = importlib.util.spec_from_file_location("reranking", ROOT / "finetune" / "reranking.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([str(file)])
    return out


def retrieval_of(desk, source):
    return read_retrieval(str(desk / "test"), source.tokenizer, 64)


def test_candidates_are_what_bm25_finds_first_in_a_querys_group(desk, source):
    test = retrieval_of(desk, source)
    texts = [document.text for document in test.documents.values()]
    scores = read_words(texts, [query.text for query in test.queries]).scores
    places = Candidates.of(test, 3).places
    assert places.sum(dim=1).tolist() == [3] * len(THINGS)
    least = torch.where(places, scores, torch.inf).amin(dim=1)
    assert (torch.where(places, -torch.inf, scores).amax(dim=1) <= least).all()
    assert Candidates.of(test, 50).places.all()


@pytest.mark.parametrize("name", ["long", "truncate", "chunk-max"])
def test_scores_are_cross_encoders_of_the_best_piece(name, desk, source):
    test, way = retrieval_of(desk, source), WAYS[name]
    length = 192 if way.extended else 64
    reranker = load_reranker(source, source.config if way.extended else source.native, length)
    found = Candidates.of(test, 4).scores(reranker, way, 3)
    reranker.eval()
    room = length - 3 - 2
    for row, query in enumerate(test.queries):
        for column, document in enumerate(test.documents.values()):
            words = document.text.split()
            pieces = [" ".join(words[start : start + room]) for start in range(0, len(words), room)]
            pieces = pieces if name == "chunk-max" else pieces[:1]
            if found[row, column] > -torch.inf:
                logits = reranker.predict([(query.text, each) for each in pieces], activation_fn=torch.nn.Identity())
                assert_close(found[row, column], torch.tensor(max(logits)), atol=1e-5, rtol=1e-4)
    assert ((found > -torch.inf).sum(dim=1) == 4).all()


def test_a_score_that_is_no_number_ranks_nothing(desk, source):
    reranker = load_reranker(source, source.config, 192)
    reranker[0].model.classifier.bias.data[0] = float("nan")
    with pytest.raises(MendableError, match="is no number: its weights are damaged"):
        Candidates.of(retrieval_of(desk, source), 4).scores(reranker, WAYS["long"], 3)


def test_documents_that_are_alike_tie(desk, source):
    test = retrieval_of(desk, source)
    reranker = load_reranker(source, source.config, 192)
    found = Candidates.of(test, 50).scores(reranker, WAYS["long"], 4)
    assert_equal(found[:, -1], found[:, 0])


def test_a_reranker_of_transformers_keeps_its_head(desk, bert, tiny_source, tmp_path):
    plain = BertForSequenceClassification.from_pretrained(tiny_source, num_labels=1)
    plain.save_pretrained(tmp_path)
    Source.of(ModelArguments(model=str(tiny_source))).tokenizer.save_pretrained(tmp_path)
    source = Source.of(ModelArguments(model=str(tmp_path), max_position_embeddings=192, attention_window=32))
    reranker = load_reranker(source, source.config, 192, trained=True)
    assert isinstance(reranker[0].model, LongBertForSequenceClassification)
    test = retrieval_of(desk, source)
    document, query = next(iter(test.documents.values())), test.queries[0]
    short = " ".join(document.text.split()[:40])
    inputs = source.tokenizer(query.text, short, return_tensors="pt")
    with torch.no_grad():
        expected = plain.eval()(**inputs).logits[0]
    found = reranker.predict([(query.text, short)], activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_wrong_documents_are_those_that_bm25_ranks_first(source):
    texts = {"a": "gold gold law", "b": "gold law", "c": "war", "d": "gold war peace land"}
    pairs = Dataset.from_list(
        [
            {"query": "gold", "document": texts["a"], "id": "1"},
            {"query": "gold", "document": texts["b"], "id": "2"},
            {"query": "war", "document": texts["c"], "id": "3"},
            {"query": "land", "document": texts["d"], "id": "4"},
        ]
    )
    rows = label_pairs(pairs, 1, source.tokenizer, 6)
    wrong = {row["query"]: row["document"] for row in rows if row["label"] == 0}
    assert wrong["gold"] == wrong["war"] == texts["d"]
    assert [row["label"] for row in rows] == [1, 0] * 4
    assert [row["length"] for row in rows][:2] == [6, 6]
    assert [row["id"] for row in rows][:2] == ["1", "1, wrong 1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": ["head-tail"]}, "strategies must be of long, truncate, chunk-max, got head-tail"),
        ({"strategies": ["chunk-max"]}, "put truncate before it"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"negatives": 0}, "negatives must be at least 1"),
        ({"train": False}, "has no head that gives one score: leave train at true"),
        ({"tokenizer": "other"}, "leave tokenizer out"),
        ({"train_file": None}, "training needs pairs: set train_file"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message, desk, source, tmp_path):
    with pytest.raises(ValueError, match=message):
        rerank(desk, source, tmp_path / "run", **change)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_finished_reranker_reads_chunks_without_training():
    assert RerankingArguments(strategies=["long", "chunk-max"], train=False).strategies == ["long", "chunk-max"]


@pytest.mark.slow
def test_a_run_is_recorded_saved_and_said(desk, source, tmp_path, capsys):
    run = rerank(desk, source, tmp_path / "run", strategies=list(WAYS_READ), max_steps=2, save_strategy="no")
    results = json.loads((run / "results.json").read_text())
    assert [*results] == ["long", "truncate", "chunk-max", "BM25"]
    assert results["BM25"]["ndcg_at_10"] == pytest.approx((7 + (1 + 0.6309297535714575) / 2) / 8)  # a copy ties
    costs = {name: row["cost"] for name, row in results.items()}
    assert costs["truncate"]["training_tokens"] == costs["chunk-max"]["training_tokens"] > 0
    assert costs["long"]["prediction_tokens"] == 8 * 8 * (111 + 2 + 3)
    assert results["long"]["verdict"] in capsys.readouterr().out
    assert "nDCG" in (run / "long" / "README.md").read_text() or "ndcg" in (run / "long" / "README.md").read_text()
    saved = CrossEncoder(str(run / "long"), device="cpu")
    assert (type(saved[0].model), saved.max_seq_length) == (LongBertForSequenceClassification, 192)
    test = retrieval_of(desk, source)
    lines = [json.loads(line) for line in (run / "long" / "predictions" / "test.jsonl").read_text().splitlines()]
    text = test.documents["iron"].text
    found = saved.predict([(test.queries[1].text, text)], activation_fn=torch.nn.Identity())
    assert lines[1]["scores"]["iron"] == pytest.approx(float(found[0]), abs=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(desk, source, tmp_path, monkeypatch):
    whole = rerank(desk, source, tmp_path / "whole")
    load = RerankingTrainer.get_batch_samples

    def load_and_signal(trainer, *args):
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(RerankingTrainer, "get_batch_samples", load_and_signal)
        rerank(desk, source, tmp_path / "stopped", save_steps=100)
    assert stopped.value.code == 143
    assert damage(tmp_path / "stopped" / "long" / "checkpoint-3") is None
    rerank(desk, source, tmp_path / "stopped", save_steps=100, resume="auto")
    weights = [(folder / "long" / "model.safetensors").read_bytes() for folder in (whole, tmp_path / "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_dry_run_says_what_it_costs_and_writes_nothing(desk, source, tmp_path, capsys):
    rerank(desk, source, tmp_path / "run", strategies=["long", "truncate", "chunk-max"], dry_run=True)
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if "(1 run)" in line]
    assert rows == ["| long", "| truncate", "| chunk-max", "| BM25"]
    assert not (tmp_path / "run").exists()
