"""What a benchmark must not forget of randomised defences: runs that still recognise, and who attacked whom.

A model of the mean alone, so that what an attack does is known: it lowers every value.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ser_fl
from ser_fl.attacks.attack import AttackSettings
from ser_fl.defences import build_defence
from ser_fl.runs.records import AttackRecord

BINS, FRAMES, NUM = 4, 9, 12
EPSILON = 0.2
IDS = tuple(f"utterance {row}" for row in range(NUM))


class Above(nn.Module):
    """Class 1 where the mean exceeds 0.2, of features of any size; three more classes that are never near."""

    def forward(self, features_BFL: Tensor) -> Tensor:
        lead_B = features_BFL.mean(dim=(1, 2)) - 0.2
        far_B = torch.full_like(lead_B, -5.0)
        return torch.stack([-lead_B, lead_B, far_B, far_B], dim=1)


def features() -> Tensor:
    """Flat utterances. Padding is at 0.5, of more cells in some runs than in others: some lie on both sides of 0.2."""
    return torch.linspace(-0.4, 0.5, NUM)[:, None, None].expand(NUM, BINS, FRAMES).clone()


LABELS = torch.ones(NUM, dtype=torch.int64)


def only(records: list[AttackRecord], attack: str, num_examples: int = NUM) -> AttackRecord:
    (found,) = [one for one in records if one.attack == attack and one.num_examples == num_examples]
    return found


def test_what_one_run_still_recognises_is_not_spared() -> None:
    """A first attack goes half of the way; a second one, told of what it left, must end where it would alone."""
    half = AttackSettings(name="bim", epsilon=EPSILON, steps=1, step_size=EPSILON / 2)
    attacks = [half, AttackSettings(name="fgsm", epsilon=EPSILON)]

    def run(drop_broken: bool) -> list[AttackRecord]:
        return ser_fl.benchmark(
            Above(),
            features(),
            LABELS,
            attacks=attacks,
            defences=["randomisation"],
            ids=IDS,
            drop_broken=drop_broken,
        )

    votes_RN = build_defence("randomisation").predict(Above(), features() - EPSILON / 2, IDS, seed=0)
    in_some, in_all = (votes_RN == 1).any(dim=0), (votes_RN == 1).all(dim=0)
    assert 0 < int(in_all.sum()) < int(in_some.sum()) < NUM, "all runs agree"
    whole, spared = run(False), run(True)
    assert only(whole, "bim").robust_uar == pytest.approx(float((votes_RN == 1).double().mean()))
    assert only(spared, "fgsm", num_examples=int(in_some.sum()))
    assert only(spared, "worst_case").robust_uar == only(whole, "worst_case").robust_uar
    assert only(whole, "worst_case").robust_uar < only(whole, "bim").robust_uar


def worst_case_library(subsets: dict[str, int]) -> str:
    """Who took the worst case of all utterances, of which tiny attacks break few."""
    records = ser_fl.benchmark(
        Above(),
        features() + 0.2,
        LABELS,
        attacks=["fgsm"],
        adaptive=["bim", "pgd"],
        epsilons=[1e-4],
        eot_samples=2,
        defences=["randomisation"],
        ids=IDS,
        subsets=subsets,
    )
    worst = only(records, "worst_case")
    assert worst.robust_uar > 0
    return worst.library


def test_an_adaptive_attack_on_a_part_is_named_unless_another_one_saw_all() -> None:
    """The worst case says which attacks missed an utterance that nothing broke."""
    assert "utterances" not in worst_case_library({})
    assert "utterances" not in worst_case_library({"bim": 3})  # pgd knows of the defence too, and saw all
    both = worst_case_library({"bim": 3, "pgd": 5})
    assert "bim adaptive on 3" in both and "pgd adaptive on 5 of 12 utterances" in both
    undefended = worst_case_library({"bim": 3, "fgsm": 4})
    assert "fgsm on 4 of 12 utterances" in undefended and "bim" not in undefended
