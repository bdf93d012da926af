"""The push: a model's folder to the Hub, in one commit."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

# its own HTTP client's, which was httpx and is httpx2
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from transformers import TrainingArguments

from .cards import EVIDENCE, write_card
from .data.documents import resolve_path
from .inspecting import disagreements
from .source import copy_sentence_modules, load_long, saved_tokenizer


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
    """Push weights, config, code, tokenizer, and the card with its tables and pictures; checkpoints and whatever else
    a run has left stay where they are.

    Args:
        private: of a repository that is new.
        revision: branch, made where there is none.
        license: replaces what the card says.

    Returns:
        The commit's address.

    Raises:
        PermissionError: no token, or one that the Hub does not accept.
        ValueError: config, table, buffers and tokenizer do not agree.
        ConnectionError: the connection broke; nothing is published by half.
    """
    folder = Path(resolve_path(str(folder)))
    api = HfApi(token=token)
    _refuse_stranger(api)
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
                commit_message=message or f"Upload {folder.resolve().name}",
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
    return str(commit.commit_url)


def push_run(folder: str | Path, args: TrainingArguments) -> str:
    """Push what a run has made, as its settings say."""
    return push(
        folder,
        args.hub_model_id or Path(args.output_dir).absolute().name,
        token=args.hub_token,
        private=args.hub_private_repo,
        revision=args.hub_revision,
    )


def _refuse_stranger(api: HfApi) -> None:
    try:
        api.whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise PermissionError(
            f"the Hub does not know who you are ({type(error).__name__}): log in (`hf auth login`), set HF_TOKEN, or "
            "give a token that may write"
        ) from error


def _stage(folder: Path, stage: Path, repo_id: str, license: str | None) -> None:
    """Lay out what is published: read whole and written anew, so that what cannot be loaded is never pushed."""
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
