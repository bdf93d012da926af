"""CONTRIBUTING.md's "add a ..." sections: the code of each is run, and what it adds works."""

import re
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from conftest import LONG, TINY, N, assert_close, assert_equal, auto_class, batch, every_head, extended, outputs
from processes import ROOT
from transformers import AttentionInterface, AttentionMaskInterface, TrainingArguments

from longbert import POSITION_INITS, POSITION_TYPES, LongBertConfig, LongBertModel
from longbert.arguments import ModelArguments
from longbert.cli import main
from longbert.families import FAMILIES
from longbert.finetuning.examples.splits import Split
from longbert.finetuning.loop import FinetuningArguments, run_task
from longbert.finetuning.results.metrics import interval_of
from longbert.finetuning.strategies import STRATEGIES
from longbert.finetuning.tasks.task import Task
from longbert.source import Source


PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SECTIONS = re.findall(r"^## Add a (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
REGISTRIES = (POSITION_TYPES, POSITION_INITS, FAMILIES, STRATEGIES)
KERNELS = (AttentionInterface, AttentionMaskInterface)


@pytest.fixture(autouse=True)
def nothing_stays():
    """What a section adds leaves with its test."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
    for interface in KERNELS:
        interface._global_mapping.pop("textbook", None)


def added(section: str) -> dict:
    """The names that a section's code makes, after it has run."""
    (code,) = re.findall(r"```python\n(.*?)```", dict(SECTIONS)[section], re.DOTALL)
    names: dict = {}
    exec(code, names)
    return names


def test_every_section_is_tried_here():
    tried = set(re.findall(r'added\("(.*?)"\)', Path(__file__).read_text("utf-8")))
    assert tried == {title for title, _ in SECTIONS}


@every_head
def test_a_position_type(head, bert, source_rows, tmp_path):
    added("position type")
    settings = {"position_type": "mirrored", "max_position_embeddings": 2 * N}
    model = auto_class(head).from_pretrained(bert(), config=LongBertConfig.from_pretrained(bert(), **settings))
    assert_equal(model.position_table(), torch.cat((source_rows, source_rows.flip(0))))
    model.save_pretrained(tmp_path)
    inputs = batch(2 * N, head)
    assert_close(outputs(auto_class(head).from_pretrained(tmp_path), **inputs), outputs(model, **inputs))


def test_a_position_init(bert, source_rows, tiny_source, tmp_path):
    added("position init")
    model = extended(bert(), "Model", {"position_init": "mean", "max_position_embeddings": LONG})
    table = model.position_table()
    assert_equal(table[:N], source_rows)
    assert_close(table[N:], source_rows[1:].mean(0).expand(LONG - N, -1))
    chosen = ["--position-init", "mean"]
    assert main(["extend", str(tiny_source), str(tmp_path / "long"), "--max-positions", "128", *chosen]) == 0
    assert LongBertConfig.from_pretrained(tmp_path / "long").position_init == "mean"


def test_a_family(tmp_path):
    added("family")
    original = transformers.SplinterModel(transformers.SplinterConfig(**TINY, question_token_id=99)).eval()
    original.save_pretrained(tmp_path)
    original = transformers.SplinterModel.from_pretrained(tmp_path)
    config = LongBertConfig.from_pretrained(tmp_path, max_position_embeddings=LONG)
    model = LongBertModel.from_pretrained(tmp_path, config=config, add_pooling_layer=False)
    short = batch(N)
    assert_close(outputs(model, **short)["last_hidden_state"], outputs(original, **short)["last_hidden_state"])
    assert outputs(model, **batch(LONG))["last_hidden_state"].shape == (2, LONG, TINY["hidden_size"])


@pytest.fixture
def texts() -> list[datasets.Dataset]:
    rows = {"text": ["war and peace " * 40, "a garden in spring " * 40] * 3, "label": ["war", "garden"] * 3}
    examples = datasets.Dataset.from_dict({**rows, "id": [str(number) for number in range(6)]})
    return [examples] * 3


def finetune(task_class: type, texts: list[datasets.Dataset], source: Path, out: Path, **changes) -> str:
    """The table of one step of a task."""
    splits = [Split("", *texts)]
    model = Source.of(ModelArguments(model=str(source), max_position_embeddings=128))
    task = task_class.of(model, splits, None, 8)
    for name, value in changes.items():
        setattr(task, name, value)
    arguments = TrainingArguments(
        str(out), max_steps=1, per_device_train_batch_size=2, use_cpu=True, save_strategy="no", report_to="none"
    )
    strategies = [name for name in STRATEGIES if name in ("long", "tail")]
    run_task(task, splits, model, FinetuningArguments(strategies=strategies), arguments)
    return (out / "results.md").read_text("utf-8")


def test_a_task(texts, tiny_source, tmp_path):
    task_class = added("task")["SmoothedClassification"]
    assert "| long |" in finetune(task_class, texts, tiny_source, tmp_path / "run")
    section = dict(SECTIONS)["task"]
    assert all(f"`{method}`" in section for method in Task.__abstractmethods__)


def test_a_strategy(texts, tiny_source, tmp_path):
    added("strategy")
    smoothed = added("task")["SmoothedClassification"]
    assert STRATEGIES["tail"].read([1, 2, 3, 4], 3) == [[2, 3, 4]]
    assert "| tail |" in finetune(smoothed.__base__, texts, tiny_source, tmp_path / "run")


def test_a_metric(texts, tiny_source, tmp_path):
    metric = added("metric")["NearMissMetric"]()
    found, truth = [1, 2, 3, 5], [1, 3, 5, 5]
    assert metric.compute(predictions=found, references=truth) == {"within_one": 0.75}
    low, high = interval_of(metric, found, truth)
    assert low <= 0.75 <= high
    task_class = added("task")["SmoothedClassification"].__base__
    assert "within_one" in finetune(task_class, texts, tiny_source, tmp_path / "run", metric=metric)


def test_a_kernel(bert):
    added("kernel")
    settings = {"max_position_embeddings": LONG, "attention_window": None}
    ours = extended(bert(), "Model", settings)
    theirs = extended(bert(), "Model", settings, attn_implementation="textbook")
    mask = torch.ones(2, LONG, dtype=torch.long)
    mask[1, LONG // 2 :] = 0
    inputs = {**batch(LONG), "attention_mask": mask}
    both = [outputs(model, **inputs)["last_hidden_state"][mask.bool()] for model in (ours, theirs)]
    assert_close(*both)
    windowed = extended(bert(), "Model", {**settings, "attention_window": N}, attn_implementation="textbook")
    with pytest.raises(ValueError, match="'longbert', 'sdpa' or 'eager', got 'textbook'"):
        windowed(**inputs)
