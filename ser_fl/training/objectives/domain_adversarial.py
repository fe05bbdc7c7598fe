"""Domain-adversarial training against speakers: a representation by which nobody can tell who speaks.

Legend: N utterances, B batch, F features, L frames, H hidden units, C classes, S speakers of a client.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ser_fl.attacks.target import attacked
from ser_fl.config.training import ObjectiveConfig
from ser_fl.data.features import Examples
from ser_fl.devices import device_of, send
from ser_fl.training.objectives.objective import ClientRound, Objective, TrainingPlan

_EMBEDDING_BATCH = 64
_DECAY, _STEPS, _HEAD_RATE = 1e-3, 50, 1e-3
"""Of the head: how its weights are kept small and how long it is fitted, and its Adam's learning rate afterwards."""


class DomainAdversarial(Objective):
    """The clean loss, and the loss of a linear head that tells a client's speakers apart by what the last layer sees,
    of which the network below gets the gradient reversed, times lambda (Ganin et al., arXiv 1505.07818). It is of
    clients that hold several speakers; one that happens to hold a single one trains without.

    The head is a client's alone, and new in every round: fitted first to the model that the client received
    (multinomial logistic regression), then trained beside it. So it is no part of what travels or is kept, and no
    executor need find it again. Deviations: the paper's head has hidden layers and goes on from step to step, and its
    lambda follows a curve over training; here it grows in equal steps over `warm_up_rounds`.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def start_round(self, given: ClientRound) -> TrainingPlan:
        names = sorted({*given.speakers})
        if len(names) < 2:
            return super().start_round(given)
        speakers_N = torch.tensor([names.index(speaker) for speaker in given.speakers])
        examples = replace(given.examples, speakers_N=speakers_N)
        head = fitted_head(given.network, examples, len(names))
        optimiser = torch.optim.Adam(head.parameters(), _HEAD_RATE)
        assert self.config.weight is not None, "checked with the configuration"
        weight = self.config.weight * min(1.0, given.number / max(self.config.warm_up_rounds, 1))
        plan = given.on_all(partial(self.adversarial_loss, given, head, optimiser, weight))
        return replace(plan, examples=examples)

    def adversarial_loss(
        self,
        given: ClientRound,
        head: nn.Linear,
        optimiser: torch.optim.Optimizer,
        weight: float,
        network: Any,
        *batch: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Both losses of a batch with its speakers, and its logits of shape (B, C), of one forward pass. The head's
        step is that of the last batch's backward pass.
        """
        features_BFL, labels_B, speakers_B = batch
        optimiser.step()
        optimiser.zero_grad()
        hidden_BH = network.embed(features_BFL)
        logits_BC = network.classify(hidden_BH)
        guesses_BS = head(with_gradient_reversed(hidden_BH.float(), weight))
        return given.cross_entropy(logits_BC, labels_B) + functional.cross_entropy(guesses_BS, speakers_B), logits_BC


def with_gradient_reversed(hidden_BH: Tensor, weight: float) -> Tensor:
    """The same values; what comes back to them is the gradient times ``-weight``."""
    return hidden_BH.detach() - weight * (hidden_BH - hidden_BH.detach())


def fitted_head(network: Any, examples: Examples, num_speakers: int) -> nn.Linear:
    """Multinomial logistic regression of the speakers on what `embed` gives in eval mode; nothing is drawn."""
    device = device_of(network)
    with attacked(network), torch.no_grad():
        batches = torch.split(examples.features_NFL, _EMBEDDING_BATCH)
        hidden_NH = torch.cat([network.embed(send(batch, device)) for batch in batches]).float()
    speakers_N = send(examples.speakers_N, device) if examples.speakers_N is not None else None
    assert speakers_N is not None
    head = nn.Linear(hidden_NH.shape[1], num_speakers, device="meta").to_empty(device=device)  # draws nothing
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimiser: Any = torch.optim.LBFGS(head.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(head(hidden_NH), speakers_N) + _DECAY * head.weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)
    optimiser.zero_grad()
    return head
