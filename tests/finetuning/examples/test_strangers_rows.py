"""Rows of strangers, written as spreadsheets, NumPy, pandas and careless scripts write them: each is used as it is
meant, or refused by file and row before anything is trained."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longbert.arguments import FileArguments, ModelArguments
from longbert.finetuning.examples.labels import as_list
from longbert.finetuning.examples.splits import Split, make_splits
from longbert.finetuning.retrieval.collection import read_retrieval
from longbert.finetuning.tasks.classification import (
    Classification,
    ClassificationArguments,
    read_documents,
    targets_of,
)
from longbert.finetuning.tasks.question_answering import (
    QuestionAnswering,
    QuestionAnsweringArguments,
    read_questions,
)
from longbert.finetuning.tasks.token_classification import (
    TokenClassification,
    TokenClassificationArguments,
    read_words,
)
from longbert.source import Source


CONTEXT = "the people of the state have gold and iron"


def write_lines(file: Path, rows: list) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def labelled(labels: list) -> list[dict]:
    return [{"text": f"state {number}", "label": label} for number, label in enumerate(labels)]


def classification(file: Path, **settings) -> list:
    arguments = ClassificationArguments(train_file=str(file), **settings)
    return make_splits(
        arguments,
        lambda path: read_documents(path, arguments),
        lambda examples: targets_of(examples, arguments.problem_type),
        0,
    )


# what is in the memory of a script that writes it into a csv with str()
VALUES = {
    "texts": np.array(["a", "b"]),
    "objects": np.array(["it's", 'a "b"', "c"], dtype=object),
    "numbers": np.array([0, 1, -1]),
    "fractions": np.array([0.5, 1.0]),
    "truth": np.array([True, False]),
    "one": np.array(["a"]),
    "many": np.array([f"word {number}" for number in range(40)]),
    "array inside": {"text": np.array(["gold"]), "answer_start": np.array([29], dtype=np.int32)},
    "none inside": {"text": np.array([], dtype=object), "answer_start": np.array([], dtype=np.int64)},
    "number inside": [np.int64(3), np.float64(0.5)],
    "text like code": ["array([1])", "np.int64(3)", "nan"],
}


def plain(value):
    """As lists and Python's own numbers."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [each.item() if isinstance(each, np.generic) else each for each in value]


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_what_numpy_prints_is_read_as_it_was(value):
    with np.printoptions(threshold=100):
        assert as_list(str(value)) == plain(value)


@pytest.mark.parametrize(
    "text", ["['a' 'b', 'c']", "['a' ... 'b']", "[the people]", "[f(1)]", "[open('x')]", str(np.arange(5000))]
)
def test_a_list_that_cannot_be_known_is_refused(text):
    with pytest.raises(ValueError, match="no list that JSON or Python could read"):
        as_list(text)


NO_LABELS = {
    "a list in a list": ([["a"]], "line 21: a label must be a text or a number, got \\['a'\\]|must be a text"),
    "an object": ({"name": "a"}, "line 21: a label must be a text or a number"),
    "infinite": (float("inf"), "line 21: the label inf is no finite number"),
    "too great": ("1e999", "line 21: the label 1e999 is no finite number"),
}


@pytest.mark.parametrize(("label", "message"), NO_LABELS.values(), ids=NO_LABELS.keys())
def test_what_is_no_label_is_refused_by_row(label, message, tmp_path):
    kind = [["a"], ["b"]] if isinstance(label, list) else [1, 2]
    with pytest.raises(ValueError, match=message):
        classification(write_lines(tmp_path / "a.jsonl", labelled([*kind * 10, label])))


COLUMNS = {
    "a word among fractions": ([*("1.5", "2.5") * 9, "n.a."], "line 19: 1 of 19 labels are no numbers.*'n.a.'"),
    "shares": ([[0.9, 0.1], [0.2, 0.8]] * 6, "line 1: the label .* is a vector of shares"),
    "thousands or decimals": (["1,234", "950"] * 6, "a.jsonl: the label '1,234' may be 1234 or 1.234"),
    "thousands and decimals": (["1,234.5", "950.0"] * 6, "a.jsonl: the label '1,234.5' has marks of thousands"),
    "points of thousands": (["1.234,5", "950,0"] * 6, "a.jsonl: the label '1.234,5' has marks of thousands"),
}


@pytest.mark.parametrize(("labels", "message"), COLUMNS.values(), ids=COLUMNS.keys())
def test_labels_that_may_mean_two_things_are_refused(labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        classification(write_lines(tmp_path / "a.jsonl", labelled(labels)))


def test_decimal_commas_are_known_by_their_column(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", labelled(["1,234", "0,5"] * 6))
    examples = read_documents(str(file), ClassificationArguments(train_file=str(file)))
    assert targets_of(examples, None) == [1.234, 0.5] * 6


def test_vectors_of_truth_are_several_labels(tiny_source, tmp_path, capsys):
    file = write_lines(tmp_path / "a.jsonl", labelled([[True, False, True], [False, False, True]] * 6))
    (split,) = classification(file)
    task = Classification.of(Source.of(ModelArguments(model=str(tiny_source))), [split], None, 8)
    assert "multi_label_classification of 3 labels: LABEL_0, LABEL_1, LABEL_2" in capsys.readouterr().out
    targets = task.tokenize(split.train, 64)["target"][:]
    assert {tuple(target) for target in targets} == {(1.0, 0.0, 1.0), (0.0, 0.0, 1.0)}


@pytest.mark.parametrize("text", ["\u200b\u200d", "\ufeff", " \x00\x07 ", "\u2028"])
def test_a_text_of_what_is_not_seen_is_an_empty_text(text, tmp_path, capsys):
    file = write_lines(tmp_path / "a.jsonl", [*labelled(["a", "b"] * 6), {"text": text, "label": "a"}])
    with pytest.raises(ValueError, match="1 rows have an empty text .*a.jsonl, line 13"):
        classification(file)
    (split,) = classification(file, skip_empty=True)
    assert len(split.train) + len(split.validation) == 12
    assert "1 rows with an empty text are left out" in capsys.readouterr().out


def test_cells_behind_the_last_column_may_be_empty_and_nothing_else(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,label\n" + "state,a,\nunion,b,, \n" * 6, "utf-8")
    assert sum(len(part) for part in (classification(file)[0].train, classification(file)[0].validation)) == 12
    file.write_text("text,label\n" + "state,a\n" * 6 + "union, the,b\n", "utf-8")
    with pytest.raises(ValueError, match="a.csv, row 8 has 3 cells"):
        classification(file)


def write_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")


def write_packed(file: Path) -> None:
    pd.DataFrame(labelled(["a", "b"])).to_csv(file, compression="gzip")


NO_TABLES = {
    "a spreadsheet": (write_zip, "is a zip file, as spreadsheets of .xlsx"),
    "packed": (write_packed, "is packed by gzip, and its name does not say so"),
    "parquet": (lambda file: pd.DataFrame(labelled(["a"])).to_parquet(file), "end its name in .parquet"),
    "a header": (lambda file: file.write_text('"text" , "label"\na,b\n', "utf-8"), "row 1, the header, is no csv"),
}


@pytest.mark.parametrize(("write", "message"), NO_TABLES.values(), ids=NO_TABLES.keys())
def test_a_csv_that_is_none_is_called_what_it_is(write, message, tmp_path):
    write(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=f"a.csv.*{message}"):
        classification(tmp_path / "a.csv")


def test_json_lines_in_json_are_divided_at_line_ends_alone(tmp_path):
    rows = labelled(["a", "b"] * 6)
    rows[0]["text"] = "a\u2028b\x85c"
    examples = read_documents(str(write_lines(tmp_path / "a.json", rows)), ClassificationArguments(train_file="x"))
    assert examples["text"][0] == "a\u2028b\x85c"
    assert len(examples) == 12


def test_ids_of_tested_examples_are_their_own(tmp_path):
    rows = [{**row, "id": number % 5} for number, row in enumerate(labelled(["a", "b"] * 6))]
    file = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match="a.jsonl, line 6 has the id '0', as has .*a.jsonl, line 1"):
        classification(file, id_column="id", folds=3)
    with pytest.raises(ValueError, match="line 6 has the id '0'"):
        classification(file, id_column="id", test_file=str(file))
    test = write_lines(tmp_path / "b.jsonl", rows[:5])
    (split,) = classification(file, id_column="id", validation_file=str(test), test_file=str(test))
    assert len(split.train) == 12  # what is trained on may be there twice


@pytest.mark.parametrize("other", ["validation_file", "test_file"])
def test_groups_never_lie_on_both_sides_of_named_files(other, tmp_path):
    rows = [{**row, "group": number} for number, row in enumerate(labelled(["a", "b"] * 12))]
    train, apart = write_lines(tmp_path / "a.jsonl", rows[:18]), write_lines(tmp_path / "b.jsonl", rows[18:])
    shared = write_lines(tmp_path / "c.jsonl", [*rows[19:], rows[3]])
    classification(train, group_column="group", validation_file=str(apart), test_file=str(apart))
    files = {"validation_file": str(apart), "test_file": str(apart), other: str(shared)}
    with pytest.raises(ValueError, match="c.jsonl, line 6 is of the group '3', of which train_file"):
        classification(train, group_column="group", **files)


def test_labels_that_a_fold_never_saw_are_said(tmp_path, capsys):
    labels = ["a", "b"] * 9 + ["rare"] * 3
    rows = [{**row, "group": min(number, 18)} for number, row in enumerate(labelled(labels))]
    classification(write_lines(tmp_path / "a.jsonl", rows), group_column="group", folds=3)
    assert "rare: some examples are tested by models that have never seen the label" in capsys.readouterr().out
    classification(write_lines(tmp_path / "a.jsonl", labelled(labels * 3)), folds=3)
    assert "never seen" not in capsys.readouterr().out


def tagged(file: Path, words: list[str], labels: list, tiny_source: Path) -> TokenClassification:
    write_lines(file, [{"words": words, "labels": labels}] * 4)
    examples = read_words(str(file), TokenClassificationArguments(train_file=str(file)))
    source = Source.of(ModelArguments(model=str(tiny_source)))
    return TokenClassification.of(source, [Split("", examples, examples, examples)], 8, 8)


SCHEMES = {
    "entities": (["B-X", "I-X", "O"], "what is scored is whole entities in IOB2"),
    "ends first": (["X-B", "X-I", "O"], "what is scored is single words"),
    "small": (["b-x", "i-x", "o"], "what is scored is single words"),
    "no marks": (["X", "X", "O"], "what is scored is single words"),
}


@pytest.mark.parametrize(("labels", "message"), SCHEMES.values(), ids=SCHEMES.keys())
def test_what_is_scored_is_said(labels, message, tiny_source, tmp_path, capsys):
    tagged(tmp_path / "a.jsonl", ["new", "york", "state"], labels, tiny_source)
    assert message in capsys.readouterr().out


def test_tokens_that_transformers_leaves_out_are_no_words(tiny_source, tmp_path):
    with pytest.raises(ValueError, match="a.jsonl, line 1: word 2 has the label -100"):
        tagged(tmp_path / "a.jsonl", ["new", "##ness", "state"], [1, 0, -100], tiny_source)


def test_a_word_a_row_is_no_document(tiny_source, tmp_path):
    rows = [{"words": word, "labels": label} for word, label in (("new", "B-X"), ("state", "O"))] * 4
    examples = read_words(
        str(write_lines(tmp_path / "a.jsonl", rows)), TokenClassificationArguments(train_file="a.jsonl")
    )
    with pytest.raises(ValueError, match="every document to train on has one word"):
        TokenClassification.of(
            Source.of(ModelArguments(model=str(tiny_source))), [Split("", examples, examples, examples)], 8, 8
        )


def test_words_that_predict_will_not_find_are_said(tiny_source, tmp_path, capsys):
    tagged(tmp_path / "a.jsonl", ["new york", "the state"], ["B-X", "O"], tiny_source)
    assert "it will not find what these labels mark" in capsys.readouterr().out
    tagged(tmp_path / "a.jsonl", ["new", "york"], ["B-X", "O"], tiny_source)
    assert "it will not find" not in capsys.readouterr().out


def asked(answers, context: str = CONTEXT, question: str = "who") -> dict:
    return {"question": question, "context": context, "answers": answers}


NO_ANSWERS = {
    "no number": (
        {"text": ["gold"], "answer_start": ["x"]},
        "answer_start must be the number of a character, got 'x'",
    ),
    "half a character": ({"text": ["gold"], "answer_start": [29.5]}, "must be the number of a character, got 29.5"),
    "a list in a list": ({"text": [["gold"]], "answer_start": [[29]]}, "an answer must be a text"),
    "a list of starts": ({"text": ["gold"], "answer_start": [[29]]}, "must be the number of a character"),
}


@pytest.mark.parametrize(("answers", "message"), NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_what_is_no_answer_is_refused_by_row(answers, message, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [asked("gold"), asked(answers)])
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: .*{message}"):
        read_questions(str(file), QuestionAnsweringArguments(train_file=str(file)))


HALF = "\ud800"
HALVES = {
    "text": {"text": f"gold {HALF}", "label": "a"},
    "label": {"text": "gold", "label": f"a{HALF}"},
    "labels": {"text": "gold", "label": ["a", f"b{HALF}"]},
    "id": {"text": "gold", "label": "a", "id": f"1{HALF}"},
}


@pytest.mark.parametrize("name", HALVES)
def test_half_a_character_is_refused_by_row_wherever_it_stands(name, tmp_path):
    """As JSON can spell it; pyarrow would say so of no row."""
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(HALVES[name]))
    settings = ClassificationArguments(train_file=str(file), id_column="id" if name == "id" else None)
    with pytest.raises(ValueError, match=r"a.jsonl, line 1 holds half a character, '\\ud800'"):
        read_documents(str(file), settings)


def test_answers_to_train_on_are_counted_each(tiny_source, tmp_path, capsys):
    long = {"text": [CONTEXT], "answer_start": [0]}
    file = write_lines(tmp_path / "a.jsonl", [asked("gold")] * 9 + [asked(long)])
    arguments = QuestionAnsweringArguments(train_file=str(file), max_answer_length=4)
    examples = read_questions(str(file), arguments)
    source = Source.of(ModelArguments(model=str(tiny_source)))
    QuestionAnswering.of(source, [Split("", examples, examples, examples)], arguments, 8)
    assert "10 answers to train on have up to 9 tokens; 1 (10.0%) are longer" in capsys.readouterr().out


UNREAD = {
    "answer": asked({"text": ["\ufffd"], "answer_start": [0]}, "\ufffd the state"),
    "context": asked(None, "\ufffd"),
    "question": asked(None, question="\ufffd"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_the_tokenizer_reads_nothing_of_is_refused_by_row(name, tiny_tokenizer, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [asked("gold"), UNREAD[name]])
    examples = read_questions(str(file), QuestionAnsweringArguments(train_file=str(file)))
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: the tokenizer can read nothing of its {name}"):
        QuestionAnswering(tiny_tokenizer, stride=16).tokenize(examples, 64)


def squad(file: Path, *articles: dict) -> Path:
    file.write_text(json.dumps({"version": "v2.0", "data": articles}), "utf-8")
    return file


def article(*questions: dict, **others) -> dict:
    return {"paragraphs": [{"context": CONTEXT, "qas": list(questions)}], **others}


GOLD = {"text": "gold", "answer_start": CONTEXT.index("gold")}
QUESTION = {"id": "1", "question": "what", "answers": [GOLD]}
BROKEN = {
    "no question": (article({"id": "1", "answers": []}), "article 1: .* has no 'question'"),
    "no questions": ({"paragraphs": [{"context": CONTEXT}]}, "article 1: .* has no 'qas'"),
    "no context": ({"paragraphs": [{"qas": []}]}, "article 1: .* has no 'context'"),
    "no object": (article("what"), "article 1: 'what' has no 'question'"),
    "no answer, and one": (article({**QUESTION, "is_impossible": True}), "question 1: is_impossible, but it has the"),
}


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_squads_json_is_refused_where_it_is_broken(broken, message, tmp_path):
    file = squad(tmp_path / "a.json", broken)
    with pytest.raises(ValueError, match=f"a.json, {message}"):
        read_questions(str(file), QuestionAnsweringArguments(train_file=str(file)))


def test_squads_json_needs_neither_ids_nor_titles_and_leaves_out_what_is_empty(tmp_path, capsys):
    questions = [{"question": "what", "answers": [GOLD]}, {"question": " ", "answers": []}]
    file = squad(tmp_path / "a.json", article(*questions), article(*questions, title="named"))
    with pytest.raises(ValueError, match="2 rows have an empty question .*article 1"):
        read_questions(str(file), QuestionAnsweringArguments(train_file=str(file)))
    examples = read_questions(str(file), QuestionAnsweringArguments(train_file=str(file), skip_empty=True))
    assert "2 rows with an empty question are left out" in capsys.readouterr().out
    assert examples["id"][:] == ["0", "1"]
    assert len({*examples["group"]}) == 2


DOCUMENTS = [{"id": number, "text": f"state {number}"} for number in range(3)]
QUERIES = [{"id": number, "text": f"{number}", "document": number} for number in range(3)]


def retrieval(folder: Path, corpus: list, queries: list, encoding: str = "utf-8") -> Path:
    for name, rows in (("corpus", corpus), ("queries", queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding)
    return folder


LACKING = {
    "an empty text": (
        [*DOCUMENTS, {"id": 3, "text": "\u200b"}],
        QUERIES,
        "1 rows have no text .*corpus.jsonl, line 4",
    ),
    "a null id": ([*DOCUMENTS, {"id": None, "text": "a"}], QUERIES, "1 rows have no id .*corpus.jsonl, line 4"),
    "no document": (DOCUMENTS, [*QUERIES, {"id": 3, "text": "a", "document": []}], "1 rows have no document .*line 4"),
    "an empty line": (DOCUMENTS, [*QUERIES, {}], "1 rows have no id and no text and no document .*line 4"),
}


@pytest.mark.parametrize(("corpus", "queries", "message"), LACKING.values(), ids=LACKING.keys())
def test_what_a_retrieval_test_lacks_is_refused_or_left_out(
    corpus, queries, message, tiny_tokenizer, tmp_path, capsys
):
    folder = str(retrieval(tmp_path, corpus, queries))
    with pytest.raises(ValueError, match=message):
        read_retrieval(folder, tiny_tokenizer, 64)
    read = read_retrieval(folder, tiny_tokenizer, 64, FileArguments(skip_empty=True))
    assert [*read.documents] == [query.id for query in read.queries] == ["0", "1", "2"]
    assert "1 rows with no" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_a_retrieval_test_is_read_as_any_file_is(encoding, tiny_tokenizer, tmp_path):
    corpus = [*DOCUMENTS, {"id": 3, "text": "one\u2028line, 好"}]
    folder = str(retrieval(tmp_path, corpus, QUERIES, encoding))
    settings = FileArguments(encoding="gb18030" if encoding == "gb18030" else None)
    assert [*read_retrieval(folder, tiny_tokenizer, 64, settings).documents] == ["0", "1", "2", "3"]
    if encoding == "gb18030":
        with pytest.raises(ValueError, match="corpus.jsonl, line 4 is not in utf-8; it may be in"):
            read_retrieval(folder, tiny_tokenizer, 64)
