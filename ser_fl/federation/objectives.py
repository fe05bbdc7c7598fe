"""What a client trains on in a round: clean utterances, or a mix with adversarial ones.

Legend: N utterances, B batch, F mel bins, L frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from ser_fl.attacks.budget import Box
from ser_fl.attacks.gradient import bim, fgsm, pgd, random_start
from ser_fl.config import AugmentationConfig, ObjectiveConfig
from ser_fl.data.augmentation import augment
from ser_fl.data.datamodule import Examples
from ser_fl.devices import CPU, device_of, send
from ser_fl.stopwatch import UNWATCHED, Watch

_CRAFTING_BATCH = 32


@dataclass(frozen=True, slots=True)
class Objective:
    """Clean training, or adversarial training by one of two recipes.

    per_round is the paper's (arXiv 2203.04696, the authors' code): from round 2, at the start of a round, a client
    draws a random half of its utterances, makes adversarial copies of them with the model it just received, and trains
    on that half and its copies with cross-entropy; the other half sits the round out. Deviations: true labels are
    passed to the attack, the step size is epsilon / 4 and not ART's default of 0.1, which is above epsilon, and the
    half is augmented before its copies are made, so that a copy is trained on as the attack left it.
    per_step replaces a share of every batch by its adversarial version against the current weights (Madry et al.,
    arXiv 1706.06083, with the batch split as in Kurakin et al., arXiv 1611.01236).
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

    def batch_augmentation(self, round_number: int) -> AugmentationConfig:
        """What is left to be done to each batch: copies made at the start of a round stay as they are."""
        if not self.makes_copies(round_number):
            return self.augmentation
        # mypy does not see that pydantic's dataclass is one.
        return replace(self.augmentation, roll=False, time_masks=0, mel_masks=0)  # type: ignore[type-var]

    def start_round(
        self, network: nn.Module, examples: Examples, round_number: int, stream: Generator
    ) -> tuple[Examples, int]:
        """A round's examples, and how many distinct clean utterances they come from: the weight in the average."""
        if not self.makes_copies(round_number):
            return examples, len(examples)
        count = max(1, round(self.config.fraction * len(examples)))
        drawn = torch.randperm(len(examples), generator=stream)[:count]
        clean_NFL, labels_N = augment(examples.features_NFL[drawn], self.augmentation, stream), examples.labels_N[drawn]
        device = device_of(network)
        copies = [
            self.craft(network, send(features_BFL, device), send(labels_B, device), stream)
            for features_BFL, labels_B in zip(
                torch.split(clean_NFL, _CRAFTING_BATCH), torch.split(labels_N, _CRAFTING_BATCH), strict=True
            )
        ]
        return Examples(torch.cat([clean_NFL, torch.cat(copies).to(CPU)]), torch.cat([labels_N, labels_N])), count

    def harden(self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, stream: Generator) -> Tensor:
        """A batch whose first share (batches are shuffled) is replaced by its adversarial version."""
        count = max(1, round(self.config.fraction * len(features_BFL)))
        adversarial = self.craft(network, features_BFL[:count], labels_B[:count], stream)
        return torch.cat([adversarial, features_BFL[count:]])

    def craft(self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, stream: Generator) -> Tensor:
        """Adversarial version of a batch by the configured attack, with true labels."""
        with self.watch.part("attack"):
            return self._attack(network, features_BFL, labels_B, stream)

    def _attack(self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, stream: Generator) -> Tensor:
        config, box = self.config, self.box.to(features_BFL.device)
        if config.name == "bim":
            return bim(
                network,
                features_BFL,
                labels_B,
                epsilon=config.epsilon,
                step_size=self.step_size,
                steps=config.steps,
                box=box,
                low_precision=self.low_precision,
            )
        start_BFL = random_start(features_BFL, config.epsilon, stream) if config.random_start else None
        if config.name == "fgsm":
            return fgsm(
                network,
                features_BFL,
                labels_B,
                epsilon=config.epsilon,
                box=box,
                start_BFL=start_BFL,
                low_precision=self.low_precision,
            )
        return pgd(
            network,
            features_BFL,
            labels_B,
            epsilon=config.epsilon,
            step_size=self.step_size,
            steps=config.steps,
            box=box,
            start_BFL=start_BFL,
            low_precision=self.low_precision,
        )

    @property
    def step_size(self) -> float:
        """As configured; else a quarter of epsilon, or all of it in one step."""
        return self.config.step_size or self.config.epsilon / (4 if self.config.steps > 1 else 1)
