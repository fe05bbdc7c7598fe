"""A run that nobody validates: the last round is taken, all but the tested train, and what that means is said."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ser_fl
from ser_fl.config.schema import Config
from ser_fl.data.splits import Part
from ser_fl.errors import UserError
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.client import Clients, Scored
from ser_fl.report.reader import read_run
from ser_fl.report.tables import training_table
from ser_fl.runs.records import State

NOBODY = ("split=speaker_independent", "split.num_validation_speakers=0", "split.num_test_speakers=1", "selection=last")


def config(*more: str) -> Config:
    return ser_fl.compose(["experiment=debug", "tracking=none", "data.utterances_per_emotion=2", *more])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["split.num_validation_speakers=0", "split=speaker_independent"], r"split\.num_validation_speakers=0 leaves"),
        (["split.num_validation_texts=0", "split=text_independent"], r"split\.num_validation_texts=0 leaves none"),
        ([*NOBODY, "selection.robust_every=1"], r"by=last .*robust_every=1 needs .* selection\.robust_every=0$"),
        (["split=speaker_and_text_independent", "split.num_validation_texts=0", "selection=last"], "must both be 0"),
    ],
)
def test_who_needs_validation_is_told(more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(*more)


def test_the_last_round_is_taken_whatever_it_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation is measured where there is some, and selects nothing; patience never ends such a run."""
    models, score = list[State](), Clients.score

    def scripted(scorer: Clients, scored: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        if part == "test":
            return score(scorer, scored, part, attacked=attacked)
        models.append(scored[GLOBAL])
        return Scored({"all": np.diag([4.0 - len(models)]) + np.ones((1, 1))})

    monkeypatch.setattr(Clients, "score", scripted)
    more = ("federation.num_rounds=3", "federation.patience=1", "selection=last", "federation.weight_average=0.9")
    run = ser_fl.train(config(f"run_dir={tmp_path / 'run'}", *more))
    summary = run.read_json(run.summary)
    assert len(models) == summary["num_rounds"] == summary["selected_round"] == 3
    weights = load_file(run.weights)
    assert all(torch.equal(weights[name], models[2][name]) for name in weights)


def test_a_run_without_validation_is_a_whole_run(tmp_path: Path) -> None:
    """No figure of validation in any round, temperature 1 and a word why; tables, benchmark, evaluation and growth work
    as ever, and a sweep is told that there is no score."""
    run = ser_fl.train(config(f"run_dir={tmp_path / 'run'}", *NOBODY))
    summary = run.read_json(run.summary)
    assert summary["split_sizes"]["validation"] == 0 and len(summary["split_speakers"]["train"]) == 1
    assert summary["selection_score"] is None and summary["selected_round"] == summary["num_rounds"] == 2
    assert (
        summary["calibration"]["temperature"] == 1 and "no validation utterance" in summary["calibration"]["words"][0]
    )
    records = read_run(run.root)
    assert [each.uar for each in records.rounds] == [None, None]
    assert dict(training_table([records]).rows)["Best validation UAR"] == "–"
    ser_fl.benchmark(run, attacks=["fgsm"], epsilons=[0.05], curve_attacks=[], checks=False)
    grown = ser_fl.train(config(f"run_dir={run.root}", *NOBODY, "resume=true", "federation.num_rounds=3"))
    assert grown.read_json(grown.summary)["selected_round"] == 3
