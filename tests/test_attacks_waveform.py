"""Attacks on recorded audio against a front end and a classifier whose boundary is known, and their budgets.

Legend: B clips, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack, AttackSettings, Problem
from ser_fl.attacks.clips import Clips
from ser_fl.attacks.losses import cross_entropy
from ser_fl.attacks.psychoacoustic import MaskingBall
from ser_fl.attacks.registry import ON_RECORDINGS, build, build_on_recordings
from ser_fl.attacks.target import Passes
from ser_fl.attacks.threat_model import Box
from ser_fl.attacks.waveform_domain import Waveform, WaveformToFeatures
from ser_fl.config.compose import compose
from ser_fl.data.frontend import FeatureStatistics, LogMel, Standardisation
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.errors import UserError

LINES = 8
LOGMEL = LogMel(compose(["experiment=debug", "frontend.duration_s=0.5"]).frontend)


class Plain(nn.Module):
    """A front end that is linear: the samples themselves, in a few lines."""

    num_samples = 800
    sample_rate_hz = 16000
    clip = LogMel.clip

    def forward(self, waveform_BT: Tensor) -> Tensor:
        return waveform_BT.unflatten(1, (LINES, -1))


class MeanAbove(nn.Module):
    """Class 1 where the mean of all features is above a level; logits are steep, so that float32 tells them apart."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__()
        self.level = level

    def forward(self, features_BFL: Tensor) -> Tensor:
        lead_B = 30 * (features_BFL.double().mean((1, 2)) - self.level).float()
        return torch.stack([-lead_B, lead_B, torch.full_like(lead_B, -50.0)], dim=1)


def unstandardised(num_mels: int) -> Standardisation:
    side = torch.full((num_mels,), torch.inf)
    return Standardisation(torch.zeros(num_mels), torch.ones(num_mels), -side, side)


def wave(num_samples: int, mean: float = 0.1, swing: float = 0.3) -> Tensor:
    """A square wave around a mean: its boundary is at an amplitude of the mean, and at 10 dB for 0.1 and 0.3."""
    return mean + swing * (1 - 2 * (torch.arange(num_samples) % 2)).float()


Budget = dict[str, float]
"""{"snr_db": ...} or {"epsilon": ...}, an amplitude; none for the masking threshold."""


def attack_of(name: str, budget: Budget, **more: Any) -> Attack:
    return build_on_recordings(AttackSettings(name=name, masked=not budget, **budget, **more))


def problem(
    name: str,
    waveforms: Sequence[Tensor],
    budget: Budget,
    *,
    labels: Sequence[int] | None = None,
    domain: Waveform | None = None,
    network: nn.Module | None = None,
    **more: Any,
) -> tuple[Attack, Problem]:
    """An attack and its problem, as the domain makes it of recordings at 16 kHz."""
    recordings = {f"u{row}": (waveform_T, 16000) for row, waveform_T in enumerate(waveforms)}
    plain: LogMel = Plain()  # type: ignore[assignment]
    domain = domain or Waveform(frontend=plain, standardisation=unstandardised(LINES), read=recordings.__getitem__)
    attack = attack_of(name, budget, **({"steps": 20} | more))
    moved = Problem(
        network=network or MeanAbove(),
        num_classes=4 if network else 3,
        clean=domain.clean(list(recordings)),
        labels_B=torch.tensor(labels or [1] * len(waveforms)),
        keys_B=list(recordings),
        box=Box.unbounded(),
        settings=attack.settings,
        seed=0,
        passes=Passes(),
    )
    ((rows, found),) = domain.problems(moved)
    assert rows == list(range(len(waveforms)))
    return attack, found


def clips_of(given: Problem) -> Clips:
    assert isinstance(given.to_features, WaveformToFeatures)
    return given.to_features.clips


def right(given: Problem, adversarial_BT: Tensor) -> list[float]:
    return given.right(adversarial_BT, given.labels_B).tolist()


@pytest.mark.parametrize("name", ["pgd", "bim", "apgd_ce", "apgd_dlr"])
@pytest.mark.parametrize(
    ("budget", "still_right"),
    [({"snr_db": 10.1}, 1.0), ({"snr_db": 9.9}, 0.0), ({"epsilon": 0.0995}, 1.0), ({"epsilon": 0.1005}, 0.0)],
    ids=str,
)
def test_the_boundary_is_found_where_it_is(name: str, budget: Budget, still_right: float) -> None:
    """Of a clip of the front end's length, one that is repeated four times, and one that is cut."""
    attack, given = problem(name, [wave(800), wave(200), wave(1600)], budget)
    adversarial_BT = attack.craft(given)
    assert right(given, given.clean) == [1.0] * 3
    assert right(given, adversarial_BT) == [still_right] * 3


@pytest.mark.parametrize("name", ["cw_l2", "fmn_l2"])
def test_minimal_attacks_find_the_nearest(name: str) -> None:
    """The boundary is at 10 dB, and at 20 dB for a mean of a third of that; what is wrong anyway is left alone."""
    weak = wave(800, mean=0.3 / math.sqrt(99))
    attack, given = problem(name, [wave(800), weak, wave(200), wave(800)], {"snr_db": 0.0}, labels=[1, 1, 1, 0])
    adversarial_BT = attack.craft(given)
    assert right(given, adversarial_BT) == [0.0] * 4
    found = clips_of(given).snr_db(adversarial_BT).tolist()
    assert found == pytest.approx([10.0, 20.0, 10.0, math.inf], abs=0.2)
    assert max(found[0], found[2]) <= 10.0 and found[1] <= 20.0  # nothing nearer is wrong
    assert torch.equal(adversarial_BT[3], given.clean[3])


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd_ce"])
@pytest.mark.parametrize("level_db", [60.0, 30.0, 0.0, -5.0])
def test_snr_is_the_budget_or_better(name: str, level_db: float) -> None:
    attack, given = problem(name, [wave(800), wave(700, 0.02, 0.5), wave(1600)], {"snr_db": level_db})
    found_B = clips_of(given).snr_db(attack.craft(given))
    assert bool((found_B >= level_db - 0.01).all())
    # The whole budget is used where nothing ends an attack early, unless the box takes some of it.
    if name in ("fgsm", "pgd") and level_db >= 30:
        assert found_B.tolist() == pytest.approx([level_db] * 3, abs=0.01)


def test_snr_is_a_ratio_of_energies() -> None:
    clips = Clips.of([wave(800), wave(400)], 16000, Plain())  # type: ignore[arg-type]
    moved_BT = clips.moved(clips.waveform_BT + 0.01)
    expected = 10 * math.log10((0.1**2 + 0.3**2) / 0.01**2)
    assert clips.snr_db(moved_BT).tolist() == pytest.approx([expected] * 2, abs=1e-3)
    assert clips.snr_db(clips.waveform_BT).tolist() == [math.inf] * 2


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "apgd_ce"])
def test_amplitude_is_kept_to(name: str) -> None:
    attack, given = problem(name, [wave(800), wave(300)], {"epsilon": 0.02})
    assert float((attack.craft(given) - given.clean).abs().max()) == pytest.approx(0.02, abs=1e-6)


def loud(name: str, level_db: float = 30.0) -> Budget:
    return {} if "masking" in ON_RECORDINGS[name].on_recordings else {"snr_db": level_db}


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "cw_l2", "psychoacoustic"])
def test_full_scale_is_kept_to(name: str) -> None:
    attack, given = problem(name, [wave(800, 0.1, 0.9), -wave(800, 0.1, 0.9)], loud(name, 0.0), labels=[1, 0])
    adversarial_BT = attack.craft(given)
    assert float(adversarial_BT.abs().max()) <= 1 + 1e-6
    assert not torch.equal(adversarial_BT, given.clean)


def real(name: str, waveforms: Sequence[Tensor], budget: Budget, *, steps: int = 5) -> tuple[Attack, Problem]:
    """Through log-mel features and a random convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Unflatten(1, (1, -1)),
            nn.Conv2d(1, 4, 5),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64, 4),
        )
    speech_BFL = torch.cat([LOGMEL(LOGMEL.clip(waveform_T, 16000)[None]) for waveform_T in waveforms])
    frontend = compose(["experiment=debug", "frontend.duration_s=0.5"]).frontend
    standardisation = Standardisation.from_statistics([FeatureStatistics.of(speech_BFL)], frontend)
    with torch.no_grad():
        labels = network(standardisation(speech_BFL)).argmax(1).tolist()  # what is wrong already is left alone
    recordings = {f"u{row}": (waveform_T, 16000) for row, waveform_T in enumerate(waveforms)}
    domain = Waveform(frontend=LOGMEL, standardisation=standardisation, read=recordings.__getitem__)
    return problem(name, waveforms, budget, labels=labels, domain=domain, network=network, steps=steps)


@pytest.fixture(scope="module")
def speech() -> list[Tensor]:
    corpus = SyntheticCorpus(2, 1)
    first, second = (corpus.read(utterance)[0] for utterance in corpus.utterances[:2])
    return [first, second[3000:6000], torch.zeros(2000)]


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "cw_l2", "psychoacoustic"])
def test_what_is_no_clip_keeps_its_bits(name: str, speech: list[Tensor]) -> None:
    attack, given = real(name, speech, loud(name))
    adversarial_BT = attack.craft(given)
    for row, length in enumerate((8000, 3000, 2000)):
        assert torch.equal(adversarial_BT[row, length:], given.clean[row, length:])
    assert bool(adversarial_BT.isfinite().all())


@pytest.mark.parametrize("name", ["pgd", "apgd_ce"])
def test_a_silent_clip_has_no_snr_to_spend_but_an_amplitude(name: str, speech: list[Tensor]) -> None:
    waveforms = [torch.zeros(2000), speech[0]]
    attack, given = real(name, waveforms, {"snr_db": 0.0}, steps=2)
    assert torch.equal(attack.craft(given)[0], given.clean[0])
    attack, given = real(name, waveforms, {"epsilon": 1e-3}, steps=2)
    adversarial_BT = attack.craft(given)
    assert 0 < float(adversarial_BT[0].abs().max()) <= 1e-3 + 1e-9
    assert clips_of(given).snr_db(adversarial_BT)[0] == -math.inf


@pytest.mark.parametrize("name", ["pgd", "psychoacoustic"])
def test_an_utterance_does_not_hang_on_its_batch(name: str, speech: list[Tensor]) -> None:
    attack, given = real(name, speech[:2], loud(name), steps=2)
    together_BT = attack.craft(given)
    for row in (0, 1):
        alone_T = attack.craft(given.subset(torch.tensor([row])))[0]
        step_T = together_BT[row] - given.clean[row]
        assert float((alone_T - together_BT[row]).norm()) < 0.01 * float(step_T.norm())


@pytest.mark.slow
def test_psychoacoustic_stays_under_the_threshold_and_raises_the_loss(speech: list[Tensor]) -> None:
    attack, given = real("psychoacoustic", speech[:2], {}, steps=10)
    adversarial_BT = attack.craft(given)
    ball = MaskingBall.around(clips_of(given))
    assert bool((ball.share_below(adversarial_BT) >= 0.99).all())
    assert bool((ball.excess(adversarial_BT - given.clean) <= 1.01).all())
    before_B, _ = given.score(given.clean, given.labels_B, cross_entropy)
    after_B, _ = given.score(adversarial_BT, given.labels_B, cross_entropy)
    assert bool((after_B > before_B).all())
    attack, given = real("pgd", speech[:2], {"snr_db": 20.0}, steps=10)
    assert bool((ball.share_below(attack.craft(given)) < 0.99).all())  # which pays no heed to it


def test_restarts_and_passes_are_counted() -> None:
    attack, given = problem("pgd", [wave(800)], {"snr_db": 40.0}, steps=7, restarts=2)
    attack.craft(given)
    assert given.passes.backward == 2 * 7


def test_recordings_are_attacked_by_the_attacks_of_the_registry() -> None:
    """The very functions that attack features, with one start by default and steps that fit the ball."""
    for name in ("fgsm", "bim", "pgd", "apgd_ce", "apgd_dlr", "apgd_t", "cw_l2", "fmn_l2"):
        on_features = build(AttackSettings(name=name, epsilon=0.1, backend="native"))
        attack = attack_of(name, {"snr_db": 30.0})
        assert attack.entry.craft is on_features.entry.craft
        assert attack.settings.restarts == (1 if "restarts" in attack.entry.settable else None)
        assert attack.settings.step_size is None


@pytest.mark.parametrize(("unit", "value"), [("epsilon", -0.1), ("epsilon", math.nan), ("snr_db", math.inf)])
def test_budgets_that_are_none(unit: str, value: float) -> None:
    with pytest.raises(UserError, match=unit):
        AttackSettings(name="pgd", **{unit: value})  # type: ignore[arg-type]


def test_attacks_are_known_by_name() -> None:
    with pytest.raises(UserError, match=r"'square'.*psychoacoustic"):
        attack_of("square", {"snr_db": 30.0})
    with pytest.raises(UserError, match="psychoacoustic goes on recordings alone"):
        build(AttackSettings(name="psychoacoustic", epsilon=0.1))
