"""The notebook runs from top to bottom, offline, and is committed without outputs."""

import shutil

import nbformat
import pytest
import tiny
from nbclient import NotebookClient

PATH = tiny.ROOT / "notebooks/start.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 4
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_it_runs_from_its_folder_and_ends_with_the_grid(notebook, tmp_path, monkeypatch):
    """With fewer visits and steps; the rest is as committed."""
    for name in ("models/fashion-ldm", "data/bundled/fashion-mnist"):
        shutil.copytree(tiny.ROOT / name, tmp_path / name)
    shutil.copy(tiny.ROOT / "params.yaml", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("num_inference_steps: 10 ", "num_inference_steps: 2 "))
    for cell in notebook.cells:
        cell.source = cell.source.replace('"num_visits": 40', '"num_visits": 3')
    (tmp_path / "notebooks").mkdir()
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    ).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert "30 images of T-shirt/top, " in outputs[1][-1]["text"]
    assert "image/png" in outputs[-1][-1]["data"]
