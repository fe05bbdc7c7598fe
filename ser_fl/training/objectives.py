"""What a client trains on in a round: clean utterances, or a mix with adversarial ones.

Legend: N utterances, B batch, F mel bins, L frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ser_fl.attacks.threat_model import Box
from ser_fl.attacks.training_attacks import bim, divergence, fgsm, pgd, pgd_on_divergence, random_start
from ser_fl.config.schema import AugmentationConfig, ObjectiveConfig
from ser_fl.data.augmentation import augment
from ser_fl.data.datamodule import Examples
from ser_fl.devices import CPU, device_of, send
from ser_fl.models.classifier import Harden, StepLoss
from ser_fl.stopwatch import UNWATCHED, Watch
from ser_fl.training.free_adversarial import FreePerturbation

_CRAFTING_BATCH = 32
_CLOSE = 0.02
"""Where the attack of TRADES starts, as a share of epsilon: at x itself the divergence has no gradient. The authors
start within 0.001 at an epsilon of 0.031 (by Gaussian noise; here it is uniform)."""


@dataclass(frozen=True, slots=True)
class Objective:
    """Clean training, or adversarial training: by one of two recipes, or as a method with a name of its own.

    per_round is the paper's (arXiv 2203.04696, the authors' code): from round 2, at the start of a round, a client
    draws a random half of its utterances, makes adversarial copies of them with the model it just received, and trains
    on that half and its copies with cross-entropy; the other half sits the round out. Deviations: true labels are
    passed to the attack, the step size is epsilon / 4 and not ART's default of 0.1, which is above epsilon, and the
    half is augmented before its copies are made, so that a copy is trained on as the attack left it.
    per_step replaces a share of every batch by its adversarial version against the current weights (Madry et al.,
    arXiv 1706.06083, with the batch split as in Kurakin et al., arXiv 1611.01236).

    fast (Wong, Rice and Kolter, arXiv 2001.03994, algorithm 3) replaces all of every batch: from a start that is
    uniform in the ball, one step of 1.25 epsilon, back onto the ball and into the box. Deviation: the step's gradient
    is taken in eval mode, as in the recipes above, so that batch norm counts no batch twice. Training on one step may
    collapse (catastrophic overfitting): within a few rounds the model unlearns to withstand anything but that step.
    Neither the training loss nor clean UAR shows it, both may even get better, but UAR under an attack of several steps
    falls to nothing. `selection.robust_every` measures it as rounds go by, and `selection.by=robust` keeps the round
    before the collapse, as those authors do by stopping there.

    free (Shafahi et al., arXiv 1904.12843, algorithm 1) trains on every minibatch several times in a row, with a
    perturbation that each of these replays moves by the way (`FreePerturbation`); utterances are augmented once, before
    the replays. The paper divides the number of epochs by that of replays, so that training costs what clean training
    does. Here it is a client's round that does, since rounds are what schedules, patience and comparisons count: with m
    replays each local epoch takes one in m minibatches, and a second local epoch goes on with those that have not come
    yet. That makes as many steps as a clean epoch, up to half of one minibatch's replays, and at least one minibatch's:
    a client of fewer than m minibatches takes more. A client's weight in the average stays the number of its
    utterances. The default of 4 replays is the authors' for inputs of a spectrogram's size (ImageNet): more of them
    make a stronger attack, on fewer utterances a round. Its steps are
    single ones too: look for the same collapse.

    Both begin in round 1, since they need no model that has learnt: their authors attack from the first step on.
    """

    config: ObjectiveConfig
    augmentation: AugmentationConfig
    box: Box
    low_precision: bool = False
    """Whether adversarial utterances are made in bfloat16, as the network is then trained."""
    watch: Watch = UNWATCHED
    """Of the clients that ask."""

    def is_adversarial(self, round_number: int) -> bool:
        """Whether this round trains on adversarial utterances."""
        return self.config.name != "clean" and round_number >= self.config.from_round

    def makes_copies(self, round_number: int) -> bool:
        """Whether the adversarial utterances of this round are copies made at its start."""
        return self.is_adversarial(round_number) and self.config.recipe == "per_round"

    def hardens_batches(self, round_number: int) -> bool:
        """Whether every batch of this round is made partly adversarial."""
        return self.is_adversarial(round_number) and self.config.recipe == "per_step"

    def replays(self, round_number: int) -> int:
        """How many times in a row each minibatch of this round is trained on."""
        return (self.config.replays or 1) if self.is_adversarial(round_number) else 1

    def epsilon(self, round_number: int) -> float:
        """The budget of a round: grown in equal steps to its full value over the first adversarial rounds."""
        grown = (round_number - self.config.from_round + 1) / max(self.config.warm_up_rounds, 1)
        return self.config.epsilon * min(max(grown, 0.0), 1.0)

    def hardening(self, round_number: int, stream: Generator) -> Harden | None:
        """What is done to each batch of one client in this round; None where it stays as it is."""
        if not self.hardens_batches(round_number) or self.config.name == "trades":
            return None
        epsilon = self.epsilon(round_number)
        if self.config.name == "free":
            return FreePerturbation(epsilon, self.step_size(epsilon), self.box)
        return partial(self.harden, stream=stream, epsilon=epsilon)

    def step_loss(self, round_number: int, stream: Generator) -> StepLoss | None:
        """The loss of each step of one client in this round, where it is not that of a hardened batch."""
        if self.config.name != "trades" or not self.is_adversarial(round_number):
            return None
        return partial(self.trades_loss, stream=stream, epsilon=self.epsilon(round_number))

    def batch_augmentation(self, round_number: int) -> AugmentationConfig:
        """What is left to be done to each batch: copies made at the start of a round stay as they are."""
        if not self.makes_copies(round_number):
            return self.augmentation
        # mypy does not see that pydantic's dataclass is one.
        return replace(  # type: ignore[type-var]
            self.augmentation, roll=False, splice=0.0, time_masks=0, mel_masks=0, max_mel_warp=0.0, max_equalisation=0.0
        )

    def start_round(
        self, network: nn.Module, examples: Examples, round_number: int, stream: Generator
    ) -> tuple[Examples, int]:
        """A round's examples, and how many distinct clean utterances they come from: the weight in the average."""
        if not self.makes_copies(round_number):
            return examples, len(examples)
        count = max(1, round(self.config.fraction * len(examples)))
        drawn = torch.randperm(len(examples), generator=stream)[:count]
        labels_N = examples.labels_N[drawn]
        clean_NFL = augment(examples.features_NFL[drawn], labels_N, self.augmentation, stream)
        device = device_of(network)
        copies = [
            self.craft(network, send(features_BFL, device), send(labels_B, device), stream, self.epsilon(round_number))
            for features_BFL, labels_B in zip(
                torch.split(clean_NFL, _CRAFTING_BATCH), torch.split(labels_N, _CRAFTING_BATCH), strict=True
            )
        ]
        return Examples(torch.cat([clean_NFL, torch.cat(copies).to(CPU)]), torch.cat([labels_N, labels_N])), count

    def trades_loss(
        self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, stream: Generator, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the clean batch and beta times the divergence of its adversarial predictions.

        Zhang et al. (arXiv 1901.08573, equation 5), as in the authors' code: the mean over utterances of
        KL(p(x) || p(x')), x' found by PGD on that divergence from a start close to x, and both sides trained. Both
        halves go through the network in one forward pass, so that batch norm sees them together.

        Returns:
            The loss, and the clean utterances' logits of shape (B, C).
        """
        with self.watch.part("attack"):
            adversarial_BFL = pgd_on_divergence(
                network,
                features_BFL,
                epsilon=epsilon,
                step_size=self.step_size(epsilon),
                steps=self.config.steps,
                box=self.box,
                start_BFL=random_start(features_BFL, _CLOSE * epsilon, stream),
                low_precision=self.low_precision,
            )
        logits_BC, adversarial_BC = network(torch.cat([features_BFL, adversarial_BFL])).float().chunk(2)
        clean = F.cross_entropy(logits_BC, labels_B, label_smoothing=self.augmentation.label_smoothing)
        assert self.config.beta is not None, "checked with the configuration"
        return clean + self.config.beta * divergence(logits_BC, adversarial_BC).mean(), logits_BC

    def harden(
        self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, stream: Generator, epsilon: float
    ) -> Tensor:
        """A batch whose first share (batches are shuffled) is replaced by its adversarial version."""
        count = max(1, round(self.config.fraction * len(features_BFL)))
        adversarial = self.craft(network, features_BFL[:count], labels_B[:count], stream, epsilon)
        return torch.cat([adversarial, features_BFL[count:]]) if count < len(features_BFL) else adversarial

    def craft(
        self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, stream: Generator, epsilon: float
    ) -> Tensor:
        """Adversarial version of a batch by the configured attack, with true labels."""
        with self.watch.part("attack"):
            return self._attack(network, features_BFL, labels_B, stream, epsilon)

    def _attack(
        self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, stream: Generator, epsilon: float
    ) -> Tensor:
        config, box = self.config, self.box.to(features_BFL.device)
        if config.name == "bim":
            return bim(
                network,
                features_BFL,
                labels_B,
                epsilon=epsilon,
                step_size=self.step_size(epsilon),
                steps=config.steps,
                box=box,
                low_precision=self.low_precision,
            )
        start_BFL = random_start(features_BFL, epsilon, stream) if config.random_start else None
        if config.name == "fgsm":
            return fgsm(
                network,
                features_BFL,
                labels_B,
                epsilon=epsilon,
                box=box,
                start_BFL=start_BFL,
                low_precision=self.low_precision,
            )
        return pgd(
            network,
            features_BFL,
            labels_B,
            epsilon=epsilon,
            step_size=self.step_size(epsilon),
            steps=config.steps,
            box=box,
            start_BFL=start_BFL,
            low_precision=self.low_precision,
        )

    def step_size(self, epsilon: float) -> float:
        """As configured for the full epsilon; else a quarter of epsilon, or all of it in one step, or 1.25 times."""
        if self.config.step_size is not None:
            return self.config.step_size * epsilon / self.config.epsilon if self.config.epsilon else 0.0
        if self.config.name == "fast":
            return 1.25 * epsilon
        return epsilon / (4 if self.config.steps > 1 else 1)
