"""Law 8: what is saved stands alone. A process without the package loads it through every Auto class."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import (
    HEADS,
    TYPES,
    assert_close,
    assert_equal,
    auto_class,
    batch,
    every_head,
    extended,
    long_class,
    outputs,
)


# In a process of its own: read the folders that the parent saved, and write what they say to result.pt
CHILD = """
import sys

sys.modules["longbert"] = None  # importing it raises ImportError

from pathlib import Path

import torch
import transformers

root = Path(sys.argv[1])
job = torch.load(root / "job.pt")


def say(folder, auto_class, input_ids):
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        return {
            "class": type(model).__name__,
            "module": type(model).__module__,
            "hidden": model.base_model(input_ids).last_hidden_state,
            "logits": model(input_ids).logits if auto_class == "AutoModelForMaskedLM" else None,
        }


result = {}
for name, settings in job["types"].items():
    said = {each: say(root / name, each, job["input_ids"][name]) for each in job["auto_classes"]}
    # The folder's code is enough to extend a plain BERT
    config_class = type(transformers.AutoConfig.from_pretrained(root / name, trust_remote_code=True))
    config = config_class.from_pretrained(job["bert"], **settings)
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(
        job["bert"], config=config, output_loading_info=True
    )
    model.save_pretrained(root / f"{name}-extended-there")
    again = say(root / f"{name}-extended-there", "AutoModelForMaskedLM", job["input_ids"][name])
    # Named with the reach it has, and taken further, the model says what it said
    renamed = {}
    for reach in job["reaches"][name]:
        named = transformers.AutoModelForMaskedLM.from_pretrained(
            root / name, trust_remote_code=True, max_position_embeddings=reach
        )
        with torch.no_grad():
            renamed[reach] = named(job["input_ids"][name]).logits
    result[name] = {
        "renamed": renamed,
        "config": (config_class.__module__, config_class.model_type),
        "said": said,
        "missing": info["missing_keys"],
        "table": model.position_table(),
        "again": again,
    }
try:
    import longbert
except ImportError:
    torch.save(result, root / "result.pt")
"""


EVERY_TYPE = TYPES | {"window": TYPES["learned-extended"] | {"attention_window": 8}}


@pytest.fixture(scope="module")
def models(bert) -> dict:
    return {name: extended(bert(), "ForMaskedLM", settings) for name, settings in EVERY_TYPE.items()}


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """Every type's model, saved."""
    root = tmp_path_factory.mktemp("remote")
    for name, model in models.items():
        model.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def elsewhere(models, folder, bert) -> dict:
    """What a process without the package made of the folders, by type."""
    job = {
        "types": EVERY_TYPE,
        "reaches": {name: [reach(model), *([] if name == "learned" else [100])] for name, model in models.items()},
        "auto_classes": [auto_class(head).__name__ for head in HEADS],
        "input_ids": {name: text(model) for name, model in models.items()},
        "bert": str(bert()),
    }
    torch.save(job, folder / "job.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", CHILD, folder]
    child = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert child.returncode == 0, child.stderr
    return torch.load(folder / "result.pt")


def reach(model) -> int:
    return model.config.max_position_embeddings


def text(model) -> torch.Tensor:
    return batch(reach(model))["input_ids"]


every_name = pytest.mark.parametrize("name", EVERY_TYPE)


@every_head
@every_name
def test_every_auto_class_says_the_same(name, head, elsewhere, models):
    said, model = elsewhere[name]["said"][auto_class(head).__name__], models[name]
    assert said["class"] == long_class(head).__name__
    assert said["module"].startswith("transformers_modules.")
    with torch.no_grad():
        assert_close(said["hidden"], model.base_model(text(model)).last_hidden_state)
        if head == "ForMaskedLM":
            assert_close(said["logits"], model(text(model)).logits)


@every_name
def test_naming_it_again_there_changes_nothing(name, elsewhere, models):
    for logits in elsewhere[name]["renamed"].values():
        assert_close(logits, outputs(models[name], input_ids=text(models[name]))["logits"])


@every_name
def test_the_config_is_the_folders_own(name, elsewhere):
    module, model_type = elsewhere[name]["config"]
    assert module.startswith("transformers_modules.")
    assert model_type == "longbert"


@every_name
def test_the_folders_code_extends_a_plain_bert(name, elsewhere, models):
    there = elsewhere[name]
    assert not there["missing"]
    assert_equal(there["table"], models[name].position_table())
    assert_close(there["again"]["logits"], outputs(models[name], input_ids=text(models[name]))["logits"])


@every_name
def test_what_is_saved_there_is_what_is_saved_here(name, elsewhere, folder):
    here, there = folder / name, folder / f"{name}-extended-there"
    assert {path.name for path in there.iterdir()} == {path.name for path in here.iterdir()}
    for path in here.glob("*.py"):
        assert (there / path.name).read_text() == path.read_text()
    auto_maps = [json.loads((each / "config.json").read_text())["auto_map"] for each in (here, there)]
    assert auto_maps[0] == auto_maps[1]


# of the standard library, what computes and nothing that reads, writes, connects or starts anything
HARMLESS = {"bisect", "collections", "contextlib", "copy", "dataclasses", "difflib", "functools", "itertools", "math"}
HARMLESS |= {"inspect", "re", "types", "typing"}
NAMES_ONLY = {"os.path": {"exists", "join"}}
ALLOWED = HARMLESS | {"torch", "transformers", "huggingface_hub"}
# calls that reach past what is imported
REACHING = {"open", "exec", "eval", "compile", "__import__", "breakpoint", "input", "globals", "vars"}
REACHING_METHODS = {
    "load_url",
    "hf_hub_download",
    "snapshot_download",
    "urlopen",
    "system",
    "popen",
    "unlink",
    "rmtree",
}


@pytest.fixture(scope="module")
def code(folder) -> dict[str, ast.Module]:
    return {path.name: ast.parse(path.read_text()) for path in (folder / "hierarchical").glob("*.py")}


def test_saved_code_imports_its_siblings_and_nothing_that_a_stranger_lacks(code):
    assert {"configuration_longbert.py", "modeling_longbert.py"} <= set(code)
    for name, tree in code.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= ALLOWED, name
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, name
                assert f"{node.module}.py" in code, name
            elif isinstance(node, ast.ImportFrom) and node.module in NAMES_ONLY:
                assert {alias.name for alias in node.names} <= NAMES_ONLY[node.module], name
            elif isinstance(node, ast.ImportFrom):
                assert node.module.partition(".")[0] in ALLOWED, name


def test_saved_code_opens_no_file_and_no_connection_and_runs_no_text(code):
    for name, tree in code.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", None), getattr(node.func, "attr", None)
                assert called[0] not in REACHING and called[1] not in REACHING_METHODS, (name, node.lineno)
                # pickles run code
                assert not (called[1] == "load" and node.func.value.id != "ModelCard"), (name, node.lineno)
