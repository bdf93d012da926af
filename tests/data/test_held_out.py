"""Held out: any number of documents is divided, no text is on both sides, none is lost."""

import datasets
import pytest

from longbert.data import held_out as module
from longbert.data.documents import load_documents
from longbert.data.held_out import split_held_out


both_ways = pytest.mark.parametrize("streaming", [False, True], ids=["dataset", "stream"])


def write(folder, documents: int, lines: int):
    """Files whose every line is like no other."""
    for number in range(documents):
        text = "".join(f"document {number:02} line {line:04} says this and no more\n" for line in range(lines))
        (folder / f"{number:02}.txt").write_text(text)
    return [str(folder)]


def lines_of(rows) -> list[str]:
    return "".join(row["text"] for row in rows).splitlines()


@both_ways
@pytest.mark.parametrize("every", [2, 10])
@pytest.mark.parametrize(("documents", "lines"), [(1, 12), (1, 5000), (2, 300), (3, 7), (9, 40), (10, 4), (25, 3)])
def test_every_line_is_on_one_side(documents, lines, every, streaming, tmp_path, capsys):
    paths = write(tmp_path, documents, lines)
    training, held_out = split_held_out(load_documents(paths, streaming=streaming), every)
    expected = lines_of(load_documents(paths))
    assert sorted(lines_of(training) + lines_of(held_out)) == sorted(expected)
    assert set(lines_of(training)).isdisjoint(lines_of(held_out))
    share = len(lines_of(held_out)) / len(expected)
    assert 0 < share < 1
    if documents >= every:
        assert {row["document"] for row in training}.isdisjoint(row["document"] for row in held_out)
    else:
        assert share <= 1 / every + 0.15
        assert "fewer documents than held_out_every" in capsys.readouterr().out


@pytest.mark.parametrize("every", [2, 10])
@pytest.mark.parametrize(("documents", "lines"), [(1, 500), (3, 70), (25, 3)])
def test_a_stream_is_divided_as_files_are_and_always_alike(documents, lines, every, tmp_path):
    paths = write(tmp_path, documents, lines)
    divided = [split_held_out(load_documents(paths, streaming=way), every) for way in (False, True, False, True)]
    sides = [([*map(dict, training)], [*map(dict, held)]) for training, held in divided]
    assert sides[0] == sides[1] == sides[2] == sides[3]
    training, _ = divided[1]
    assert [*map(dict, training)] == sides[0][0]  # a stream that is read again


@both_ways
def test_parts_of_a_long_document_stay_on_its_side(streaming, tmp_path):
    documents = load_documents(write(tmp_path, 12, 60), streaming=streaming, part_size=500)
    training, held_out = split_held_out(documents, 4)
    assert {row["document"][-6:] for row in held_out} == {"00.txt", "04.txt", "08.txt"}
    assert len({row["document"] for row in training}) == 9
    assert len([*held_out]) > 3


@both_ways
def test_pieces_have_numbers_of_their_own(streaming, tmp_path):
    documents = load_documents(write(tmp_path, 2, 400), streaming=streaming, part_size=3000)
    training, held_out = split_held_out(documents, 10)
    named = [(row["document"], row["part"]) for row in (*training, *held_out)]
    assert len({*named}) == len(named)
    assert all(row["characters"] == len(row["text"]) for row in (*training, *held_out))


def test_pieces_are_not_longer_than_is_said(tmp_path):
    documents = load_documents(write(tmp_path, 1, 9000))
    training, held_out = split_held_out(documents, 2)
    sizes = [len(row["text"]) for row in (*training, *held_out)]
    assert max(sizes) <= module.PIECE and min(sizes[:-1]) > module.PIECE // 2


@both_ways
@pytest.mark.parametrize("text", ["word", "a"])
def test_what_cannot_be_divided_is_refused(text, streaming, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match="too short to be divided"):
        split_held_out(load_documents([str(tmp_path)], streaming=streaming), 10)
    with pytest.raises(ValueError, match="held_out_every must be at least 2"):
        split_held_out(datasets.Dataset.from_dict({"text": ["a", "b"]}), 1)
