"""Hypotheses before a contract: what each strategy reads of it, and that its predictions can be compared."""

import json
import runpy
import subprocess
import sys

import pytest
from processes import ROOT


SCRIPT = ROOT / "benchmarks" / "contract_hypotheses.py"
TEXT = list(range(1000, 1150))
PREFIX, JUDGES = [2, 10, 3, 11, 12, 3], [2, 5]  # [CLS] one [SEP] two words [SEP]
ROOM = 64 - 6 - 1  # of the source's positions
ANNOTATIONS = {
    "nda-1": {"choice": "Entailment", "spans": [0]},
    "nda-2": {"choice": "NotMentioned", "spans": []},
}


@pytest.mark.parametrize(
    ("strategy", "read"),
    [
        ("long", [TEXT]),
        ("truncate", [TEXT[:ROOM]]),
        ("head-tail", [TEXT[:14] + TEXT[-43:]]),
        ("chunk-pool", [TEXT[:ROOM], TEXT[ROOM : 2 * ROOM], TEXT[2 * ROOM :]]),
    ],
)
def test_what_is_read_of_a_contract(strategy, read, tiny_source):
    reader = runpy.run_path(str(SCRIPT))["Reader"](str(tiny_source), strategy, PREFIX, JUDGES)
    assert reader.pieces(TEXT) == read


def test_what_has_room_is_read_whole(tiny_source):
    script = runpy.run_path(str(SCRIPT))
    for strategy in ("long", "truncate", "head-tail", "chunk-pool"):
        assert script["Reader"](str(tiny_source), strategy, PREFIX, JUDGES).pieces(TEXT[:ROOM]) == [TEXT[:ROOM]]


@pytest.mark.slow
def test_predictions_are_those_that_are_compared_by_where_the_evidence_lies(tiny_source, tmp_path):
    document = {"text": "the union and the people " * 30, "spans": [[0, 10]], "annotation_sets": [{}]}
    document["annotation_sets"][0]["annotations"] = ANNOTATIONS
    labels = {name: {"hypothesis": "the people"} for name in ANNOTATIONS}
    for name in ("train", "test"):
        documents = [{**document, "id": number} for number in range(2)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"documents": documents, "labels": labels}))
        convert = ROOT / "finetune" / "data" / "contract_nli.py"
        subprocess.run([sys.executable, convert, tmp_path / f"{name}.json", tmp_path / f"{name}.jsonl"], check=True)
    files = [tmp_path / "train.json", tmp_path / "test.json", tmp_path / "out"]
    subprocess.run(
        [sys.executable, SCRIPT, tiny_source, *files, "--epochs", "1", "--learning-rate", "1e-2"], check=True
    )
    compare = [sys.executable, ROOT / "benchmarks" / "contract_nli.py", tmp_path / "out", tmp_path / "train.jsonl"]
    compare += [tmp_path / "test.jsonl", "--tokenizer", tiny_source]
    printed = subprocess.run(compare, check=True, capture_output=True, text=True).stdout
    rows = [line.split(" |")[0] for line in printed.splitlines()]
    assert rows[2:] == ["| pairs", "| long", "| truncate", "| head-tail", "| chunk-pool", "| unread"]
    assert printed.splitlines()[2].startswith("| pairs | 4 |")
    again = subprocess.run([sys.executable, SCRIPT, tiny_source, *files], capture_output=True, text=True)
    assert again.returncode == 2
    assert "is there already" in again.stderr
