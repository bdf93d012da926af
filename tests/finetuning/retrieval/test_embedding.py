"""Embedding: the extended encoder is the source where that can read, sees what stands past it, and trains safely."""

import collections
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import evaluate
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import assert_close, assert_equal, real
from processes import ROOT
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SentenceTransformerTrainingArguments

from longbert import LongBertModel
from longbert.arguments import ModelArguments, from_settings
from longbert.errors import MendableError
from longbert.finetuning.results.metrics import RetrievalMetric
from longbert.finetuning.retrieval.collection import RetrievalArguments, read_retrieval, training_pairs
from longbert.finetuning.retrieval.contrastive import EmbeddingTrainer, PairCollator
from longbert.finetuning.retrieval.embedding import EmbeddingArguments
from longbert.finetuning.retrieval.encoders import exchange_model, load_encoder
from longbert.finetuning.retrieval.reading import Reading, read
from longbert.finetuning.retrieval.ways import WAYS
from longbert.folders import damage
from longbert.source import Source
from longbert.training.record import Record


THINGS = ["gold", "iron", "silver", "copper", "wood", "stone", "glass", "paper", "cotton", "salt", "sugar", "water"]
NOISE = ["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"]


def write(file: Path, lines: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def hidden(thing: str, draw: random.Random, words: int = 120) -> str:
    """Noise with a thing in it, at the 80th to the 90th word."""
    text = draw.choices(NOISE, k=words)
    text[80:90] = [thing] * 10
    return " ".join(text)


def write_test(folder: Path, **query_changes) -> Path:
    draw = random.Random(1)
    corpus = [{"id": thing, "text": hidden(thing, draw)} for thing in THINGS]
    queries = [
        {
            "id": f"q-{line['id']}",
            "text": line["id"],
            "document": line["id"],
            "evidence": line["text"].index(line["id"]),
        }
        for line in corpus
    ]
    queries[-1] |= query_changes
    write(folder / "corpus.jsonl", corpus)
    write(folder / "queries.jsonl", queries)
    return folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """`pairs.jsonl` and the folder `test`, whose documents differ past the tiny source's 64 tokens alone."""
    folder = tmp_path_factory.mktemp("retrieval")
    draw = random.Random(0)
    pairs = [{"query": thing, "document": hidden(thing, draw)} for thing in THINGS * 40]
    write(folder / "pairs.jsonl", pairs)
    write_test(folder / "test")
    return folder


def embed(desk: Path, source: Path, out: Path, **changes) -> Path:
    """Run the script in this process; where its results are."""
    settings = {
        "model": str(source),
        "max_position_embeddings": 192,
        "attention_window": 32,
        "hidden_dropout_prob": 0.0,
        "train_file": str(desk / "pairs.jsonl"),
        "test_folder": str(desk / "test"),
        "strategies": ["long"],
        "train": ["all"],
        "output_dir": str(out),
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "mini_batch_size": 4,
        "learning_rate": 5e-3,
        "weight_decay": 0.1,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**settings, **changes}))
    spec = importlib.util.spec_from_file_location("embedding", ROOT / "finetune" / "embedding.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([str(file)])
    return out


def source_of(folder: Path, **settings) -> Source:
    return Source.of(ModelArguments(model=str(folder), **settings))


@pytest.mark.parametrize(
    ("told", "by"), [({"ACCELERATE_USE_FSDP": "true"}, "FSDP"), ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed")]
)
def test_an_encoder_that_would_be_divided_is_refused(told, by, desk, tiny_source, tmp_path, monkeypatch):
    if by == "DeepSpeed":
        pytest.importorskip("deepspeed")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"a sentence encoder cannot be divided by {by}: launch with"):
        embed(desk, tiny_source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# figures


def test_ndcg_and_recall_by_hand():
    metric = RetrievalMetric()
    assert isinstance(metric, evaluate.Metric)
    found = metric.compute(
        predictions=[["a", "b"], ["b", "a"], ["x", "a", "b"], list("lmnopqrstua")],
        references=[["a"], ["a"], ["a", "b"], ["a"]],
    )
    third = 1 / torch.tensor(3.0).log2()
    two = (third + 0.5) / (1 + third)
    assert found == {
        "ndcg_at_10": pytest.approx(float(1 + third + two + 0) / 4),
        "recall_at_1": pytest.approx(1 / 4),
        "recall_at_10": pytest.approx(3 / 4),
    }


def test_windows_are_matched_by_their_mean_and_by_the_nearest():
    pieces = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=-1)
    reading = Reading(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), pieces, torch.tensor([0, 0, 1]))
    half = 0.5**0.5
    assert_close(reading.similarities(nearest=True), torch.tensor([[1, half], [1, half]]))
    assert_close(reading.similarities(nearest=False), torch.full((2, 2), half))


# data


def test_queries_are_ranked_in_their_group_and_know_where_their_evidence_stands(tmp_path, tiny_source):
    tokenizer = source_of(tiny_source).tokenizer
    texts = {"short": "war " * 10, "long": "peace " * 70 + "gold", "longer": "gold " * 200}
    queries = [
        {"id": 1, "text": "gold", "document": "long", "evidence": texts["long"].index("gold")},
        {"id": 2, "text": "war", "document": ["short"]},
        {"id": 3, "text": "land", "document": ["longer", "long"]},
    ]
    write(tmp_path / "queries.jsonl", queries)
    write(tmp_path / "corpus.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
    retrieval = read_retrieval(str(tmp_path), tokenizer, 64)
    assert [query.group for query in retrieval.queries] == ["65-128", "1-64", "129-202"]
    assert retrieval.groups == ["1-64", "65-128", "129-202"]
    assert [query.evidence for query in retrieval.queries] == [71, None, None]
    similarities = torch.tensor([[0.3, 0.2, 0.1]]).repeat(3, 1)
    assert retrieval.lines(similarities)[0]["prediction"] == ["short", "long", "longer"]
    groups = {"short": "b", "long": "a", "longer": "a"}
    write(tmp_path / "corpus.jsonl", [{"id": n, "text": t, "group": groups[n]} for n, t in texts.items()])
    retrieval = read_retrieval(str(tmp_path), tokenizer, 64)
    assert retrieval.groups == ["b", "a"]
    lines = retrieval.lines(similarities)
    assert [line["prediction"] for line in lines] == [["long", "longer"], ["short"], ["long", "longer"]]
    assert [line["reference"] for line in lines] == [["long"], ["short"], ["longer", "long"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"document": "tin"}, "query 'q-water': there is no document 'tin'"),
        ({"evidence": 10_000}, "query 'q-water': evidence must be a character of its document, 0 to "),
        ({"id": "q-gold"}, "queries.jsonl, line 12: the id 'q-gold' is there twice"),
        ({"text": " "}, "1 rows have no text .*queries.jsonl, line 12.*skip_empty"),
        ({"query_column": "question"}, "not 'question': set query_column"),
        ({"train": ["positions"], "max_position_embeddings": 64}, "stores 64: use 'learned-extended'"),
        ({"train": ["some"]}, "train must be of none, positions, all, got"),
        ({"strategies": ["head-tail"]}, "strategies must be of long, shipped, truncate, chunk-mean, chunk-max"),
        ({"prompts": {"passage": "p: "}}, "prompts must be a text for each of query, document"),
        ({"per_device_train_batch_size": 16}, "train_file has 12 different values of query, and a batch of 16 pairs"),
        ({"tokenizer": "other"}, "leave tokenizer out"),
        ({"push_to_hub": True, "train": ["all", "positions"]}, "push_to_hub pushes one trained model"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message, desk, tiny_source, tmp_path):
    if {*change} & {"document", "evidence", "id", "text"}:
        change = {"test_folder": str(write_test(tmp_path / "bad", **change))}
    with pytest.raises(ValueError, match=message):
        embed(desk, tiny_source, tmp_path / "run", **change)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_line_without_a_column_is_refused(desk, tiny_source, tmp_path):
    write_test(tmp_path / "bad")
    write(tmp_path / "bad" / "corpus.jsonl", [{"id": "gold", "body": "x"}])
    with pytest.raises(ValueError, match="corpus.jsonl, line 1 has no 'text'"):
        embed(desk, tiny_source, tmp_path / "run", test_folder=str(tmp_path / "bad"))


def test_positions_that_no_document_reaches_are_not_trained_in_vain(desk, tiny_source, tmp_path):
    short = write(tmp_path / "short.jsonl", [{"query": thing, "document": thing} for thing in THINGS])
    with pytest.raises(ValueError, match="no document of train_file has more than 64 tokens"):
        embed(desk, tiny_source, tmp_path / "run", train=["positions"], train_file=str(short))


# encoders


def test_the_extended_encoder_is_the_source_as_far_as_that_reads(tmp_path):
    texts = ["A cat.", "the people of the land " * 30, "of the union " * 400]
    write(tmp_path / "corpus.jsonl", [{"id": number, "text": text} for number, text in enumerate(texts)])
    write(tmp_path / "queries.jsonl", [{"id": 0, "text": "Who?", "document": 0}])
    folder = real("minilm")
    plain = SentenceTransformer(str(folder), device="cpu")
    source = source_of(folder, max_position_embeddings=1024, attention_window=512)
    retrieval = read_retrieval(str(tmp_path), source.tokenizer, 512)
    for name, config, length in (("shipped", source.native, 256), ("truncate", source.native, 512)):
        encoder = load_encoder(source)
        assert encoder.max_seq_length == 256
        exchange_model(encoder, source, config, length)
        plain.max_seq_length = length
        reading = read(encoder, retrieval, WAYS[name], 2)
        assert_close(reading.pieces, torch.tensor(plain.encode(texts)), atol=1e-6, rtol=0)
        assert_close(reading.queries, torch.tensor(plain.encode(["Who?"])), atol=1e-6, rtol=0)
    exchange_model(encoder, source, source.config, 1024)
    reading = read(encoder, retrieval, WAYS["long"], 2)
    assert_close(reading.pieces, torch.tensor(encoder.encode(texts)), atol=1e-6, rtol=0)
    assert_close(reading.pieces[:2], torch.tensor(plain.encode(texts[:2])), atol=1e-6, rtol=0)
    assert not torch.allclose(reading.pieces[2], torch.tensor(plain.encode(texts[2])), atol=1e-3)


def test_a_bare_bert_becomes_an_encoder_and_windows_hold_every_token(desk, tiny_source):
    source = source_of(tiny_source, max_position_embeddings=192)
    encoder = load_encoder(source, prompts={"document": "great work "})
    assert [type(module).__name__ for module in encoder] == ["Transformer", "Pooling", "Normalize"]
    exchange_model(encoder, source, source.native, 64)
    retrieval = read_retrieval(str(desk / "test"), encoder.tokenizer, 64)
    reading = read(encoder, retrieval, WAYS["chunk-mean"], 5)
    assert reading.owner.tolist() == [number for number in range(len(THINGS)) for _ in range(2)]
    words = json.loads((desk / "test" / "corpus.jsonl").read_text().splitlines()[0])["text"].split()
    by_hand = encoder.encode_document([" ".join(words[:60]), " ".join(words[60:])], convert_to_tensor=True)
    assert_close(reading.pieces[:2], by_hand, atol=1e-6, rtol=0)
    encoder[0].auto_model.embeddings.LayerNorm.bias.data[0] = float("nan")
    with pytest.raises(MendableError, match="is no number: its weights are damaged"):
        read(encoder, retrieval, WAYS["chunk-mean"], 5)


# training


@pytest.mark.slow
def test_who_sees_the_evidence_ranks_by_it_and_who_does_not_cannot(desk, tiny_source, tmp_path, capsys):
    compared = ["truncate", "chunk-mean", "chunk-max"]
    run = embed(
        desk,
        tiny_source,
        tmp_path / "run",
        strategies=["long", *compared],
        train=["all", "none"],
        train_baselines=True,
        max_steps=60,
        save_steps=30,
        eval_strategy="steps",
        eval_steps=30,
        load_best_model_at_end=True,
        early_stopping_patience=2,
    )
    results = json.loads((run / "results.json").read_text())
    baselines = [f"{name}{trained}" for name in compared for trained in ("", ", all trained")]
    assert list(results) == ["long, all trained", "long, untrained", *baselines, "BM25"]
    assert results["long, all trained"]["ndcg_at_10"] > 0.95 > results["long, untrained"]["ndcg_at_10"]
    assert results["truncate, all trained"]["ndcg_at_10"] < 0.7
    assert results["chunk-max, all trained"]["ndcg_at_10"] > results["chunk-max"]["ndcg_at_10"] + 0.2
    assert list(results["long, untrained"]["by_group"]) == ["65-122"]
    assert results["long, untrained"]["by_position"]["64-127"]["predictions"] == len(THINGS)
    printed = capsys.readouterr().out
    assert f"{tiny_source}: Transformer, Pooling, Normalize, 64 tokens" in printed
    assert (run / "results.md").read_text() in printed
    # what is finished is kept
    (run / "long" / "all" / "predictions" / "manifest.json").stat()
    with pytest.raises(FileExistsError, match="already holds something"):
        embed(desk, tiny_source, run)


CHILD = """
import sys

sys.modules["longbert"] = None  # importing it raises ImportError

import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

encoder = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
torch.save(encoder.encode(["gold " * 150], convert_to_tensor=True), sys.argv[2])
"""


@pytest.mark.slow
def test_positions_alone_are_trained_and_what_is_saved_is_what_is_loaded(desk, tiny_source, tmp_path):
    run = embed(desk, tiny_source, tmp_path / "run", train=["positions", "none"], position_sampling="offset")
    found, untrained = (
        LongBertModel.from_pretrained(run / "long" / train).state_dict() for train in ("positions", "none")
    )
    name = "embeddings.position_embeddings.weight"
    moved, first = found.pop(name), untrained.pop(name)
    assert_equal(moved[:64], first[:64])
    assert (moved[64:180] != first[64:180]).any(dim=1).all()  # the very last are rarely reached in so few steps
    for other, value in found.items():
        assert_equal(value, untrained[other])
    assert [damage(folder) for folder in (run / "long" / "positions").glob("checkpoint-*")] == [None] * 3
    encoder = SentenceTransformer(str(run / "long" / "positions"), device="cpu")
    assert isinstance(encoder[0].model, LongBertModel)
    assert encoder.max_seq_length == 192
    here = encoder.encode(["gold " * 150], convert_to_tensor=True)
    command = [sys.executable, "-c", CHILD, run / "long" / "positions", tmp_path / "vector.pt"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert_close(torch.load(tmp_path / "vector.pt"), here, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "searched"), [("train_file", True), ("test_folder", False), ("validation_folder", False)]
)
def test_a_run_writes_beside_the_files_of_a_test_but_not_among_what_is_searched(name, searched, tiny_source, tmp_path):
    (tmp_path / "desk").mkdir()
    settings = {"model": str(tiny_source), "test_folder": "tests", "output_dir": str(tmp_path / "desk" / "run")}
    settings |= {"use_cpu": True, "report_to": "none", name: str(tmp_path / "desk")}
    kinds = ModelArguments, RetrievalArguments, EmbeddingArguments, SentenceTransformerTrainingArguments
    model_args, retrieval_args, run_args, args = from_settings(settings, *kinds)
    refused = pytest.raises(ValueError, match=f"output_dir=.*run lies in {name}=") if searched else nullcontext()
    with refused:
        Record.claim(args, run_args, model_args, retrieval_args)


def test_documents_stand_anywhere_in_the_reach(tiny_source):
    encoder = load_encoder(source_of(tiny_source, max_position_embeddings=192))
    pairs = [{"query": "gold", "document": "gold " * words, "id": str(words)} for words in (5, 9)]
    collator = PairCollator(encoder.preprocess, reach=192)
    batch = collator(pairs)
    assert_equal(batch["document_position_ids"], collator(pairs)["document_position_ids"])
    assert "query_position_ids" not in batch
    for row, length in zip(batch["document_position_ids"], (7, 11), strict=True):
        assert_equal(row[:length], torch.arange(length) + row[0])
        assert row[:length].max() < 192
    assert collator(pairs[:1])["document_position_ids"][0, 0] != batch["document_position_ids"][0, 0]


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(desk, tiny_source, tmp_path, monkeypatch):
    settings = {"position_sampling": "offset", "hidden_dropout_prob": 0.1}
    whole = embed(desk, tiny_source, tmp_path / "whole", **settings)
    load = EmbeddingTrainer.get_batch_samples

    def load_and_signal(trainer, *args):
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(EmbeddingTrainer, "get_batch_samples", load_and_signal)
        embed(desk, tiny_source, tmp_path / "stopped", save_steps=100, **settings)
    assert stopped.value.code == 143
    run = tmp_path / "stopped" / "long" / "all"
    assert [folder.name for folder in run.glob("checkpoint-*")] == ["checkpoint-3"]
    assert damage(run / "checkpoint-3") is None
    embed(desk, tiny_source, tmp_path / "stopped", save_steps=100, resume="auto", **settings)
    weights = [
        (folder / "long" / "all" / "model.safetensors").read_bytes() for folder in (whole, tmp_path / "stopped")
    ]
    assert weights[0] == weights[1]


def test_a_vector_for_every_token_is_trained_saved_and_read_in_chunks(desk, tiny_source, tmp_path):
    run = embed(
        desk,
        tiny_source,
        tmp_path / "run",
        strategies=["multi-vector", "chunk-multi-vector"],
        train=["all", "none"],
        train_baselines=True,
        max_steps=2,
        save_strategy="no",
    )
    results = json.loads((run / "results.json").read_text())
    assert [*results] == [
        "multi-vector, all trained",
        "multi-vector, untrained",
        "chunk-multi-vector",
        "chunk-multi-vector, all trained",
        "BM25",
    ]
    saved = {
        train: MultiVectorEncoder(str(run / "multi-vector" / train), device="cpu").eval() for train in ("all", "none")
    }
    assert isinstance(saved["all"][0].model, LongBertModel)
    lines = {}
    for train, encoder in saved.items():
        folder = run / "multi-vector" / train / "predictions" / "test.jsonl"
        lines[train] = json.loads(folder.read_text().splitlines()[0])["scores"]
        text = json.loads((desk / "test" / "corpus.jsonl").read_text().splitlines()[0])["text"]
        found = encoder.similarity(encoder.encode_query(["gold"]), encoder.encode_document([text]))
        assert lines[train]["gold"] == pytest.approx(float(found), abs=1e-4)
    assert lines["all"] != lines["none"]
    cost = {name: row["cost"] for name, row in results.items()}
    assert cost["multi-vector, all trained"]["training_tokens"] == 2 * 8 * (3 + 122)
    assert cost["multi-vector, untrained"]["vectors"] == len(THINGS) * 122
    assert cost["chunk-multi-vector"]["vectors"] == len(THINGS) * 124


# where answers stand


def balanced(folder: Path, source: Path, starts: list) -> list[dict]:
    """The pairs that are trained on, of documents of 90 letters whose answers begin at these."""
    lines = [{"query": f"q {n}", "document": f"{n:02}" * 45, "start": start} for n, start in enumerate(starts)]
    file = write(folder / "pairs.jsonl", lines)
    settings = {"train_file": str(file), "test_folder": "test", "evidence_column": "start"}
    arguments = RetrievalArguments(balance_evidence=True, **settings)
    return training_pairs(arguments, source_of(source).tokenizer, 64, evaluates=False)[0].to_list()


@pytest.mark.parametrize("starts", [[0, 29, 5, 1, 30, 89, 60], [80, 40, 0], [0] * 9 + [31] * 2 + [70] * 4])
def test_answers_stand_equally_often_early_in_the_middle_and_late(starts, tiny_source, tmp_path):
    rows = balanced(tmp_path, tiny_source, starts)
    of = {f"q {number}": start // 30 for number, start in enumerate(starts)}
    counts = collections.Counter(of[row["query"]] for row in rows)
    most = max(collections.Counter(start // 30 for start in starts).values())
    assert counts == {0: most, 1: most, 2: most}
    assert {row["query"] for row in rows} == {*of}  # none is lost
    times = collections.Counter(row["query"] for row in rows)
    for third in range(3):  # and none repeats more than another of its third, but for one time
        often = [times[query] for query, its in of.items() if its == third]
        assert max(often) - min(often) <= 1
    assert all(row.keys() == {"query", "document", "id", "length"} for row in rows)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0, 1, 70], "in the first, middle and last third of 2, 0 and 1 documents"),
        ([0, 40, 90], "line 3: evidence must be a character of its document, 0 to 89, got 90"),
        ([0, -1, 70], "evidence must be a character of its document, 0 to 89, got -1"),
        ([0, "here", 70], "evidence must be a character of its document, 0 to 89, got 'here'"),
    ],
)
def test_answers_that_cannot_be_balanced_are_refused(starts, message, tiny_source, tmp_path):
    with pytest.raises(ValueError, match=message):
        balanced(tmp_path, tiny_source, starts)


def test_where_answers_stand_has_to_be_told(desk):
    with pytest.raises(ValueError, match="set evidence_column"):
        RetrievalArguments(test_folder="test", balance_evidence=True)
