"""What a caller may ask for: settings by attack, attacks without labels, ART's code or ours, attacks of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from attacking import benchmark_attacks
from torch import Tensor, nn

import ser_fl
from ser_fl.attacks.attack import AttackSettings
from ser_fl.attacks.registry import BY_ART, SUITES, build, entry_of
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose_benchmark
from ser_fl.defences import NoDefence, Randomisation
from ser_fl.errors import UserError
from ser_fl.robustness.benchmark import benchmark
from ser_fl.robustness.foreign import foreign_test_set
from ser_fl.robustness.plan import Request, listed
from ser_fl.robustness.result_cache import ResultCache, digest_of
from ser_fl.robustness.sanity_checks.probes import PROBES
from ser_fl.robustness.sanity_checks.records import RECORD_CHECKS
from ser_fl.runs.records import AttackRecord

F, L = 4, 6
BOX = Box(torch.full((F, 1), -2.0), torch.full((F, 1), 2.0))
MEANS = [0.1, 0.3, -0.1, -0.3]
LABELS = torch.tensor([1, 1, 0, 0])


class Sign(nn.Module):
    """Class 1 where the mean m of all cells is above 0: the boundary is at an L-infinity distance of |m|."""

    def forward(self, features_NFL: Tensor) -> Tensor:
        mean_N = features_NFL.flatten(1).mean(dim=1)
        return torch.stack([-mean_N, mean_N], dim=1)


def flat(means: list[float]) -> Tensor:
    return torch.tensor(means)[:, None, None].expand(-1, F, L).clone()


def records_of(attacks: Any, labels: Tensor = LABELS, **more: Any) -> dict[str, AttackRecord]:
    records = ser_fl.benchmark(Sign(), flat(MEANS), labels, attacks=attacks, **({"epsilons": [0.2]} | more))
    return {record.attack: record for record in records}


def test_settings_may_differ_by_attack_on_the_command_line() -> None:
    config = compose_benchmark(["run=RUN", "attacks=[{name: bim, steps: 100, step_size: 0.1}, cw_linf]", "steps=7"])
    bim, cw = Request(num_classes=4, steps=config.steps).attacks(config.attacks, [0.5])
    assert (bim.name, bim.settings.steps, bim.settings.step_size) == ("bim", 100, 0.1)
    assert (cw.name, cw.settings.steps) == ("cw_linf", 7)  # what is set for all


def test_settings_may_differ_by_attack_from_python() -> None:
    found = records_of(
        ["fgsm", {"name": "bim", "steps": 3, "step_size": 0.15}, AttackSettings(name="pgd", epsilon=0.4, steps=2)]
    )
    assert (found["bim"].steps, found["bim"].step_size, found["bim"].epsilon) == (3, 0.15, 0.2)
    assert (found["pgd"].steps, found["pgd"].epsilon) == (2, 0.4)  # full settings have their own budget
    own = records_of([{"name": "bim", "epsilon": 0.05}, "fgsm"])
    assert (own["bim"].epsilon, own["fgsm"].epsilon) == (0.05, 0.2)
    assert (own["bim"].robust_uar, own["fgsm"].robust_uar) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "bim", "step": 3}, ["unknown setting 'step'", "steps"]),
        ({"name": "bim", "steps": 0}, ["steps", "0"]),
        ({"name": "bmi"}, ["unknown attack 'bmi'", "bim"]),
        ({"steps": 3}, ["name is missing"]),
        (3, ["an attack must be a name", "got 3"]),
    ],
)
def test_what_is_no_attack_is_told_in_one_line(given: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        records_of([given])
    assert "\n" not in str(told.value) and all(word in str(told.value) for word in words), told.value


def test_zero_restarts_are_a_setting_of_one_attack() -> None:
    request = Request(num_classes=4, restarts=3)
    first, second = request.attacks(listed([{"name": "pgd", "restarts": 0}, "pgd"]), [0.1])
    assert (first.settings.restarts, second.settings.restarts) == (0, 3)


def test_an_attack_without_labels_takes_the_models_own_for_true_ones_and_is_marked() -> None:
    """Every label is wrong: who knows them has nothing to do, who does not turns the model's answers right."""
    wrong = 1 - LABELS
    found = records_of(["bim", "bim_unlabelled", {"name": "fgsm", "labels": False}], labels=wrong, epsilons=[0.2])
    assert set(found) == {"clean", "bim", "bim_unlabelled", "fgsm_unlabelled", "worst_case"}
    assert found["bim"].robust_uar == 0.0
    # Two of four lie within 0.2 of the boundary; turned away from what the model said they are right.
    assert found["bim_unlabelled"].robust_uar == found["fgsm_unlabelled"].robust_uar == 0.5
    assert found["bim_unlabelled"].forward_passes > found["bim"].forward_passes


def test_accuracy_stands_beside_uar() -> None:
    """Three utterances of one class and one of the other: a broken one is worth a sixth of UAR, a quarter of them."""
    records = ser_fl.benchmark(
        Sign(), flat([0.1, 0.3, 0.4, -0.3]), torch.tensor([1, 1, 1, 0]), attacks="fgsm", epsilons=[0.2]
    )
    clean, fgsm = records
    assert (clean.clean_accuracy, clean.robust_accuracy) == (1.0, 1.0)
    assert (fgsm.clean_accuracy, fgsm.robust_accuracy) == (1.0, 0.75)
    assert fgsm.robust_uar == pytest.approx(5 / 6)


def test_the_suite_of_papers_is_arts_code() -> None:
    with_labels = Request(num_classes=4).attacks(listed("paper"), [0.1])
    assert [attack.name for attack in with_labels] == ["fgsm", "bim", "pgd", "cw_l2"]
    assert [attack.entry.library.split(".")[0] for attack in with_labels] == ["art"] * 4
    without = Request(num_classes=4).attacks(listed({"name": "paper", "labels": False}), [0.1])
    assert [attack.name for attack in without] == [f"{name}_unlabelled" for name in SUITES["paper"].attacks]
    found = records_of("paper", box=BOX)
    # C&W L2 may go as far as a perturbation of 0.2 in every cell, and so breaks the same.
    assert {name: found[name].robust_uar for name in SUITES["paper"].attacks} == dict.fromkeys(
        SUITES["paper"].attacks, 0.5
    )


def test_the_backend_says_whose_code_runs() -> None:
    for name in BY_ART:
        assert entry_of(name, "native").library.startswith("ser_fl.")
        assert entry_of(name, "art").library.startswith("art.")
    for name in ("mim", "deepfool", "hopskipjump"):  # which only ART has
        assert entry_of(name, "native").library.startswith("art.")
    assert entry_of("apgd_ce", "art").library.startswith("ser_fl.")  # which only we have
    request = Request(num_classes=4, backend="art")
    mixed = request.attacks(listed(["fgsm", {"name": "bim", "backend": "native"}]), [0.1])
    assert [attack.entry.library for attack in mixed] == ["art.FastGradientMethod", "ser_fl.descend"]
    (adaptive,) = request.attacks(listed("pgd"), [0.1], adaptive=True)
    assert adaptive.entry.library == "ser_fl.descend"
    with pytest.raises(UserError, match="backend"):
        compose_benchmark(["run=RUN", "backend=foolbox"])


def test_native_and_art_agree() -> None:
    for name in ("fgsm", "bim"):
        native, art = (records_of({"name": name, "backend": backend}, box=BOX)[name] for backend in ("native", "art"))
        assert (native.robust_uar, native.max_linf) == (art.robust_uar, pytest.approx(art.max_linf, abs=1e-6))
        assert native.library != art.library


# Attacks and defences of a caller's own


def classifier(clip: float = 2.0) -> Any:
    return PyTorchClassifier(
        model=Sign(), loss=nn.CrossEntropyLoss(), input_shape=(F, L), nb_classes=2, clip_values=(-clip, clip)
    )


def lower_those_above(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
    assert model(features_BFL).shape == (len(labels_B), 2)
    return features_BFL - 0.15 * labels_B[:, None, None]


def test_a_function_is_an_attack() -> None:
    found = records_of(lower_those_above)["lower_those_above"]
    assert (found.robust_uar, found.epsilon, found.knowledge) == (0.75, 0.2, "undefended")
    assert found.library == "test_requested_attacks.lower_those_above"
    assert found.max_linf == pytest.approx(0.15)


def test_what_goes_beyond_the_budget_or_the_box_has_failed() -> None:
    assert records_of(lower_those_above, epsilons=[0.1])["lower_those_above"].robust_uar == 1.0
    narrow = Box(torch.full((F, 1), 0.05), torch.full((F, 1), 2.0))
    found = ser_fl.benchmark(
        Sign(), flat([0.1, 0.3]), torch.tensor([1, 1]), attacks=lower_those_above, epsilons=[0.2], box=narrow
    )
    assert found[1].max_linf == pytest.approx(0.15) and found[1].robust_uar == 1.0  # 0.1 comes down to 0.05 only


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda model, features_BFL, labels_B: features_BFL[:, :2], ["(4, 2, 6)", "(4, 4, 6)"]),
        (lambda model, features_BFL, labels_B: features_BFL * np.nan, ["not finite"]),
    ],
)
def test_a_function_that_gives_something_else_is_told(function: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        records_of(function)
    assert all(word in str(told.value) for word in words)


def test_an_instance_of_an_attack_of_art_keeps_its_settings_and_its_classifier() -> None:
    attack = FastGradientMethod(classifier(), eps=0.15)
    assert records_of(attack)["FastGradientMethod"].max_linf == pytest.approx(0.15, abs=1e-6)
    assert records_of(attack)["FastGradientMethod"].robust_uar == 0.5
    assert records_of(attack, epsilons=[0.1])["FastGradientMethod"].robust_uar == 1.0  # it went too far
    assert records_of(attack)["FastGradientMethod"].library == "art.FastGradientMethod"


def test_a_class_of_attacks_of_art_is_given_the_model_and_the_budget() -> None:
    class Weaker(ProjectedGradientDescentPyTorch):  # type: ignore[misc]
        """As a researcher would change it."""

        def generate(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
            return x + (super().generate(x, y, **kwargs) - x) / 2

    found = records_of(["fgsm", Weaker], epsilons=[0.15])
    assert found["fgsm"].robust_uar == 0.5
    assert found["Weaker"].max_linf == pytest.approx(0.075, abs=1e-6) and found["Weaker"].robust_uar == 1.0
    assert found["Weaker"].forward_passes > 0


def test_objects_and_names_make_a_worst_case_together() -> None:
    def raise_those_below(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        return features_BFL + 0.15 * (1 - labels_B)[:, None, None]

    found = records_of([lower_those_above, raise_those_below, "noise_uniform"])
    assert found["worst_case"].robust_uar == 0.5


def test_a_defence_may_be_an_object() -> None:
    records = ser_fl.benchmark(
        Sign(), flat(MEANS), LABELS, attacks="fgsm", defences=["none", Randomisation(num_draws=2)], epsilons=[0.2]
    )
    assert [record.defence for record in records if record.attack == "fgsm"] == ["none", "randomisation"]
    with pytest.raises(UserError, match=r"a defence is a name or an object of a class derived from ser_fl\.defences"):
        records_of("fgsm", defences=[Randomisation])


def test_python_runs_the_checks_that_the_command_line_runs() -> None:
    report = benchmark(Sign(), flat(MEANS), LABELS, attacks=["fgsm", "bim"], epsilons=[0.2]).checks
    assert report is not None
    told = {*report.passed, *report.not_checked, *(doubt.check for doubt in report.doubts)}
    assert told == {*PROBES, *RECORD_CHECKS}


def test_settings_that_came_later_leave_the_keys_of_what_is_kept_alone() -> None:
    """Whoever attacked with an earlier version finds what was kept, under the digest of what there was to set then."""
    old = {"name": "pgd", "epsilon": 0.05, "steps": 2, "step_size": 0.0125, "restarts": 1}
    more = {"version": 1, "library": "art.ProjectedGradientDescentPyTorch", "ids": ["a", "b", "c", "d"]}
    test_set = foreign_test_set(Sign(), flat(MEANS), LABELS, ids="abcd")
    for labels, attack in ((True, old), (False, old | {"labels": False})):
        cache, settings = ResultCache(), AttackSettings(name="pgd", epsilon=0.05, steps=2, restarts=1, labels=labels)
        benchmark_attacks(test_set, [build(settings)], [NoDefence()], cache=cache)
        assert [*cache.outcomes] == [digest_of(json.dumps({"attack": attack, **more}, sort_keys=True), size=12)]


def test_a_record_of_an_earlier_version_has_no_accuracy(tmp_path: Path) -> None:
    from ser_fl.runs.folder import RunFolder

    run = RunFolder(tmp_path)
    run.write_attacks(list(records_of("fgsm").values()))
    content = json.loads(run.attacks.read_text())
    for record in content["records"]:
        del record["clean_accuracy"], record["robust_accuracy"]
    run.attacks.write_text(json.dumps(content))
    assert {record.robust_accuracy for record in run.read_attacks()} == {None}
