"""Publishing a model's folder: its card, written from all that is known about it, and the push, in one commit."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard

# its own HTTP client's, which was httpx and is httpx2
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from transformers import TrainingArguments

from .arguments import written_config
from .configuration_longbert import LongBertConfig
from .disclosure import public_command, public_name, public_settings, redacted
from .folders import PACKAGE_SCHEME, read_json, resolve_path
from .inspecting import disagreements
from .model_card import ENCODER_LIBRARY, PIPELINE_TAGS, architecture_of, model_card
from .proof_rows import PROVED
from .source import copy_sentence_modules, load_long, saved_tokenizer


SETTINGS = "config.yaml"
# what a run has left and a card tells: tables and the pictures that go with them
TABLES = {
    "proof.md": {"proof.png": "by position in the text", "copies.png": "copy tokens by distance"},
    "results.md": {"by_position.png": "by position in the text", "lengths.png": "how long the texts are"},
}
PICTURES = [picture for pictures in TABLES.values() for picture in pictures]
EVIDENCE = (*TABLES, *PICTURES, "proof.json", "results.json")


def write_card(
    folder: str | Path,
    source: str | None = None,
    run: str | Path | None = None,
    row: str | None = None,
    command: list[str] | None = None,
    name: str | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Write `README.md`, the card of a model, into its folder; what the source's card says of licence, language and
    base model stays. It is made to be published: see `disclosure` for what it leaves out.

    Args:
        source: the checkpoint that was extended or trained: a folder, a Hub id, or `package://name/folder`.
        run: where the tables, pictures and settings of the run are, if not in `folder`; they are copied to the card.
        row: the model's own row in the table of results; by default the first.
        command: the words of the run's command line: the script, its config and overrides.
        name: the repository, where it is known; by default the folder's name.
        changes: what the run went on with that it was not begun with, a line for each time.
    """
    folder = Path(folder)
    for file in (*EVIDENCE, SETTINGS):
        if run is not None and Path(run, file).exists():
            shutil.copy(Path(run, file), folder)
    settings = written_config(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    source = source or settings.get("model")
    name = name or folder.resolve().name
    config = LongBertConfig.from_pretrained(folder)
    metadata = carried(source) if source else {}
    if (folder / "modules.json").exists():
        metadata |= {"library_name": ENCODER_LIBRARY, "pipeline_tag": "sentence-similarity"}
    if results := eval_results(folder, settings, config, row):
        metadata |= {"model_name": name.rpartition("/")[2], "eval_results": results}
    card = model_card(
        config, name, public_name(source or ""), _sections(folder, settings, command, changes), **metadata
    )
    card.save(folder / "README.md")


def command_line() -> list[str]:
    """The words by which the running script was launched."""
    return list(sys.argv)


def carried(source: str) -> dict[str, Any]:
    """What an extension keeps of its source's card: licence, language, base model."""
    local = Path(resolve_path(source))
    on_the_hub = not local.exists() and not source.startswith(PACKAGE_SCHEME)
    if not on_the_hub and not (local / "README.md").exists():
        return {}
    try:
        stated = ModelCard.load(source if on_the_hub else local / "README.md").data.to_dict()
    except (OSError, ValueError):  # no card, or no way to it
        stated = {}
    kept = {key: stated[key] for key in ("license", "language", "base_model") if stated.get(key)}
    if not all(isinstance(name, str) and public_name(name) for name in _listed(kept.get("base_model", []))):
        del kept["base_model"]
    return {**kept, "base_model": source} if on_the_hub else kept


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _sections(
    folder: Path, settings: dict[str, Any], command: list[str] | None, changes: Sequence[str]
) -> dict[str, str]:
    shown = []
    for table, pictures in TABLES.items():
        if (folder / table).exists():
            shown.append((folder / table).read_text("utf-8").strip())
        shown += [f"![{what}]({picture})" for picture, what in pictures.items() if (folder / picture).exists()]
    trained = [f"    {public_command(command, settings)}"] if command else []
    if told := public_settings(settings):
        trained.append(f"```yaml\n{yaml.safe_dump(told, sort_keys=False).strip()}\n```")
        trained.append("Files and folders of the machine that it was trained on are left out.")
    trained += [f"- {change}" for change in changes]
    sections = {"Does it work?": shown, "Training": trained}
    return {title: "\n\n".join(parts) for title, parts in sections.items() if parts}


def eval_results(folder: Path, settings: dict[str, Any], config: LongBertConfig, row: str | None) -> list[EvalResult]:
    """The figures of a proof and of a test set, as the Hub lists them (`model-index`)."""
    data: Any = next(
        (settings[key] for key in ("data", "test_file", "train_file", "test_folder") if settings.get(key)), []
    )
    names = [name for name in _listed(data) if name.startswith(PACKAGE_SCHEME)]
    return [
        EvalResult(
            task_type=PIPELINE_TAGS.get(architecture_of(config), "other"),
            dataset_type="text",
            dataset_name=", ".join(names) or "held-out documents",
            metric_type=metric,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for title, metric, value in [*_proved(folder / "proof.json"), *_tested(folder / "results.json", row)]
    ]


Figure = tuple[str, str, float]


def _proved(file: Path) -> list[Figure]:
    """(title, metric, value) of the model's own row, over all positions and past the source's."""
    rows = read_json(file)["rows"] if file.exists() else {}
    row = next((rows[name] for name in PROVED if name in rows), None)
    buckets = {} if row is None else row["buckets"]
    return [
        (f"MLM {metric}, tokens {bucket}", metric, buckets[bucket][metric])
        for bucket in buckets
        if bucket == "all" or bucket.startswith("≥")
        for metric in ("loss", "accuracy")
        if buckets[bucket][metric] is not None
    ]


def _tested(file: Path, row: str | None) -> list[Figure]:
    """(title, metric, value) of the model's own row on the test set."""
    rows: dict[str, dict[str, Any]] = read_json(file) if file.exists() else {}
    figures = rows.get(row or "") or next(iter(rows.values()), {})
    return [(name, name, value) for name, value in figures.items() if isinstance(value, float)]


def push(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
) -> str:
    """Push weights, config, code, tokenizer, and the card with its tables and pictures; checkpoints, config.yaml and
    whatever else a run has left stay where they are.

    Args:
        private: whether a new repository is private.
        revision: branch, made where there is none.
        license: replaces what the card says.

    Returns:
        The commit's address.

    Raises:
        PermissionError: no token, or one that the Hub does not accept.
        ValueError: config, table, buffers and tokenizer do not agree.
        ConnectionError: the connection broke; nothing was published.
    """
    folder = Path(resolve_path(str(folder)))
    api = HfApi(token=token)
    refuse_stranger(api)
    with tempfile.TemporaryDirectory() as aside:
        _stage(folder, Path(aside), repo_id, license)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=aside,
                revision=revision,
                commit_message=message or f"Upload {repo_id.rpartition('/')[2]}",
                create_pr=create_pr,
            )
            if tag is not None:
                api.create_tag(repo_id, tag=tag, revision=commit.oid)
        except HfHubHTTPError:  # the Hub itself said no, and why
            raise
        except (HTTPError, RuntimeError) as error:  # RuntimeError: of a file's upload, whatever it was
            raise ConnectionError(
                f"the connection broke while {repo_id} was pushed ({error.__cause__ or error!r}). The commit comes "
                "last, so nothing is published by half: push again, and what has arrived is not sent twice"
            ) from error
    return redacted(str(commit.commit_url))


def push_run(folder: str | Path, args: TrainingArguments) -> str:
    """Push what a run has made, as its settings say."""
    return push(
        folder,
        args.hub_model_id or Path(args.output_dir).absolute().name,
        token=args.hub_token,
        private=args.hub_private_repo,
        revision=args.hub_revision,
    )


def refuse_stranger(api: HfApi | None = None) -> None:
    """Ask the Hub who one is, before anything is done that is to be pushed.

    Raises:
        PermissionError: it does not know.
        ConnectionError: it does not answer.
    """
    api = api or HfApi()
    try:
        api.whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise PermissionError(
            f"the Hub does not know who you are ({type(error).__name__}): log in (`hf auth login`), set HF_TOKEN, or "
            "give a token that may write, which no file of a run keeps"
        ) from error
    except HTTPError as error:
        raise ConnectionError(redacted(f"the Hub at {api.endpoint} does not answer: {error}")) from error


def _stage(folder: Path, stage: Path, repo_id: str, license: str | None) -> None:
    """Prepare what is published: the model is loaded and saved again, so that a broken folder is never pushed."""
    arrived = load_long(str(folder))
    model, tokenizer = arrived.model, saved_tokenizer(str(folder), arrived.model)
    if problems := disagreements(arrived, tokenizer):
        raise ValueError(f"{folder} is not pushed: {'; '.join(problems)}; see `longbert inspect {folder}`")
    model.save_pretrained(stage)
    tokenizer.save_pretrained(stage)
    copy_sentence_modules(str(folder), stage, model.config.max_position_embeddings)
    for file in ("README.md", *EVIDENCE):
        if (folder / file).exists():
            shutil.copy(folder / file, stage)
    if not (stage / "README.md").exists():
        write_card(stage, name=repo_id)
    _address_card(stage / "README.md", folder.resolve().name, repo_id, license)


def _address_card(file: Path, folder_name: str, repo_id: str, license: str | None) -> None:
    """Put the repository where a card on disk names the folder that it stands in."""
    card = ModelCard.load(file)
    name = repo_id.rpartition("/")[2]
    card.text = card.text.replace(f"# {folder_name}\n", f"# {name}\n", 1)
    card.text = card.text.replace(f'("{folder_name}"', f'("{repo_id}"')
    if card.data.eval_results:
        card.data.model_name = name
    if license is not None:
        card.data.license = license
    card.save(file)
