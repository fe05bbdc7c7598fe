"""The notebook of the tutorial runs, and shows what it says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_notebook_trains_attacks_and_plays_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbconvert is not installed (extra docs)")
    preprocessors = pytest.importorskip("nbconvert.preprocessors", reason="nbconvert is not installed (extra docs)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra docs)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "docs" / "tutorial" / "notebook.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    begun = time.monotonic()
    preprocessors.ExecutePreprocessor(timeout=300).preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    assert time.monotonic() - begun < 120  # under 60 on two quiet cores
    shown = [
        str(output["data"].get("text/html", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    for words in ("<progress", "test utterances", 'class="dataframe"', "UAR under attack", "<audio"):
        assert any(words in page for page in shown), words
    assert list(tmp_path.iterdir()) == [], "it works in a folder of its own"
