"""Settings of strangers that could only fail later, or would be passed over: each is refused before any training."""

import importlib.util
import json
import math

import pytest
from transformers import TrainingArguments

from longbert.arguments import ModelArguments, from_settings
from longbert.finetuning.comparison import choosing_the_best
from longbert.finetuning.loop import FinetuningArguments
from longbert.finetuning.results.metrics import RegressionMetric, SingleLabelMetric
from longbert.finetuning.results.report import Report
from longbert.finetuning.results.verdict import verdict
from longbert.finetuning.strategies import STRATEGIES, Reader
from longbert.source import Source
from longbert.training.freezing import select_parameters


IMPOSSIBLE = {
    "per_device_train_batch_size": 0,
    "per_device_eval_batch_size": 0,
    "gradient_accumulation_steps": 0,
    "dataloader_num_workers": -1,
    "num_train_epochs": 0,
    "max_steps": 0,
    "label_smoothing_factor": 0.1,
    "max_length": 2,
    "strategies": ["long", "long"],
    "train_only": [],
    "seeds": 0,
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_values_are_refused_by_name(name, tmp_path):
    settings = {"output_dir": str(tmp_path), name: IMPOSSIBLE[name]}
    with pytest.raises(ValueError, match=name):
        from_settings(settings, FinetuningArguments, TrainingArguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"load_best_model_at_end": True, "save_strategy": "no"},
            "load_best_model_at_end=true needs evaluations to choose by",
        ),
        ({"metric_for_best_model": "f2"}, "metric_for_best_model must be one of accuracy, macro_f1"),
    ],
)
def test_what_chooses_the_best_is_checked_before(settings, message, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), **settings)
    with pytest.raises(ValueError, match=message):
        choosing_the_best(FinetuningArguments(), args, SingleLabelMetric())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"report_to": "wandb"}, "report_to: .*requires wandb to be installed"), ({"deepspeed": "x.json"}, "deepspeed")],
)
def test_a_package_that_is_not_installed_is_named(settings, message, tmp_path):
    if importlib.util.find_spec("wandb") or importlib.util.find_spec("deepspeed"):
        pytest.skip("they are installed")
    with pytest.raises(ValueError, match=message):
        from_settings({"output_dir": str(tmp_path), **settings}, TrainingArguments)


def test_a_length_past_the_reach_is_refused(tiny_source):
    source = Source.of(ModelArguments(model=str(tiny_source), max_position_embeddings=128))
    assert Reader.of(STRATEGIES["long"], source, 100).at_once == 100
    assert Reader.of(STRATEGIES["long"], source, None).at_once == 128
    with pytest.raises(ValueError, match="max_length=129, and the model reaches 128"):
        Reader.of(STRATEGIES["long"], source, 129)


def test_what_is_no_regular_expression_is_refused(bert):
    from conftest import extended

    with pytest.raises(ValueError, match="train_only: '\\[' is no regular expression"):
        select_parameters(extended(bert(), "Model", {}), ["["])


def report(metric, predictions, references) -> Report:
    pairs = zip(predictions, references, strict=True)
    lines = [
        {"id": str(number), "prediction": found, "reference": truth, "scores": {}}
        for number, (found, truth) in enumerate(pairs)
    ]
    return Report(metric, lambda lines, start, stop: [], {"long": lines, "truncate": lines}, 512, 4096)


@pytest.mark.parametrize("number", [1, 2, 9, 10])
def test_a_tiny_test_is_said_to_show_nothing(number):
    said = verdict(report(SingleLabelMetric(), [0] * number, [0] * number))
    assert (f"So few test examples ({number}) show nothing" in said) is (number < 10)


@pytest.mark.parametrize("predictions", [[0.5], [0.5, 0.5, 0.5]])
def test_a_correlation_that_there_is_not_is_null_in_json(predictions, tmp_path):
    made = report(RegressionMetric(), predictions, [1.0, 2.0, 3.0][: len(predictions)])
    assert "long and truncate have no pearson that is a number" in verdict(made)
    made.save(tmp_path, verdict(made))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    results = json.loads((tmp_path / "results.json").read_text("utf-8"), parse_constant=refuse)
    assert results["long"]["pearson"] is None
    assert math.isfinite(results["long"]["rmse"])
