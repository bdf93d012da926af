"""Formats x tasks: the same examples in any file that a user may have are the same examples."""

import gzip
import json
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from longbert.finetuning.retrieval.collection import RetrievalArguments, read_pairs
from longbert.finetuning.tasks.classification import ClassificationArguments, read_documents
from longbert.finetuning.tasks.multiple_choice import MultipleChoiceArguments, read_choices
from longbert.finetuning.tasks.question_answering import QuestionAnsweringArguments, read_questions
from longbert.finetuning.tasks.token_classification import TokenClassificationArguments, read_words


TEXTS = ["plain", 'with "quotes", commas; and\ttabs', "two\nlines", "ünïcödé 好 हिन्दी", "007"]
ROWS = {
    "classification": [{"text": text, "label": label} for text, label in zip(TEXTS, "ababa", strict=True)],
    "token classification": [
        {"words": ["New", "York", ","], "labels": ["B-LOC", "I-LOC", "O"]},
        {"words": ["7", "好", "d'accord"], "labels": ["O", "O", "B-PER"]},
    ],
    "question answering": [
        {"question": "which?", "context": "it is gold", "answers": {"text": ["gold"], "answer_start": [6]}},
        {"question": "where?", "context": "nobody knows", "answers": {"text": [], "answer_start": []}},
    ],
    "multiple choice": [
        {"context": text, "question": "which?", "choices": ["one", "the, other"], "label": n % 2}
        for n, text in enumerate(TEXTS)
    ],
    "embedding": [{"query": f"query {n}", "document": text} for n, text in enumerate(TEXTS)],
}
READERS = {
    "classification": (read_documents, ClassificationArguments, {}),
    "token classification": (read_words, TokenClassificationArguments, {}),
    "question answering": (read_questions, QuestionAnsweringArguments, {}),
    "multiple choice": (read_choices, MultipleChoiceArguments, {"question_column": "question"}),
}


def csv(rows: list[dict], written=str, **options) -> str:
    cells = [
        {key: written(value) if isinstance(value, list | dict) else value for key, value in row.items()}
        for row in rows
    ]
    return pd.DataFrame(cells).to_csv(index=False, **options)


def jsonl(rows: list[dict]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def parquet(file: Path, rows: list[dict], text: pa.DataType) -> None:
    def large(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_string(kind):
            return text
        if pa.types.is_list(kind):
            return pa.list_(large(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(field.name, large(field.type)) for field in kind])
        return kind

    table = pa.Table.from_pylist(rows)
    pq.write_table(table.cast(pa.schema([(field.name, large(field.type)) for field in table.schema])), file)


# name of the file, and what writes it
FORMATS = {
    "csv": ("x.csv", lambda file, rows: file.write_text(csv(rows, json.dumps), "utf-8")),
    "csv by Python": ("x.csv", lambda file, rows: file.write_text(csv(rows), "utf-8")),
    "spreadsheet": (
        "my data [1].CSV",
        lambda file, rows: file.write_bytes(csv(rows, sep=";", lineterminator="\r\n").encode("utf-8-sig")),
    ),
    "utf-16": ("x.csv", lambda file, rows: file.write_bytes(csv(rows, sep="\t").encode("utf-16"))),
    "tsv": ("x.tsv", lambda file, rows: file.write_text(csv(rows, sep="\t"), "utf-8")),
    "jsonl": ("ünï code.jsonl", lambda file, rows: file.write_text(jsonl(rows), "utf-8")),
    "json": ("x.json", lambda file, rows: file.write_text(json.dumps(rows), "utf-8")),
    "jsonl.gz": ("x.jsonl.gz", lambda file, rows: file.write_bytes(gzip.compress(jsonl(rows).encode()))),
    "parquet": ("x.parquet", lambda file, rows: parquet(file, rows, pa.string())),
    "parquet, large strings": ("x.parquet", lambda file, rows: parquet(file, rows, pa.large_string())),
    "saved": ("saved", lambda file, rows: datasets.Dataset.from_list(rows).save_to_disk(file)),
}


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("form", FORMATS)
def test_the_same_examples_are_read_from_any_file(form, task, tmp_path, tiny_source):
    name, write = FORMATS[form]
    write(tmp_path / name, ROWS[task])
    if task == "embedding":
        arguments = RetrievalArguments(train_file=str(tmp_path / name), test_folder="unused")
        found = read_pairs(arguments, AutoTokenizer.from_pretrained(tiny_source))
    else:
        read, arguments_class, settings = READERS[task]
        arguments = arguments_class(train_file=str(tmp_path / name), **settings)
        found = read(str(tmp_path / name), arguments)
    columns = [*ROWS[task][0]]
    assert found.select_columns(columns).to_list() == ROWS[task]


@pytest.mark.parametrize("task", READERS)
def test_a_row_that_lacks_something_is_refused_or_left_out_and_counted(task, tmp_path, capsys):
    read, arguments_class, settings = READERS[task]
    file = tmp_path / "x.jsonl"
    lacking = dict.fromkeys(ROWS[task][0])
    file.write_text(jsonl([ROWS[task][0], lacking, ROWS[task][1], lacking]), "utf-8")
    with pytest.raises(ValueError, match=r"2 rows have .*line 2; .*line 4.*skip_empty: true"):
        read(str(file), arguments_class(train_file=str(file), **settings))
    found = read(str(file), arguments_class(train_file=str(file), skip_empty=True, **settings))
    assert found.select_columns([*ROWS[task][0]]).to_list() == ROWS[task][:2]
    assert "2 rows with" in "".join(capsys.readouterr())


@pytest.mark.parametrize("task", READERS)
def test_a_column_that_is_not_there_is_named_with_its_setting(task, tmp_path):
    read, arguments_class, settings = READERS[task]
    file = tmp_path / "x.jsonl"
    file.write_text(jsonl(ROWS[task]), "utf-8")
    column = next(iter(ROWS[task][0]))
    with pytest.raises(ValueError, match=f"has the columns .*, not 'other': set {column}_column"):
        read(str(file), arguments_class(train_file=str(file), **{**settings, f"{column}_column": "other"}))
