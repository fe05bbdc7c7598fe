"""Poisoned enrolment: an attacker moves the clips by which an unseen speaker is scaled.

Legend: K clips that enrol a speaker, M scored utterances, F bins, L frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ser_fl
from ser_fl.attacks import registry
from ser_fl.attacks.attack import Attack, AttackSettings
from ser_fl.attacks.enrolment import EnrolmentClips, ScaledFeatures, Service, poison, scale_by
from ser_fl.attacks.target import Passes
from ser_fl.attacks.threat_model import Box
from ser_fl.cli.main import main
from ser_fl.config.compose import compose_benchmark
from ser_fl.data.frontend import FeatureStatistics
from ser_fl.data.normalisation import Scale
from ser_fl.errors import UserError
from ser_fl.report.page import write_report
from ser_fl.robustness.plan import Request, plan
from ser_fl.robustness.poisoned_enrolment import OnEnrolment, Poison, poisoned_units
from ser_fl.robustness.recordings import recordings_of
from ser_fl.robustness.sanity_checks.poison import check_poison
from ser_fl.robustness.strangers import RescaledFeatures, Strangers
from ser_fl.robustness.trained_run import TrainedRun, load_run
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord

SETTINGS = (
    "experiment=debug",
    "tracking=none",
    "data.num_speakers=8",
    "split=speaker_independent",
    "normalisation=speaker",
    "normalisation.share_mean=true",
    "enrolment=3",
)


def on_features(epsilon: float, **more: Any) -> Attack:
    settings = {"steps": 20, "restarts": 1} | more
    return registry.build(
        AttackSettings(name="pgd", epsilon=epsilon, backend="native", enrolment="attacked", **settings)
    )


def test_statistics_have_the_gradient_of_finite_differences() -> None:
    """In float64, bin by bin."""
    features_KFL = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features_KFL.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: FeatureStatistics.of(values).mean_and_deviation(), features_KFL)


class Above(nn.Module):
    """Two classes: is the mean above 0?"""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, features_BFL: Tensor) -> Tensor:
        mean_B = self.gain * features_BFL.mean((1, 2))
        return torch.stack([-mean_B, mean_B], 1)


def enrolment_of(raw_KFL: Tensor, box: Box | None = None) -> list[EnrolmentClips]:
    scale = Scale.of(FeatureStatistics.of(raw_KFL))
    clean_KFL = scale(raw_KFL)
    way = ScaledFeatures(clean_KFL, raw_KFL, scale.deviation.expand(len(raw_KFL), -1, -1), nn.Identity())
    places = tuple(range(len(raw_KFL)))
    ids = tuple(f"clip{place}" for place in places)
    return [EnrolmentClips(ids=ids, places=places, clean=clean_KFL, box=box or Box.unbounded(), to_features=way)]


def service_of(raw_MFL: Tensor, labels_M: Tensor, network: nn.Module, batch_size: int = 4) -> Service:
    return Service(
        network=network,
        standardisation=nn.Identity(),
        raw_MFL=raw_MFL,
        labels_M=labels_M,
        batch_size=batch_size,
        seed=0,
        passes=Passes(),
    )


def recognised(service: Service, scale: Scale) -> int:
    with torch.no_grad():
        return service.answer(scale)[0]


@pytest.mark.parametrize(("near", "lost"), [((0.1, 0.2, 0.3, -0.9), 3), ((-0.05, -0.1, 0.35, 0.9), 2)])
def test_the_mean_moves_as_far_as_the_budget_allows(near: Sequence[float], lost: int) -> None:
    """Oracle: whether x is above the mean depends on the mean alone, which moves by epsilon deviations at most. Within
    0.4 deviations of one bin lie as many utterances on either side as are lost by a step up, or down.
    """
    raw_KFL = torch.randn(5, 1, 6, generator=torch.Generator().manual_seed(1)) * 2 + 3
    scale = Scale.of(FeatureStatistics.of(raw_KFL))
    raw_MFL = scale.mean + scale.deviation * torch.tensor(near)[:, None, None].expand(-1, 1, 6)
    labels_M = (torch.tensor(near) > 0).long()
    service, enrolment = service_of(raw_MFL, labels_M, Above()), enrolment_of(raw_KFL)
    assert recognised(service, scale_by(enrolment)) == 4
    moved = poison(service, enrolment, on_features(0.4), 2)
    found = scale_by(enrolment, moved)
    assert float((found.mean - scale.mean).abs()) == pytest.approx(0.4 * float(scale.deviation), rel=1e-4)
    assert recognised(service, found) == 4 - lost
    below = poison(service, enrolment, on_features(0.04), 2)
    assert recognised(service, scale_by(enrolment, below)) == 4, "none lies so near"


def test_one_bin_of_two_values_is_moved_as_a_grid_search_does() -> None:
    """Mean and deviation together: the loss of what is found is the largest on a grid over both values."""
    raw_KFL = torch.tensor([[[0.0]], [[2.0]]])
    raw_MFL = torch.tensor([0.4, 0.8, 1.5, 2.5])[:, None, None]
    service = service_of(raw_MFL, torch.tensor([0, 0, 1, 1]), Above(3.0), batch_size=3)
    epsilon = 0.15
    grid = np.linspace(-epsilon, epsilon, 31)  # of a deviation of 1
    losses = []
    for first in grid:
        for second in grid:
            pair = np.array([first, 2 + second])
            logits = 3 * (raw_MFL.flatten().numpy() - pair.mean()) / pair.std()
            signs = np.array([-1, -1, 1, 1])
            losses.append(np.log1p(np.exp(-2 * signs * logits)).mean())
    enrolment = enrolment_of(raw_KFL)
    moved = poison(service, enrolment, on_features(epsilon), 2)
    with torch.no_grad():
        right, loss, _ = service.answer(scale_by(enrolment, moved))
    assert right == 4 and loss == pytest.approx(max(losses), abs=1e-4)
    assert loss > 1.05 * service.answer(scale_by(enrolment))[1], "the search has something to find"


def test_the_answer_has_the_gradient_of_the_mean_loss() -> None:
    """Over batches, against finite differences in both columns."""
    stream = torch.Generator().manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    raw_MFL = torch.randn(5, 2, 3, generator=stream, dtype=torch.float64)
    service = service_of(raw_MFL, torch.tensor([0, 1, 2, 0, 1]), network, batch_size=2)
    columns = [torch.rand(2, 1, generator=stream, dtype=torch.float64) + 0.5 for _ in range(2)]
    gradients = service.answer(Scale(*columns), torch.inf)[2]
    for place, gradient in enumerate(gradients):
        for row in range(2):
            losses = []
            for step in (1e-6, -1e-6):
                shifted = [column.clone() for column in columns]
                shifted[place][row] += step
                losses.append(service.answer(Scale(*shifted))[1])
            assert float(gradient[row]) == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4)


@pytest.mark.filterwarnings("ignore:pgd. a step size")
def test_the_best_of_all_steps_is_kept() -> None:
    """Steps of twice the budget go to and fro; whoever may take more of them has never found less."""
    stream = torch.Generator().manual_seed(5)
    enrolment = enrolment_of(torch.randn(3, 2, 4, generator=stream))
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    for parameter in network.parameters():
        parameter.data = 2 * torch.randn(parameter.shape, generator=stream)
    service = service_of(torch.randn(40, 2, 4, generator=stream), torch.arange(40) % 3, network)
    found = []
    for steps in range(7):
        attack = on_features(0.5, steps=max(steps, 1), step_size=1.0 if steps else 1e-9)
        with torch.no_grad():
            right, loss, _ = service.answer(scale_by(enrolment, poison(service, enrolment, attack, 3)))
        found.append((right, -loss))
    assert found == sorted(found, reverse=True) and len(set(found)) > 2


@pytest.mark.parametrize(("room", "reached"), [(0.1, 0.1), (0.2, 0.15)])
def test_what_moves_stays_in_its_box_and_its_budget(room: float, reached: float) -> None:
    """Utterances far below the mean are only ever raised by one that falls: down to a side of the box, or the ball."""
    raw_KFL = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(4))
    (clips,) = enrolment_of(raw_KFL)
    enrolment = [replace(clips, box=Box(clips.clean - room, clips.clean + 1))]
    service = service_of(torch.full((4, 2, 5), -9.0), torch.tensor([0, 0, 0, 0]), Above(0.05))
    (moved,) = poison(service, enrolment, on_features(0.15, restarts=3), 2)
    step = moved - clips.clean
    assert float(step.min()) == pytest.approx(-reached, abs=1e-6) and float(step.max()) <= 0.15 + 1e-6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poisoned") / "run"
    ser_fl.train(ser_fl.compose([*SETTINGS, f"run_dir={folder}"]))
    return folder


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedRun:
    return load_run(run)


@pytest.fixture(scope="module")
def strangers(trained: TrainedRun) -> Strangers:
    trained.model.eval()
    return Strangers.of(trained.test_set(), trained.model.standardisation)


@pytest.fixture(scope="module")
def recorded(trained: TrainedRun, run: Path) -> Strangers:
    config = compose_benchmark([f"run={run}", "domain=waveform"])
    heard = recordings_of(trained, trained.test_set().subset(6), config, RunFolder(run))
    return Strangers.of(heard, trained.model.standardisation)


def on_recordings(**budget: float) -> Attack:
    return registry.build_on_recordings(
        AttackSettings(name="pgd", steps=3, restarts=2, enrolment="attacked", **budget)  # type: ignore[arg-type]
    )


def test_without_a_budget_everything_is_clean_bit_for_bit(strangers: Strangers, recorded: Strangers) -> None:
    for those, attack in ((strangers, on_features(0.0, steps=2)), (recorded, on_recordings(epsilon=0.0))):
        found = Poison(strangers=those, attack=attack).crafted(those.test_set.ids)
        assert torch.equal(found.adversarial_NFL, those.test_set.features_NFL)
        assert float(found.figures["linf"].max()) == 0


def test_scored_utterances_are_scaled_by_the_poisoned_clips(strangers: Strangers) -> None:
    """Oracle: z-scores in NumPy of the clean utterances by the moved clips, which keep to the budget."""
    attack = on_features(0.3, steps=4)
    poisoned = Poison(strangers=strangers, attack=attack)
    test_set = strangers.test_set
    found = poisoned.crafted(test_set.ids)
    store = test_set.store
    assert store is not None and store.scales is not None and len(poisoned.moved) == 3
    where = {utterance.utterance_id: row for row, utterance in enumerate(store.utterances)}
    for who, (moved,) in poisoned.moved.items():
        by = store.features_NFL[list(store.scales.enrolled_by[who])].numpy().astype(np.float64)
        deviation = by.std((0, 2))[:, None]
        step = (moved - strangers.enrolments[who][0].clean).numpy() * deviation
        size = np.abs(step / deviation).max()
        assert 0.07 < size <= 0.3 * (1 + 1e-4)
        rows = strangers.rows(who)
        raw = store.features_NFL[[where[test_set.ids[row]] for row in rows]].numpy()
        expected = ((raw - (by + step).mean((0, 2))[:, None]) / (by + step).std((0, 2))[:, None]).clip(-10, 10)
        np.testing.assert_allclose(found.adversarial_NFL[rows].numpy(), expected, atol=1e-3, rtol=1e-3)
        assert float(found.figures["linf"][rows].max()) == pytest.approx(size, rel=1e-4)


def test_more_steps_do_not_weaken_it(strangers: Strangers) -> None:
    def right(steps: int) -> int:
        found = Poison(strangers=strangers, attack=on_features(0.5, steps=steps)).crafted(strangers.test_set.ids)
        with torch.no_grad():
            said_N = strangers.test_set.model(found.adversarial_NFL).argmax(1)
        return int((said_N == strangers.test_set.labels_N).sum())

    counts = [right(steps) for steps in (1, 2, 8)]
    assert counts[0] >= counts[1] >= counts[2]
    with torch.no_grad():
        clean_N = strangers.test_set.model(strangers.test_set.features_NFL).argmax(1)
    assert counts[2] < int((clean_N == strangers.test_set.labels_N).sum())


def test_recordings_keep_to_their_snr(recorded: Strangers) -> None:
    poisoned = Poison(strangers=recorded, attack=on_recordings(snr_db=20.0))
    found = poisoned.crafted(recorded.test_set.ids)
    assert not torch.equal(found.adversarial_NFL, recorded.test_set.features_NFL)
    for who, parts in poisoned.moved.items():
        for clips, moved in zip(recorded.enrolments[who], parts, strict=True):
            noise_K = (moved - clips.clean).double().square().sum(1)
            assert bool(noise_K.any()) and float(moved.abs().max()) <= 1
            snr_K = 10 * torch.log10(clips.clean.double().square().sum(1) / noise_K)
            assert float(snr_K.min()) >= 20 - 1e-3
    assert float(found.figures["median_snr_db"].min()) == pytest.approx(20, abs=0.01)


def records_of(run: Path, *which: str, **settings: Any) -> dict[str, AttackRecord]:
    quick: dict[str, Any] = {"curve_attacks": [], "checks": False, "defences": ["none"], "steps": 3, "restarts": 1}
    found = ser_fl.benchmark(run, attacks=list(which), epsilons=[0.2], **(quick | settings))
    return {record.attack: record for record in found if record.epsilon in (None, 0.2) and record.domain == "logmel"}


def test_records_say_what_was_attacked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = records_of(run, "fgsm", "pgd", fresh=True)
    after = records_of(run, "fgsm", "pgd", enrolment_attack="both")
    for name, record in before.items():  # of what is asked for beside it, nothing changes, nor is it made again
        assert after[name] == record
    assert after.keys() - before.keys() == {
        "pgd_on_enrolment", "fgsm_with_enrolment", "pgd_with_enrolment", "worst_case_with_enrolment",
    }  # fmt: skip
    assert len({record.clean_uar for record in after.values()}) == 1
    on, worst = after["pgd_on_enrolment"], after["worst_case_with_enrolment"]
    assert (on.epsilon, on.steps, on.restarts) == (0.2, 3, 1)
    assert on.max_linf == pytest.approx(0.15, rel=1e-4), "three of four steps to the edge"
    assert worst.robust_uar <= min(record.robust_uar for record in after.values())
    main(["benchmark", f"run={run}", "attacks=[fgsm]", "epsilons=[0.2]", "curve_attacks=[]", "checks=false",
          "defences=[none]", "steps=3", "restarts=1", "enrolment_attack=poisoned"])  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "Enrolment attacked: the clips by which each unseen speaker is scaled" in said
    page = write_report([run]).read_text(encoding="utf-8")
    assert "PGD, on enrolment alone" in page and "FGSM, enrolment attacked too" in page
    assert "an upper bound on what poison does" in page and "scaled by 3 unlabelled clips each" in page


def test_a_worst_case_is_of_those_who_may_move_enrolment_too(run: Path) -> None:
    """Per utterance: none that an attack broke, with or without poison, is recognised."""
    from ser_fl.robustness.result_cache import ResultCache

    found = records_of(run, "fgsm", "pgd", enrolment_attack="both", fresh=True)
    test_set = load_run(run).test_set()
    cache = ResultCache.of(RunFolder(run), test_set)
    labels = test_set.labels_N
    right = torch.ones(len(labels), dtype=torch.bool)
    plain = right.clone()
    for outcome in cache.outcomes.values():
        said_N = torch.tensor(outcome.votes["none"][0])
        right &= said_N == labels
        plain &= (said_N == labels) | bool(outcome.enrolment)
    with torch.no_grad():
        clean_N = test_set.model(test_set.features_NFL).argmax(1) == labels
    for name, alive in (("worst_case", plain & clean_N), ("worst_case_with_enrolment", right & clean_N)):
        recalls = [float(alive[labels == label].float().mean()) for label in labels.unique()]
        assert found[name].robust_uar == pytest.approx(np.mean(recalls))


def test_attacks_with_poison_move_in_units_of_the_clean_enrolment(strangers: Strangers) -> None:
    test_set = strangers.test_set
    attacks = Request(num_classes=test_set.num_classes, steps=3, restarts=1).attacks(
        compose_benchmark(["run=RUN", "attacks=[fgsm]"]).attacks, [0.2]
    )
    units = plan(test_set, attacks, [])
    poisoned = poisoned_units(strangers, units, [], both=True, steps=3, restarts=1)
    on, with_poison = poisoned
    assert isinstance(on.part.domain, OnEnrolment) and isinstance(with_poison.part.domain, RescaledFeatures)
    scale = with_poison.part.domain.scale_of(test_set.ids)
    rows = [0, 1, len(test_set) - 1]
    part = with_poison.part.take(rows)
    made = part.domain.craft(with_poison.attack, part.problem(with_poison.attack.settings))
    assert float(made.figures["linf"].max()) == pytest.approx(0.2, rel=1e-4)
    assert test_set.scale is not None
    before, now = test_set.scale.rows(rows), scale.rows(rows)
    back = made.adversarial_NFL * now.deviation + now.mean
    step = (back - strangers.raw_NFL[rows]) / before.deviation
    inside = made.adversarial_NFL.abs() < 9.9
    assert float(step[inside].abs().max()) == pytest.approx(0.2, abs=1e-3)
    held = part.domain.held(made, with_poison.attack, part.features_NFL)
    assert held.figures is made.figures


def test_poison_for_both_harms_what_is_attacked_already(strangers: Strangers, recorded: Strangers) -> None:
    """What it ascends on are the utterances as PGD leaves them under the clean enrolment."""
    for those, build, budget in (
        (strangers, registry.build, {"epsilon": 0.05}),
        (recorded, registry.build_on_recordings, {"snr_db": 30.0}),
    ):
        first = build(AttackSettings(name="pgd", steps=2, restarts=0, backend="native", **budget))  # type: ignore[arg-type]
        attack = replace(first, settings=replace(first.settings, enrolment="attacked"))
        test_set = those.test_set
        before = test_set.domain.craft(first, test_set.problem(first.settings)).adversarial_NFL
        joint = Poison(strangers=those, attack=attack, before=first)
        assert test_set.scale is not None
        shown = those.standardisation(test_set.scale(joint._raw()))
        torch.testing.assert_close(shown, before, atol=1e-3, rtol=1e-3)

        for who, clips in those.enrolments.items():
            rows = those.rows(who)
            service = service_of(joint._raw()[rows], test_set.labels_N[rows], test_set.model, test_set.batch_size)
            by_hand = poison(
                replace(service, standardisation=those.standardisation), clips, attack, test_set.num_classes
            )
            assert all(map(torch.equal, joint.moved[who], by_hand))


def test_checks_find_nothing_where_all_is_well_and_tell_where_not(strangers: Strangers) -> None:
    test_set = strangers.test_set
    attacks = Request(num_classes=test_set.num_classes, steps=6, restarts=1).attacks(
        compose_benchmark(["run=RUN", "attacks=[bim]"]).attacks, [0.2]
    )
    units = poisoned_units(strangers, plan(test_set, attacks, []), [], both=False, steps=6, restarts=1)
    assert "poison without a budget changes nothing" in check_poison(units).passed
    off = replace(strangers, test_set=replace(test_set, features_NFL=test_set.features_NFL + 1e-6))
    wrong = poisoned_units(off, plan(test_set, attacks, []), [], both=False, steps=6, restarts=1)
    (doubt, *_) = check_poison(wrong).doubts
    assert doubt.severity == "fails" and f"moves {len(test_set)} of {len(test_set)}" in doubt.words


def test_known_speakers_keep_their_scale(strangers: Strangers) -> None:
    who = strangers.test_set.speakers[0]
    own = strangers.rows(who)
    table = strangers.scaled({who: Scale(torch.zeros(1), torch.ones(1))})
    others = [row for row in range(len(strangers.test_set)) if row not in own]
    assert strangers.test_set.scale is not None and others
    assert bool((table.mean[own] == 0).all())
    assert torch.equal(table.mean[others], strangers.test_set.scale.mean[others])


@pytest.mark.parametrize("enrolment", ["all", "none"])
def test_enrolment_without_clips_of_its_own_is_refused(run: Path, enrolment: str) -> None:
    with pytest.raises(UserError, match="needs unseen speakers who are enrolled by clips that are not scored"):
        records_of(run, "fgsm", enrolment_attack="poisoned", speech=[f"enrolment={enrolment}"])


def test_what_has_no_enrolment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="drop_broken goes with enrolment_attack=none"):
        compose_benchmark(["run=RUN", "enrolment_attack=both", "drop_broken=true"])
    with pytest.raises(UserError, match="enrolment_attack"):
        compose_benchmark(["run=RUN", "enrolment_attack=some"])
    pooled = tmp_path / "run"
    ser_fl.train(ser_fl.compose(["experiment=debug", "tracking=none", f"run_dir={pooled}"]))
    with pytest.raises(UserError, match="enrolment_attack goes with a run that scales speakers by own clips"):
        records_of(pooled, "fgsm", enrolment_attack="poisoned")
