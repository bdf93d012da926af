"""What is written is what every reader takes: json without NaN, tables whose cells are cells."""

import ast
import json
import math

import numpy as np
import pytest
from processes import ROOT

from longbert.proof import Proof
from longbert.scoring import Scores
from longbert.tables import strict_json, table, with_interval


PACKAGE = ROOT / "modeling" / "longbert"
# what these make is no file of figures: sums of files, what is compared or hashed, a command line
OTHERS = {
    "folders.py",
    "data/files.py",
    "training/record.py",
    "training/changes.py",
    "data/fingerprints.py",
    "arguments.py",
}


def refuse(constant):
    raise AssertionError(constant)


def strictly(text):
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float64("nan")])
@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_no_number_is_null(number, indent):
    written = strict_json({"a": [1.5, (number, "é")], "b": {3: number}}, indent)
    assert strictly(written) == {"a": [1.5, [None, "é"]], "b": {"3": None}}
    assert written.endswith("\n") and (indent or written.count("\n") == 1)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.stem)
def test_no_json_of_figures_is_written_that_could_hold_nan(file):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) in ("dump", "dumps"):
            strict = any(each.arg == "allow_nan" for each in node.keywords)
            assert strict or str(file.relative_to(PACKAGE)) in OTHERS, node.lineno


def test_a_bucket_without_tokens_is_null_in_the_proof_of_one_text(tmp_path):
    position = np.arange(512)
    proof = Proof(512, 1024, documents=1, distances=np.zeros(512, int))
    proof.rows["source"] = Scores(position * 0, position, np.full(512, 2.0), position % 2 == 0)
    proof.rows["longer"] = Scores(position * 0, position, np.full(512, 1.0), position % 2 == 0)
    proof.save(tmp_path)
    buckets = strictly((tmp_path / "proof.json").read_text("utf-8"))["rows"]["longer"]["buckets"]
    assert buckets["512-1023"] == {
        "loss": None,
        "loss_interval": [None, None],
        "accuracy": None,
        "tokens": 0,
        "change": None,
        "change_interval": [None, None],
    }
    assert (buckets["all"]["change"], buckets["all"]["loss_interval"]) == (-0.5, [None, None])
    assert "| longer | 1.000, -50.0 %, 0.500 |  |  | 1.000" in (tmp_path / "proof.md").read_text("utf-8")


def test_cells():
    assert table(["a|b"], {"c\nd": ["1"]}) == "| | a\\|b |\n|---|---|\n| c d | 1 |"
    assert with_interval(0.5, (0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert with_interval(-4.0, (-5.0, math.nan), "+", 1, " %") == "-4.0 %"
