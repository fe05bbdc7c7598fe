"""A model that looks robust: logits so large that an attack finds no gradient."""

from torch import Tensor, nn

from ser_fl.federation.adversaries.adversary import Adversary
from ser_fl.training.objectives import ClientRound, Objective


class MaskedGradient(Adversary):
    """Trains with a temperature T = strength, by default 20, and sends the model that is tested without it: defensive
    distillation's hot training (Papernot et al., arXiv 1511.04508), without the teacher. Logits grow T times as large,
    cross-entropy and its gradient vanish in float32, and a gradient attack fails that a margin loss or a transferred
    one would not (Carlini and Wagner, arXiv 1608.04644; Athalye et al., arXiv 1802.00420). Clean utterances alone are
    trained on, whatever the others' objective.
    """

    def __init__(self, strength: float | None = None) -> None:
        self.temperature = 20.0 if strength is None else max(strength, 1.0)

    def objective(self, objective: Objective) -> Objective:
        return Tempered(self.temperature)


class Tempered(Objective):
    """L = T^2 * cross-entropy(logits / T, y); T = 1 is clean training. T^2 keeps the size of gradients (Hinton et al.,
    arXiv 1503.02531).
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def loss(
        self, given: ClientRound, network: nn.Module, features_BFL: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits_BC: Tensor = network(features_BFL)
        return self.temperature**2 * given.cross_entropy(logits_BC / self.temperature, labels_B), logits_BC
