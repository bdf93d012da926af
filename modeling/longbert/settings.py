"""Values as users write them, in YAML and as `key=value`, and what a dataclass's annotations make of them.

The annotation alone decides what a text means. YAML's own guesses are not asked, by which `no` is false, `1e-3` a
text, `010` eight and `12:30` a number of minutes.
"""

import math
import re
import types
import typing
from collections.abc import Callable
from datetime import date
from enum import Enum
from typing import Any

import yaml


NULLS = ("", "~", "null", "Null", "NULL")
BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
ORDER: tuple[Any, ...] = (
    types.NoneType,
    Enum,
    bool,
    int,
    float,
    dict,
    list,
    str,
)  # in which the members of a union are tried


class _Texts(yaml.SafeLoader):
    """YAML of mappings, lists, texts and nothing; a mapping that names a key twice is refused."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.endswith((":null", ":str", ":seq", ":map"))
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if key.value in (other.value for other in keys[:number]):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, what: str) -> Any:
    """YAML with every scalar as the text that it is, but for a plain null.

    Raises:
        ValueError: it is not YAML; the message begins with `what`.
    """
    try:
        return yaml.load(text, _Texts)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{what} is not YAML: {error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{what} is not YAML: brackets inside brackets without end") from error


def read_override(text: str, kind: Any) -> tuple[str, Any]:
    """The key and the value of `key=value`.

    Args:
        kind: the annotation of the key's field. Only where it has lists or mappings is there YAML to read; else what
            is not in quotes is the text that it is.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"overrides are key=value, got {text!r}")
    if value in NULLS:
        return key, None
    if is_scalar(kind) and value[0] not in "'\"":
        return key, value
    try:
        return key, read_yaml(value, text)
    except ValueError as error:
        advice = f"put quotes around a text with brackets or signs, such as '{key}=[\"a[1]*.txt\"]'"
        raise ValueError(f"{error}; {advice}") from error


def is_scalar(kind: Any) -> bool:
    """Whether a field takes no lists and no mappings."""
    return not {list, dict, Any} & {typing.get_origin(each) or each for each in _members(kind)}


def fit(name: str, value: Any, kind: Any) -> Any:
    """A value as an annotation has it.

    Raises:
        ValueError: it is something else; says what was given for `name`, and what may be.
    """
    try:
        return _fit(value, kind)
    except (_UnfitError, RecursionError):
        raise ValueError(f"{name} must be {_in_words(kind)}, got {value!r:.200}") from None


class _UnfitError(Exception):
    """A value is not of a kind."""


def _fit(value: Any, kind: Any) -> Any:
    members = _members(kind)
    if len(members) > 1:
        for member in members:
            # beside texts only the words of JSON are truth values
            if member is bool and str in members and str(value).lower() not in ("true", "false"):
                continue
            try:
                return _fit(value, member)
            except _UnfitError:
                continue
        raise _UnfitError
    (kind,) = members
    origin: Any = typing.get_origin(kind) or kind
    inner = typing.get_args(kind)
    if origin in READERS:
        return READERS[origin](value)
    if origin is list:
        (member,) = inner or (Any,)
        return [_fit(each, member) for each in (value if isinstance(value, list | tuple) else [value])]
    if origin is dict:
        return _mapping(value, inner[1] if inner else Any)
    if isinstance(origin, type) and issubclass(origin, Enum):
        return _choice(value, [each.value for each in origin])
    if origin is typing.Literal:
        return _choice(value, list(inner))
    raise _UnfitError


def _members(kind: Any) -> list[Any]:
    """The kinds of which a value may be, in the order in which they are tried. A text beside names is one of them."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    members = [each for each in typing.get_args(kind) if _rank(each) < len(ORDER)] if union else [kind]
    if any(_names(each) for each in members):
        members = [each for each in members if each is not str]
    return sorted(members, key=_rank)


def _rank(kind: Any) -> int:
    origin: Any = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return 1
    if not isinstance(origin, type):
        return len(ORDER)
    return next((rank for rank, each in enumerate(ORDER) if issubclass(origin, each)), len(ORDER))


def _names(kind: Any) -> list[str]:
    """The names among which an enumeration, or a list of its members, chooses."""
    kind = next(iter(typing.get_args(kind)), None) if typing.get_origin(kind) is list else kind
    return [each.value for each in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _none(value: Any) -> None:
    if value is not None:
        raise _UnfitError


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | date) or "\0" in str(value):
        raise _UnfitError
    return str(value)


def _bool(value: Any) -> bool:
    found = value if isinstance(value, bool) else BOOLS.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise _UnfitError
    return found


def _int(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9](_?[0-9]){0,18}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise _UnfitError
    return value


def _float(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _UnfitError
    return number


def _mapping(value: Any, member: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.startswith("{"):  # JSON, as transformers' command lines take it
        try:
            value = read_yaml(value, "")
        except ValueError:
            raise _UnfitError from None
    if not isinstance(value, dict):
        raise _UnfitError
    return {str(key): _fit(each, member) for key, each in value.items()}


def _anything(value: Any) -> Any:
    """What a value of no fixed kind means; there JSON's words and all numbers are taken for what they are."""
    if isinstance(value, list | tuple):
        return [_anything(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _anything(each) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    for read in (_int, _float):
        try:
            return read(value)
        except _UnfitError:
            continue
    return {"true": True, "false": False}.get(value, value)


def _choice(value: Any, choices: list[Any]) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, list | dict) or value not in choices:
        raise _UnfitError
    return value


READERS: dict[Any, Callable[[Any], Any]] = {
    types.NoneType: _none,
    str: _text,
    bool: _bool,
    int: _int,
    float: _float,
    Any: _anything,
}
WORDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a mapping, {name: value}",
    types.NoneType: "null",
}


def _in_words(kind: Any) -> str:
    members = _members(kind)
    if len(members) > 1:
        return " or ".join(dict.fromkeys(_in_words(each) for each in members if each is not types.NoneType))
    (kind,) = members or [types.NoneType]
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if names := _names(kind) or (list(inner) if origin is typing.Literal else []):
        listed = ", ".join(map(str, names))
        return f"a list of {listed}" if origin is list else f"one of {listed}"
    if origin is list:
        return f"a list, each {_in_words(inner[0])}" if inner else "a list"
    return WORDS.get(origin, "left out")
