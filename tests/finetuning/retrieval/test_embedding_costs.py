"""Encoders: what reading and training cost is counted, and a dry run says it before and writes nothing."""

import json
import random

import pytest
import yaml
from processes import run

from longbert import LongBertConfig


THINGS = ["gold", "iron", "silver", "copper", "wood", "stone", "glass", "paper"]
NOISE = ["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"]


@pytest.fixture
def settings(tiny_source, tmp_path):
    """8 documents of 100 words and as many queries of one; each word is one token."""
    draw = random.Random(0)
    texts = {thing: " ".join([*draw.choices(NOISE, k=99), thing]) for thing in THINGS}
    test = tmp_path / "test"
    test.mkdir()
    corpus = [{"id": thing, "text": text} for thing, text in texts.items()]
    queries = [{"id": thing, "text": thing, "document": thing} for thing in THINGS]
    pairs = [{"query": thing, "document": text} for thing, text in texts.items()]
    for name, lines in (("test/corpus", corpus), ("test/queries", queries), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    file = tmp_path / "run.yaml"
    settings = {
        "model": str(tiny_source),
        "max_position_embeddings": 192,
        "train_file": str(tmp_path / "pairs.jsonl"),
        "test_folder": str(test),
        "strategies": ["long", "truncate", "chunk-mean", "chunk-max"],
        "train": ["all", "none"],
        "train_baselines": True,
        "output_dir": str(tmp_path / "run"),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    file.write_text(yaml.safe_dump(settings), "utf-8")
    return file


def test_tokens_are_counted_and_chunks_carry_the_training_of_what_reads_them(settings, tmp_path):
    status, printed = run("finetune/embedding.py", settings)
    assert status == 0, printed
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    costs = {name: row["cost"] for name, row in results.items()}
    # 8 queries of 1 + 2 tokens; 8 documents of 100 + 2, of 64, and of 62 + 2 and 38 + 2
    read = {"long": 8 * 102, "truncate": 8 * 64, "chunk-mean": 8 * 104, "chunk-max": 8 * 104}
    vectors = {"long": 8, "truncate": 8, "chunk-mean": 8, "chunk-max": 8 * 2}
    words = costs.pop("BM25")
    assert (words["prediction_tokens"], words["documents"], words["vectors"]) == (8 * 1 + 8 * 100, 8, 0)
    assert words["stored_bytes"] > 0
    width = LongBertConfig.from_pretrained(settings.parent / "run" / "long" / "none").hidden_size
    for name, cost in costs.items():
        way = name.split(",")[0]
        assert cost["prediction_tokens"] == 8 * 3 + read[way], name
        assert cost["documents"] == 8
        assert (cost["vectors"], cost["stored_bytes"]) == (vectors[way], vectors[way] * width * 4), name
    trained = {name: cost["training_tokens"] for name, cost in costs.items() if cost["training_tokens"]}
    long, short = 3 * 4 * (3 + 102), 3 * 4 * (3 + 64)
    assert trained == {
        "long, all trained": long,
        "truncate, all trained": short,
        "chunk-mean, all trained": long,
        "chunk-max, all trained": long,
    }
    assert costs["chunk-mean"]["prediction_seconds"] == costs["chunk-max"]["prediction_seconds"]
    assert f"| {words['stored_bytes'] / 8:,.0f} |" in printed
    assert results["long, all trained"]["verdict"] in printed


def test_a_dry_run_says_what_it_costs_and_writes_nothing(settings, tmp_path):
    before = set(tmp_path.rglob("*"))
    status, printed = run("finetune/embedding.py", settings, "--dry-run")
    assert status == 0, printed
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "log.txt"}
    rows = [line for line in printed.splitlines() if "(1 run)" in line]
    assert [line.split(" | ")[0] for line in rows] == [
        "| long, all trained",
        "| long, untrained",
        "| truncate",
        "| truncate, all trained",
        "| chunk-mean",
        "| chunk-mean, all trained",
        "| chunk-max",
        "| chunk-max, all trained",
        "| BM25",
    ]
    trains = [bool(line.split(" | ")[2].strip()) for line in rows]
    assert trains == [True, False, False, True, False, False, False, False, False]
