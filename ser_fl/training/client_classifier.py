"""The module of a client's Trainer: `EmotionClassifier` with what a round asks of it.

Legend: B batch, F mel bins, L frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from ser_fl.config.objects import ObjectConfig
from ser_fl.config.schema import Config
from ser_fl.models.classifier import EmotionClassifier, StepOutput
from ser_fl.models.norms import BatchRenorm2d
from ser_fl.stopwatch import UNWATCHED, Watch
from ser_fl.training.lightning_internals import QuickHookNames
from ser_fl.training.objectives import TrainingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTraining:
    """How one client trains in one round."""

    learning_rate: float
    stream: Generator
    """Augmentation draws from it."""
    plan: TrainingPlan
    """The round's objective."""
    freeze_norm: bool = False
    """Batch norm normalises by the running statistics it was given and leaves them as they are, while its scale and
    shift are trained (the second stage of FixBN: Zhong et al., arXiv 2303.06530, section 5). Batch renormalisation goes
    on, since it trains what is tested."""
    optimiser_state: dict[int, dict[str, Tensor]] | None = None
    """What the optimiser carries from the client's last round, by parameter."""
    has_own_network: bool = False
    """Whether the network is the user's own, and not the configured one."""


class ClientClassifier(QuickHookNames, EmotionClassifier):
    """The local epochs of one client in one round.

    Args:
        config: of the experiment.
        num_classes: C.
        network: with the weights that the client received.
        local: how it trains.
        watch: told what is being done.
    """

    def __init__(
        self, config: Config, num_classes: int, network: nn.Module, local: LocalTraining, watch: Watch = UNWATCHED
    ) -> None:
        optimiser = replace(config.optimiser, learning_rate=local.learning_rate)
        super().__init__(
            None if local.has_own_network or isinstance(config.model, ObjectConfig) else config.model,
            num_classes,
            optimiser=optimiser,
            augmentation=local.plan.augmentation,
            seed=config.seed,
            network=network,
        )
        self.local = local
        self.watch = watch
        self.stream = local.stream
        self._augmented_BFL = torch.empty(0)
        """The minibatch that is replayed."""

    def on_train_start(self) -> None:
        """The network is in training mode by now; what stands still leaves it again."""
        if self.local.freeze_norm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, BatchRenorm2d):
                    module.eval()

    def augmented(self, features_BFL: Tensor, labels_B: Tensor, batch_idx: int) -> Tensor:
        """The augmented batch, the same for all of its replays."""
        if batch_idx % self.local.plan.replays == 0:
            with self.watch.part("data"):
                self._augmented_BFL = super().augmented(features_BFL, labels_B, batch_idx)
        return self._augmented_BFL

    def training_loss(self, features_BFL: Tensor, labels_B: Tensor) -> StepOutput:
        """The round's objective."""
        return self.local.plan.loss(self.network, features_BFL, labels_B)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As configured; Lightning would look for what there is to clip where nothing is."""
        if gradient_clip_val is not None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The client's optimiser, with the state that it carries from its last round, if any."""
        optimiser = super().configure_optimizers()
        if self.local.optimiser_state is not None:
            laid_out = {
                index: {
                    name: _laid_out_as(parameter, entry) for name, entry in self.local.optimiser_state[index].items()
                }
                for index, parameter in enumerate(self.network.parameters())
            }
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": laid_out, "param_groups": groups})
        return optimiser


def _laid_out_as(parameter: Tensor, entry: Tensor) -> Tensor:
    """A moment in its parameter's memory layout; counters stay as they are.

    A run's checkpoint does not keep the layout, and fused optimisers take it for granted.
    """
    return torch.empty_like(parameter).copy_(entry) if entry.shape == parameter.shape else entry
