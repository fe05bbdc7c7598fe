"""What attacks that look for the nearest adversarial input share: what they ask of the model, and what they keep.

They look for it however far it is; `threat_model.keep_within` then decides whether that is near enough. What they
return is misclassified inside the box, or else it is the clean utterance. Against a randomised defence misclassified
means in most of the draws, which is near, and not all that a budget can do: for how much a defence withstands take
attacks that fill their budget, such as AutoPGD.

Legend: B utterances, C classes, N some of the utterances; whatever follows is what is moved: bins and frames, samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ser_fl.attacks.losses import margin
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import Box, Norm, lengths, per_utterance

CLASSES = 8
"""How many wrong classes are looked at for the nearest boundary, the most likely ones first."""
CLEAR = 1e-4
"""By what share of the clean lead of the true class another must lead to count."""
ROUNDING = 1e-6
"""The least such lead, as a share of the largest logit: ten roundings to float32."""
SEGMENT_STEPS = 5
"""Bisections of the last way from the clean input: one forward pass each, to a thirty-second of its length."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aim:
    """A model, and what it is to say of each utterance: any class but its label, or (`targeted`) its label."""

    target: Target
    labels_B: Tensor
    """True classes, or target ones."""
    box: Box
    targeted: bool = False
    towards_B: Tensor | None = None
    """The wrong classes that are headed for, though any other will do; None for the best one at every point."""
    clear_B: Tensor | None = None
    """The lead that an adversarial input must exceed; None for 0."""

    def subset(self, rows_N: Tensor) -> Aim:
        """The same for some of the utterances."""
        return replace(
            self,
            target=self.target.subset(rows_N),
            labels_B=self.labels_B[rows_N],
            towards_B=None if self.towards_B is None else self.towards_B[rows_N],
            clear_B=None if self.clear_B is None else self.clear_B[rows_N],
        )

    def ask(self, moved: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """How far each utterance has come, by one forward and one backward pass.

        Returns:
            The lead in logits of what is headed for, shape (B,); its gradient, shape (B, ...), 0 for values at the edge
            of the box that it would push out; and where the aim is reached, shape (B,). A randomised model must be
            wrong (right, if targeted) in more than half of its draws, by weight.
        """
        answer = self.target.answer(moved, self.labels_B, self._lead, step=step)
        return answer.loss_B, self._movable(answer.gradient, moved), self._reached(answer.logits_BC, answer.right_B)

    def reached(self, moved: Tensor, step: int) -> Tensor:
        """Where the aim is reached, shape (B,), by one forward pass."""
        if self.target.expectation is None:
            return self._clearly(self.target(moved, step))
        return self._mostly(self.target.right(moved, self.labels_B, step))

    def set_out(self, clean: Tensor, norm: Norm) -> tuple[Tensor, Aim]:
        """The utterances whose aim is not reached to begin with, shape (N,), and theirs, with a class to head for.

        The class is the one whose boundary would be nearest if the model were linear, as in DeepFool (Moosavi-Dezfooli
        et al. 2016, arXiv 1511.04599, equation 8). The wrong class of the largest logit is often another one, behind
        whose boundary an attack that follows it stays: on our CRNN that made perturbations up to 1.4 times as large.
        It costs a forward and a backward pass a class, of the `CLASSES` most likely ones.

        From then on an input counts as adversarial only by a lead of `CLEAR` of what the clean one lacked, and more
        than `ROUNDING`: on the boundary itself a prediction depends on who else is in the batch.
        """
        answer = self.target.answer(clean, self.labels_B, self._lead)
        rows_N = (~self._reached(answer.logits_BC, answer.right_B)).nonzero().flatten()
        clear_B = torch.maximum(CLEAR * answer.loss_B.abs(), ROUNDING * answer.logits_BC.abs().amax(dim=1))
        part, clean = replace(self, clear_B=clear_B).subset(rows_N), clean[rows_N]
        if self.targeted or not len(rows_N):
            return rows_N, part
        logits_NC = answer.logits_BC[rows_N].scatter(1, part.labels_B[:, None], -torch.inf)
        order_NC = logits_NC.argsort(dim=1, descending=True, stable=True)[:, : min(CLASSES, logits_NC.shape[1] - 1)]
        nearest_N = -answer.loss_B[rows_N] / dual_size(self._movable(answer.gradient[rows_N], clean), norm)
        towards_N = order_NC[:, 0]
        for rank in range(1, order_NC.shape[1]):
            lead_N, gradient, _ = replace(part, towards_B=order_NC[:, rank]).ask(clean, 0)
            distance_N = -lead_N / dual_size(gradient, norm)
            towards_N = torch.where(distance_N < nearest_N, order_NC[:, rank], towards_N)
            nearest_N = torch.minimum(distance_N, nearest_N)
        return rows_N, replace(part, towards_B=towards_N)

    def _lead(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        if self.towards_B is None:
            lead_B = margin(logits_BC, labels_B)
            return -lead_B if self.targeted else lead_B
        ahead_B, true_B = (logits_BC.gather(1, which_B[:, None])[:, 0] for which_B in (self.towards_B, labels_B))
        return ahead_B - true_B

    def _movable(self, gradient: Tensor, moved: Tensor) -> Tensor:
        if self.box.lower_F1 is None:
            return gradient
        return gradient * (self.box.clip(moved + gradient.sign()) != moved)

    def _reached(self, logits_BC: Tensor, right_B: Tensor) -> Tensor:
        return self._clearly(logits_BC) if self.target.expectation is None else self._mostly(right_B)

    def _clearly(self, logits_BC: Tensor) -> Tensor:
        lead_B = margin(logits_BC, self.labels_B)
        return (-lead_B if self.targeted else lead_B) > (0 if self.clear_B is None else self.clear_B)

    def _mostly(self, right_B: Tensor) -> Tensor:
        return right_B > 0.5 if self.targeted else right_B < 0.5


@dataclass(slots=True, eq=False)
class Nearest:
    """The nearest adversarial input that was found of each utterance."""

    clean: Tensor
    norm: Norm
    inputs: Tensor
    """Shape (B, ...); the clean one where none was found."""
    distance_B: Tensor
    """Infinite where none was found."""

    @classmethod
    def none_yet(cls, clean: Tensor, norm: Norm) -> Nearest:
        """Nothing found of any utterance."""
        return cls(clean, norm, clean.clone(), clean.new_full((len(clean),), torch.inf))

    def offer(self, rows_N: Tensor, moved: Tensor, distance_N: Tensor, reached_N: Tensor) -> None:
        """Keep what is adversarial and nearer than what was kept of these utterances."""
        nearer_N = reached_N & (distance_N < self.distance_B[rows_N])
        self.inputs[rows_N] = torch.where(per_utterance(nearer_N, moved), moved, self.inputs[rows_N])
        self.distance_B[rows_N] = torch.where(nearer_N, distance_N, self.distance_B[rows_N])

    def draw_in(self, aim: Aim, step: int) -> Tensor:
        """What was found, moved towards the clean input along the segment for as long as it stays adversarial.

        Box and ball are convex, so that the way lies in both. It costs `SEGMENT_STEPS` forward passes.
        """
        rows_N = (self.distance_B.isfinite() & (self.distance_B > 0)).nonzero().flatten()
        if not len(rows_N):
            return self.inputs
        part, clean, step_out = aim.subset(rows_N), self.clean[rows_N], self.inputs[rows_N] - self.clean[rows_N]
        near_N = torch.zeros_like(self.distance_B[rows_N])
        far_N, found = torch.ones_like(near_N), self.inputs[rows_N]
        for _ in range(SEGMENT_STEPS):
            middle_N = (near_N + far_N) / 2
            moved = aim.box.clip(clean + per_utterance(middle_N, clean) * step_out)
            reached_N = part.reached(moved, step)
            found = torch.where(per_utterance(reached_N, moved), moved, found)
            near_N, far_N = torch.where(reached_N, near_N, middle_N), torch.where(reached_N, middle_N, far_N)
        self.inputs[rows_N], self.distance_B[rows_N] = found, far_N * self.distance_B[rows_N]
        return self.inputs


def size(step: Tensor, norm: Norm) -> Tensor:
    """Norm of each utterance's perturbation, shape (B,)."""
    return lengths(step) if norm == "2" else step.flatten(1).abs().amax(dim=1)


def dual_size(gradient: Tensor, norm: Norm) -> Tensor:
    """How fast a loss of this gradient rises along its steepest perturbation of norm 1, shape (B,); never 0."""
    rise_B = lengths(gradient) if norm == "2" else gradient.flatten(1).abs().sum(dim=1)
    return rise_B.clamp(min=_TINY)
