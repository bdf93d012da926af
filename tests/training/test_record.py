"""Law 13: a run remembers what it was told. What has changed is refused by name, or gone on with and written down."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from processes import ENVIRONMENT, ROOT, SignalAtStep, result, train, write_settings
from transformers import TrainingArguments

from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, from_settings
from longbert.data.documents import load_documents
from longbert.data.fingerprints import of_documents
from longbert.folders import write_manifest
from longbert.training.record import Record


# ---- the record itself, without a run

TOLD = {"max_steps": 12, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True}
REFUSED = {
    "adam_beta2": 0.98,
    "attention_window": "64",
    "bf16": True,
    "data_seed": 7,
    "gradient_accumulation_steps": 4,
    "held_out_every": 3,
    "hidden_dropout_prob": 0.2,
    "learning_rate": 2e-3,
    "length_schedule": "[[0.5, 32], [0.5, 128]]",
    "lr_scheduler_type": "cosine",
    "masking": "retrieval-aware",
    "max_grad_norm": 0.5,
    "max_loss_ratio": 5.0,
    "max_position_embeddings": 256,
    "max_seq_length": 64,
    "max_steps": 24,
    "mlm_probability": 0.3,
    "native_steps": 3,
    "num_train_epochs": 5.0,
    "objective": "mlm+sop",
    "optim": "adafactor",
    "packing": True,
    "per_device_train_batch_size": 4,
    "position_init": "random",
    "position_sampling": "offset",
    "position_type": "hierarchical",
    "proof_documents": 3,
    "seed": 1,
    "short_seq_probability": 0.5,
    "streaming": True,
    "stride": 8,
    "train_only": ["positions"],
    "warmup_steps": 3,
    "weight_decay": 0.1,
    "whole_word_mask": True,
}
FREE = {
    "checkpoint_from": 64,
    "dataloader_num_workers": 2,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "encoding": "utf-8",
    "eval_steps": 3,
    "eval_strategy": "steps",
    "hub_model_id": "me/mine",
    "hub_private_repo": True,
    "log_level": "info",
    "logging_first_step": True,
    "logging_steps": 7,
    "per_device_eval_batch_size": 2,
    "push_to_hub": True,
    "run_name": "another",
    "save_steps": 3,
    "save_total_limit": 1,
}


@pytest.fixture
def told(tiny_source, tmp_path):
    return {"model": str(tiny_source), "data": ["texts"], "output_dir": str(tmp_path / "run"), **TOLD}


CONTENT = {"number": 3, "in_order": "a", "in_any_order": "b"}


def claim(settings: dict, **changes) -> Record:
    """The record of a run that is told this."""
    settings = {**settings, **changes}
    model_args, data_args, run_args, args = from_settings(
        settings, ModelArguments, DataArguments, PretrainingArguments, TrainingArguments
    )
    return Record.claim(args, run_args, model_args, data_args)


def begin(settings: dict, source: str = "the source", content=CONTENT, **changes) -> Record:
    record = claim(settings, **changes)
    record.begin(source, {"documents": content})
    return record


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_result_is_refused_by_name(name, told):
    begin(told)
    before = {path: path.read_bytes() for path in Path(told["output_dir"]).iterdir()}
    with pytest.raises(ValueError, match=rf"begun with other settings: {name}: .* -> .*resume_with_changes: true"):
        begin(told, resume="auto", **{name: REFUSED[name]})
    assert {path: path.read_bytes() for path in Path(told["output_dir"]).iterdir()} == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_result_is_gone_on_with_if_asked_and_written_down(name, told):
    begin(told)
    begin(told, resume="auto", resume_with_changes=True, **{name: REFUSED[name]})
    begin(told, resume="auto", **{name: REFUSED[name]})  # and from then on is what the run was told
    kept = json.loads(Path(told["output_dir"], "run.json").read_text())
    (change,) = kept["changes"]
    assert change["changed"][0].startswith(f"{name}: ") and change["at"].startswith("20")
    config = Path(told["output_dir"], "config.yaml").read_text()
    assert f"# {change['at']}, gone on with {name}: " in config
    assert yaml.safe_load(config).get(name, REFUSED[name]) == REFUSED[name]


@pytest.mark.parametrize("name", FREE)
def test_what_changes_nothing_may_change(name, told):
    begin(told)
    begin(told, resume="auto", **{name: FREE[name]})
    assert json.loads(Path(told["output_dir"], "run.json").read_text())["changes"] == []


@pytest.mark.parametrize("name", ["eval_steps", "eval_strategy", "save_steps", "save_strategy"])
def test_what_chooses_the_best_checkpoint_may_not(name, told):
    told |= {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4}
    begin(told)
    changes = {"eval_steps": 2, "save_steps": 8, "eval_strategy": "epoch", "save_strategy": "epoch"}
    if name.endswith("strategy"):  # Trainer wants the two alike
        changed = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    else:
        changed = {name: changes[name]}
    with pytest.raises(ValueError, match=f"{name}: "):
        begin(told, resume="auto", **changed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "another"}, "the source's files are not the same"),
        ({"content": {**CONTENT, "number": 4}}, "documents: 3 -> 4"),
        ({"content": {**CONTENT, "in_order": "c"}}, "documents: the same 3 in another order"),
        ({"content": {**CONTENT, "in_order": "c", "in_any_order": "d"}}, "documents: 3 as before, but not the same"),
        ({"content": {**CONTENT, "number": 4}, "text_column": "body"}, "text_column: 'text' -> 'body'"),
    ],
)
def test_other_content_is_refused_and_said(changes, words, told):
    begin(told)
    with pytest.raises(ValueError, match=words):
        begin(told, resume="auto", **changes)
    begin(told, resume="auto", resume_with_changes=True, **changes)
    assert words in "; ".join(json.loads(Path(told["output_dir"], "run.json").read_text())["changes"][0]["changed"])


@pytest.mark.parametrize("name", ["torch", "longbert", "processes", "device"])
def test_other_versions_and_machines_are_refused(name, told):
    begin(told)
    file = Path(told["output_dir"], "run.json")
    kept = json.loads(file.read_text())
    part = "machine" if name in ("processes", "device") else "versions"
    kept["told"][part][name] = "another"
    file.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=f"{name}: another -> "):
        begin(told, resume="auto")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed precision: no -> bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "compiled by: no -> inductor"),
    ],
)
def test_what_a_launcher_decides_is_part_of_it(variable, value, words, told, monkeypatch):
    """As another accelerate config would; it is no setting of the run."""
    begin(told)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=words):
        begin(told, resume="auto")


@pytest.mark.parametrize("output", ["run", "deep/run", "../docs/run", "link/run"])
def test_a_run_does_not_write_where_it_reads(output, told, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "link").symlink_to(tmp_path / "docs")
    inside = {"data": ["elsewhere.txt", str(tmp_path / "docs")], "output_dir": str(tmp_path / "docs" / output)}
    with pytest.raises(ValueError, match="output_dir=.*run lies in data=.*/docs"):
        claim(told, **inside)
    claim(told, **{**inside, "output_dir": str(tmp_path / "docs-run")})


def test_what_lies_elsewhere_is_the_same(told, tmp_path):
    begin(told)
    shutil.move(told["output_dir"], tmp_path / "moved")
    shutil.copytree(told["model"], tmp_path / "source")
    moved = {"output_dir": str(tmp_path / "moved"), "model": str(tmp_path / "source"), "data": ["elsewhere"]}
    begin(told, resume="auto", **moved)


def test_a_folder_without_a_record_is_refused(told, tmp_path):
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no run.json.*resume_with_changes: true"):
        claim(told, resume="auto")
    with pytest.raises(FileExistsError, match="already holds something"):
        claim(told)
    begin(told, resume="auto", resume_with_changes=True)


@pytest.mark.parametrize("content", ["CUT", b"{}", b"[]", b'{"told": {}}', "TOLD", b"\xff\x00", b""])
def test_a_damaged_record_is_refused(content, told, tmp_path):
    begin(told)
    file = tmp_path / "run" / "run.json"
    whole = file.read_bytes()
    without_told = json.dumps({**json.loads(whole), "told": {}}).encode()
    file.write_bytes({"CUT": whole[:40], "TOLD": without_told}.get(content, content))
    with pytest.raises(ValueError, match=r"run.json is (damaged|not the record of a run).*resume_with_changes: true"):
        claim(told, resume="auto")
    begin(told, resume="auto", resume_with_changes=True)


def test_two_runs_never_share_a_folder(told, tmp_path):
    (tmp_path / "run").mkdir()
    other = FileLock(tmp_path / "run" / ".lock")
    with other, pytest.raises(ValueError, match="another run is at work in .*/run"):
        begin(told)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    begin(told)


def test_what_trainer_calls_it_is_refused(told):
    with pytest.raises(ValueError, match="resume_from_checkpoint is called resume here"):
        claim(told, resume_from_checkpoint="checkpoint-2")


# ---- documents


def folder_of(texts: dict[str, str], folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [str(folder)]


@pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])
def test_documents_are_known_by_their_texts_alone(streaming, tmp_path):
    texts = {"a.txt": "one", "b.txt": "two", "c.txt": "three"}
    first = of_documents(load_documents(folder_of(texts, tmp_path / "x"), streaming=streaming))
    moved = {f"moved {name}": text for name, text in texts.items()}
    assert of_documents(load_documents(folder_of(moved, tmp_path / "y"), streaming=streaming)) == first
    turned = {"c.txt": "one", "b.txt": "two", "a.txt": "three"}
    other = of_documents(load_documents(folder_of(turned, tmp_path / "z"), streaming=streaming))
    assert other["in_any_order"] == first["in_any_order"] and other["in_order"] != first["in_order"]
    (tmp_path / "x" / "b.txt").write_text("two!")
    assert (
        of_documents(load_documents([str(tmp_path / "x")], streaming=streaming))["in_any_order"]
        != (first["in_any_order"])
    )


# ---- runs

WAYS = {
    "plain": {},
    "a stream": {"streaming": True},
    "native steps": {"native_steps": 3},
    "the best": {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_total_limit": 1,
    },
}
some_ways = pytest.mark.parametrize(
    "way", [way if way in ("a stream",) else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)


def everything(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


@some_ways
def test_a_finished_run_that_is_resumed_does_nothing(way, tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, **WAYS[way])
    assert train(file)[0] == 0
    before = everything(tmp_path / "run")
    status, printed = train(file, "resume=auto")
    assert status == 0, printed
    assert (tmp_path / "run" / "proof.md").read_text() in printed
    assert everything(tmp_path / "run") == before


@some_ways
def test_what_is_damaged_of_a_finished_run_is_made_anew(way, tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, **WAYS[way])
    assert train(file)[0] == 0
    run = tmp_path / "run"
    before = {name: (run / name).read_bytes() for name in ("model.safetensors", "proof.json")}
    (run / "model.safetensors").write_bytes(before["model.safetensors"][:-1])
    (run / "proof.json").unlink()
    status, printed = train(file, "resume=auto")
    assert status == 0, printed
    assert "model.safetensors is missing or not what was written: it is made anew" in printed
    assert (run / "model.safetensors.damaged").exists()
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_damaged_native_phase_is_made_anew(tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, native_steps=3, save_strategy="no")
    assert train(file, before=SignalAtStep(signal.SIGKILL, step=5))[0] == -9
    model = tmp_path / "run" / "native" / "model" / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    status, printed = train(file, "resume=auto")
    assert status == 0, printed
    assert model.read_bytes() == whole and (tmp_path / "run" / "native" / "model.damaged").is_dir()


@pytest.mark.parametrize("name", ["run/checkpoint-5", pytest.param("the-best", marks=pytest.mark.slow)])
def test_an_abandoned_branch_is_never_taken_again(name, tiny_source, tmp_path):
    """Killed after resume=checkpoint-5, or a link to it, the run goes on from there, not from the checkpoint-10 of
    before."""
    file = write_settings(tmp_path, tiny_source)
    assert train(file, before=SignalAtStep(signal.SIGKILL, step=11))[0] == -9
    run = tmp_path / "run"
    (tmp_path / "the-best").symlink_to(run / "checkpoint-5")
    status, printed = train(
        file,
        f"resume={tmp_path}/{name}",
        "resume_with_changes=true",
        "learning_rate=5e-3",
        before=SignalAtStep(signal.SIGKILL, step=3),
    )
    assert status == -9, printed
    assert (run / "checkpoint-10.abandoned").is_dir() and not (run / "checkpoint-10").exists()
    status, printed = train(file, "resume=auto", "learning_rate=5e-3")
    assert status == 0, printed
    assert f"resuming from {run}/checkpoint-5" in printed
    assert "gone on with learning_rate: 0.001 -> 0.005" in (run / "README.md").read_text()


@pytest.mark.slow
def test_a_checkpoint_without_its_optimizer_is_not_gone_on_from(tiny_source, tmp_path):
    """Trainer would begin a new one in silence, and end with other weights."""
    weights = []
    for step in (99, 8):
        file = write_settings(tmp_path / str(step), tiny_source, save_only_model=True)
        train(file, before=SignalAtStep(signal.SIGKILL, step=step))
        status, printed = train(file, "resume=auto")
        assert status == 0, printed
        weights.append((tmp_path / str(step) / "run" / "model.safetensors").read_bytes())
    assert "was written with save_only_model" in printed
    assert weights[0] == weights[1]


def test_what_is_gone_on_with_takes_effect(tiny_source, tmp_path):
    """Trainer would go on with the checkpoint's own rate, decay and steps."""
    file = write_settings(tmp_path, tiny_source)
    assert train(file, before=SignalAtStep(signal.SIGKILL, step=7))[0] == -9
    changes = ("resume_with_changes=true", "learning_rate=1e-2", "weight_decay=0.5", "save_steps=3")
    status, printed = train(file, "resume=auto", *changes)
    assert status == 0, printed
    run = tmp_path / "run"
    assert {path.name for path in run.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (5, 6, 9, 12)}
    history = json.loads((run / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
    rates = {line["step"]: line["learning_rate"] for line in history if "loss" in line}
    expected = {step: (1e-3 if step < 6 else 1e-2) * (1 - (step - 1) / 12) for step in range(1, 13)}
    assert rates == pytest.approx(expected)
    groups = torch.load(run / "checkpoint-12" / "optimizer.pt")["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}


@pytest.mark.slow
def test_a_finished_run_that_is_branched_keeps_its_result(tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source)
    assert train(file)[0] == 0
    run = tmp_path / "run"
    before = {name: (run / name).read_bytes() for name in ("model.safetensors", "proof.md", "README.md")}
    changes = ("resume_with_changes=true", "learning_rate=5e-3")
    status, printed = train(file, f"resume={run}/checkpoint-5", *changes)
    assert status == 0, printed
    assert {name: (run / "result.abandoned" / name).read_bytes() for name in before} == before
    assert (run / "model.safetensors").read_bytes() != before["model.safetensors"]


@pytest.mark.parametrize("name", ["checkpoint-3", "checkpoint-5", "elsewhere", "native"])
def test_a_checkpoint_that_is_not_there_or_damaged_abandons_nothing(name, told, tmp_path):
    """It is refused before anything is renamed."""
    begin(told)
    run = tmp_path / "run"
    for step in (5, 10):
        (run / f"checkpoint-{step}").mkdir()
        (run / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"weights")
        write_manifest(run / f"checkpoint-{step}")
    (run / "checkpoint-5" / "model.safetensors").write_bytes(b"other")
    before = everything(run)
    with pytest.raises(ValueError, match=rf"cannot resume from .*{name}.*resume=auto takes the newest whole"):
        begin(told, resume=str(run / name))
    assert everything(run) == before


def test_a_branch_in_another_folder_begins_where_it_was_told(tiny_source, tmp_path):
    """Even if it is killed before its first checkpoint."""
    file = write_settings(tmp_path, tiny_source)
    assert train(file, before=SignalAtStep(signal.SIGKILL, step=7))[0] == -9
    other = f"output_dir={tmp_path}/other"
    checkpoint = tmp_path / "run" / "checkpoint-5"
    killed = train(file, other, f"resume={checkpoint}", before=SignalAtStep(signal.SIGKILL, step=2))
    assert killed[0] == -9, killed[1]
    status, printed = train(file, other, "resume=auto")
    assert status == 0, printed
    assert train(file, "resume=auto")[0] == 0
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("run", "other")]
    assert weights[0] == weights[1]
    status, printed = train(file, other, f"resume={checkpoint}")
    assert status == 2 and "already holds something" in printed


class LossGrows:
    """From some step on every loss is ten times what it is."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self) -> None:
        from longbert.training.trainer import LongTrainer

        compute = LongTrainer.compute_loss

        def grown(trainer, *args, **kwargs):
            loss = compute(trainer, *args, **kwargs)
            return loss * (10 if trainer.state.global_step >= self.step else 1)

        LongTrainer.compute_loss = grown


def test_a_diverged_run_that_is_resumed_diverges_again(tiny_source, tmp_path):
    """Its guard needs the losses of 20 steps, and has those from before."""
    file = write_settings(tmp_path, tiny_source, max_steps=40, save_steps=6, gradient_accumulation_steps=1)
    for resume in ([], ["resume=auto"]):
        status, printed = train(file, *resume, before=LossGrows(25))
        assert status != 0 and "step 26 has a loss of" in printed, printed
    assert (tmp_path / "run" / "checkpoint-24").is_dir()


def test_the_best_checkpoint_is_found_where_the_folder_is_now(tiny_source, tmp_path):
    """The model that evaluated best is still the result; here the highest loss is best, which is the first."""
    settings = WAYS["the best"] | {"greater_is_better": True, "save_total_limit": None}
    file = write_settings(tmp_path / "a", tiny_source, **settings)
    assert train(file)[0] == 0
    best = (tmp_path / "a" / "run" / "model.safetensors").read_bytes()
    assert best == (tmp_path / "a" / "run" / "checkpoint-5" / "model.safetensors").read_bytes()
    killed = write_settings(tmp_path / "b", tiny_source, **settings)
    assert train(killed, before=SignalAtStep(signal.SIGKILL, step=11))[0] == -9
    shutil.move(tmp_path / "b" / "run", tmp_path / "c")
    status, printed = train(killed, "resume=auto", f"output_dir={tmp_path / 'c'}")
    assert status == 0, printed
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == best


def test_without_its_best_checkpoint_a_run_goes_back_before_it(tiny_source, tmp_path):
    settings = WAYS["the best"] | {"save_total_limit": None}
    file = write_settings(tmp_path, tiny_source, **settings)
    assert train(file, before=SignalAtStep(signal.SIGKILL, step=11))[0] == -9
    run = tmp_path / "run"
    assert json.loads((run / "checkpoint-10" / "trainer_state.json").read_text())["best_model_checkpoint"]
    (run / "checkpoint-10" / "model.safetensors").write_bytes(b"")
    status, printed = train(file, "resume=auto")
    assert status == 0 and f"resuming from {run}/checkpoint-5" in printed, printed


# ---- epochs


def test_once_an_epoch_is_once_an_epoch(tiny_source, tmp_path):
    """Two epochs and a half of what `rows` counts: two checkpoints and evaluations, and those of the end."""
    changes = {f"{kind}_strategy": "epoch" for kind in ("save", "eval", "logging")}
    file = write_settings(
        tmp_path,
        tiny_source,
        max_steps=-1,
        num_train_epochs=2.5,
        held_out_every=3,
        gradient_accumulation_steps=1,
        **changes,
    )
    status, printed = train(file)
    assert status == 0, printed
    rows = int(printed.split(" rows of up to 128 tokens")[0].split()[-1].replace(",", ""))
    steps = [-(-rows * epoch // 2) for epoch in (1, 2)]  # of two rows each
    last = -(-rows * 2.5 // 2)
    checkpoints = {int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*")}
    assert checkpoints == {*steps, last}
    history = json.loads((tmp_path / "run" / f"checkpoint-{int(last)}" / "trainer_state.json").read_text())[
        "log_history"
    ]
    for kind in ("loss", "eval_loss"):
        assert [line["step"] for line in history if kind in line][:2] == steps
    assert all(line["epoch"] == pytest.approx(line["step"] * 2 / rows) for line in history if "loss" in line)


def test_a_stream_has_no_epochs(tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, streaming=True, save_strategy="epoch")
    status, printed = train(file)
    assert status != 0 and "save_strategy: where the length of an epoch is not known" in printed


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_stop_as_sigterm_does(number, tiny_source, tmp_path):
    file = write_settings(tmp_path / "a", tiny_source)
    status, printed = train(file, before=SignalAtStep(number, step=8))
    assert status == 128 + number, printed
    assert f"stopped by {number.name} after step 8, saved; go on with resume=auto" in printed
    assert "Traceback" not in printed
    assert train(file, "resume=auto")[0] == 0
    unbroken = write_settings(tmp_path / "b", tiny_source)
    assert train(unbroken)[0] == 0
    assert result(file) == result(unbroken)


class HangUpUnderNohup:
    """nohup has the run ignore SIGHUP, which comes when the terminal is closed."""

    def __call__(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        SignalAtStep(signal.SIGHUP, step=8)()


@pytest.mark.slow
def test_a_closed_terminal_does_not_stop_a_run_under_nohup(tiny_source, tmp_path):
    status, printed = train(write_settings(tmp_path, tiny_source), before=HangUpUnderNohup())
    assert status == 0, printed
    assert "stopped by" not in printed


class SignalInEvaluation:
    """The n-th evaluation gets a signal."""

    def __init__(self, number: int, evaluation: int):
        self.number, self.evaluation = number, evaluation

    def __call__(self) -> None:
        from longbert.proof import Prover

        metrics, seen = Prover.metrics, 0

        def signalled(prover, model):
            nonlocal seen
            seen += 1
            if seen == self.evaluation:
                os.kill(os.getpid(), self.number)
            return metrics(prover, model)

        Prover.metrics = signalled


@pytest.mark.parametrize("evaluation", [1, 3])
def test_a_signal_in_an_evaluation_is_not_swallowed(evaluation, tiny_source, tmp_path):
    """The third is after the last step."""
    file = write_settings(tmp_path, tiny_source, eval_strategy="steps", eval_steps=5)
    status, printed = train(file, before=SignalInEvaluation(signal.SIGTERM, evaluation))
    assert status == 143, printed
    assert not (tmp_path / "run" / "proof.json").exists()
    status, printed = train(file, "resume=auto")
    assert status == 0, printed


class SignalWhere:
    """A signal where a function is called."""

    def __init__(self, number: int, module: str, path: str):
        self.number, self.module, self.path = number, module, path

    def __call__(self) -> None:
        import importlib

        *owners, name = self.path.split(".")
        owner = importlib.import_module(self.module)
        for each in owners:
            owner = getattr(owner, each)
        function = getattr(owner, name)

        def signalled(*args, **kwargs):
            os.kill(os.getpid(), self.number)
            return function(*args, **kwargs)

        setattr(owner, name, signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("longbert.proof", "Prover.chunked"),
        ("longbert.training.safety", "put_files_in_place"),
        ("longbert.proof", "Proof.save"),
        ("longbert.training.record", "Record.finish"),
    ],
)
@pytest.mark.slow
def test_a_signal_in_the_proof_or_the_final_save_loses_nothing(module, path, number, tiny_source, tmp_path):
    file = write_settings(tmp_path / "a", tiny_source)
    status, printed = train(file, before=SignalWhere(number, module, path))
    assert status not in (0, None), printed
    status, printed = train(file, "resume=auto")
    assert status == 0, printed
    unbroken = write_settings(tmp_path / "b", tiny_source)
    assert train(unbroken)[0] == 0
    assert result(file) == result(unbroken)
    assert (tmp_path / "a/run/proof.json").read_bytes() == (tmp_path / "b/run/proof.json").read_bytes()


# ---- launchers


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_launcher_that_is_killed_leaves_no_rank_training(ranks, tiny_source, tmp_path):
    """They notice at the next step, save, and end; another run can then go on there."""
    file = write_settings(tmp_path, tiny_source, max_steps=100_000, save_steps=1000)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(ranks)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    with open(tmp_path / "log.txt", "w") as log:
        launcher = subprocess.Popen(
            [*launch, str(ROOT / "train.py"), str(file)], env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log
        )
        wait_for(lambda: "'loss'" in (tmp_path / "log.txt").read_text(), launcher)
        children = children_of(launcher.pid)
        launcher.kill()
        launcher.wait()
    wait_for(lambda: not any(map(is_alive, children)))
    assert [*(tmp_path / "run").glob("checkpoint-*")]
    assert "the launcher is gone" in (tmp_path / "log.txt").read_text()


def children_of(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def is_alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition, process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    for _ in range(int(seconds * 10)):
        if condition():
            return
        assert process is None or process.poll() is None, "the run has ended"
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")
