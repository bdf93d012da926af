"""Law 6 and 7 where parameters or optimizer states are divided among processes: the same run, whole models, exact
resuming."""

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from conftest import HEADS, LONG, assert_equal, batch, extended
from processes import Divided, SignalAtStep, train, write_settings
from safetensors.torch import load_file
from test_resume import LossOf
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import TrainingArguments

from longbert import LongBertForMaskedLM
from longbert.training.safety import SafeTrainer
from longbert.training.sharding import dividing, refuse_division


# ---- in one process, a group of its own


@pytest.fixture
def group_of_one():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def divided(model: torch.nn.Module, **settings) -> torch.nn.Module:
    """By accelerate's own function, as its `prepare` calls it."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False, **settings
    )
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator = SimpleNamespace(state=state, is_fsdp2=True, mixed_precision="no", is_main_process=True)
    with dividing(model, accelerator):
        return fsdp2_prepare_model(accelerator, model)


@pytest.mark.parametrize("head", HEADS)
def test_layers_are_groups_and_all_else_is_the_roots(head, bert, group_of_one):
    model = extended(bert(), head, {"max_position_embeddings": LONG}).eval()
    inputs = batch(LONG, head)
    expected = model(**inputs)
    divided(model)
    groups = {name for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    layers = {name for name, module in model.named_modules() if re.search(r"layer\.\d+$", name)}
    assert groups == layers | {""} and len(layers) == 2
    assert model.get_input_embeddings() is not None
    assert_equal([*model(**inputs).values()], [*expected.values()])


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForPreTraining"])
def test_logits_at_labels_are_those_of_the_forward_pass(head, bert, group_of_one):
    model = extended(bert(), head, {"max_position_embeddings": LONG}).eval()
    inputs, labels = batch(LONG, head), torch.full((2, LONG), -100)
    labels[0, 3], labels[1, LONG - 1] = 7, 8
    outputs = model(**inputs)
    logits = outputs.logits if head == "ForMaskedLM" else outputs.prediction_logits
    expected = torch.stack((logits[0, 3], logits[1, LONG - 1]))
    torch.testing.assert_close(model.labelled_logits(labels, **inputs), expected)
    divided(model)
    torch.testing.assert_close(model.labelled_logits(labels, **inputs), expected)


class OfAUser(LongBertForMaskedLM):
    """A class of another module than ours."""


@pytest.mark.parametrize("model_class", [LongBertForMaskedLM, OfAUser])
def test_what_is_saved_is_what_a_whole_model_saves(model_class, bert, group_of_one, tmp_path):
    model = model_class.from_pretrained(bert())
    model.save_pretrained(tmp_path / "whole")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # as FSDP2 gathers it
    divided(model)
    assert type(model) is not model_class and type(model).__name__ == model_class.__name__
    model.save_pretrained(tmp_path / "divided", state_dict=state)
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "divided").iterdir()} == files
    for name in files:
        assert (tmp_path / "divided" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_loss_of_half_precision_is_not_rounded_to_it(bert, group_of_one):
    half = torch.bfloat16
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half, output_dtype=half)  # accelerate's own for bf16
    model = divided(LongBertForMaskedLM.from_pretrained(bert()), mixed_precision_policy=policy)
    inputs = batch(16)
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    assert loss.dtype == torch.float32 and loss != loss.to(half)


# ---- what is refused before any work

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}


def told(monkeypatch, environment: dict[str, str]) -> TrainingArguments:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return TrainingArguments(use_cpu=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version must be 2, got 1"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "must be FULL_STATE_DICT, got SHARDED_STATE_DICT"),
    ],
)
def test_a_division_of_which_no_model_comes_is_refused(changed, message, monkeypatch):
    refuse_division(told(monkeypatch, {**FSDP, "ACCELERATE_USE_FSDP": "false", **changed}))
    refuse_division(told(monkeypatch, FSDP))
    with pytest.raises(ValueError, match=message):
        refuse_division(told(monkeypatch, {**FSDP, **changed}))


def test_deepspeeds_third_stage_is_refused(monkeypatch):
    pytest.importorskip("deepspeed")
    args = told(monkeypatch, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"})
    refuse_division(args)
    args = told(monkeypatch, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})
    with pytest.raises(ValueError, match="set zero_stage to 2"):
        refuse_division(args)


def test_that_nothing_is_divided_on_a_cpu_is_said(monkeypatch, bert, logged):
    model = extended(bert(), "ForMaskedLM", {"max_position_embeddings": LONG})
    SafeTrainer(model, told(monkeypatch, FSDP))
    assert "here each process holds all of them" in logged


# ---- in two processes


@pytest.fixture(params=["fsdp2", "deepspeed-zero2"])
def by(request) -> str:
    if request.param == "deepspeed-zero2":
        pytest.importorskip("deepspeed")
    return request.param


VARIANTS = {
    "mlm": {},
    "sentence pairs": {"objective": "mlm+nsp"},
    "positions": {"train_only": ["positions"], "position_sampling": "offset", "length_schedule": [[1.0, 32]]},
    "native": {"native_steps": 3},
    "packed, a window": {"packing": True, "attention_window": 16, "max_position_embeddings": 256},
    "checkpointed": {"checkpoint_from": 100},
}


def steps_of(run_folder: Path) -> list[float]:
    """Losses and gradient norms, step by step."""
    history = json.loads((run_folder / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    return [figure for line in history if "loss" in line for figure in (line["loss"], line["grad_norm"])]


def assert_same_model(actual: Path, expected: Path) -> None:
    assert json.loads((actual / "config.json").read_text()) == json.loads((expected / "config.json").read_text())
    weights, wanted = load_file(actual / "model.safetensors"), load_file(expected / "model.safetensors")
    torch.testing.assert_close(weights, wanted, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_that_divide_the_model_are_one(variant, by, still_source, tmp_path):
    settings = VARIANTS[variant]
    alone = write_settings(tmp_path / "alone", still_source, **settings)
    status, output = train(alone)
    assert status == 0, output
    file = write_settings(tmp_path / "divided", still_source, gradient_accumulation_steps=1, **settings)
    status, output = train(file, ranks=2, before=Divided(by))
    assert status == 0, output
    here, there = file.parent / "run", alone.parent / "run"
    assert steps_of(here) == pytest.approx(steps_of(there), rel=1e-5)
    for folder in ["checkpoint-5", "."] + ["native/model"] * ("native_steps" in settings):
        assert_same_model(here / folder, there / folder)
    if by == "fsdp2":
        holds = [json.loads(line) for line in re.findall(r"holds (\{.*?\})", output)]
        assert len(holds) == (4 if "native_steps" in settings else 2)
        for each in holds:
            assert each["placements"] == ["(Shard(dim=0),)"]
            assert each["bytes"] == pytest.approx(each["of"] / 2, rel=1e-3)


@pytest.mark.slow
def test_half_precision_is_that_of_one_process(still_source, tmp_path):
    alone = write_settings(tmp_path / "alone", still_source, bf16=True)
    file = write_settings(tmp_path / "divided", still_source, bf16=True, gradient_accumulation_steps=1)
    for status, output in (train(alone), train(file, ranks=2, before=Divided("fsdp2"))):
        assert status == 0, output
    losses, expected = (steps_of(each.parent / "run")[::2] for each in (file, alone))
    assert losses == pytest.approx(expected, rel=5e-4)  # bf16 itself has steps of 4e-3


def result(file: Path) -> tuple[bytes, list[float]]:
    return (file.parent / "run" / "model.safetensors").read_bytes(), steps_of(file.parent / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_ends_as_one_never_stopped(kind, by, tiny_source, tmp_path):
    unbroken, stopped = (
        write_settings(tmp_path / name, tiny_source, gradient_accumulation_steps=1) for name in ("unbroken", "stopped")
    )
    status, output = train(unbroken, ranks=2, before=Divided(by))
    assert status == 0, output
    status, output = train(stopped, ranks=2, before=Divided(by, then=SignalAtStep(kind, step=8)))
    assert status == (143 if kind == signal.SIGTERM else -9), output
    status, output = train(stopped, "resume=auto", ranks=2, before=Divided(by))
    assert status == 0, output
    assert "resuming from" in output
    assert result(stopped) == result(unbroken)


@pytest.mark.slow
def test_a_run_does_not_go_on_divided_otherwise(tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source)
    status, output = train(file, ranks=2, before=Divided("fsdp2", then=SignalAtStep(signal.SIGTERM, step=6)))
    assert status == 143, output
    status, output = train(file, "resume=auto", ranks=2)
    assert status != 0
    assert "divided by: FSDP -> None" in output


@pytest.mark.slow
@pytest.mark.parametrize("by", ["ddp", "fsdp2", "deepspeed-zero2"], indirect=True)
def test_the_best_checkpoint_is_loaded_at_the_end(by, tiny_source, tmp_path):
    choosing = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    file = write_settings(tmp_path, tiny_source, eval_strategy="steps", eval_steps=5, **choosing)
    status, output = train(file, ranks=2, before=Divided(by))
    assert status == 0, output
    run_folder = file.parent / "run"
    assert_same_model(run_folder, run_folder / "checkpoint-5")  # of the three the one with the greatest loss
    last = load_file(run_folder / "checkpoint-12" / "model.safetensors")
    assert any(not torch.equal(last[name], kept) for name, kept in load_file(run_folder / "model.safetensors").items())


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "message"), [(float("nan"), "has a loss of nan"), (5.0, "times the mean of the")])
def test_a_diverged_run_stops_and_says_where(factor, message, by, tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, max_steps=40, save_steps=10, gradient_accumulation_steps=1)
    status, output = train(file, ranks=2, before=Divided(by, then=LossOf(factor, step=25)))
    assert status not in (0, None)
    assert "step 26 " in output and message in output
    assert f"Last good checkpoint: {file.parent}/run/checkpoint-20" in output


@pytest.mark.slow
def test_sequences_are_shared_by_processes_that_divide_the_model(still_source, tmp_path):
    settings = {"attention_window": 16}
    alone = write_settings(tmp_path / "alone", still_source, **settings)
    status, output = train(alone)
    assert status == 0, output
    shared = write_settings(tmp_path / "shared", still_source, sequence_parallel_size=2, **settings)
    status, output = train(shared, ranks=2, before=Divided("fsdp2"))
    assert status == 0, output
    assert steps_of(shared.parent / "run") == pytest.approx(steps_of(alone.parent / "run"), rel=1e-5)
