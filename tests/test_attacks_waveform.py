"""Attacks on recorded audio against a front end and a classifier whose boundary is known, and their budgets.

Legend: B clips, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import Passes
from ser_fl.attacks.losses import cross_entropy
from ser_fl.attacks.psychoacoustic import MaskingBall
from ser_fl.attacks.training_attacks import attacked
from ser_fl.attacks.waveform import WAVEFORM_ATTACKS, WaveformBudget, WaveformProblem, attack_named, snr_db
from ser_fl.attacks.waveform_input import Clips
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


def problem(
    waveforms: Sequence[Tensor],
    budget: WaveformBudget | None,
    *,
    labels: Sequence[int] | None = None,
    keys: Sequence[str] | None = None,
    steps: int = 20,
    restarts: int = 1,
) -> WaveformProblem:
    frontend: LogMel = Plain()  # type: ignore[assignment]
    return WaveformProblem(
        network=MeanAbove(),
        frontend=frontend,
        standardisation=unstandardised(LINES),
        clips=Clips.of(waveforms, 16000, frontend),
        labels_B=torch.tensor(labels or [1] * len(waveforms)),
        keys_B=keys or [f"u{row}" for row in range(len(waveforms))],
        budget=budget,
        steps=steps,
        restarts=restarts,
        seed=0,
        passes=Passes(),
    )


def crafted(name: str, given: WaveformProblem) -> Tensor:
    with attacked(given.network):
        return given.clips.moved(WAVEFORM_ATTACKS[name].craft(given))


def right(given: WaveformProblem, adversarial_BT: Tensor) -> list[float]:
    return given.target.right(adversarial_BT, given.labels_B).tolist()


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "apgd_dlr"])
@pytest.mark.parametrize(
    ("budget", "still_right"),
    [
        (WaveformBudget("snr_db", 10.1), 1.0),
        (WaveformBudget("snr_db", 9.9), 0.0),
        (WaveformBudget("amplitude", 0.0995), 1.0),
        (WaveformBudget("amplitude", 0.1005), 0.0),
    ],
    ids=str,
)
def test_the_boundary_is_found_where_it_is(name: str, budget: WaveformBudget, still_right: float) -> None:
    """Of a clip of the front end's length, one that is repeated four times, and one that is cut."""
    given = problem([wave(800), wave(200), wave(1600)], budget)
    adversarial_BT = crafted(name, given)
    assert right(given, given.clips.waveform_BT) == [1.0] * 3
    assert right(given, adversarial_BT) == [still_right] * 3


def test_cw_finds_the_nearest() -> None:
    """The boundary is at 10 dB, and at 20 dB for a mean of a third of that; what is wrong anyway is left alone."""
    weak = wave(800, mean=0.3 / math.sqrt(99))
    given = problem([wave(800), weak, wave(200), wave(800)], None, labels=[1, 1, 1, 0])
    adversarial_BT = crafted("cw_l2", given)
    assert right(given, adversarial_BT) == [0.0] * 4
    found = snr_db(given.clips, adversarial_BT).tolist()
    assert found == pytest.approx([10.0, 20.0, 10.0, math.inf], abs=0.2)
    assert max(found[0], found[2]) <= 10.0 and found[1] <= 20.0  # nothing nearer is wrong
    assert torch.equal(adversarial_BT[3], given.clips.waveform_BT[3])


@pytest.mark.parametrize("name", ["pgd", "apgd_ce"])
@pytest.mark.parametrize("level_db", [60.0, 30.0, 0.0, -5.0])
def test_snr_is_the_budget_or_better(name: str, level_db: float) -> None:
    given = problem([wave(800), wave(700, 0.02, 0.5), wave(1600)], WaveformBudget("snr_db", level_db))
    found_B = snr_db(given.clips, crafted(name, given))
    assert bool((found_B >= level_db - 0.01).all())
    # The whole budget is used where nothing ends an attack early, unless the box takes some of it.
    if name == "pgd" and level_db >= 30:
        assert found_B.tolist() == pytest.approx([level_db] * 3, abs=0.01)


def test_snr_is_a_ratio_of_energies() -> None:
    clips = Clips.of([wave(800), wave(400)], 16000, Plain())  # type: ignore[arg-type]
    moved_BT = clips.moved(clips.waveform_BT + 0.01)
    expected = 10 * math.log10((0.1**2 + 0.3**2) / 0.01**2)
    assert snr_db(clips, moved_BT).tolist() == pytest.approx([expected] * 2, abs=1e-3)
    assert snr_db(clips, clips.waveform_BT).tolist() == [math.inf] * 2


def test_amplitude_is_kept_to() -> None:
    given = problem([wave(800), wave(300)], WaveformBudget("amplitude", 0.02))
    for name in ("pgd", "apgd_ce"):
        step_BT = crafted(name, given) - given.clips.waveform_BT
        assert float(step_BT.abs().max()) == pytest.approx(0.02, abs=1e-6)


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "cw_l2", "psychoacoustic"])
def test_full_scale_is_kept_to(name: str) -> None:
    budget = None if not WAVEFORM_ATTACKS[name].units else WaveformBudget("snr_db", 0.0)
    given = problem([wave(800, 0.1, 0.9), -wave(800, 0.1, 0.9)], budget, labels=[1, 0])
    with attacked(given.network):
        adversarial_BT = WAVEFORM_ATTACKS[name].craft(given)
    assert float(adversarial_BT.abs().max()) <= 1 + 1e-6
    assert not torch.equal(adversarial_BT, given.clips.waveform_BT)


def real(waveforms: Sequence[Tensor], budget: WaveformBudget | None, *, steps: int = 5) -> WaveformProblem:
    """Through log-mel features and a random convolution."""
    clips = Clips.of(waveforms, 16000, LOGMEL)
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
    statistics = FeatureStatistics.of(speech_BFL)
    frontend = compose(["experiment=debug", "frontend.duration_s=0.5"]).frontend
    standardisation = Standardisation.from_statistics(statistics, frontend)
    with torch.no_grad():
        labels_B = network(standardisation(speech_BFL)).argmax(1)  # what is wrong already is left alone
    return WaveformProblem(
        network=network,
        frontend=LOGMEL,
        standardisation=standardisation,
        clips=clips,
        labels_B=labels_B,
        keys_B=[f"u{row}" for row in range(len(waveforms))],
        budget=budget,
        steps=steps,
        restarts=1,
        seed=0,
        passes=Passes(),
    )


@pytest.fixture(scope="module")
def speech() -> list[Tensor]:
    corpus = SyntheticCorpus(2, 1)
    first, second = (corpus.read(utterance)[0] for utterance in corpus.utterances[:2])
    return [first, second[3000:6000], torch.zeros(2000)]


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "cw_l2", "psychoacoustic"])
def test_what_is_no_clip_keeps_its_bits(name: str, speech: list[Tensor]) -> None:
    budget = WaveformBudget("snr_db", 30.0) if WAVEFORM_ATTACKS[name].units else None
    given = real(speech, budget)
    adversarial_BT = crafted(name, given)
    for row, length in enumerate((8000, 3000, 2000)):
        assert torch.equal(adversarial_BT[row, length:], given.clips.waveform_BT[row, length:])
    assert bool(adversarial_BT.isfinite().all())


@pytest.mark.parametrize("name", ["pgd", "apgd_ce"])
def test_a_silent_clip_has_no_snr_to_spend_but_an_amplitude(name: str, speech: list[Tensor]) -> None:
    waveforms = [torch.zeros(2000), speech[0]]
    given = real(waveforms, WaveformBudget("snr_db", 0.0), steps=2)
    assert torch.equal(crafted(name, given)[0], given.clips.waveform_BT[0])
    given = real(waveforms, WaveformBudget("amplitude", 1e-3), steps=2)
    adversarial_BT = crafted(name, given)
    assert 0 < float(adversarial_BT[0].abs().max()) <= 1e-3 + 1e-9
    assert snr_db(given.clips, adversarial_BT)[0] == -math.inf


@pytest.mark.parametrize("name", ["pgd", "psychoacoustic"])
def test_an_utterance_does_not_hang_on_its_batch(name: str, speech: list[Tensor]) -> None:
    given = real(speech[:2], WaveformBudget("snr_db", 30.0) if WAVEFORM_ATTACKS[name].units else None, steps=2)
    together_BT = crafted(name, given)
    for row in (0, 1):
        rows = torch.tensor([row])
        alone = WaveformProblem(
            network=given.network,
            frontend=given.frontend,
            standardisation=given.standardisation,
            clips=given.clips.subset(rows),
            labels_B=given.labels_B[rows],
            keys_B=[given.keys_B[row]],
            budget=given.budget,
            steps=2,
            restarts=1,
            seed=0,
            passes=Passes(),
        )
        step_T = together_BT[row] - given.clips.waveform_BT[row]
        difference_T = crafted(name, alone)[0] - together_BT[row]
        assert float(difference_T.norm()) < 0.01 * float(step_T.norm())


@pytest.mark.slow
def test_psychoacoustic_stays_under_the_threshold_and_raises_the_loss(speech: list[Tensor]) -> None:
    given = real(speech[:2], None, steps=10)
    adversarial_BT = crafted("psychoacoustic", given)
    ball = MaskingBall.around(given.clips)
    assert bool((ball.share_below(adversarial_BT) >= 0.99).all())
    assert bool((ball.excess(adversarial_BT - given.clips.waveform_BT) <= 1.01).all())
    before_B, _ = given.target.score(given.clips.waveform_BT, given.labels_B, cross_entropy)
    after_B, _ = given.target.score(adversarial_BT, given.labels_B, cross_entropy)
    assert bool((after_B > before_B).all())
    loud = real(speech[:2], WaveformBudget("snr_db", 20.0), steps=10)
    assert bool((ball.share_below(crafted("pgd", loud)) < 0.99).all())  # which pays no heed to it


def test_restarts_and_passes_are_counted() -> None:
    given = problem([wave(800)], WaveformBudget("snr_db", 40.0), steps=7, restarts=2)
    crafted("pgd", given)
    assert given.passes.backward == 2 * 7


@pytest.mark.parametrize(("unit", "value"), [("amplitude", -0.1), ("amplitude", math.nan), ("snr_db", math.inf)])
def test_budgets_that_are_none(unit: str, value: float) -> None:
    with pytest.raises(UserError, match=f"budget in {unit}"):
        WaveformBudget(unit, value)  # type: ignore[arg-type]


def test_attacks_are_known_by_name() -> None:
    with pytest.raises(UserError, match=r"'fgsm'.*psychoacoustic"):
        attack_named("fgsm")
