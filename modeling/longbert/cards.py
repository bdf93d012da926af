"""The card of a model's folder, written from all that is known: the config, the source's card, what a run has left."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from .configuration_longbert import LongBertConfig
from .data.documents import PACKAGE_SCHEME, resolve_path
from .model_card import ENCODER_LIBRARY, PIPELINE_TAGS, architecture_of, model_card


SETTINGS = "config.yaml"
# what a run has left and a card tells: tables and the pictures that go with them
TABLES = {"proof.md": "proof.png", "results.md": "by_position.png"}
EVIDENCE = (*TABLES, *TABLES.values(), "proof.json", "results.json", SETTINGS)
# where it was written and published is nobody's business
PRIVATE = ("output_dir", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision")
# the row of a proof that is the model itself, the best known first
PROVED = ("extended, after training", "after training", "this model", "extended, before training")


def write_card(
    folder: str | Path,
    source: str | None = None,
    run: str | Path | None = None,
    row: str | None = None,
    command: str | None = None,
    name: str | None = None,
) -> None:
    """Write `README.md`, the card of a model, into its folder; what the source's card says of licence, language and
    base model stays.

    Args:
        source: what was extended or trained: a folder, a Hub id, or `package://name/folder`.
        run: where the tables, pictures and settings of the run are, if not in `folder`; they are copied to the card.
        row: of the results' table, the model's own; by default the first.
        command: the command line of the run.
        name: the repository, where it is known; by default the folder's name.
    """
    folder = Path(folder)
    for file in EVIDENCE:
        if run is not None and Path(run, file).exists():
            shutil.copy(Path(run, file), folder)
    settings = yaml.safe_load((folder / SETTINGS).read_text()) if (folder / SETTINGS).exists() else {}
    source = source or settings.get("model")
    name = name or folder.resolve().name
    config = LongBertConfig.from_pretrained(folder)
    metadata = carried(source) if source else {}
    if (folder / "modules.json").exists():
        metadata |= {"library_name": ENCODER_LIBRARY, "pipeline_tag": "sentence-similarity"}
    if results := eval_results(folder, settings, config, row):
        metadata |= {"model_name": name.rpartition("/")[2], "eval_results": results}
    named = Path(source).name if source and Path(source).exists() else source
    card = model_card(config, name, named, _sections(folder, settings, command), **metadata)
    card.save(folder / "README.md")


def command_line() -> str:
    """How the running script was launched."""
    return shlex.join(["accelerate", "launch", *sys.argv])


def carried(source: str) -> dict[str, Any]:
    """What the card of a source states and its extension keeps: licence, language, base model."""
    local = Path(resolve_path(source))
    on_the_hub = not local.exists() and not source.startswith(PACKAGE_SCHEME)
    if not on_the_hub and not (local / "README.md").exists():
        return {}
    try:
        stated = ModelCard.load(source if on_the_hub else local / "README.md").data.to_dict()
    except (OSError, ValueError):  # no card, or no way to it
        stated = {}
    kept = {key: stated[key] for key in ("license", "language", "base_model") if stated.get(key)}
    return {**kept, "base_model": source} if on_the_hub else kept


def _sections(folder: Path, settings: dict[str, Any], command: str | None) -> dict[str, str]:
    shown = []
    for table, picture in TABLES.items():
        if (folder / table).exists():
            shown.append((folder / table).read_text().strip())
        if (folder / picture).exists():
            shown.append(f"![by position in the text]({picture})")
    trained = [f"    {command}"] if command else []
    if settings:
        told = {key: value for key, value in settings.items() if value != [] and key not in PRIVATE}
        trained.append(f"```yaml\n{yaml.safe_dump(told, sort_keys=False).strip()}\n```")
    sections = {"Does it work?": shown, "Training": trained}
    return {title: "\n\n".join(parts) for title, parts in sections.items() if parts}


def eval_results(folder: Path, settings: dict[str, Any], config: LongBertConfig, row: str | None) -> list[EvalResult]:
    """The figures of a proof and of a test set, as the Hub lists them (`model-index`)."""
    data = next((settings[key] for key in ("data", "test_file", "train_file", "test_folder") if settings.get(key)), "")
    names = [Path(each).name for each in ([data] if isinstance(data, str) else data)]
    return [
        EvalResult(
            task_type=PIPELINE_TAGS.get(architecture_of(config), "other"),
            dataset_type="text",
            dataset_name=", ".join(filter(None, names)) or "held-out documents",
            metric_type=metric,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for title, metric, value in [*_proved(folder / "proof.json"), *_tested(folder / "results.json", row)]
    ]


Figure = tuple[str, str, float]


def _proved(file: Path) -> list[Figure]:
    """(title, metric, value) of the model's own row, over all positions and past the source's."""
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    row = next((rows[name] for name in PROVED if name in rows), None)
    buckets = {} if row is None else row["buckets"]
    return [
        (f"MLM {metric}, tokens {bucket}", metric, buckets[bucket][metric])
        for bucket in buckets
        if bucket == "all" or bucket.startswith("≥")
        for metric in ("loss", "accuracy")
    ]


def _tested(file: Path, row: str | None) -> list[Figure]:
    """(title, metric, value) of the model's own row on the test set."""
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    figures = rows.get(row or "") or next(iter(rows.values()), {})
    return [(name, name, value) for name, value in figures.items() if isinstance(value, float)]
