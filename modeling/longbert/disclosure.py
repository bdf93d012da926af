"""What may be said: no secret is printed or written, and nothing that is published names a place on the user's disk.

Secrets. A token has one way in and none out. It comes from the environment (`HF_TOKEN`), from `hf auth login`, or from
the setting `hub_token`, which is handed on to where huggingface_hub looks for it and then forgotten (`hand_on_token`):
no file of a run holds it, and a resumed run has to be given it again. Any other setting that holds one, such as an
address with a password, is refused. What is printed or written besides goes through `redacted`, which knows secrets by
their form, by the name before them, and by their value, where the environment has them.

Places. `config.yaml` stays beside the run, and keeps its paths, so that it can be run again. In a card and in all
else that is pushed a path is private, and so is the name of a file or a folder: only ids of the Hub, `package://...`
and the configs that longbert brings along are named (`public_name`).
"""

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from .folders import PACKAGE_SCHEME, scripts_folder


HIDDEN = "<hidden>"
TOKEN_VARIABLE = "HF_TOKEN"
SHORTEST = 8  # characters; a shorter value of the environment is no secret, or would hide common words
_SECRET_VARIABLE = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_NAME = (
    r"(?:(?:hub|hf|auth|access|api|bearer|session)_?-?token|(?:api|secret|access)_?-?key|secret|password|passwd"
    r"|passphrase)"
)
_VALUE = r"""("[^"\n]*"?|'[^'\n]*'?|[^\s,;}\]&'"]+)"""
# each with what stands before the secret, which stays
_SECRETS = [
    re.compile(r"((?<![\w./~-])//|%2F%2F)[^/\s'\"]+(?=@|%40)", re.IGNORECASE),  # in an address, as it is or encoded
    re.compile(r"([?&][\w-]*(?:token|key|sig|signature|secret|password|credential)=)[^&\s'\"]+", re.IGNORECASE),
    re.compile(r"()(?:hf|api_org)_[A-Za-z0-9]{30,}"),  # wherever in a word: file names and encoded addresses have them
    re.compile(r"()(?:gh[oprsu]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,})"),
    re.compile(r"(\b(?:bearer|authorization['\"]?\s*[=:]\s*['\"]?\w+)\s+)[^\s,'\"]{8,}", re.IGNORECASE),
    re.compile(rf"((?:\b|_){_NAME}(?:\s*[=:]\s*|['\"]\s*[=:]\s*(?=['\"])))\[?{_VALUE}", re.IGNORECASE),
    re.compile(rf"(\b[A-Z][A-Z0-9_]*(?:TOKEN|KEY|SECRET|PASSWORD)\s*=\s*|(?<![\w-])token=){_VALUE}"),
]


def redacted(text: str) -> str:
    """A text without what is secret in it."""
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    for secret in _SECRETS:
        text = secret.sub(rf"\1{HIDDEN}", text)
    return text


def _of_environment() -> list[str]:
    """The secrets of the environment, as they are and as addresses have them; one that holds another comes first."""
    values = {value for name, value in os.environ.items() if len(value) >= SHORTEST and _SECRET_VARIABLE.search(name)}
    return sorted(values | {quote(value, safe="") for value in values}, key=len, reverse=True)


def is_secret(key: str) -> bool:
    """Whether a setting is one that nothing may say or write down."""
    return key.endswith("_token")


def refuse_secrets(settings: dict[str, Any]) -> None:
    """Raise `ValueError` where a setting that is written down holds a secret."""
    for key, value in settings.items():
        told = str(value)
        if not is_secret(key) and redacted(told) != told:
            raise ValueError(
                f"{key} holds a secret ({redacted(told)}), and settings are written down: leave it out, and give a "
                f"token of the Hub as {TOKEN_VARIABLE} in the environment or as hub_token"
            )


def hand_on_token(args: Any) -> None:
    """Take the token out of training arguments, to where huggingface_hub looks for it."""
    if args.hub_token:
        os.environ[TOKEN_VARIABLE] = args.hub_token
        args.hub_token = None


class _Redacting:
    """A stream that shows no secret."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)


def redact_stderr() -> None:
    """From here on this process prints no secret among its errors, warnings and logs, whatever library they are of."""
    _redact("stderr")


def redact_output() -> None:
    """The same of all that it prints; not for what prints a user's own texts, which stay as they are."""
    _redact("stderr")
    _redact("stdout")


def _redact(name: str) -> None:
    plain = getattr(sys, name)
    if isinstance(plain, _Redacting):
        return
    setattr(sys, name, _Redacting(plain))
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and handler.stream is plain:
                handler.setStream(getattr(sys, name))


# ---- places


def public_name(name: str) -> str | None:
    """What a model, a tokenizer, a file or a folder is called in public; None where it is a place on this disk."""
    if name.startswith(PACKAGE_SCHEME):
        return name
    place, scripts = Path(name).expanduser(), scripts_folder().resolve()
    if place.exists():
        ours = place.is_file() and place.resolve().is_relative_to(scripts / "configs")
        return place.resolve().relative_to(scripts).as_posix() if ours else None
    return name if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) else None


# names of the Hub's, or places; all others that name places hold files, which the Hub has not
_OF_MODELS = ("model", "tokenizer")
_OF_FILES = re.compile(r"(^data|_file|_folder|_dir|^resume|^deepspeed|_config)$")
# where a run was written and published is nobody's business
_PRIVATE = re.compile(r"^(output_dir|push_to_hub|hub_.*|resume_from_checkpoint|run_name|logging_dir)$")
_PATH = re.compile(r"^(/|~|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]|\\\\|file:)")


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that may be published."""
    shown = {key: _public(key, value) for key, value in settings.items() if not _PRIVATE.match(key)}
    return {key: value for key, value in shown.items() if value not in (None, [], {})}


def _public(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [shown for each in value if (shown := _public(key, each)) is not None]
    if isinstance(value, dict):
        return {name: shown for name, each in value.items() if (shown := _public(name, each)) is not None}
    if not isinstance(value, str):
        return value
    if key in _OF_MODELS:
        return public_name(value)
    if _OF_FILES.search(key):
        return value if value.startswith(PACKAGE_SCHEME) else None
    return None if _PATH.match(value) else redacted(value)


def may_be_told(change: str) -> bool:
    """Whether a change of a setting, `name: old -> new`, may be published."""
    key, _, values = change.partition(": ")
    named = key in _OF_MODELS or _OF_FILES.search(key) or _PRIVATE.match(key)
    return not named and not re.search(rf"['\"]{_PATH.pattern.removeprefix('^')}", values)


def public_command(argv: list[str], settings: dict[str, Any]) -> str:
    """How a script was launched, as a card says it: `CONFIG.yaml` stands for a config of the user's.

    Args:
        argv: the script, its config, and `key=value`.
        settings: what these came to.
    """
    place, scripts = Path(argv[0]).resolve(), scripts_folder().resolve()
    words = [place.relative_to(scripts).as_posix() if place.is_relative_to(scripts) else place.name]
    for config in argv[1:2]:
        words.append((public_name(config) if Path(config).exists() else config) or "CONFIG.yaml")
    for word in argv[2:]:
        key, _, told = word.partition("=")
        value = settings.get(key, told)  # settings leave out what is a default, which the config need not have
        if value not in (None, "", [], {}) and not _PRIVATE.match(key) and _public(key, value) == value:
            words.append(word)
    return redacted(shlex.join(["accelerate", "launch", *words]))
