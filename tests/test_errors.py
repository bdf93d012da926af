"""Law 10: whatever a user can mend is one line on stderr and exit status 2, and a bug keeps its traceback."""

import contextlib
import dataclasses
import io
import json
import logging
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import datasets
import fuzzing
import pytest
import torch
import yaml
from conftest import TINY, N
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, StrictDataclassClassValidationError
from processes import ROOT
from safetensors import SafetensorError
from sentence_transformers import CrossEncoderTrainingArguments, SentenceTransformerTrainingArguments
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from transformers import TrainingArguments

from longbert import LongBertConfig, LongBertModel
from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, parse_config
from longbert.cli import main
from longbert.data.documents import load_documents
from longbert.entry import MENDABLE_EXIT_STATUS, run, start
from longbert.errors import LONGEST
from longbert.extending import extend
from longbert.finetuning.loop import FinetuningArguments
from longbert.finetuning.retrieval.collection import RetrievalArguments
from longbert.finetuning.retrieval.embedding import EmbeddingArguments
from longbert.finetuning.retrieval.reranking import RerankingArguments
from longbert.finetuning.tasks.classification import ClassificationArguments, read_documents
from longbert.finetuning.tasks.multiple_choice import MultipleChoiceArguments
from longbert.finetuning.tasks.question_answering import QuestionAnsweringArguments
from longbert.finetuning.tasks.token_classification import TokenClassificationArguments
from longbert.source import load_long, load_whole
from longbert.training.safety import DivergedError


TASKS = (ClassificationArguments, QuestionAnsweringArguments, TokenClassificationArguments, MultipleChoiceArguments)
FINETUNING = {
    task: (ModelArguments, task, FinetuningArguments, TrainingArguments, {"train_file": "tables/a.jsonl"})
    for task in TASKS
}
SCRIPTS = {
    "train": (ModelArguments, DataArguments, PretrainingArguments, TrainingArguments, {"data": ["documents"]}),
    "classification": FINETUNING[ClassificationArguments],
    "question_answering": FINETUNING[QuestionAnsweringArguments],
    "token_classification": FINETUNING[TokenClassificationArguments],
    "multiple_choice": FINETUNING[MultipleChoiceArguments],
    "embedding": (
        ModelArguments,
        RetrievalArguments,
        EmbeddingArguments,
        SentenceTransformerTrainingArguments,
        {"test_folder": "tables"},
    ),
    "reranking": (
        ModelArguments,
        RetrievalArguments,
        RerankingArguments,
        CrossEncoderTrainingArguments,
        {"test_folder": "tables"},
    ),
}
COMMON = {
    "model": "source",
    "output_dir": "run",
    "max_position_embeddings": 128,
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
}


def few_and_many(few: int, many: int) -> pytest.MarkDecorator:
    """A sample in `make test`, and all of it in `make test-slow`."""
    return pytest.mark.parametrize("number", [few, pytest.param(many, marks=pytest.mark.slow)])


class HangError(BaseException):
    """A case takes longer than it may."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(*_) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Outcomes:
    """What became of many cases: each ended well, or in one line and status 2; what did neither is kept."""

    def __init__(self) -> None:
        self.tried, self.refused, self.bad = 0, 0, []

    def add(self, case: object, job: Callable[[], object], seconds: int = 60) -> bool:
        """Whether a case ended well."""
        self.tried += 1
        errors = io.StringIO()
        streams = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors)
        try:
            with streams[0], streams[1], at_most(seconds):
                status = run("fuzz", lambda: job() and None)
        except SystemExit as end:  # of a script, or of --help
            status = end.code
        except BaseException:
            self.bad.append((case, traceback.format_exc()[-500:]))
            return False
        lines = re.findall(r"^(?:fuzz|\w+\.py): .*", errors.getvalue(), re.MULTILINE)
        if status != 0 and (status != MENDABLE_EXIT_STATUS or len(lines) != 1 or len(lines[0]) > LONGEST + 50):
            self.bad.append((case, lines))
        self.refused += status != 0
        return status == 0

    def check(self, number: int) -> None:
        assert not self.bad, f"{len(self.bad)} of {self.tried}:\n" + "\n".join(map(str, self.bad[:10]))
        assert self.tried >= number
        assert 0 < self.refused < self.tried, "all are refused, or none: this tries nothing"


@pytest.fixture(scope="module")
def desk(tiny_source, tmp_path_factory) -> Path:
    """A folder with a source, long models, tables and documents."""
    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(tiny_source, desk / "source")
    extend(desk / "source", desk / "long", max_positions=128)
    fuzzing.write_tables(desk / "tables")
    (desk / "documents").mkdir()
    for number in range(12):
        (desk / "documents" / f"{number}.txt").write_text(f"the state of the union {number} . " * 40)
    for name, (*_, own) in SCRIPTS.items():
        own = {**COMMON, **own, **({"max_seq_length": 128, "proof_documents": 1} if name == "train" else {})}
        (desk / f"{name}.yaml").write_text(yaml.safe_dump(own))
    return desk


@pytest.fixture
def at_desk(desk, monkeypatch) -> Path:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("HF_TOKEN", "")  # which the setting hub_token would set for the tests that follow
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: None)
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    return desk


# ---- one way in

MENDABLE = {
    "ours": ValueError("x must be y"),
    "a file's": FileNotFoundError(2, "No such file", "x.txt"),
    "not in UTF-8": UnicodeDecodeError("utf-8", b"x", 0, 1, "y"),
    "a config's": StrictDataclassClassValidationError("validate", ValueError("x must be y")),
    "a run's": DivergedError("step 3 has a loss of nan"),
    "of the network": HTTPError("connection refused"),
    "of safetensors": SafetensorError("header too large"),
    "of torch, a full disk": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    "of torch, memory": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    "of the device's memory": torch.OutOfMemoryError("CUDA out of memory."),
    "of Python's memory": MemoryError(),
    "of the Hub, offline": OfflineModeIsEnabled("offline"),
    "what a library needs": ImportError("this optimizer requires galore_torch"),
    "what an extra brings": ModuleNotFoundError("No module named 'datasets'", name="datasets.x"),
    "without words": ValueError(),
}
BUGS = {
    "a name": NameError("x"),
    "a kind": TypeError("x"),
    "a key": KeyError("x"),
    "an assertion": AssertionError("x"),
    "anything": RuntimeError("x"),
    "depth": RecursionError("x"),
    "a module of no extra": ModuleNotFoundError("No module named 'x'", name="x"),
    "a name in a module": ImportError("cannot import name 'x' from 'y'", name="y"),
}


def fail_with(error: BaseException) -> Callable[[], None]:
    def job() -> None:
        raise error

    return job


@pytest.mark.parametrize("kind", MENDABLE)
def test_what_can_be_mended_is_one_line_and_status_2(kind, capsys):
    assert run("name", fail_with(MENDABLE[kind])) == 2
    out, error = capsys.readouterr()
    assert out == ""
    (line,) = error.splitlines()
    assert line.startswith("name: ") and len(line) > len("name: ")


@pytest.mark.parametrize("kind", BUGS)
def test_a_bug_keeps_its_traceback(kind, capsys):
    with pytest.raises(type(BUGS[kind])):
        run("name", fail_with(BUGS[kind]))
    assert "".join(capsys.readouterr()) == ""


def test_everything_has_a_traceback_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("LONGBERT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="x must be y"):
        run("name", fail_with(ValueError("x must be y")))


def test_a_line_is_one_and_of_signs_that_can_be_seen(capsys):
    run("name", fail_with(ValueError("a\nb\tc\u2028d \x1b[31m\u202e\udc80" + "x" * 10**6)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("name: a b c d \\x1b[31m\\u202e\\udc80xxx")
    assert len(line) < LONGEST + 20


def test_what_ends_well_has_the_status_that_it_says():
    assert [run("name", job) for job in (lambda: None, lambda: 0, lambda: 1)] == [0, 0, 1]


def test_a_script_ends_with_it(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/a/script.py", "x", "y"])
    monkeypatch.setattr("sys.stderr", sys.stderr)
    said = []
    with pytest.raises(SystemExit) as end:
        start(lambda argv: fail_with(ValueError(f"got {argv}"))() or said)
    assert end.value.code == 2
    assert capsys.readouterr().err == "script.py: got ['x', 'y']\n"


# ---- under a launcher


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """`ranks(number)` makes this process one of those that torch's launcher has started."""

    def become(rank: int) -> Path:
        report = tmp_path / "attempt_0" / str(rank) / "error.json"  # as torch lays them out
        report.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(report))
        return report

    return become


def test_of_several_processes_the_first_says_it_and_all_reports_have_it(ranks, capsys):
    for rank, expected in ((1, "name: x must be y\n"), (0, ""), (2, "")):
        report = ranks(rank)
        assert run("name", fail_with(ValueError("x must be y"))) == 2
        assert capsys.readouterr().err == expected
        assert "traceback : name: x must be y" in str(
            ChildFailedError("train.py", {rank: ProcessFailure(rank, 1, 2, str(report))})
        )


LOST = {
    "gloo": RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:8070."),
    "nccl": torch.distributed.DistBackendError("remote process exited or there was a network error"),
}


@pytest.mark.parametrize("backend", LOST)
def test_a_process_whose_peer_has_said_why_it_left_is_silent(backend, ranks, capsys):
    ranks(0)
    with pytest.raises(RuntimeError):  # nobody has said anything
        run("name", fail_with(LOST[backend]))
    ranks(1)
    run("name", fail_with(DivergedError("a loss of nan")))
    capsys.readouterr()
    ranks(0)
    assert run("name", fail_with(LOST[backend])) == 2
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyError):
        run("name", fail_with(KeyError("a bug of its own")))


@pytest.mark.parametrize(
    ("code", "status"), [("sys.exit(7)", 7), ("", 0), ("import os; os.kill(os.getpid(), 15)", 143)]
)
def test_launch_ends_as_what_it_launched(code, status, tmp_path, monkeypatch, capfd):
    (tmp_path / "script.py").write_text(f"import sys; print(sys.argv[1:], file=sys.stderr); {code}")
    (tmp_path / "cpu.yaml").write_text((ROOT / "configs" / "accelerate" / "cpu.yaml").read_text())
    options = ["--config_file", str(tmp_path / "cpu.yaml"), "--num_cpu_threads_per_process", "1"]
    assert main(["launch", *options, str(tmp_path / "script.py"), "a=1", "--dry-run"]) == status
    assert capfd.readouterr().err == "['a=1', '--dry-run']\n"


# of each way to launch what stands on stderr beside our line, and the exit status
LAUNCHED = {
    "longbert launch, 1 process": (["-m", "longbert", "launch"], "cpu.yaml", "", 2),
    "longbert launch, 2 processes": (["-m", "longbert", "launch"], "cpu-2.yaml", "", 2),
    "accelerate launch --quiet, 1 process": (["-m", "accelerate.commands.launch", "--quiet"], "cpu.yaml", "", 1),
    "accelerate launch, 1 process": (["-m", "accelerate.commands.launch"], "cpu.yaml", "CalledProcessError", 1),
    "accelerate launch, 2 processes": (["-m", "accelerate.commands.launch"], "cpu-2.yaml", "ChildFailedError", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("override", ["lerning_rate=1", "output_dir=OCCUPIED"])  # of all, and of the first process
@pytest.mark.parametrize("way", LAUNCHED)
def test_one_process_says_what_a_user_can_mend_however_it_is_launched(way, override, tmp_path):
    launcher, config, beside, status = LAUNCHED[way]
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "x").touch()
    script = ["train.py", "configs/pretrain/demo.yaml", "use_cpu=true"]
    script.append(override.replace("OCCUPIED", str(tmp_path / "occupied")))
    options = ["--config_file", f"configs/accelerate/{config}", "--num_cpu_threads_per_process", "1"]
    command = [sys.executable, *launcher, *options, *script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if "kernels" not in line]
    assert done.returncode == status
    assert len([line for line in lines if line.startswith("train.py: ")]) == 1
    if beside:
        assert beside in done.stderr
    else:
        assert len(lines) == 1


# ---- overrides


def keys_of(name: str) -> list[str]:
    *types, _ = SCRIPTS[name]
    return sorted({each.name for type_ in types for each in dataclasses.fields(type_) if each.init})


ALIASES = {"activation_checkpointing_kwargs": "gradient_checkpointing_kwargs"}  # transformers copies the one


@few_and_many(300, 4000)
def test_overrides(number, at_desk):
    """No value is a traceback, and none lands in another setting."""
    outcomes, strays = Outcomes(), []
    for name, (*types, _) in SCRIPTS.items():
        share = number // 2 if name == "train" else number // 10
        for key, value in fuzzing.overrides(keys_of(name), share):
            made = []
            read = partial(parse_config, [f"{name}.yaml", f"{key}={value}"], *types)
            outcomes.add((name, key, value[:60]), lambda read=read, made=made: made.extend(read()), seconds=10)
            for each in made:
                strays += [
                    (key, value, field.name)
                    for field in dataclasses.fields(each)
                    if "evil" in str(getattr(each, field.name)) and field.name not in (key, ALIASES.get(key))
                ]
    outcomes.check(number)
    assert not strays


@few_and_many(2, 40)
def test_what_is_accepted_runs_or_is_refused(number, at_desk):
    """Overrides that are read well, taken through a whole run of one step."""
    outcomes = Outcomes()
    for name, script in (("train", "train.py"), ("classification", "finetune/classification.py")):
        *types, _ = SCRIPTS[name]
        start = runpy.run_path(str(ROOT / script))["main"]
        keys = [key for key in keys_of(name) if not key.startswith(("torch_compile", "output_dir", "ddp_backend"))]
        reading, tried = Outcomes(), 0
        for key, value in fuzzing.overrides(keys, 10**6, seed=1):
            argv = [f"{name}.yaml", f"{key}={value}"]
            if not reading.add(key, partial(parse_config, argv, *types)):
                continue
            shutil.rmtree("run", ignore_errors=True)
            outcomes.add((name, key, value[:60]), partial(start, argv))
            tried += 1
            if tried == number:
                break
    outcomes.check(2 * number)


# ---- command lines

WORDS = {
    "extend": [["source", "OUT"], ["--max-positions", "128"], ["--recipe", "untrained"], ["--position-init", "tile"]]
    + [["--position-type", "hierarchical"], ["--alpha", "0.3"], ["--attention-window", "16"], ["--encoder-only"]]
    + [["--tokenizer", "source"], ["--no-code"]],
    "inspect": [["long"]],
    "plot": [["nowhere", "--out", "OUT"]],
    "evaluate": [["long", "--data", "tables/a.txt"], ["--source", "source"], ["--out", "OUT"], ["--skip-empty"]]
    + [["--text-column", "text"], ["--encoding", "utf-8"], ["--delimiter", ","], ["--document-separator", "line"]]
    + [["--held-out-every", "2"], ["--max-seq-length", "64"], ["--documents", "2"], ["--seed", "1"]],
    "train": [["train.yaml"], ["max_seq_length=64"], ["--dry-run"], ["data=tables"], ["--help"]],
    "finetune": [["classification", "classification.yaml"], ["strategies=[long]"], ["max_length=32"], ["--dry-run"]],
    "bake": [["long", "OUT"], ["--max-positions", "64"]],
    "export": [["nowhere", "OUT"], ["--int8"]],
    "push": [["long", "ann/x"], ["--private"], ["--revision", "x"], ["--tag", "v"], ["--create-pr"]],
    "predict": [["long", "tables/a.txt"], ["--text-column", "text"], ["--question", "what"], ["--out", "OUT"]]
    + [["--format", "jsonl"], ["--shard-size", "2"], ["--skip-empty"]],
    "explain": [["long", "tables/a.txt"], ["--label", "x"], ["--out", "OUT.html"], ["--json", "OUT.json"]]
    + [["--passage-tokens", "8"], ["--row", "0"]],
}


@few_and_many(25, 500)
def test_command_lines(number, at_desk, monkeypatch):
    monkeypatch.setattr("longbert.cli.run", lambda name, command: command())  # the one that counts is this test's
    outcomes = Outcomes()
    for count, line in enumerate(fuzzing.command_lines(WORDS, number)):
        line = [word.replace("OUT", f"out-{count}") for word in line]
        monkeypatch.setattr("sys.stdin", io.StringIO("the state of the union"))
        outcomes.add([word[:60] for word in line], partial(main, line))
    outcomes.check(number)


# ---- configs

FIELDS = sorted({field.name for field in dataclasses.fields(LongBertConfig)} - {"transformers_version"})


@few_and_many(150, 2300)
def test_configs(number):
    """A config is refused when it is made, or its model can be built and run."""

    def build(change: dict) -> None:
        config = LongBertConfig(**{**TINY, "pretrained_positions": N, **change})
        with torch.device("meta"):
            model = LongBertModel(config)
        if sum(parameter.numel() for parameter in model.parameters()) < 10**6:
            LongBertModel(config)(torch.zeros(1, min(20, config.max_position_embeddings), dtype=torch.long))

    outcomes = Outcomes()
    for change in fuzzing.changed_settings(FIELDS, number):
        outcomes.add(change, partial(build, change), seconds=10)
    outcomes.check(number)


@few_and_many(40, 1200)
def test_saved_configs(number, at_desk):
    outcomes = Outcomes()
    for count, change in enumerate(fuzzing.changed_settings([*FIELDS, "model_type", "num_labels"], number, seed=1)):
        file = at_desk / ("source", "long")[count % 2] / "config.json"
        whole = file.read_bytes()
        file.write_text(json.dumps({**json.loads(whole), **change}))
        outcomes.add(change, partial(load_long, file.parent), seconds=20)
        file.write_bytes(whole)
    outcomes.check(number)


# ---- files


@few_and_many(30, 500)
def test_damaged_tables(number, tmp_path):
    draw, outcomes = random.Random(0), Outcomes()
    whole = fuzzing.write_tables(tmp_path / "tables")
    for count in range(number):
        place = tmp_path / str(count)
        shutil.copytree(tmp_path / "tables", place)
        file = place / draw.choice(whole).relative_to(tmp_path / "tables")
        content = file.read_bytes()
        as_json = file.suffix == ".json" and draw.random() < 0.5
        file.write_bytes((fuzzing.changed_json if as_json else fuzzing.damaged)(content, draw))
        table = str(file.parent if file.parent != place else file)
        outcomes.add((file.name, count), lambda table=table: load_documents([table]))
        arguments = ClassificationArguments(train_file=table)
        outcomes.add((file.name, count), lambda table=table, arguments=arguments: read_documents(table, arguments))
    outcomes.check(2 * number)


@few_and_many(15, 500)
def test_damaged_models(number, desk, tmp_path):
    draw, outcomes = random.Random(0), Outcomes()
    forms = fuzzing.write_models(desk / "long", tmp_path)
    for count in range(number):
        form = draw.choice(forms)
        files = [file for file in form.iterdir() if file.suffix in (".json", ".safetensors", ".bin")]
        file = draw.choice([file for file in files if file.name != "manifest.json"])
        content = file.read_bytes()
        as_json = file.suffix == ".json" and draw.random() < 0.5
        file.write_bytes((fuzzing.changed_json if as_json else fuzzing.damaged)(content, draw))
        outcomes.add((form.name, file.name, count), partial(load_whole, str(form)))
        file.write_bytes(content)
    outcomes.check(number)
