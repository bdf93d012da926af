"""The shape of the project: what is shipped, and which way imports run."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling" / "longbert"
# each module may import those before it
ORDER = [
    "position_embeddings",
    "configuration_longbert",
    "attention",
    "losses",
    "transplant",
    "modeling_longbert",
    "data",
    "arguments",
    "checkpoints",
    "plots",
    "evaluation",
    "training",
    "cli",
]


def imported_siblings(file: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.level]
    named = {alias.name for node in nodes if node.module is None for alias in node.names}
    return named | {node.module for node in nodes if node.module}


def test_every_module_has_its_place():
    assert {file.stem for file in PACKAGE.glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module):
    found = imported_siblings(PACKAGE / f"{module}.py")
    assert found <= {*ORDER[: ORDER.index(module)]}


def test_the_wheel_holds_the_package_alone(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"longbert"}
    assert len(top) == 2
    assert "longbert/py.typed" in names
