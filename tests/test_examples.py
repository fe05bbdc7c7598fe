"""The examples run as they stand, and print what they promise."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
UAR = r"UAR (0\.\d+|1\.0+)"
PRINTED = {
    "own_network": [f"test {UAR}", f"clean +epsilon 0.0 +{UAR}", f"pgd +epsilon 1.0 +{UAR}"],
    "own_objective": [f"test {UAR}"],
    "own_aggregation": [f"test {UAR}"],
    "own_attack": [f"clean +{UAR}", f"Colouring +{UAR}", f"louder +{UAR}", f"pgd +{UAR}"],
    "own_defence": [f"pgd +undefended +averaging +{UAR}", f"pgd +adaptive +averaging +{UAR}"],
    "lightning_callback": [r"client f01: 6 steps, median gradient norm \d+\.\d+", "client m01: 6 steps"],
    "own_corpus": [r"UAR of speaker\d, speaker\d: (0\.[5-9]|1\.0)", "speaker0_joy_0.wav: joy"],
}
"""By example: what is found in its output, in this order."""


def test_every_example_is_tried() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # runs are written below the folder that one is in
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(".*".join(PRINTED[name]), printed, re.DOTALL), printed
