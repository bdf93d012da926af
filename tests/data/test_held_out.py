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
    assert held_out and lines_of(training)
    if documents >= every:
        assert {row["document"] for row in training}.isdisjoint(row["document"] for row in held_out)
    else:
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
    on_both = [{row["document"] for row in side} for side in (training, held_out)]
    assert on_both[0].isdisjoint(on_both[1]) and len(on_both[0] | on_both[1]) == 12
    assert len([*held_out]) > len(on_both[1])


def sides(paths, every=10, **options) -> tuple[set[str], set[str]]:
    """The texts trained on and those held out."""
    training, held_out = split_held_out(load_documents(paths, **options), every)
    return {row["text"] for row in training}, {row["text"] for row in held_out}


@both_ways
def test_a_corpus_that_grows_never_trains_on_what_was_held_out(streaming, tmp_path):
    """Nor holds out what was trained on; wherever the new files stand in the order, and by whatever name."""
    trained, held_out = sides(write(tmp_path, 60, 3), streaming=streaming)
    assert held_out
    for number in range(40):
        (tmp_path / f"{number:02} new.txt").write_text(f"a new text, number {number}\n")
    (tmp_path / "30.txt").rename(tmp_path / "a new name.txt")
    more_trained, more_held_out = sides([str(tmp_path)], streaming=streaming)
    assert trained <= more_trained and held_out <= more_held_out
    assert len(more_trained) + len(more_held_out) == 100 and more_held_out > held_out


def test_a_novel_that_grows_never_trains_on_what_was_held_out(tmp_path):
    trained, held_out = sides(write(tmp_path, 1, 5000))
    file = tmp_path / "00.txt"
    file.write_text(file.read_text() + "".join(f"one more line, number {number}\n" for number in range(900)))
    more_trained, more_held_out = sides([str(tmp_path)])
    # the last piece was cut short by the end of the text
    assert len(trained - more_trained) + len(held_out - more_held_out) <= 1


def test_one_in_every_is_held_out():
    documents = datasets.Dataset.from_dict({"text": [f"text {number}" for number in range(4000)]})
    for every in (2, 10, 50):
        expected = 4000 / every
        assert abs(len(split_held_out(documents, every)[1]) - expected) < 4 * expected**0.5


@both_ways
def test_like_documents_are_on_one_side(streaming, tmp_path):
    write(tmp_path, 20, 3)
    for file in [*tmp_path.iterdir()]:
        (tmp_path / f"copy of {file.name}").write_text(file.read_text())
    trained, held_out = sides([str(tmp_path)], every=3, streaming=streaming)
    assert trained.isdisjoint(held_out)


@pytest.mark.parametrize("documents", [2, 3, 5, 11, 12])
@pytest.mark.parametrize("seed", range(8))
def test_something_is_always_held_out_and_something_never(documents, seed):
    texts = [f"{seed} {number}" for number in range(documents)]
    training, held_out = split_held_out(datasets.Dataset.from_dict({"text": texts}), 2 if seed % 2 else documents)
    assert len(training) and len(held_out)


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
    with pytest.raises(ValueError, match="cannot be divided"):
        split_held_out(load_documents([str(tmp_path)], streaming=streaming), 10)
    with pytest.raises(ValueError, match="held_out_every must be at least 2"):
        split_held_out(datasets.Dataset.from_dict({"text": ["a", "b"]}), 1)
