"""What is written in YAML and as `key=value`, and what the fields of a dataclass make of it."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest

from longbert.arguments import from_settings, parse_config
from longbert.folders import resolve_path
from longbert.settings import fit, read_override, read_yaml


class Color(Enum):
    RED = "red"
    NO = "no"


# annotation, what is written, what it is
TAKEN = [
    (int, "7", 7),
    (int, "-1", -1),
    (int, "1_000", 1000),
    (int, "010", 10),  # 8 to YAML
    (int, 7, 7),
    (float, "1e-3", 0.001),  # a text to YAML
    (float, "7", 7.0),
    (float, 7, 7.0),
    (float, ".5", 0.5),
    (bool, "true", True),
    (bool, "no", False),
    (bool, "On", True),
    (bool, False, False),
    (str, "no", "no"),  # false to YAML
    (str, "1e-3", "1e-3"),
    (str, "12:30", "12:30"),  # 750 to YAML
    (str, "2020-01-01", "2020-01-01"),  # a date to YAML
    (str, 7, "7"),
    (str | None, "x", "x"),
    (int | None, "7", 7),
    (int | None, None, None),
    (list[str], ["a", "1"], ["a", "1"]),
    (list[str], "a", ["a"]),
    (list[int], ["1", "2"], [1, 2]),
    (list[str] | None, ["a"], ["a"]),
    (list[list[int | float]] | str | None, [["0.9", "128"]], [[0.9, 128]]),
    (dict, {"a": "1"}, {"a": 1}),
    (dict | str | None, {"a": {"b": ["1e-3", "true", "x"]}}, {"a": {"b": [0.001, True, "x"]}}),
    (dict | str | None, '{"a": 1}', {"a": 1}),  # as transformers' command lines have it
    (dict | str | None, "file.json", "file.json"),
    (dict[str, bool], {"a": "true"}, {"a": True}),
    (Color | str, "red", "red"),
    (Color | str, "no", "no"),
    (Color | str, Color.RED, "red"),
    (list[Color] | str, "red", ["red"]),
    (Literal["a", "b"], "b", "b"),
    (str | bool, "true", True),
    (str | bool, "no", "no"),
]


@pytest.mark.parametrize(("kind", "written", "meant"), TAKEN, ids=map(str, TAKEN))
def test_the_annotation_decides_what_is_meant(kind, written, meant):
    found = fit("x", written, kind)
    assert found == meant and type(found) is type(meant)


# annotation, what is written, what may be
REFUSED = [
    (int, "7.0", "a whole number"),
    (int, "many", "a whole number"),
    (int, True, "a whole number"),
    (int, "9" * 30, "a whole number"),
    (int, "9" * 5000, "a whole number"),  # more digits than Python reads
    (int, ["1"], "a whole number"),
    (int, {"a": "1"}, "a whole number"),
    (float, "nan", "a number"),
    (float, ".nan", "a number"),
    (float, "inf", "a number"),
    (float, "1e999", "a number"),
    (float, True, "a number"),
    (bool, "1", "true or false"),
    (bool, 1, "true or false"),
    (bool, "maybe", "true or false"),
    (str, True, "a text"),
    (str, ["--output_dir=/evil"], "a text"),
    (str, {"a": "b"}, "a text"),
    (str, "a\0b", "a text"),
    (str | None, ["a"], "a text"),
    (list[str], [["a"]], "a list, each a text"),
    (list[str], [None], "a list, each a text"),
    (list[int], ["a"], "a list, each a whole number"),
    (dict, "a", "a mapping"),
    (dict, '{"a"', "a mapping"),
    (dict[str, bool], {"a": "x"}, "a mapping"),
    (Color | str, "blue", "one of red, no"),
    (Color | str, ["red"], "one of red, no"),
    (Literal["a", "b"], "c", "one of a, b"),
    (type | None, "x", "must be null"),
]


@pytest.mark.parametrize(("kind", "written", "allowed"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_of_another_kind_is_refused_by_name_value_and_what_may_be(kind, written, allowed):
    with pytest.raises(ValueError, match="^x must be ") as refused:
        fit("x", written, kind)
    assert allowed in str(refused.value)
    assert f", got {written!r:.150}" in str(refused.value)


def test_a_list_that_holds_itself_is_refused():
    with pytest.raises(ValueError, match="x must be a mapping"):
        fit("x", read_yaml("&a {b: *a}", "x"), dict[str, Any])


@dataclass
class Some:
    """Fields of every sort."""

    name: str = "usual"
    number: int = 3
    words: list[str] = field(default_factory=lambda: ["a"])
    maybe: str | None = None


# an override, and what becomes of its field: what is no list or mapping needs no quotes
OVERRIDES = {
    "name=[A-Z]+": ("name", "[A-Z]+"),
    "name=a: b # c": ("name", "a: b # c"),
    "name=*": ("name", "*"),
    "name=x=y": ("name", "x=y"),
    "name='quoted: '": ("name", "quoted: "),
    "name='null'": ("name", "null"),
    "name=null": ("name", "usual"),
    "name=": ("name", "usual"),
    "number=7": ("number", 7),
    "words=[a, 'b c', \"d[0]*.txt\"]": ("words", ["a", "b c", "d[0]*.txt"]),
    "words=d[0]*.txt": ("words", ["d[0]*.txt"]),
    "words=[]": ("words", []),
    "maybe=~": ("maybe", None),
    "maybe=on": ("maybe", "on"),
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_says_what_it_seems_to(override, tmp_path):
    (tmp_path / "x.yaml").write_text("# nothing\n")
    name, meant = OVERRIDES[override]
    (some,) = parse_config([str(tmp_path / "x.yaml"), override], Some)
    assert getattr(some, name) == meant
    assert vars(some) == {**vars(Some()), name: meant}  # and no other


@pytest.mark.parametrize("text", ["words=[x/18[0-2]*.txt]", "words={a", "words=[&a", "words=" + "[" * 5000])
def test_an_override_that_is_not_yaml_says_where_and_what_to_do(text):
    with pytest.raises(ValueError, match="is not YAML: .*; put quotes around a text with brackets or signs"):
        read_override(text, list[str])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML: .* in line 1, column"),
        ("name: a\nname: b", "'name' is there twice in line 2"),
        ("- a", "must hold settings"),
        ("just words", "must hold settings"),
        ("name: !!python/object:os.system x", "is not YAML: could not determine a constructor"),
        ("name: \0", "is not YAML"),
        (b"name: h\xe4\xdf", "is not in UTF-8"),
        ("a: [*b]", "undefined alias"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(text, message, tmp_path):
    (tmp_path / "x.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message) as refused:
        parse_config([str(tmp_path / "x.yaml")], Some)
    assert "x.yaml" in str(refused.value)


def test_a_file_may_use_anchors_and_merge():
    assert read_yaml("a: &a {b: no, c: 010}\nd: {<<: *a, c: x}", "x")["d"] == {"b": "no", "c": "x"}


def test_python_values_are_taken_too():
    (some,) = from_settings({"name": 3, "number": 4, "words": ("x", "y"), "maybe": None}, Some)
    assert some == Some("3", 4, ["x", "y"])


@pytest.mark.parametrize(
    "path",
    ["package://", "package://..", "package:///etc", "package://.", "package://os/..", "package://json/../os.py"]
    + ["package://no.such/x", "package://os", "package://no_such/x", "package://a b/x"],
)
def test_what_is_no_place_in_a_package_is_refused(path):
    with pytest.raises(ValueError, match="package"):
        resolve_path(path)


def test_a_place_in_a_package_stays_in_it():
    assert resolve_path("package://json//decoder.py").endswith("/json/decoder.py")
