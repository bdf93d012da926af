"""`longbert predict` over a whole archive: the best model of a run, every input used once or said, shards that survive
anything."""

import gzip
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from processes import ROOT, KillAtWrite, command
from transformers import AutoTokenizer

from longbert import (
    LongBertConfig,
    LongBertForQuestionAnswering,
    LongBertForSequenceClassification,
    LongBertForTokenClassification,
)
from longbert.cli import main
from longbert.data.html import text_of
from longbert.finetuning.applying.best import METRICS
from longbert.finetuning.tasks.classification import ChunkPoolForSequenceClassification


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tiny_source) -> Make:
    """`make(folder, class, **config)` saves a tiny model with a random head that reads 256 tokens."""

    def make(folder: Path, model_class: type = LongBertForSequenceClassification, **settings) -> Path:
        settings = {"id2label": {0: "no", 1: "yes"}, "max_position_embeddings": 256} | settings
        config = LongBertConfig.from_pretrained(tiny_source, **settings)
        model_class.from_pretrained(tiny_source, config=config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_source).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def model(make, tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("model"))


def predicted(capsys, *argv) -> tuple[int, list[dict], str]:
    """The exit status, the lines, and what is said beside them."""
    status = main(["predict", *map(str, argv)])
    said = capsys.readouterr()
    return status, [json.loads(line) for line in said.out.splitlines()], said.err


@pytest.mark.parametrize(
    "model_class",
    [LongBertForSequenceClassification, LongBertForTokenClassification, LongBertForQuestionAnswering],
)
def test_what_is_no_number_is_no_prediction(model_class, make, tmp_path, capsys):
    """Its label would be the first, its answer empty, and so would the figures be."""
    folder = make(tmp_path / "model", model_class)
    broken = model_class.from_pretrained(folder)
    broken.base_model.encoder.layer[0].output.dense.bias.data[0] = math.nan
    broken.save_pretrained(folder)
    (tmp_path / "a.txt").write_text("the state of the union")
    question = ["--question", "what"] if model_class is LongBertForQuestionAnswering else []
    status, lines, said = predicted(capsys, folder, tmp_path / "a.txt", *question)
    assert status == 2 and lines == []
    assert "is no number: its weights are damaged" in said


# the best model of a run


def write_run(run: Path, rows: dict[str, float], primary: str = "accuracy", **settings) -> None:
    run.mkdir(exist_ok=True)
    (run / "results.json").write_text(json.dumps({name: {primary: figure} for name, figure in rows.items()}))
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def trained(model: Path, *figures: float | None) -> None:
    """Checkpoints of a model, each with the best validation figure until then."""
    for step, figure in enumerate(figures, start=9):  # 9 before 10: numbers, not names, say which is the last
        (model / f"checkpoint-{step}").mkdir()
        state = {"global_step": step, "best_metric": figure}
        (model / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))


def taken(capsys, run: Path, *options) -> tuple[Path, str]:
    text = run.parent / "text.txt"
    text.write_text("state " * 100)
    status, (_,), said = predicted(capsys, run, text, *options)
    assert status == 0
    return Path(re.search(r"(\S+) is taken", said)[1]).relative_to(run), said


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
def test_a_row_is_known_by_its_figures(metric, make, tmp_path, capsys):
    """Its best row is the one with most of the primary figure, whatever the others say."""
    run = tmp_path / "run"
    run.mkdir()
    others = dict.fromkeys(metric.figures, 0.5)
    rows = {"truncate": others | {metric.primary: 0.4}, "long": dict.fromkeys(metric.figures, 0.1)}
    rows["long"][metric.primary] = 0.6
    (run / "results.json").write_text(json.dumps(rows))
    for name in rows:
        make(run / name / "seed-42")
    model, said = taken(capsys, run)
    assert model == Path("long", "seed-42") and f"long has {metric.primary} 0.600" in said


@pytest.mark.parametrize(
    ("figures", "metric", "seed", "reason"),
    [
        ({42: [0.5, 0.6], 43: [0.5, 0.7]}, None, 43, "the best in validation (0.700)"),
        ({42: [0.5, 0.9], 43: [0.8, 0.7]}, "eval_accuracy", 42, "the best in validation (0.900)"),
        ({42: [3.0], 43: [2.0]}, "rmse", 43, "the best in validation (2.000)"),
        ({42: [], 43: []}, None, 42, "the first of its 2 models"),
        ({42: [None], 43: [0.1]}, None, 43, "the best in validation (0.100)"),
        ({42: [0.1]}, None, 42, "long has accuracy 0.900, the only"),
    ],
)
@pytest.mark.parametrize("fold", ["", "fold-1"])
def test_the_seed_with_the_best_validation_is_taken(figures, metric, seed, reason, fold, make, tmp_path, capsys):
    run = tmp_path / "run"
    write_run(run, {"long": 0.9}, **({"metric_for_best_model": metric} if metric else {}))
    if metric == "rmse":
        (run / "results.json").write_text('{"long": {"pearson": 0.9, "spearman": 0.9, "rmse": 2}}')
    for number, some in figures.items():
        trained(make(run / "long" / fold / f"seed-{number}"), *some)
    model, said = taken(capsys, run)
    assert model == Path("long", fold, f"seed-{seed}")
    assert reason in said


CLASSIFIER, TAGGER, READER = (
    LongBertForSequenceClassification,
    LongBertForTokenClassification,
    LongBertForQuestionAnswering,
)


@pytest.mark.parametrize(
    ("model_class", "rows", "best", "left_out"),
    [
        (CLASSIFIER, {"long": 0.5, "truncate": 0.7, "head-tail": 0.9, "chunk-pool": 0.8}, "truncate", 2),
        (CLASSIFIER, {"truncate": 0.5, "long": 0.7}, "long", 0),
        (CLASSIFIER, {"long": 0.7, "truncate": 0.7}, "long", 0),
        (CLASSIFIER, {"long": None, "truncate": 0.1}, "truncate", 0),
        (READER, {"long": 0.5, "truncate": 0.9, "chunk-pool": 0.8}, "chunk-pool", 1),
        (TAGGER, {"long": 0.5, "truncate": 0.9}, "long", 1),
    ],
)
def test_the_best_row_is_taken_that_predict_reads_as_the_run_did(
    model_class, rows, best, left_out, make, tmp_path, capsys
):
    run = tmp_path / "run"
    write_run(run, rows, "accuracy" if model_class is CLASSIFIER else "f1", max_length=128)
    figures = {name: {"f1": figure, "exact_match": 0.1, "accuracy": figure} for name, figure in rows.items()}
    if model_class is not CLASSIFIER:
        (run / "results.json").write_text(json.dumps(figures))
    for name in rows:
        pools = name == "chunk-pool" and model_class is CLASSIFIER
        kind = ChunkPoolForSequenceClassification if pools else model_class
        make(run / name / "seed-42", kind, task_settings={} if model_class is CLASSIFIER else {"stride": 8})
    model, said = taken(capsys, run, "--question", "which state?")
    assert model == Path(best, "seed-42")
    assert said.count("is not offered") == left_out
    # it reads as many tokens as it has in the run: the source's 64, or max_length
    (line,) = predicted(capsys, run, run.parent / "text.txt", "--question", "which state?")[1]
    assert line["read_at_once"] == (best == "long" and line["tokens"] <= 128)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds neither config.json, as the folder of a model does, nor results.json"),
        ({"results.json": "{"}, "results.json is damaged"),
        ({"results.json": "{}"}, "has none of the figures"),
        ({"results.json": '{"long": {"speed": 1}}'}, "has none of the figures"),
        ({"results.json": '{"long": {"accuracy": 1}}'}, "long is not offered: there is no model in"),
        ({"results.json": '{"long": 1}'}, "is not what `longbert finetune` writes"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_in_one_line(files, message, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    for name, content in files.items():
        (tmp_path / "run" / name).write_text(content)
    status, lines, said = predicted(capsys, tmp_path / "run", __file__)
    assert (status, lines, len(said.splitlines())) == (2, [], 1)
    assert message in said


# inputs


GOLD = "gold state"
PAGES = {
    "blocks": ("<p>gold</p><p>state</p>", "gold\nstate"),
    "a word in two elements": ("<p>go<b>ld</b> <i>state</i></p>", GOLD),
    "blanks": ("<p>gold\n   state</p>", GOLD),
    "line breaks": ("gold<br>state<hr/>iron", "gold\nstate\niron"),
    "text after a block": ("gold<div>state</div>iron", "gold\nstate\niron"),
    "cells": ("<table><tr><td>gold<td>state</table>", "gold\nstate"),
    "no scripts, styles, comments": (
        "<style>p {}</style><script>'<p>no</p>'</script><!-- no --><template>no</template>" + GOLD,
        GOLD,
    ),
    "entities": ("gold&nbsp;&amp;&#x4e2d;", "gold\xa0&中"),
    "as written": ("<pre>gold   state\niron</pre>", "gold   state\niron"),
    "unclosed": ("<p>gold <b>state", GOLD),
    "nothing seen": ("<html><script>1</script></html>", ""),
    "deep": ("<div>" * 2000 + GOLD + "</div>" * 2000, GOLD),
}


@pytest.mark.parametrize(("page", "text"), PAGES.values(), ids=PAGES.keys())
def test_what_is_read_of_a_page(page, text):
    assert text_of(page) == text


def declared(encoding: str, text: str = "gold é 中"[:6]) -> bytes:
    return f'<html><meta charset="{encoding}"><p>{text}</p></html>'.encode(encoding, "strict")


def parquet(folder: Path, texts: list) -> bytes:
    datasets.Dataset.from_dict({"text": texts}).to_parquet(folder / "made")
    return (folder / "made").read_bytes()


GOOD = {
    "a.txt": (lambda _: GOLD.encode(), [GOLD]),
    "A.TXT": (lambda _: b"\xef\xbb\xbf" + GOLD.encode(), [GOLD]),
    "a.md": (lambda _: b"# gold\r\nstate", ["# gold\nstate"]),
    "a.txt.gz": (lambda _: gzip.compress(GOLD.encode()), [GOLD]),
    "a.html": (lambda _: declared("utf-8"), ["gold é"]),
    "a.HTM": (lambda _: declared("iso-8859-1"), ["gold é"]),
    "windows.html": (lambda _: declared("cp1252", "gold “é”"), ["gold “é”"]),
    "named latin.html": (lambda _: declared("cp1252", "gold “é”").replace(b"cp1252", b"latin-1"), ["gold “é”"]),
    "chinese.html.gz": (lambda _: gzip.compress(declared("gb2312", "中国")), ["中国"]),
    "marked.html": (lambda _: "\ufeff<p>gold é".encode("utf-16-le"), ["gold é"]),
    "a.csv": (lambda _: b'text;n\n"gold\nstate";1\niron;2\n', ["gold\nstate", "iron"]),
    "a.jsonl": (lambda _: b'{"text": "gold"}\n{"text": "iron"}\n', ["gold", "iron"]),
    "a.parquet": (lambda folder: parquet(folder, ["gold", "iron"]), ["gold", "iron"]),
}
BAD = {
    "a.txt": (b"gold \xe9t\xe9 caf\xe9", "is not in utf-8"),
    "zeros.txt": (b"gold\0", "bytes of 0"),
    "empty.txt": (b" \n", "1 of its 1 texts are empty"),
    "page.html": (b"<p>\xe9t\xe9 caf\xe9</p>", "is not in utf-8"),
    "wrong.html": (b'<meta charset="ascii-art">', "does not know: unknown encoding: ascii-art"),
    "bytes.html": (b'<meta charset="base64">gold', "does not know: 'base64' is not a text encoding"),
    "empty.html": (b"<script>1</script>", "1 of its 1 texts are empty"),
    "a.csv": (b"text,n\n gold,1\n,2\n", "row 3): fill them, or leave them out with --skip-empty"),
    "b.csv": (b"body\ngold\n", "--text-column"),
    "c.csv": (b"text\ngold,iron\n", "row 2 has 2 cells"),
    "rows.csv": (b"text\n", "holds no rows"),
    "a.jsonl": (b'{"text": "gold"}\n{"text": \n', "line 2 is not JSON"),
    "half.jsonl": (b'{"text": "gold \\ud800"}\n', "holds half a character"),
    "number.jsonl": (b'{"text": 5}\n', "has int in column 'text'"),
    "a.parquet": (b"PAR1 not", "is damaged"),
    "none.parquet": (b"", "is damaged"),
    "a.txt.gz": (gzip.compress(b"gold state" * 99)[:-12], "is damaged"),
    "b.txt.gz": (b"gold", "is damaged"),
    "c.html.gz": (gzip.compress(os.urandom(99))[:20] + b"\xff" * 40, "is damaged"),
}


def test_every_kind_of_file_gives_its_texts_and_what_is_not_read_is_said(model, tmp_path, capsys):
    folder = tmp_path / "a [strange] näme"
    folder.mkdir()
    for name, (content, _) in GOOD.items():
        (folder / name).write_bytes(content(tmp_path))
    (folder / "scan.pdf").write_bytes(b"%PDF")
    (folder / ".hidden.txt").write_bytes(b"gold")
    status, lines, said = predicted(capsys, model, folder, folder / "a.txt")
    assert status == 0
    assert "1 .pdf are not" in said and "a.txt is named more than once" in said
    # a text says what it says, whatever file it lies in
    for number, (name, (_, texts)) in enumerate(sorted(GOOD.items())):
        of_file = [line for line in lines if re.sub(r", (row|line) \d+$", "", line["id"]) == str(folder / name)]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        alone = predicted(capsys, model, tmp_path / f"{number}.jsonl")[1]
        assert [line["tokens"] for line in of_file] == [line["tokens"] for line in alone]
        for line, other in zip(of_file, alone, strict=True):
            assert line["scores"] == pytest.approx(other["scores"], abs=1e-6)
    assert len(lines) == sum(len(texts) for _, texts in GOOD.values())


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_said_by_name_and_reason_and_the_others_are_predicted(name, model, tmp_path, capsys):
    content, reason = BAD[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "good.txt").write_text(GOLD)
    status, lines, said = predicted(capsys, model, tmp_path / "in")
    assert status == 1
    assert [line["id"] for line in lines] == [str(tmp_path / "in" / "good.txt")]
    (about,) = [line for line in said.splitlines() if "is not read:" in line]
    assert about.startswith(str(tmp_path / "in" / name)) and reason in about
    assert "1 of 2 files are not read" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "content", "texts"),
    [
        (["--encoding", "cp1252"], {"a.txt": "é".encode("cp1252"), "b.html": declared("utf-8")}, 2),
        (["--encoding", "cp1252"], {"a.html": "<p>é".encode("cp1252")}, 1),
        (["--delimiter", "#"], {"a.csv": b"text#n\na,b#1\n"}, 1),
        (["--skip-empty"], {"a.csv": b"text,n\ngold,1\n,2\n", "b.txt": b"", "c.html": b"<p>"}, 1),
        (["--text-column", "body"], {"a.csv": b"body\ngold\n", "a.txt": b"gold"}, 2),
    ],
)
def test_settings_of_files(options, content, texts, model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, each in content.items():
        (tmp_path / "in" / name).write_bytes(each)
    status, lines, said = predicted(capsys, model, tmp_path / "in", *options)
    assert (status, len(lines)) == (0, texts)
    assert said.count("1 empty texts are left out") == (3 if "--skip-empty" in options else 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["missing.txt"], "there is no file at missing.txt"),
        (["x.txt", "--format", "parquet"], "name it, --out FOLDER"),
        (["-", "--out", "out"], "leave --out away"),
        (["x.txt", "--out", "out", "--shard-size", "0"], "at least 1 text, got 0"),
        (["x.txt", "--out", "."], "already holds something"),
        (["x.txt", "--out", "x.txt"], "already holds something"),
        (["x.txt", "--skip-empty"], "all texts of x.txt are empty"),
    ],
)
def test_what_cannot_be_done_is_one_line(argv, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text(" ")
    (tmp_path / "y.txt").write_text("gold")
    status, lines, said = predicted(capsys, model, *argv)
    assert (status, lines) == (2, [])
    assert message in said.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.txt", "y.txt"]


def test_pages_name_the_extra_that_reads_them_before_anything_is_predicted(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_text("gold")
    (tmp_path / "b.html").write_text("gold")
    monkeypatch.setitem(sys.modules, "bs4", None)
    monkeypatch.delitem(sys.modules, "longbert.data.html")
    status, lines, said = predicted(capsys, model, tmp_path)
    assert (status, lines) == (2, [])
    assert said.splitlines()[-1] == "longbert: this needs bs4: pip install 'longbert[train,html]'"


# shards


@pytest.fixture
def desk(tmp_path) -> Path:
    """15 texts in files of several kinds, and a bad one."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text("gold state " * (number + 1))
    rows = [{"text": "iron " * (number + 1)} for number in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "page.html").write_text("<p>silver</p>")
    (folder / "bad.txt").write_bytes(b"\xff\xff")
    return folder


def rows_of(out: Path) -> list[dict]:
    """All rows of a folder of shards, in order."""
    rows: list[dict] = []
    for file in sorted(out.glob("part-*")):
        text = file.suffix == ".jsonl"
        rows += map(json.loads, file.read_text().splitlines()) if text else pq.read_table(file).to_pylist()
    return rows


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("size", [1, 4, 15, 100])
def test_shards_hold_what_is_printed_each_input_once(form, size, model, desk, tmp_path, capsys):
    _, lines, _ = predicted(capsys, model, desk)
    status, printed, said = predicted(
        capsys, model, desk, "--out", tmp_path / "out", "--format", form, "--shard-size", size
    )
    assert (status, printed) == (1, [])
    assert "bad.txt is not read" in said
    files = sorted(file.name for file in (tmp_path / "out").glob("part-*"))
    count = -(-15 // size)
    assert files == [f"part-{number:05}-of-{count:05}.{form}" for number in range(count)]
    rows = rows_of(tmp_path / "out")
    assert len({row["id"] for row in rows}) == 15
    for row, line in zip(rows, lines, strict=True):
        assert row.pop("scores") == pytest.approx(line.pop("scores"), abs=1e-6)
        assert row == line


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (CLASSIFIER, {}),
        pytest.param(CLASSIFIER, {"problem_type": "multi_label_classification"}, marks=pytest.mark.slow),
        pytest.param(CLASSIFIER, {"problem_type": "regression", "id2label": {0: "value"}}, marks=pytest.mark.slow),
        pytest.param(TAGGER, {"id2label": {0: "B-METAL", 1: "O"}}, marks=pytest.mark.slow),
        (READER, {}),
    ],
)
def test_parquet_has_one_schema_and_the_same_values_for_every_task(
    model_class, settings, make, desk, tmp_path, capsys
):
    model = make(tmp_path / "model", model_class, **settings)
    asked = ("--question", "which state?", "--shard-size", 1)
    for form in ("jsonl", "parquet"):
        predicted(capsys, model, desk, *asked, "--out", tmp_path / form, "--format", form)
    assert rows_of(tmp_path / "parquet") == rows_of(tmp_path / "jsonl")
    assert len({pq.read_schema(file) for file in (tmp_path / "parquet").glob("*.parquet")}) == 1


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_command_goes_on_and_keeps_what_is_there(model, desk, tmp_path, capsys):
    argv = (model, desk, "--out", tmp_path / "out", "--shard-size", 4)
    predicted(capsys, *argv)
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / "part-00002-of-00004.jsonl").unlink()
    kept = tmp_path / "out" / "part-00001-of-00004.jsonl"
    moment = kept.stat().st_mtime_ns
    status, _, said = predicted(capsys, *argv)
    assert status == 1 and "of which 3 were there" in said
    assert files_of(tmp_path / "out") == before
    assert kept.stat().st_mtime_ns == moment


CHANGES = {
    "a file": (lambda desk, _: (desk / "0.txt").write_text("iron state"), [], r"0\.txt was file 1 with 11 bytes.* is"),
    "a new file": (lambda desk, _: (desk / "new.txt").write_text("iron"), [], r"new\.txt was not there, is"),
    "a file less": (lambda desk, _: (desk / "4.txt").unlink(), [], r"4\.txt was file 5 .* is not there"),
    "a file mended": (
        lambda desk, _: (desk / "bad.txt").write_text("ok"),
        [],
        r"bad\.txt was .*refused, is .* 1 texts",
    ),
    "the model": (lambda _, model: model("weights"), [], r"the model's model\.safetensors was sha256 \w+, is sha256"),
    "the question": (lambda *_: None, ["--question", "why?"], r"question was None, is 'why\?'"),
    "the shards": (lambda *_: None, ["--shard-size", "5"], r"shard_size was 4, is 5"),
    "the format": (lambda *_: None, ["--format", "parquet"], r"format was 'jsonl', is 'parquet'"),
    "the encoding": (lambda *_: None, ["--encoding", "utf-8"], r"encoding was None, is 'utf-8'"),
}


@pytest.mark.parametrize(("change", "more", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_what_has_changed_is_refused_by_name(change, more, message, make, desk, tmp_path, capsys):
    argv = (make(tmp_path / "model"), desk, "--shard-size", 4, "--out", tmp_path / "out")
    predicted(capsys, *argv)
    before = files_of(tmp_path / "out")

    def other_weights(_: str) -> None:
        make(tmp_path / "model", hidden_dropout_prob=0.0)  # a head that is random anew

    change(desk, other_weights)
    status, _, said = predicted(capsys, *argv, *more)
    assert status == 2
    assert re.search(message, said.splitlines()[-1])
    assert files_of(tmp_path / "out") == before


def test_a_touched_file_and_a_moved_model_are_the_same(make, desk, tmp_path, capsys):
    argv = (desk, "--shard-size", 4, "--out", tmp_path / "out")
    predicted(capsys, make(tmp_path / "model"), *argv)
    os.utime(desk / "0.txt", (0, 0))
    (tmp_path / "model").rename(tmp_path / "moved")
    assert "of which 4 were there" in predicted(capsys, tmp_path / "moved", *argv)[2]


@pytest.mark.slow
def test_killed_at_every_write_it_ends_as_never_killed(model, desk, tmp_path):
    def predict(out: Path, before=None) -> int:
        argv = ("predict", model, desk, "--out", out, "--shard-size", 5)
        return command(*argv, log=tmp_path / "log.txt", before=before)[0]

    assert predict(tmp_path / "never") == 1  # a file is bad
    kills = []
    for number in range(1, 100):
        kills.append(predict(tmp_path / "out", KillAtWrite(number, tmp_path / "count")))
        if kills[-1] != -9:
            break
    assert len(kills) > 4 and kills[-1] == 1
    assert files_of(tmp_path / "out") == files_of(tmp_path / "never")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_two_processes_divide_the_shards(model, desk, tmp_path):
    argv = ("predict", model, desk, "--shard-size", 2)
    log = tmp_path / "log.txt"
    assert command(*argv, "--out", tmp_path / "one", log=log)[0] == 1
    status, said = command(*argv, "--out", tmp_path / "two", log=log, ranks=2)
    assert status == 1, said
    assert sorted(re.findall(r"(part-\S+): \d texts", said)) == [
        file.name for file in sorted((tmp_path / "two").glob("part*"))
    ]
    assert said.count("bad.txt is not read") == 1 and "by 2 processes" in said
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    # both refuse what one refuses, at once and in one line
    status, said = command(*argv, "--out", tmp_path / "two", "--question", "why?", log=log, ranks=2)
    assert status == 2 and said.count("was begun with something else") == 1
    status, said = command("predict", model, desk, log=log, ranks=2)
    assert status == 2 and "name a folder, --out FOLDER" in said


# someone else's engine

PAGE = ROOT / "docs" / "archive.md"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray Data is not installed: longbert[ray]")
def test_the_page_s_script_gives_the_same_rows_on_two_workers_of_ray(make, tmp_path):
    make(tmp_path / "run" / "long" / "seed-42")
    write_run(tmp_path / "run", {"long": 0.9})
    (tmp_path / "letters").mkdir()
    for number in range(40):
        (tmp_path / "letters" / f"{number:02}.txt").write_text(f"gold {number} state " * (number + 1))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    # so small a model reads faster than files are opened: all are there first, so that both workers have some
    code = code.replace("letters.map_batches", "letters.materialize().map_batches")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "modeling")}
    script = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert script.returncode == 0, script.stderr
    out = ["predict", "run", "letters", "--out", "same", "--format", "parquet"]
    subprocess.run([sys.executable, "-m", "longbert", *out], cwd=tmp_path, env=environment, check=True)
    made = [row for file in (tmp_path / "predictions").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    expected = rows_of(tmp_path / "same")
    assert len(made) == len(expected) == 40
    for row, other in zip(sorted(made, key=lambda row: row["id"]), expected, strict=True):
        assert row.pop("scores") == pytest.approx(other.pop("scores"), abs=1e-6)
        assert row == other
    workers = re.search(r"read by (\d+) workers", script.stdout)
    assert workers and workers[1] == "2"
