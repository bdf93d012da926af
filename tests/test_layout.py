"""The shape of the project: what is shipped, and which way imports run."""

import ast
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import PRELOADED, ROOT


PACKAGE = ROOT / "modeling" / "longbert"
# each module may import those before it
ORDER = [
    "position_embeddings",
    "families",
    "configuration_longbert",
    "texts",
    "text_layout",
    "kernels",
    "global_attention",
    "text_attention",
    "explicit_masks",
    "closed_attention",
    "blocked_attention",
    "halo",
    "attention",
    "losses",
    "source_weights",
    "transplant",
    "loading",
    "model_card",
    "tables",
    "feed_forward",
    "modeling_longbert",
    "folders",
    "errors",
    "disclosure",
    "entry",
    "settings",
    "arguments",
    "source",
    "data.files",
    "data.html",
    "data.words",
    "data.parts",
    "data.documents",
    "data.fingerprints",
    "data.held_out",
    "data.features",
    "data.rows",
    "data.twins",
    "data.masking",
    "data.batches",
    "intervals",
    "plots",
    "proof_rows",
    "scoring",
    "copies",
    "proof",
    "probes",
    "inspecting",
    "publishing",
    "extending",
    "baking",
    "onnx_heads",
    "exporting",
    "training.meter",
    "training.memory",
    "training.signals",
    "training.resuming",
    "training.changes",
    "training.sharding",
    "training.record",
    "training.safety",
    "training.epochs",
    "training.trainer",
    "training.estimates",
    "training.freezing",
    "training.sequence_parallel",
    "training.pretraining",
    "finetuning.examples.labels",
    "finetuning.examples.entities",
    "finetuning.examples.words",
    "finetuning.examples.answers",
    "finetuning.examples.reading",
    "finetuning.examples.splits",
    "finetuning.results.classes",
    "finetuning.results.metrics",
    "finetuning.results.costs",
    "finetuning.results.estimates",
    "finetuning.results.report",
    "finetuning.results.verdict",
    "finetuning.strategies",
    "finetuning.pieces",
    "finetuning.comparison",
    "finetuning.tasks.task",
    "finetuning.loop",
    "finetuning.tasks.classification",
    "finetuning.tasks.question_answering",
    "finetuning.tasks.token_classification",
    "finetuning.tasks.multiple_choice",
    "finetuning.retrieval.collection",
    "finetuning.retrieval.bm25",
    "finetuning.retrieval.ways",
    "finetuning.retrieval.encoders",
    "finetuning.retrieval.reading",
    "finetuning.retrieval.contrastive",
    "finetuning.retrieval.reporting",
    "finetuning.retrieval.embedding",
    "finetuning.retrieval.reranker",
    "finetuning.retrieval.reranking",
    "finetuning.applying.predicting",
    "finetuning.applying.best",
    "finetuning.applying.archive",
    "finetuning.applying.shards",
    "finetuning.applying.passages",
    "finetuning.applying.occlusion",
    "finetuning.applying.explaining",
    "finetuning.applying.page",
    "selecting",
    "cli",
    "__main__",
]


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def imported_siblings(module: str) -> set[str]:
    """Modules of the package that one imports, by their dotted names."""
    folder = module.split(".")[:-1]
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            named = ".".join(part for part in base if part)
            found |= {named} if named in ORDER else {f"{named}.{alias.name}".strip(".") for alias in node.names}
    return found


def test_every_module_has_its_place():
    modules = {dotted(file) for file in PACKAGE.rglob("*.py") if file.name != "__init__.py"}
    assert modules == {*ORDER}


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module):
    assert imported_siblings(module) <= {*ORDER[: ORDER.index(module)]}


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"longbert"}
    assert len(top) == 2
    assert "longbert/py.typed" in names
    assert {
        f"longbert/scripts/{path}" for path in ("train.py", "finetune/embedding.py", "configs/pretrain/demo.yaml")
    } <= {*names}
    # the installed command runs the scripts that came with it, and finds their configs by name
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = [sys.executable, "-m", "longbert", "train", "pretrain/demo.yaml", "lerning_rate=1"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "train.py: unknown setting 'lerning_rate': did you mean learning_rate" in done.stderr


SHIPPED = [*PACKAGE.rglob("*.py"), ROOT / "train.py", *(ROOT / "finetune").rglob("*.py")]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_for_linux_alone(file):
    """Text is read and written as utf-8, whatever the system's own encoding, and modules that Windows lacks are not
    imported with the package."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            given = len(node.args) + sum(keyword.arg == "encoding" for keyword in node.keywords)
            assert not (name == "read_text" and given < 1), node.lineno
            assert not (name == "write_text" and given < 2), node.lineno
            if name == "open" and isinstance(node.func, ast.Name):
                binary = any(isinstance(each, ast.Constant) and "b" in str(each.value) for each in node.args[1:2])
                assert binary or any(keyword.arg == "encoding" for keyword in node.keywords), node.lineno
            assert name not in ("fork", "killpg", "SIGHUP", "SIGUSR1"), node.lineno
    for node in tree.body:
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & {"resource", "fcntl", "pwd", "grp", "termios"}


@pytest.mark.parametrize("name", PRELOADED)
def test_what_the_fork_server_of_the_tests_imports_is_there(name):
    """multiprocessing skips in silence what is not, and every run of a script would then import it for itself."""
    importlib.import_module(name)
