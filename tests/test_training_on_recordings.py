"""Adversarial training on recordings, within an SNR and through the front end; and on an encoder's features.

Legend: B utterances, T samples, F features, L frames.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import ser_fl
from ser_fl.attacks.clips import Clips
from ser_fl.attacks.domains import Crafted
from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.data import ge2e
from ser_fl.data.features import load_examples
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.models.networks import build_network
from ser_fl.report.reader import read_run
from ser_fl.report.wording import labels_of
from ser_fl.training.objectives import ClientRound, TrainingPlan
from ser_fl.training.objectives.adversarial import PerStep

SETTINGS = (
    "experiment=debug",
    "tracking=none",
    "data.num_speakers=8",
    "split=speaker_independent",
    "normalisation=speaker",
    "enrolment=3",
    "augmentation=none",
)


def config(*more: str) -> Config:
    return compose([*SETTINGS, *more])


def round_of(clients: Clients, client_id: str, number: int = 2) -> ClientRound:
    """A client's round with initial weights, in training mode."""
    settings, data = clients.config, clients.data
    network = build_network(settings.model, len(data.store.classes), seed=1).train()
    task = ClientTask(round=number, client_id=client_id, state=network.state_dict(), learning_rate=0.1)
    return ClientRound(
        number=number,
        network=network,
        examples=load_examples(data.store, data.clients[client_id], data.standardisation),
        stream=torch.Generator().manual_seed(1),
        augmentation=settings.augmentation,
        box=clients.box,
        recordings=clients._held_recordings(task),
    )


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(config())


def copies_of(prepared: Prepared, *objective: str, number: int = 2) -> tuple[Clients, ClientRound, TrainingPlan]:
    clients = Clients(config("objective.fraction=0.1", *objective), prepared)
    given = round_of(clients, [*prepared.clients][-1], number)
    return clients, given, clients.objective.start_round(given)


def test_copies_are_one_step_up_the_loss_of_the_samples(prepared: Prepared) -> None:
    """Oracle of FGSM in L2, by hand: each recording moves along its own gradient, through front end and scale, as far
    as the SNR lets it; what is trained on beside it is the example as it is.
    """
    clients, given, plan = copies_of(prepared, "objective=fgsm", "objective.snr_db=40")
    count = plan.num_examples
    assert count == round(0.1 * len(given.examples)) and len(plan.examples) == 2 * count
    assert given.recordings is not None
    network, domain = given.network.eval(), clients.recordings
    for clean_FL, copy_FL in zip(*plan.examples.features_NFL.split(count), strict=True):
        place = int((given.examples.features_NFL == clean_FL).all(dim=2).all(dim=1).nonzero()[0])
        utterance_id = given.recordings.ids[place]
        waveform_T, rate = domain.read(utterance_id)
        assert rate == domain.frontend.sample_rate_hz and len(waveform_T) >= domain.frontend.num_samples
        clip_1T = waveform_T[None, : domain.frontend.num_samples].clone().requires_grad_()
        assert domain.scale_of is not None
        scale = domain.scale_of([utterance_id])

        def shown(samples_1T: Tensor, scale: Any = scale) -> Tensor:
            return domain.standardisation(scale(domain.frontend(samples_1T)))  # type: ignore[no-any-return]

        torch.testing.assert_close(shown(clip_1T.detach())[0], clean_FL, atol=2e-3, rtol=1e-3)
        label = given.examples.labels_N[place : place + 1]
        (gradient,) = torch.autograd.grad(functional.cross_entropy(network(shown(clip_1T)), label), clip_1T)
        moved = clip_1T + 10 ** (-40 / 20) * clip_1T.norm() * gradient / gradient.norm()
        torch.testing.assert_close(copy_FL[None], shown(moved.detach()), atol=2e-2, rtol=1e-2)
        assert float((copy_FL - given.examples.features_NFL[place]).abs().max()) > 0.05


def test_pgd_keeps_to_the_snr_and_draws_anew_in_every_round(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[Clips, Tensor]] = []
    from ser_fl.attacks.waveform_domain import Waveform, WaveformToFeatures

    def crafted(self: Waveform, attack: Any, problem: Any, adversarial: Tensor) -> Crafted:
        assert isinstance(problem.to_features, WaveformToFeatures)
        moved.append((problem.to_features.clips, adversarial))
        return inner(self, attack, problem, adversarial)

    inner = Waveform.crafted
    monkeypatch.setattr(Waveform, "crafted", crafted)
    for number in (2, 2, 3):
        copies_of(prepared, "objective=pgd", "objective.snr_db=30", "objective.steps=2", number=number)
    for clips, adversarial in moved:
        assert float(clips.snr_db(adversarial).min()) >= 30 - 1e-3
    first, again, later = (adversarial for _, adversarial in moved)
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_before_the_first_adversarial_round_nothing_is_read(prepared: Prepared) -> None:
    _, given, plan = copies_of(prepared, "objective=pgd", "objective.snr_db=30", number=1)
    assert plan.examples is given.examples


@pytest.mark.slow
def test_executors_train_on_the_same_copies(tmp_path: Path) -> None:
    more = ("objective=fgsm", "objective.snr_db=40", "objective.from_round=1", "objective.fraction=0.1")
    more += ("federation.num_rounds=1",)
    run, other = tmp_path / "run", tmp_path / "other"
    ser_fl.train(config(*more, f"run_dir={run}"))
    ser_fl.train(config(*more, f"run_dir={other}", "executor=processes", "executor.workers=2"))
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert "FGSM SNR 40 dB per round" in labels_of([read_run(run)])[0]


@pytest.mark.parametrize("wrong", ["objective.recipe=per_step", "objective=fast", "objective.warm_up_rounds=3"])
def test_what_recordings_cannot_be_trained_by_is_told(wrong: str) -> None:
    given = [] if wrong.startswith("objective=") else ["objective=pgd"]
    with pytest.raises(UserError, match=r"objective.snr_db=40 goes with objective=fgsm, bim or pgd"):
        config(*given, "objective.snr_db=40", wrong)


def test_epsilon_is_of_features_scaled_by_their_speaker(tmp_path: Path) -> None:
    """Of an encoder's features too: each is moved by epsilon deviations of its own speaker, and training goes on."""
    try:
        metadata.distribution(ge2e.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"the weights are not installed: pip install --no-deps {ge2e.PACKAGE}=={ge2e.VERSION}")
    more = ("frontend=ge2e", "frontend.duration_s=0.6", "model=pooled", "model.hidden=8", "model.dropout=0")
    settings = config(*more, "objective=pgd", "objective.recipe=per_step", "objective.epsilon=0.2")
    clients = Clients(settings, prepare(settings))
    given = round_of(clients, next(iter(clients.data.clients)))
    chosen = clients.objective
    assert isinstance(chosen, PerStep)
    features_NFL, labels_N = given.examples.features_NFL[:8], given.examples.labels_N[:8]
    spread_F = given.examples.features_NFL.std((0, 2), correction=0)
    assert float(spread_F.median()) == pytest.approx(1, abs=1e-3), "but for the few values that the box cuts off"
    moved_NFL = chosen.harden(given, 0.2, features_NFL, labels_N)
    assert float((moved_NFL - features_NFL)[:4].abs().max()) == pytest.approx(0.2, rel=1e-3)
    before, after = (
        functional.cross_entropy(given.network.eval()(part), labels_N[:4]) for part in (features_NFL[:4], moved_NFL[:4])
    )
    assert float(after.detach()) > float(before.detach())
    for name in ("fast", "trades"):
        run = tmp_path / name
        ser_fl.train(config(*more, f"objective={name}", "objective.epsilon=0.2", f"run_dir={run}"))
        assert (run / "model.json").exists()
