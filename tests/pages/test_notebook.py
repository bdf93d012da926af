"""docs/longbert.ipynb runs from top to bottom in a kernel of its own, and its cells print what its texts say."""

import os
import sys
from pathlib import Path

import pytest
from processes import ROOT


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(ROOT / "docs" / "longbert.ipynb", as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]  # pictures would swell the repository
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "\n!" in f"\n{cell.source}" and cell.cell_type == "code":  # a command that fails is no error of its cell
            cells.append(nbformat.v4.new_code_cell("assert _exit_code == 0"))
    notebook.cells = cells
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "3,000 words are " in printed and "torch.Size([1, " in printed
    assert "config, table, buffers and tokenizer agree" in printed
    assert printed.count("chunked at 512") >= 3  # two rows of the training's proof, one or more of evaluate's
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 2
