"""Runs that repeat one another, against intervals worked out by hand or by another library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ser_fl.report.reader import RunRecords, Summary, TestScores
from ser_fl.report.replications import (
    half_width_of_uar,
    half_width_over_seeds,
    replication_table,
    replications,
    spread_table,
)
from ser_fl.runs.records import AttackRecord

CLASSES = 3


def record(attack: str, right: tuple[int, ...], total: tuple[int, ...], **changes: Any) -> AttackRecord:
    """An attack after which so many utterances of each class are right, of so many; the rest is the next class."""
    confusion = np.zeros((CLASSES, CLASSES))
    for label, (correct, number) in enumerate(zip(right, total, strict=True)):
        confusion[label, label], confusion[label, (label + 1) % CLASSES] = correct, number - correct
    values: dict[str, Any] = {
        "library": "ser_fl",
        "knowledge": "undefended",
        "domain": "logmel",
        "norm": "none" if attack == "clean" else "inf",
        "epsilon": None if attack == "clean" else 0.05,
        "snr_db": None,
        "steps": 50 if attack == "pgd" else None,
        "step_size": None,
        "restarts": None,
        "eot_samples": 0,
        "defence": "none",
        "clean_uar": 0.8,
        "robust_uar": float(np.mean(np.array(right) / np.array(total))),
        "attack_success_rate": 0.5,
        "mean_l2": 1.0,
        "max_linf": 0.05,
        "median_snr_db": None,
        "num_examples": sum(total),
        "forward_passes": 1,
        "backward_passes": 1,
        "seconds": 1.0,
        "seed": 0,
        "confusion": tuple(tuple(row) for row in confusion.tolist()),
    }
    return AttackRecord(attack=attack, **{**values, **changes})


def run(name: str, *records: AttackRecord, seed: int = 1, fold: int = 0, objective: str = "clean") -> RunRecords:
    return RunRecords(
        root=Path(name),
        config={
            "experiment": name,
            "seed": seed,
            "data": {"name": "nemo", "root": f"/somewhere/{name}"},
            "split": {"name": "speaker_independent", "fold": fold},
            "federation": {"name": "federated"},
            "objective": {"name": objective, "epsilon": 0.05, "recipe": "per_step"},
        },
        environment={},
        summary=Summary(classes=("a", "b", "c")),
        rounds=(),
        attacks=records,
    )


TEN = (10, 10, 10)


def three_seeds() -> list[RunRecords]:
    rights = ((2, 3, 4), (4, 3, 5), (6, 6, 6))
    return [
        run(f"s{seed}", record("clean", (8, 8, 8), TEN), record("pgd", right, TEN), seed=seed)
        for seed, right in enumerate(rights, start=1)
    ]


@pytest.mark.parametrize("values", [[0.1, 0.4], [0.3, 0.4, 0.6], [0.2, 0.2, 0.5, 0.9, 0.1]])
def test_the_interval_over_seeds_is_scipys(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert half_width_over_seeds(values) == pytest.approx((high - low) / 2, rel=1e-3)


def begun(name: str, run_folder: str | None, **more: Any) -> RunRecords:
    """A finished run that was fine-tuned from another."""
    made = run(name, record("clean", (8, 8, 8), TEN), **more)
    test = TestScores(uar=0.8, accuracy=0.8, macro_f1=0.8)
    config = {**made.config, "experiment": "fine", "init_from": run_folder and f"place:{run_folder}-1a2b3c4d"}
    return replace(made, config=config, summary=replace(made.summary, test=test))


def test_seeds_that_began_from_runs_of_their_own_are_pooled_and_the_caption_says_so() -> None:
    seeds = [begun(f"s{seed}", f"first{seed}", seed=seed) for seed in (1, 2, 3)]
    (group,) = replications(seeds)
    assert group.what == "3 seeds"
    for table in (spread_table(seeds), replication_table(seeds)):
        assert table is not None and "began from different runs (init_from)" in table.caption
    alike = [begun(f"s{seed}", "first", seed=seed) for seed in (1, 2)]
    table = spread_table(alike)
    assert table is not None and "init_from" not in table.caption


def test_one_seed_from_two_runs_is_a_comparison_and_so_is_one_from_none() -> None:
    compared = [begun(f"{first}{seed}", first, seed=seed) for first in ("clean", "pgd") for seed in (1, 2)]
    assert [[one.root.name for one in group.runs] for group in replications(compared)] == [
        ["clean1", "clean2"],
        ["pgd1", "pgd2"],
    ]
    assert len(replications([begun("s1", "first", seed=1), begun("s2", None, seed=2)])) == 2


def test_the_interval_over_utterances_is_that_of_a_bootstrap() -> None:
    """Utterances drawn again within their class, 20,000 times; a class without any counts for nothing."""
    confusion = np.array([[30.0, 10, 0, 0], [5, 15, 5, 0], [0, 0, 60, 0], [0, 0, 0, 0]])
    stream = np.random.default_rng(3)
    recalls = [stream.binomial(40, 0.75, 20_000) / 40, stream.binomial(25, 0.6, 20_000) / 25, np.ones(20_000)]
    spread = float(np.std(np.mean(recalls, axis=0)))
    test = TestScores(confusion=tuple(map(tuple, confusion.tolist())))
    assert half_width_of_uar([test]) == pytest.approx(1.96 * spread, rel=0.03)


def test_seeds_are_averaged_and_folds_summed() -> None:
    """Means of 0.3, 0.4 and 0.6; recalls of 12, 12 and 15 of 30 give the same UAR, folds of unequal size do not."""
    (group,) = replications(three_seeds())
    assert group.what == "3 seeds"
    mean, half = group.figure([one.attacks[1] for one in group.runs])  # type: ignore[misc]
    assert mean == pytest.approx((0.3 + 0.4 + 0.6) / 3)
    assert half == pytest.approx(half_width_over_seeds([0.3, 0.4, 0.6]))
    folds = [
        run("f0", record("pgd", (9, 0, 0), (10, 10, 10)), fold=0),
        run("f1", record("pgd", (1, 10, 30), (30, 10, 30)), fold=1),
    ]
    (group,) = replications(folds)
    assert group.what == "2 folds"
    summed, _ = group.figure([one.attacks[0] for one in group.runs])  # type: ignore[misc]
    assert summed == pytest.approx((10 / 40 + 10 / 20 + 30 / 40) / 3)


def test_only_seed_fold_and_place_may_differ() -> None:
    runs = [*three_seeds(), run("hard", record("clean", (8, 8, 8), TEN), objective="pgd")]
    assert [len(group.runs) for group in replications(runs)] == [3, 1]


def test_the_table_has_a_row_for_each_defence_and_marks_what_is_grey() -> None:
    runs = three_seeds()
    more = [
        replace(
            one,
            attacks=(
                *one.attacks,
                replace(one.attacks[0], defence="randomisation"),
                replace(one.attacks[1], defence="randomisation", robust_uar=0.5),
                record("pgd", (1, 1, 1), TEN, defence="randomisation", knowledge="adaptive", eot_samples=16),
                record("worst_case", (1, 1, 0), TEN),
            ),
        )
        for one in runs
    ]
    table = replication_table(more)
    assert table is not None
    assert [row[1] for row in table.rows] == ["no randomisation", "randomisation"]
    bare, defended = ([cell.split() for cell in row[2:]] for row in table.rows)
    headings = list(table.header[2:])
    assert headings[0] == "Clean" and headings[-1] == "Worst case"
    assert "adaptive" in headings[2] and "EOT 16" in headings[2]
    assert bare[0] == ["80.0", "±", "0.0", "(sd", "0.0)"]
    assert bare[1] == ["43.3", "±", "37.9", "(sd", "15.3)"]
    assert bare[2] == ["–"], "nobody ran it on the bare model"
    assert bare[3] == ["6.7", "±", "0.0", "(sd", "0.0)"]
    assert defended[1] == ["50.0", "±", "0.0", "(sd", "0.0)", "†"]
    assert defended[2] == ["10.0", "±", "0.0", "(sd", "0.0)"]


def test_a_seed_that_lacks_an_attack_leaves_a_gap() -> None:
    runs = three_seeds()
    runs[1] = replace(runs[1], attacks=runs[1].attacks[:1])
    table = replication_table(runs)
    assert table is not None and table.rows[0][3] == "–"


def test_runs_that_repeat_nothing_have_no_table() -> None:
    assert replication_table([three_seeds()[0], run("hard", objective="pgd")]) is None


def test_the_worst_case_of_a_defence_is_that_of_attackers_who_know_of_it() -> None:
    """On fewer utterances, which is said; not the one on all, most of which nobody attacked who knows."""
    grey = {"knowledge": "adaptive+undefended", "library": "ser_fl (pgd adaptive on 9 of 30 utterances)"}
    aware = record("worst_case", (1, 0, 1), (3, 3, 3), defence="randomisation", knowledge="adaptive+undefended")
    runs = [
        replace(
            one,
            attacks=(
                replace(one.attacks[0], defence="randomisation"),
                record("pgd", (9, 9, 9), TEN, defence="randomisation"),
                record("worst_case", (7, 7, 7), TEN, defence="randomisation", **grey),
                aware,
            ),
            summary=replace(one.summary, test=TestScores(confusion=((30.0,),))),
        )
        for one in three_seeds()
    ]
    table = replication_table(runs)
    assert table is not None
    (row,) = [row for row in table.rows if row[1] == "randomisation"]
    assert row[-1] == "22.2 ± 0.0 (sd 0.0) (n = 9)"


def test_test_scores_over_seeds() -> None:
    """UAR of 0.3, 0.4 and 0.6; runs that repeat nothing, have not finished or are folds are in no row."""
    finished = [Summary(test=TestScores(uar=uar, accuracy=0.5, macro_f1=0.25)) for uar in (0.3, 0.4, 0.6)]
    seeds = [replace(run(f"s{number}", seed=number), summary=one) for number, one in enumerate(finished, start=1)]
    alone = replace(run("alone", objective="pgd"), summary=finished[0])
    table = spread_table([*seeds, alone, run("unfinished", seed=9)])
    assert table is not None
    assert [row[1:] for row in table.rows] == [
        ("UAR", "43.3", "15.3", "37.9", "30.0, 40.0, 60.0"),
        ("Accuracy", "50.0", "0.0", "0.0", "50.0, 50.0, 50.0"),
        ("Macro F1", "25.0", "0.0", "0.0", "25.0, 25.0, 25.0"),
    ]
    assert all(row[0].endswith("3 seeds") for row in table.rows)
    assert spread_table([seeds[0], alone]) is None
    assert spread_table([replace(one, config=run("f", fold=fold).config) for fold, one in enumerate(seeds)]) is None
    assert replication_table(seeds) is None, "nobody attacked them"
