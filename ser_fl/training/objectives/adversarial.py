"""Adversarial training: with FGSM, BIM, PGD or the one fast step, once a round or in every step; free; and TRADES.

Legend: N utterances, B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import AttackSettings, Problem
from ser_fl.attacks.pgd import divergence, pgd, random_start
from ser_fl.attacks.step_size import default_step_size
from ser_fl.attacks.target import Passes
from ser_fl.attacks.threat_model import Box
from ser_fl.config.data import AugmentationConfig
from ser_fl.config.training import ObjectiveConfig
from ser_fl.data.augmentation import augment
from ser_fl.data.features import Examples
from ser_fl.devices import CPU, device_of, send
from ser_fl.training.objectives.objective import ClientRound, Objective, TrainingPlan

_CRAFTING_BATCH = 32
_CLOSE = 0.02
"""Where the attack of TRADES starts, as a share of epsilon: at x itself the divergence has no gradient. The authors
start within 0.001 at an epsilon of 0.031 (by Gaussian noise; here it is uniform)."""


FAST_STEP = 1.25
"""Of epsilon: the one step of fast adversarial training (Wong, Rice and Kolter, arXiv 2001.03994, algorithm 3).

From a start that is uniform in the ball, back onto the ball and into the box. Deviation: the step's gradient is taken
in eval mode, as in all attacks here but free's, so that batch norm counts no batch twice. Training on one step may
collapse (catastrophic overfitting): within a few rounds the model withstands nothing but that step, which only UAR
under an attack of several steps shows. `selection.robust_every` measures it, and `selection.by=robust` keeps the round
before the collapse, as those authors do by stopping there.
"""


class Adversarial(Objective):
    """Clean training up to round `from_round`, adversarial training from there on: by PGD from a uniform start in the
    ball, by FGSM, its one step of epsilon, by BIM, which starts at the clean utterance, or by the fast step.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.steps = 1 if config.name == "fgsm" else config.steps

    def craft(self, given: ClientRound, features_BFL: Tensor, labels_B: Tensor | None, epsilon: float) -> Tensor:
        """Adversarial version of a batch, within epsilon and the box: with true labels, or with None away from its
        clean predictions, from close by.
        """
        starts = self.config.random_start and self.config.name != "bim"
        radius = _CLOSE * epsilon if labels_B is None else epsilon
        with given.watch("attack"):
            return pgd(
                given.network,
                features_BFL,
                labels_B,
                epsilon=epsilon,
                step_size=self.step_size(epsilon),
                steps=self.steps,
                box=given.box,
                start_BFL=random_start(features_BFL, radius, given.stream) if starts else None,
                low_precision=given.low_precision,
            )

    def step_size(self, epsilon: float) -> float:
        """As configured for the full epsilon, and smaller with a smaller one; else epsilon / 4, or one step of it."""
        if self.config.step_size is not None and self.config.name != "fgsm":
            return self.config.step_size * epsilon / self.config.epsilon if self.config.epsilon else 0.0
        if self.config.name == "fast":
            return FAST_STEP * epsilon
        return default_step_size(epsilon) if self.steps > 1 else epsilon

    def start_round(self, given: ClientRound) -> TrainingPlan:
        if given.number < self.config.from_round:
            return Objective().start_round(given)
        return self.start_adversarial_round(given, self.epsilon(given.number))

    @abstractmethod
    def start_adversarial_round(self, given: ClientRound, epsilon: float) -> TrainingPlan:
        """What one client does in a round that trains on adversarial utterances within epsilon."""

    def epsilon(self, round_number: int) -> float:
        """The budget of a round: grown in equal steps to its full value over the first adversarial rounds."""
        grown = (round_number - self.config.from_round + 1) / max(self.config.warm_up_rounds, 1)
        return self.config.epsilon * min(max(grown, 0.0), 1.0)


class PerRound(Adversarial):
    """The paper's recipe (arXiv 2203.04696, the authors' code).

    From round 2, a client draws a random half of its utterances at the start of a round, makes adversarial copies with
    the model it just received, and trains on that half and its copies with cross-entropy; the other half sits the round
    out. Deviations: true labels are passed to the attack, the step size is epsilon / 4 and not ART's default of 0.1,
    which is above epsilon, and the half is augmented before its copies are made, so that a copy stays as the attack
    left it.
    """

    def start_adversarial_round(self, given: ClientRound, epsilon: float) -> TrainingPlan:
        count = max(1, round(self.config.fraction * len(given.examples)))
        drawn = torch.randperm(len(given.examples), generator=given.stream)[:count]
        labels_N = given.examples.labels_N[drawn]
        clean_NFL = augment(given.examples.features_NFL[drawn], labels_N, given.augmentation, given.stream)
        device = device_of(given.network)
        batches = (torch.split(of, _CRAFTING_BATCH) for of in (drawn, clean_NFL, labels_N))
        copies = [
            self.copies(given, rows_B, send(features_BFL, device), send(labels_B, device), epsilon)
            for rows_B, features_BFL, labels_B in zip(*batches, strict=True)
        ]
        smoothing = given.augmentation.label_smoothing  # all that is left to do: copies stay as they were made
        unchanged = AugmentationConfig(
            roll=False, time_masks=0, max_time_mask=0, mel_masks=0, max_mel_mask=0, label_smoothing=smoothing
        )
        return TrainingPlan(
            examples=Examples(torch.cat([clean_NFL, torch.cat(copies).to(CPU)]), torch.cat([labels_N, labels_N])),
            num_examples=count,
            augmentation=unchanged,
            loss=partial(self.loss, given),
        )

    def copies(
        self, given: ClientRound, rows_B: Tensor, features_BFL: Tensor, labels_B: Tensor, epsilon: float
    ) -> Tensor:
        """Adversarial versions of some of the client's examples, which are given as they were augmented."""
        return self.craft(given, features_BFL, labels_B, epsilon)


class OnRecordings(PerRound):
    """The same recipe, and copies of recordings: each is moved within an SNR, by the gradient through the front end,
    and trained on as what this makes of it. Deviation: copies are of the recordings as they are, not augmented, and
    made in float32.
    """

    def copies(
        self, given: ClientRound, rows_B: Tensor, features_BFL: Tensor, labels_B: Tensor, epsilon: float
    ) -> Tensor:
        from ser_fl.attacks import registry

        held, config = given.recordings, self.config
        assert held is not None, "clients hold them where objective.snr_db is set"
        restarts = int(config.random_start and config.name == "pgd")
        attack = registry.build_on_recordings(
            AttackSettings(name=config.name, snr_db=config.snr_db, steps=self.steps, restarts=restarts)
        )
        problem = Problem(
            network=given.network,
            num_classes=held.num_classes,
            clean=features_BFL,
            labels_B=labels_B,
            keys_B=tuple(held.ids[row] for row in rows_B.tolist()),
            box=given.box,
            settings=attack.settings,
            seed=held.seed,
            passes=Passes(),
        )
        with given.watch("attack"):
            return held.domain.craft(attack, problem).adversarial_NFL


class PerStep(Adversarial):
    """A share of every batch is replaced by its adversarial version against the current weights. Madry et al. (arXiv
    1706.06083), with the batch split as in Kurakin et al. (arXiv 1611.01236).
    """

    def start_adversarial_round(self, given: ClientRound, epsilon: float) -> TrainingPlan:
        def hardened_loss(network: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
            return self.loss(given, network, self.harden(given, epsilon, features_BFL, labels_B), labels_B)

        return given.on_all(hardened_loss)

    def harden(self, given: ClientRound, epsilon: float, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
        """A batch whose first share (batches are shuffled) is replaced by its adversarial version."""
        count = max(1, round(self.config.fraction * len(features_BFL)))
        adversarial = self.craft(given, features_BFL[:count], labels_B[:count], epsilon)
        return torch.cat([adversarial, features_BFL[count:]]) if count < len(features_BFL) else adversarial


class Free(Adversarial):
    """Free adversarial training (Shafahi et al., arXiv 1904.12843, algorithm 1).

    It trains on every minibatch several times in a row, with a perturbation that each of these replays moves by the way
    (`FreePerturbation`); utterances are augmented once, before the replays. The paper divides the number of epochs by
    that of replays, so that training costs what clean training does. Here it is a client's round that does: with m
    replays each local epoch takes one in m minibatches, and the next goes on with those that have not come yet: as many
    steps as a clean epoch, up to half of one minibatch's replays, and at least one minibatch's. A client's weight stays
    the number of its utterances. The default of 4 replays is the authors' for inputs of a spectrogram's size
    (ImageNet): more make a stronger attack, on fewer utterances a round. Its steps are single ones: look for the
    collapse of `FAST_STEP`.
    """

    def start_adversarial_round(self, given: ClientRound, epsilon: float) -> TrainingPlan:
        assert self.config.replays is not None, "checked with the configuration"
        perturbation = FreePerturbation(epsilon, self.step_size(epsilon), given.box)
        return given.on_all(partial(self.perturbed_loss, given, perturbation), self.config.replays)

    def perturbed_loss(
        self,
        given: ClientRound,
        perturbation: FreePerturbation,
        network: nn.Module,
        features_BFL: Tensor,
        labels_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return self.loss(given, network, perturbation(features_BFL), labels_B)


class FreePerturbation:
    """The perturbation of one client in one round: within epsilon >= 0 in L-infinity, in units of the features.

    Called once a training step, it gives the batch moved by the perturbation; when the step's own backward pass reaches
    the batch, its gradient moves the perturbation by ``step_size`` (the paper's is epsilon) in each cell, clipped to
    epsilon. The next step sees that: the next replay of the minibatch or, as in the paper, the first one of the next.
    Minibatches differ in size by one utterance, the larger ones first; as in the authors' code a smaller one takes the
    first rows. It starts at zero, as there.

    The gradient is that of the loss which trains the weights, label smoothing included, in training mode: batch norm by
    the statistics of the batch (unless it is frozen) and with dropout, while the other objectives attack in eval mode.
    It is taken at the features inside the box, so that a cell on a side of the box has one too.
    """

    def __init__(self, epsilon: float, step_size: float, box: Box) -> None:
        self.epsilon, self.step_size, self.box = epsilon, step_size, box
        self.perturbation_BFL: Tensor | None = None

    def __call__(self, features_BFL: Tensor) -> Tensor:
        """The batch to train on, within epsilon and the box; a leaf that requires its gradient."""
        if self.perturbation_BFL is None:
            self.perturbation_BFL = torch.zeros_like(features_BFL)
            self.box = self.box.to(features_BFL.device)
        perturbation_BFL = self.perturbation_BFL[: len(features_BFL)]
        moved_BFL = self.box.clip(features_BFL + perturbation_BFL).requires_grad_()

        def ascend(gradient_BFL: Tensor) -> None:  # in the step's own backward pass
            perturbation_BFL.add_(gradient_BFL.sign(), alpha=self.step_size).clamp_(-self.epsilon, self.epsilon)

        moved_BFL.register_hook(ascend)  # type: ignore[no-untyped-call]
        return moved_BFL


class Trades(Adversarial):
    """Cross-entropy of the clean batch and beta times the divergence of its adversarial predictions. Zhang et al.
    (arXiv 1901.08573, equation 5), as in the authors' code: the mean over utterances of KL(p(x) || p(x')), x' found by
    PGD on that divergence from a start close to x, and both sides trained.
    """

    def start_adversarial_round(self, given: ClientRound, epsilon: float) -> TrainingPlan:
        return given.on_all(partial(self.trades_loss, given, epsilon))

    def trades_loss(
        self, given: ClientRound, epsilon: float, network: nn.Module, features_BFL: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the clean utterances' logits of shape (B, C). Both halves go through the network in one forward
        pass, so that batch norm sees them together.
        """
        adversarial_BFL = self.craft(given, features_BFL, None, epsilon)
        logits_BC, adversarial_BC = network(torch.cat([features_BFL, adversarial_BFL])).float().chunk(2)
        assert self.config.beta is not None, "checked with the configuration"
        moved = given.mean(divergence(logits_BC, adversarial_BC), labels_B)
        return given.cross_entropy(logits_BC, labels_B) + self.config.beta * moved, logits_BC
