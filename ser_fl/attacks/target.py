"""The model as an attack may question it, every pass counted, and the best that was found.

With a `Defence` in front of it whose randomness the attacker knows of, every answer is an expectation over its draws
(Athalye et al. 2018, arXiv 1802.00420), so that one attack is written once and is adaptive where it is asked to be.

Legend: B utterances, N some of them, C classes, F mel bins, L frames, K draws; inputs are features_BFL, or whatever
`to_features` maps to them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fl.attacks.losses import Loss, cross_entropy, margin
from ser_fl.attacks.threat_model import Ball, Rows, either
from ser_fl.devices import autocast, device_of, float32_by_default

_AT_A_TIME = {"cpu": 32}
_AT_A_TIME_ELSEWHERE = 512
"""Utterances of all draws in one forward pass of an expectation. On a CPU larger batches leave the cache: with 64 an
utterance takes a tenth longer, with 128 a fifth."""
_ALIKE = 1e-6
"""Probabilities of being recognised that differ by rounding."""


@dataclass(slots=True)
class Passes:
    """Cost of an attack, in utterances that went through the model."""

    forward: int = 0
    backward: int = 0


class Expectation(Protocol):
    """What an adaptive attacker knows of a defence (`ser_fl.attacks.expectation.expectation_of` makes it)."""

    @property
    def weights(self) -> Sequence[float]:
        """How much each of the K draws of a step counts; they sum to 1."""

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, step: int, draws: Sequence[int]) -> Tensor:
        """What the classifier is shown in some draws of a step, numbers in [0, K); has a gradient, its own or a
        straight-through one. It depends on each utterance's key, the step (any integer) and the draws alone. Shape
        (draws * B, ...): all utterances in the first draw, then in the second, and so on.
        """


class ToFeatures(Protocol):
    """Maps what an attack moves to features; differentiable. Derived from `Rows`."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features of shape (B, F, L)."""

    def ball(self, epsilon: float, snr_db: float | None, masked: bool) -> Ball:
        """What the budget allows of each utterance."""

    def own(self, inputs: Tensor) -> Tensor:
        """What was moved, where it may be; everywhere else the clean values, bit for bit."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    loss_B: Tensor
    gradient: Tensor
    """Of each utterance's own loss, in the shape of the inputs."""
    logits_BC: Tensor
    """Of a randomised model: the mean of log-probabilities over draws."""
    right_B: Tensor
    """Probability of being recognised, in [0, 1]: 0 or 1 where nothing is random."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target(Rows):
    """A batch's model; to be used inside `attacked`."""

    network: nn.Module
    """Maps features to logits of shape (B, C)."""
    keys_B: Sequence[str]
    """Utterance ids, which draws are keyed by."""
    passes: Passes
    to_features: ToFeatures | None = None
    """None where features themselves are moved."""
    expectation: Expectation | None = None
    """None where the network alone is attacked."""

    def features(self, inputs: Tensor) -> Tensor:
        """What the classifier, or the defence in front of it, is shown: shape (B, F, L)."""
        return inputs if self.to_features is None else self.to_features(inputs)

    def __call__(self, inputs: Tensor, step: int = 0) -> Tensor:
        """Logits of shape (B, C), differentiable; of a randomised model means of log-probabilities over draws."""
        features_BFL = self.features(inputs)
        if self.expectation is None:
            return self._run(features_BFL)
        drawn = chain.from_iterable(self._lots(self.expectation, features_BFL, step))
        return torch.stack([weight * F.log_softmax(logits_BC, dim=1) for weight, logits_BC in drawn]).sum(0)

    def right(self, inputs: Tensor, labels_B: Tensor, step: int = 0) -> Tensor:
        """Probability of each utterance of being recognised, shape (B,)."""
        return self.score(inputs, labels_B, cross_entropy, step=step)[1]

    @torch.no_grad()
    def score(self, inputs: Tensor, labels_B: Tensor, loss: Loss, *, step: int = 0) -> tuple[Tensor, Tensor]:
        """Loss and recognition of `answer`, each of shape (B,), by one forward pass an utterance and draw."""
        features_BFL = self.features(inputs)
        if self.expectation is None:
            return loss(logits_BC := self._run(features_BFL), labels_B), _recognised(logits_BC, labels_B)
        parts = [
            torch.stack([weight * loss(logits_BC, labels_B), weight * _recognised(logits_BC, labels_B)])
            for weight, logits_BC in chain.from_iterable(self._lots(self.expectation, features_BFL, step))
        ]
        loss_B, right_B = torch.stack(parts).sum(0)
        return loss_B, right_B

    def answer(self, inputs: Tensor, labels_B: Tensor, loss: Loss, *, step: int = 0) -> Answer:
        """Loss, gradient and recognition of a batch: one forward and one backward pass an utterance and draw.

        In expectation, loss and gradient are weighted means over draws, not those of a mean prediction: a draw that is
        still right counts, however sure the others are. The same step has the same draws (common random numbers).
        """
        inputs = inputs.detach().requires_grad_()
        features_BFL = self.features(inputs)
        if self.expectation is None:
            logits_BC = self._run(features_BFL)
            loss_B = loss(logits_BC, labels_B)
            self.passes.backward += len(inputs)
            # By the mean, as ART and adversarial training go, whose rounding the signs of small gradients share.
            (gradient,) = torch.autograd.grad(loss_B.mean(), inputs)
            gradient, logits_BC = gradient * len(inputs), logits_BC.detach()
            return Answer(loss_B.detach(), gradient, logits_BC, _recognised(logits_BC, labels_B))
        shown_BFL = features_BFL.detach().requires_grad_()
        gradient = torch.zeros_like(shown_BFL)
        means: list[list[Tensor]] = []
        # Some draws at a time, each lot forward and backward, so that memory does not grow with the number of draws.
        for lot in self._lots(self.expectation, shown_BFL, step):
            raised = []
            for weight, logits_BC in lot:
                raised.append(weight * loss(logits_BC, labels_B))
                seen_BC = logits_BC.detach()
                right_B = weight * _recognised(seen_BC, labels_B)
                means.append([raised[-1].detach(), weight * F.log_softmax(seen_BC, dim=1), right_B])
            self.passes.backward += len(inputs) * len(lot)
            gradient += torch.autograd.grad(torch.stack(raised).sum(), shown_BFL)[0]
        loss_B, logits_BC, right_B = (torch.stack(parts).sum(0) for parts in zip(*means, strict=True))
        if self.to_features is not None:
            (gradient,) = torch.autograd.grad(features_BFL, inputs, gradient)
        return Answer(loss_B, gradient, logits_BC, right_B)

    def _run(self, features_BFL: Tensor) -> Tensor:
        self.passes.forward += len(features_BFL)
        logits_BC: Tensor = self.network(features_BFL)
        return logits_BC

    def _lots(self, expectation: Expectation, features_BFL: Tensor, step: int) -> Iterator[list[tuple[float, Tensor]]]:
        """Weight and logits of every draw of a step, in lots that go forward together."""
        total, most = len(features_BFL), _AT_A_TIME.get(features_BFL.device.type, _AT_A_TIME_ELSEWHERE)
        numbers = range(len(expectation.weights))
        size = max(1, most // max(total, 1))
        for first in numbers[::size]:
            draws = numbers[first : first + size]
            shown = expectation.transform(features_BFL, self.keys_B, step=step, draws=draws)
            parts = torch.split(self._run(shown), total)
            yield [(expectation.weights[draw], logits_BC) for draw, logits_BC in zip(draws, parts, strict=True)]


@contextmanager
def attacked(model: nn.Module, *, low_precision: bool = False) -> Iterator[None]:
    """Everything that a gradient attack needs of its surroundings, put back afterwards, the mode of each module too.

    Inside, every module is in eval mode, no parameter asks for a gradient, gradients are enabled even under ``no_grad``
    or ``inference_mode``, the model runs in float32 (bfloat16 with ``low_precision``) whatever autocast says outside,
    and recurrent layers run without cuDNN, whose backward pass refuses eval mode. (Training mode, as in ART, would
    switch their dropout on.)
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module, _ in modes:
            module.training = False
        for parameter in trained:
            parameter.requires_grad_(False)  # layers with a backward pass of their own compute what is asked for
        with ExitStack() as recurrence, ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(float32_by_default())
            stack.enter_context(autocast(device_of(model), bf16=low_precision))
            # cuDNN is off while a recurrent layer runs, and only then, so that convolutions keep it. The forward pass
            # decides which kernel the backward pass uses, so that this is enough for both.
            for module in model.modules():
                if isinstance(module, nn.RNNBase):
                    off = module.register_forward_pre_hook(
                        lambda *_: recurrence.enter_context(torch.backends.cudnn.flags(enabled=False))
                    )
                    back = module.register_forward_hook(lambda *_: recurrence.close(), always_call=True)
                    stack.callback(off.remove)
                    stack.callback(back.remove)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


def _recognised(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """1 where the prediction is right, 0 elsewhere, shape (B,)."""
    return (logits_BC.argmax(1) == labels_B).float()


@dataclass(frozen=True, slots=True, eq=False)
class BestAdversarial(Rows):
    """Inputs, and what the model says of them: the less they are recognised the better, then the larger the loss. Both
    must have been asked under the same draws of a randomised model.
    """

    inputs: Tensor
    right_B: Tensor
    loss_B: Tensor

    @classmethod
    def of(cls, target: Target, inputs: Tensor, labels_B: Tensor, *, loss: Loss = margin, step: int = 0) -> Self:
        """These inputs, by one forward pass an utterance and draw."""
        loss_B, right_B = target.score(inputs, labels_B, loss, step=step)
        return cls(inputs, right_B, loss_B)

    def or_better(self, other: Self) -> Self:
        """The better of the two for each utterance; this one where they are equal."""
        fewer_B = self.right_B - other.right_B
        better_B = (fewer_B > _ALIKE) | ((fewer_B >= -_ALIKE) & (other.loss_B > self.loss_B))
        return type(self)(*either(better_B, other.parts, self.parts))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.inputs, self.right_B, self.loss_B

    def with_better(self, rows_N: Tensor, other: Self) -> Self:
        best = self.subset(rows_N).or_better(other)
        pairs = zip(self.parts, best.parts, strict=True)
        return type(self)(*(part.index_copy(0, rows_N, new) for part, new in pairs))

    def unbroken(self) -> Tensor:
        """Rows of the utterances that the model still recognises, or may."""
        return (self.right_B > 0).nonzero().flatten()


Ascend = Callable[[Tensor | None, int], Tensor]
"""(rows of the utterances, None for all; number of the start) -> their last iterates."""


def best_of_starts(
    target: Target,
    labels_B: Tensor,
    starts: int,
    ascend: Ascend,
    *,
    loss: Loss = cross_entropy,
    step: int = -1,
    incumbent: Tensor | None = None,
) -> Tensor:
    """The best of what each start leads to and of an incumbent, as `pgd.descend` says. Only what no start has broken
    starts again. Candidates are compared under the draws of a step; no step of an attack has -1.
    """
    if starts == 1 and incumbent is None:
        return ascend(None, 0)
    best, rows_N = None, torch.arange(len(labels_B), device=labels_B.device)
    if incumbent is not None:
        best = BestAdversarial.of(target, incumbent, labels_B, loss=loss, step=step)
    for start in range(starts):
        if best is not None and start > 0:
            rows_N = best.unbroken()
        if not len(rows_N):
            break
        found = ascend(rows_N, start)
        candidate = BestAdversarial.of(target.subset(rows_N), found, labels_B[rows_N], loss=loss, step=step)
        best = candidate if best is None else best.with_better(rows_N, candidate)
    assert best is not None, "there is one start at least"
    return best.inputs
