"""One perturbation for all utterances: what an attacker can do that must choose before it hears anything.

Universal adversarial perturbations (Moosavi-Dezfooli et al. 2017, arXiv 1610.08401), found by gradient ascent as in
Shafahi et al. 2018 (arXiv 1811.11304), who stop an utterance's loss from growing without end. ART's
UniversalPerturbation is not used: it walks from utterance to utterance with DeepFool's minimal steps, in an order from
NumPy's global state, and ends once a share of the predictions has changed, right or wrong before.

It is learnt on the utterances that it is shown to. So, unlike in all other attacks, what becomes of an utterance
depends on the others, but not on their order or on the size of batches.

Legend: N utterances, F mel bins, L frames.
"""

import math

import torch
from torch import Tensor

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.losses import cross_entropy

UTTERANCES_AT_A_TIME = 64
"""In one pass; fixed, so that sums round alike whatever the batch size."""
FIRST_STEP = 0.5
"""Of epsilon; steps shrink to 0 along a line."""


def craft_universal(problem: Problem) -> Tensor:
    """The perturbation, added to every utterance and clipped to the box; to be given all utterances at once.

    Each step moves along the sign of the summed gradient of cross-entropies, of which none counts beyond log C: there
    an utterance is wrong for sure. The perturbation under which the fewest utterances are recognised is kept, then the
    one with the largest loss. A randomised model answers under the same draws throughout, which differ by utterance.
    """
    epsilon, steps, enough = problem.settings.epsilon, problem.steps, math.log(problem.num_classes)
    rows = sorted(range(len(problem.keys_B)), key=lambda row: problem.keys_B[row])
    ordered_N = torch.tensor(rows, device=problem.clean.device)
    parts = [problem.subset(rows_N) for rows_N in torch.split(ordered_N, UTTERANCES_AT_A_TIME)]
    perturbation_FL = best_FL = torch.zeros_like(problem.clean[0])
    fewest = torch.full((2,), torch.inf, dtype=torch.float64, device=perturbation_FL.device)
    for step in range(steps + 1):
        # What is missing to success: utterances recognised, and loss.
        gradient_FL, missing = torch.zeros_like(perturbation_FL), torch.zeros_like(fewest)
        for part in parts:
            moved_NFL = part.clean + perturbation_FL
            shown_NFL = part.box.clip(moved_NFL)
            answer = part.answer(shown_NFL, part.labels_B, lambda *given: cross_entropy(*given).clamp(max=enough))
            gradient_FL += torch.where(shown_NFL == moved_NFL, answer.gradient, 0.0).sum(0)
            missing += torch.stack([answer.right_B.double().sum(), -answer.loss_B.double().sum()])
        better = (missing[0] < fewest[0]) | ((missing[0] == fewest[0]) & (missing[1] < fewest[1]))
        best_FL, fewest = torch.where(better, perturbation_FL, best_FL), torch.where(better, missing, fewest)
        size = epsilon * FIRST_STEP * (1 - step / steps)
        perturbation_FL = (perturbation_FL + size * gradient_FL.sign()).clamp(-epsilon, epsilon)
    return problem.box.clip(problem.clean + best_FL)
