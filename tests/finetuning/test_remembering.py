"""A comparison remembers what it was told: what is finished stays, what has changed is refused, nothing is mixed."""

import json
import random
import signal

import pytest
import yaml
from processes import SignalAtStep, run


WORDS = ["state", "union", "people", "war", "peace", "law", "work", "year", "great", "land"]


def write_examples(file, number, words=80, flipped=False):
    draw = random.Random(number)
    labels = "ba" if flipped else "ab"
    lines = ({"text": " ".join(draw.choices(WORDS, k=words)), "label": labels[place % 2]} for place in range(number))
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return str(file)


@pytest.fixture
def settings(tiny_source, tmp_path):
    defaults = {
        "model": str(tiny_source),
        "max_position_embeddings": 256,
        "train_file": write_examples(tmp_path / "train.jsonl", 16),
        "validation_file": write_examples(tmp_path / "validation.jsonl", 6),
        "test_file": write_examples(tmp_path / "test.jsonl", 8),
        "output_dir": str(tmp_path / "run"),
        "strategies": ["long", "truncate"],
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
    }

    def write(**changes):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump({**defaults, **changes}), "utf-8")
        return file

    return write


def classify(file, *argv, before=None):
    return run("finetune/classification.py", file, *argv, before=before)


def everything(folder):
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.fixture
def finished(settings, tmp_path):
    status, printed = classify(settings())
    assert status == 0, printed
    return everything(tmp_path / "run")


def test_finished_it_does_nothing_and_shows_the_table(finished, settings, tmp_path):
    status, printed = classify(settings(), "resume=auto")
    assert status == 0, printed
    assert (tmp_path / "run" / "results.md").read_text() in printed
    assert everything(tmp_path / "run") == finished


def test_a_seed_more_is_one_run_more(finished, settings, tmp_path):
    status, printed = classify(settings(), "resume=auto", "seeds=2")
    assert status == 0, printed
    now = everything(tmp_path / "run")
    kept = [file for file in finished if "seed-42" in file.parts and file.name not in ("README.md", "config.yaml")]
    kept = [file for file in kept if "results" not in file.name and file.suffix != ".png"]
    assert kept and all(now[file] == finished[file] for file in kept)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["long"]["predictions"] == 16


CHANGES = {
    "another rate": (["learning_rate=1e-3"], "learning_rate: 5e-05 -> 0.001"),
    "more steps": (["max_steps=8"], "max_steps: 6 -> 8"),
    "other labels": (["train_file={}/flipped.jsonl"], "training set: 16 as before, but not the same"),
    "another test": (["test_file={}/more.jsonl"], "test set: 8 -> 10"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_refused_or_made_anew(change, finished, settings, tmp_path):
    """Where it is asked to go on, no prediction of before stands in the new table."""
    write_examples(tmp_path / "flipped.jsonl", 16, flipped=True)
    write_examples(tmp_path / "more.jsonl", 10)
    argv, words = CHANGES[change]
    argv = [word.format(tmp_path) for word in argv]
    status, printed = classify(settings(), "resume=auto", *argv)
    assert status != 0 and words in printed, printed
    assert everything(tmp_path / "run") == finished
    status, printed = classify(settings(), "resume=auto", "resume_with_changes=true", *argv)
    assert status == 0, printed
    for strategy in ("long", "truncate"):
        folder = tmp_path / "run" / strategy / "seed-42"
        assert (folder / "predictions.changed").is_dir()
        assert words in (folder / "README.md").read_text()
    if change == "another test":
        assert json.loads((tmp_path / "run" / "results.json").read_text())["long"]["predictions"] == 10


@pytest.mark.parametrize("damaged", ["test.jsonl", "manifest.json", "cost.json"])
def test_damaged_predictions_are_set_aside_and_made_anew(damaged, finished, settings, tmp_path):
    folder = tmp_path / "run" / "truncate" / "seed-42"
    before = (folder / "predictions" / "test.jsonl").read_bytes()
    (folder / "predictions" / damaged).write_bytes(b"{}")
    status, printed = classify(settings(), "resume=auto")
    assert status == 0, printed
    assert (folder / "predictions" / "test.jsonl").read_bytes() == before
    assert (folder / "predictions.damaged").is_dir()


@pytest.mark.slow
def test_a_run_stopped_early_is_not_trained_on(settings, tmp_path):
    """Killed before its predictions, it goes on with them; the count of evaluations without gain is remembered."""
    changes = {
        "strategies": ["long"],
        "max_steps": 40,
        "learning_rate": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "early_stopping_patience": 2,
    }
    file = settings(**changes)
    status, printed = classify(file, before=KillAtPrediction())
    assert status == -9, printed
    folder = tmp_path / "run" / "long" / "seed-42"
    last = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    assert last[-1] == 6
    status, printed = classify(file, "resume=auto")
    assert status == 0, printed
    assert sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")) == last


class KillAtPrediction:
    """SIGKILL where the test is to be predicted."""

    def __call__(self) -> None:
        import os

        from longbert.training.safety import SafeTrainer

        save = SafeTrainer.save_result

        def saved(trainer):
            save(trainer)
            os.kill(os.getpid(), signal.SIGKILL)

        SafeTrainer.save_result = saved


@pytest.mark.slow
def test_stopped_in_its_second_strategy_it_goes_on_there(settings, tmp_path):
    file = settings()
    status, printed = classify(file, before=SignalAtStep(signal.SIGHUP, step=9))
    assert status == 128 + signal.SIGHUP, printed
    first = everything(tmp_path / "run" / "long" / "seed-42" / "predictions")
    status, printed = classify(file, "resume=auto")
    assert status == 0, printed
    assert everything(tmp_path / "run" / "long" / "seed-42" / "predictions") == first
