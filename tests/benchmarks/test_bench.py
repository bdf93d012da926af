"""The bench: its cases are data, what it says of a run is true, and what was measured before is kept."""

import json
import subprocess
import sys

import pytest
from processes import ROOT


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import bench

    yield bench
    sys.path.pop(0)


def samples(*seconds: float) -> list[dict[str, float]]:
    return [{"seconds": each} for each in seconds]


@pytest.mark.parametrize(
    ("kind", "limit", "value", "lowest", "highest", "reached"),
    [
        ("gain", 2.5, 3.0, 2.0, 4.0, True),
        ("gain", 3.5, 3.0, 2.0, 4.0, False),
        ("cost", 0.4, 1 / 3, 1 / 4, 1 / 2, True),
        ("cost", 0.3, 1 / 3, 1 / 4, 1 / 2, False),
        ("amount", 2.0, 2.0, 1.0, 3.0, True),
        ("amount", None, 2.0, 1.0, 3.0, None),
    ],
)
def test_a_ratio_is_of_medians_and_has_the_spread_of_its_pairs(bench, kind, limit, value, lowest, highest, reached):
    sides = [samples(1.0, 2.0, 3.0), samples(4.0, 6.0, 6.0)]
    judged = bench.judge(bench.Goal(kind, limit), "seconds", sides, {})
    assert judged["medians"] == [2.0, 6.0]
    found = judged["value"], judged["lowest_pair"], judged["highest_pair"]
    assert found == pytest.approx((value, lowest, highest))
    assert judged["reached"] is reached
    assert judged["samples"] == sides and judged["allocator"]


def test_a_name_stands_for_all_that_continue_it(bench):
    assert [case.name for case in bench.chosen(["short"])] == ["short-512", "short-128"]
    assert [case.name for case in bench.chosen(["padded-mlm"])] == ["padded-mlm"]
    with pytest.raises(ValueError, match="no case 'longer'; there are padded-mlm, "):
        bench.chosen(["longer"])


def test_a_record_says_where_its_numbers_come_from(bench, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bench.py", "--out", "/home/me/record.json"])
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    said = bench.environment()
    assert said["command"] == "python benchmarks/bench.py --out record.json"
    assert said["allocator"] == {"MALLOC_TRIM_THRESHOLD_": "1"}
    assert set(said["versions"]) == {"python", "torch", "transformers", "longbert"}
    assert said["cores"] and said["memory_bytes"] and said["date"] and said["commit"]


@pytest.mark.slow
def test_a_case_is_measured_in_turn_and_others_are_kept(tmp_path):
    out = tmp_path / "record.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--repeats", "2", "--shrink", "16"]
    for name in ("short-128", "mlm-loss"):
        run = subprocess.run([*command, "--cases", name, "--out", str(out)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert "no result" in run.stdout
    first, second = json.loads(out.read_text())["cases"]
    assert (first["case"], second["case"]) == ("short-128", "mlm-loss")
    assert first["difference"] <= 1e-5
    assert [len(side) for side in first["time"]["samples"]] == [10, 10]  # 5 rounds for each repeat
    assert second["memory"]["allocator"] == {
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
    }
    assert first["time"]["goal"] is None and out.with_suffix(".png").stat().st_size
