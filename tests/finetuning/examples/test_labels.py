"""Labels of strangers: the same rows in any file are the same targets, or are refused by file, row and reason."""

import gzip
import json
import random
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seqeval.metrics
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES
from transformers import BertForSequenceClassification

from longbert.arguments import ModelArguments
from longbert.finetuning.examples.answers import read_answers
from longbert.finetuning.examples.entities import scheme_of
from longbert.finetuning.examples.labels import MULTI, REGRESSION, SINGLE, infer_problem_type
from longbert.finetuning.examples.splits import Split, make_splits
from longbert.finetuning.examples.words import WORD_SPLITTERS, splitter_of
from longbert.finetuning.results.metrics import EntityMetric
from longbert.finetuning.strategies import STRATEGIES
from longbert.finetuning.tasks.classification import (
    Classification,
    ClassificationArguments,
    read_documents,
    targets_of,
)
from longbert.source import Source


# what is written, and the label that each row means
KINDS = {
    "words": (["good", "bad", "good", " bad "], ["good", "bad", "good", "bad"]),
    "numbers": ([1, 0, 2, 10], ["1", "0", "2", "10"]),
    "floats of whole numbers": ([1.0, 0.0, 2.0, 10.0], ["1", "0", "2", "10"]),
    "truth": ([True, False, True, True], ["true", "false", "true", "true"]),
    "fractions": ([0.5, 1.25, 3.0, -2.0], ["0.5", "1.25", "3", "-2"]),
    "lists": ([["a", "b"], [], ["b"], ["a"]], [["a", "b"], [], ["b"], ["a"]]),
    "unicode": (["好", "schön", "好", "плохо"], ["好", "schön", "好", "плохо"]),
}


def write_csv(folder: Path, rows: list[dict], **options) -> Path:
    file = folder / "rows.csv"
    pd.DataFrame(rows).to_csv(file, index=False, **options)
    return file


def write_excel_csv(folder: Path, rows: list[dict]) -> Path:
    """As a spreadsheet of a country with decimal commas exports it: a mark of its encoding, semicolons, CRLF."""
    return write_csv(folder, rows, sep=";", encoding="utf-8-sig", lineterminator="\r\n")


def write_jsonl(folder: Path, rows: list[dict]) -> Path:
    file = folder / "rows.JSONL"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return file


def write_gz(folder: Path, rows: list[dict]) -> Path:
    file = folder / "rows [1].jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return file


def write_parquet(folder: Path, rows: list[dict], text: pa.DataType) -> Path:
    table = pa.Table.from_pylist(rows)
    table = table.set_column(0, "text", table["text"].cast(text))
    if pa.types.is_string(table.schema.field("label").type):
        table = table.set_column(1, "label", table["label"].cast(text))
    pq.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def write_saved(folder: Path, rows: list[dict]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


FORMATS = {
    "csv": write_csv,
    "csv of a spreadsheet": write_excel_csv,
    "tab": lambda folder, rows: write_csv(folder, rows, sep="\t"),
    "jsonl": write_jsonl,
    "jsonl.gz": write_gz,
    "parquet": lambda folder, rows: write_parquet(folder, rows, pa.string()),
    "parquet, large": lambda folder, rows: write_parquet(folder, rows, pa.large_string()),
    "saved": write_saved,
}


def read(file: Path, **settings) -> datasets.Dataset:
    arguments = ClassificationArguments(train_file=str(file), **settings)
    return read_documents(str(file), arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_the_same_rows_of_any_file_have_the_same_labels(form, kind, tmp_path):
    written, meant = KINDS[kind]
    texts = ["plain", 'with "quotes", and; marks', "two\nlines", "ünïcödé 好"]
    rows = [{"text": text, "label": label} for text, label in zip(texts, written, strict=True)]
    examples = read(FORMATS[form](tmp_path, rows))
    assert examples["text"][:] == texts
    assert examples["label"][:] == meant


def test_a_decimal_comma_is_one(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("text;label\na;0,5\nb;1,25\nc;2\n", "utf-8")
    labels = read(file)["label"][:]
    assert infer_problem_type(labels) == REGRESSION
    assert targets_of(read(file), None) == [0.5, 1.25, 2.0]


def test_names_of_a_saved_datasets_classes_are_kept(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "x.parquet")
    for file in ("saved", "x.parquet"):
        assert read(tmp_path / file)["label"][:] == ["yes", "no"]


@pytest.mark.parametrize("missing", [None, "", "  ", "NA", "#N/A", "null", float("nan")], ids=repr)
@pytest.mark.parametrize("form", ["csv", "csv of a spreadsheet", "jsonl"])
def test_a_row_without_a_label_is_refused_by_its_row_or_left_out_and_counted(form, missing, tmp_path, capsys):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": missing}, {"text": "c", "label": "y"}]
    file = FORMATS[form](tmp_path, rows)
    place = "line 2" if form == "jsonl" else "row 3"
    with pytest.raises(ValueError, match=f"1 rows have no label .*{place}.*skip_empty"):
        read(file)
    assert read(file, skip_empty=True)["label"][:] == ["x", "y"]
    assert "1 rows with no label are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "problem_type"),
    [
        (["a", "b"], SINGLE),
        (["1", "0"], SINGLE),
        (["1", "0.5"], REGRESSION),
        (["1", "half"], SINGLE),
        ([["a"], []], MULTI),
    ],
)
def test_the_problem_is_as_the_labels_look(values, problem_type):
    assert infer_problem_type(values) == problem_type


def test_lists_beside_labels_are_refused(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": ["x", "y"]}]
    with pytest.raises(ValueError, match="label"):
        labels = read(write_jsonl(tmp_path, rows))["label"][:]
        infer_problem_type(labels)


def task_of(source: Path, values: list, problem_type: str | None = None) -> Classification:
    rows = datasets.Dataset.from_dict(
        {"id": [str(n) for n in range(len(values))], "text": ["war"] * len(values), "label": values}
    )
    arguments = ModelArguments(model=str(source), max_position_embeddings=128)
    return Classification.of(Source.of(arguments), [Split("", rows, rows, rows)], problem_type, 2)


def targets(task: Classification, values: list) -> list:
    rows = datasets.Dataset.from_dict({"id": ["0"] * len(values), "text": ["war"] * len(values), "label": values})
    return task.tokenize(rows, 64)["target"][:]


def test_vectors_of_0_and_1_are_several_labels(tiny_source):
    values = [["0", "1", "1", "0"], ["1", "0", "0", "0"], ["0", "0", "0", "0"]]
    task = task_of(tiny_source, values)
    assert (task.problem_type, task.labels) == (MULTI, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"])
    assert targets(task, values) == [[float(each) for each in value] for value in values]
    with pytest.raises(ValueError, match="a vector of 4 numbers"):
        targets(task, [["1", "0"]])


@pytest.fixture
def finished(tiny_source, tmp_path):
    """The folder of a classifier that somebody trained, with labels in an order of their own."""

    def make(labels: list[str]) -> Path:
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
        model = BertForSequenceClassification.from_pretrained(tiny_source, num_labels=len(labels), **names)
        model.save_pretrained(tmp_path / "finished")
        Source.of(ModelArguments(model=str(tiny_source))).tokenizer.save_pretrained(tmp_path / "finished")
        return tmp_path / "finished"

    return make


@pytest.mark.parametrize(
    ("known", "found", "labels", "keeps"),
    [
        (["up", "down", "flat"], ["down", "up"], ["up", "down", "flat"], True),
        (["up", "down"], ["left", "right"], ["left", "right"], False),
        (["up", "down", "flat"], ["left", "right"], ["left", "right"], False),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["2", "0"], ["0", "1", "2"], True),
        (["LABEL_0", "LABEL_1"], ["no", "yes"], ["no", "yes"], False),
    ],
)
@pytest.mark.parametrize("strategy", ["long", "truncate", "chunk-pool"])
def test_a_finished_head_keeps_its_order_or_is_replaced_and_it_is_said(
    strategy, known, found, labels, keeps, finished, capsys
):
    folder = finished(known)
    task = task_of(folder, found)
    assert (task.labels, task.keeps_head) == (labels, keeps)
    assert ("is trained further" if keeps else "is replaced") in capsys.readouterr().out
    arguments = ModelArguments(model=str(folder), max_position_embeddings=128)
    model = task.build(Source.of(arguments), STRATEGIES[strategy])
    assert list(model.config.id2label.values()) == labels
    theirs = BertForSequenceClassification.from_pretrained(folder).classifier.weight
    ours = model.classifier.weight
    same = ours.shape == theirs.shape and bool((ours == theirs).all())
    assert same == (keeps and strategy != "chunk-pool")


def test_a_label_that_training_did_not_have_is_refused(tiny_source):
    with pytest.raises(ValueError, match="example 0 has the label 'c', which the training set does not have: a, b"):
        targets(task_of(tiny_source, ["a", "b"]), ["c"])
    with pytest.raises(ValueError, match="needs one label in every row"):
        targets(task_of(tiny_source, ["a", "b"]), [["a"]])
    with pytest.raises(ValueError, match="needs a number in every row"):
        targets(task_of(tiny_source, ["0.5", "1"]), ["high"])


# splits


def split(tmp_path: Path, rows: list[dict], **settings) -> list[Split]:
    file = write_jsonl(tmp_path, rows)
    arguments = ClassificationArguments(train_file=str(file), **settings)
    return make_splits(
        arguments, lambda path: read_documents(path, arguments), lambda rows: targets_of(rows, None), seed=0
    )


@pytest.mark.parametrize("number", [2, 3, 9, 30, 200])
def test_every_label_stays_in_training(number, tmp_path):
    labels = ["often"] * number + ["twice", "twice", "once"]
    (only,) = split(tmp_path, [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)])
    assert {*only.train["label"]} == {"often", "twice", "once"}
    assert len(only.validation) >= 1
    assert sorted([*only.train["text"], *only.validation["text"]]) == sorted(f"t{n}" for n in range(len(labels)))


def test_few_groups_are_divided_or_it_is_said_what_is_missing(tmp_path):
    rows = [{"text": f"t{n}", "label": "ab"[n % 2], "by": n // 10} for n in range(30)]
    (only,) = split(tmp_path, rows, group_column="by")
    assert not {*only.train["group"]} & {*only.validation["group"]}
    with pytest.raises(ValueError, match="3 groups cannot be divided into 5 parts: set folds to at most 3"):
        split(tmp_path, rows, group_column="by", folds=5)
    with pytest.raises(ValueError, match="one group cannot be trained on and held out: name validation_file"):
        split(tmp_path, rows[:10], group_column="by")
    alone = [{"text": f"t{n}", "label": "ab"[n // 10], "by": n // 10} for n in range(20)]
    with pytest.raises(ValueError, match="without losing all examples of [ab]: name validation_file"):
        split(tmp_path, alone, group_column="by")


@pytest.mark.parametrize("kind", ["numbers", "several labels"])
def test_numbers_and_several_labels_are_divided(kind, tmp_path):
    draw = random.Random(0)
    labels = [draw.random() if kind == "numbers" else draw.sample("abc", 2) for _ in range(40)]
    (only,) = split(tmp_path, [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)])
    assert len(only.validation) == 4 and len(only.train) == 36


# entities


SCHEMES = {"IOB1": IOB1, "IOB2": IOB2, "BIOES": IOBES, "BILOU": BILOU}


def labelled(scheme: str, draw: random.Random, words: int) -> list[str]:
    """Random entities, written by hand as each scheme writes them."""
    labels: list[str] = []
    while len(labels) < words:
        kind, size = draw.choice(["PER", "LOC"]), min(draw.randint(1, 3), words - len(labels))
        if draw.random() < 0.3:
            labels.append("O")
        elif scheme == "IOB1":
            after = labels and labels[-1][2:] == kind
            labels += [f"{'B' if after else 'I'}-{kind}", *[f"I-{kind}"] * (size - 1)]
        elif scheme == "IOB2":
            labels += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
        else:
            last, alone = ("E", "S") if scheme == "BIOES" else ("L", "U")
            labels += (
                [f"{alone}-{kind}"] if size == 1 else [f"B-{kind}", *[f"I-{kind}"] * (size - 2), f"{last}-{kind}"]
            )
    return labels


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_of_every_scheme_are_scored_as_seqeval_scores_it(scheme):
    draw = random.Random(0)
    truth = [labelled(scheme, draw, 30) for _ in range(40)]
    found = [labelled(scheme, draw, len(labels)) for labels in truth]
    # predictions share half of the truth; a cut at a word that is outside of both keeps them well formed
    mixed = []
    for theirs, ours in zip(truth, found, strict=True):
        cut = next((n for n in range(10, len(theirs)) if theirs[n] == ours[n] == "O"), len(theirs))
        mixed.append(theirs[:cut] + ours[cut:])
    expected = {
        name: getattr(seqeval.metrics, f"{name}_score")(truth, mixed, mode="strict", scheme=SCHEMES[scheme])
        for name in ("f1", "precision", "recall")
    }
    ours = EntityMetric().compute(predictions=mixed, references=truth)
    assert {name: ours[name] for name in expected} == pytest.approx(expected)
    assert 0.2 < expected["f1"] < 0.99
    assert scheme_of(truth) == scheme


# words


@pytest.mark.parametrize(
    ("text", "splitter", "words"),
    [
        ("Iron, steel.", "punctuation", ["Iron", ",", "steel", "."]),
        ("Iron, steel.", "spaces", ["Iron,", "steel."]),
        ("三国演义是AI小说。", "characters", ["三", "国", "演", "义", "是", "AI", "小", "说", "。"]),
        ("हिन्दी भाषा।", "punctuation", ["हिन्दी", "भाषा", "।"]),
        ("e\u0301te\u0301 a\u0300", "punctuation", ["e\u0301te\u0301", "a\u0300"]),
        ("น้ำใจ", "characters", ["น้", "ำ", "ใ", "จ"]),
        ("", "spaces", []),
    ],
)
def test_words_are_split_with_their_marks(text, splitter, words):
    assert [text[start:end] for start, end in WORD_SPLITTERS[splitter](text)] == words


@pytest.mark.parametrize(
    ("documents", "splitter"),
    [
        ([["Iron", ",", "steel", "."]], "punctuation"),
        ([["Iron,", "steel."]], "spaces"),
        ([list("三国演义。"), list("小说")], "characters"),
        ([["हिन्दी", "भाषा", "।"]], "punctuation"),
    ],
)
def test_the_splitter_is_the_one_that_finds_the_training_words_again(documents, splitter):
    assert splitter_of(documents) == (splitter, 1.0)


# answers


CONTEXT = "The metal is gold. The other is iron."


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        float("nan"),
        [],
        "[]",
        {},
        {"text": [], "answer_start": []},
        {"text": [""], "answer_start": [-1]},
        {"text": "", "answer_start": -1},
        {"text": None, "answer_start": None},
        [{"text": "", "answer_start": 0}],
        "{'text': array([], dtype=object), 'answer_start': array([], dtype=int32)}",
    ],
    ids=repr,
)
def test_every_way_to_say_that_there_is_no_answer(value):
    assert read_answers(value, CONTEXT) == {"text": [], "answer_start": []}


@pytest.mark.parametrize(
    "value",
    [
        {"text": ["gold"], "answer_start": [13]},
        {"answer_start": 13, "text": "gold"},
        [{"text": "gold", "answer_start": 13}],
        {"text": ["gold"], "answer_start": [-1]},
        ["gold"],
        "gold",
        '{"text": ["gold"], "answer_start": [13]}',
        "{'text': ['gold'], 'answer_start': [13]}",
        "{'text': array(['gold'], dtype=object), 'answer_start': array([13])}",
    ],
    ids=repr,
)
def test_every_way_to_write_an_answer(value):
    assert read_answers(value, CONTEXT) == {"text": ["gold"], "answer_start": [13]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": ["gold"], "answer_start": [12]}, "is not at character 12"),
        ({"text": ["gold", "iron"], "answer_start": [13]}, "2 answers and 1 places"),
        ("silver", "does not stand in its context"),
        ("is", "more than once: give its answer_start"),
        ("[gold", "holds no list"),
    ],
)
def test_answers_that_cannot_be_placed_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read_answers(value, CONTEXT)
