"""Our model as an ART classifier, for as long as one attack runs, and ART's own attacks by gradients on it.

ART switches modes, wipes gradients, runs recurrent layers in training mode and moves the model to its own idea of a
device. So it is given `HiddenNetwork`, a module without parameters or children, in which there is nothing to change.
Nothing here is stored or pickled.

ART's FGSM, BIM and PGD give the same bits as `ser_fl.attacks.pgd`: the steps are ART's, while random starts, what a
smaller budget led to, and who is started again are ours. ART draws its starts from NumPy's global state, so that they
hang on the batch, and its restarts judge success by a changed prediction.

Legend: B utterances, N some of them, F mel bins, L frames, C classes. ART sees features as one-channel images, (B, 1,
F, L).
"""

import logging
import logging.config
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Problem
from ser_fl.attacks.losses import cross_entropy
from ser_fl.attacks.target import Target, best_of_starts
from ser_fl.attacks.threat_model import Box

Array = npt.NDArray[np.float32]
ClipValues = tuple[Array, Array] | tuple[float, float]

DEEPFOOL_OVERSHOOT = 0.02


def import_art() -> Any:
    """ART's evasion attacks, imported without what that import does to logging: it would close every handler."""
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        import art.attacks.evasion
        import art.estimators.classification
    finally:
        logging.config.dictConfig = configure
    # Its warnings are about choices that are made here on purpose, or are looked at by our own checks.
    logging.getLogger("art").setLevel(logging.ERROR)
    return art.attacks.evasion


class HiddenNetwork(nn.Module):
    """The network as ART gets to see it, to be used inside `target.attacked`; ``to_features`` maps what the
    attack moves, of shape (B, F, L), to features. The target is no module, whose parameters and modes ART would find.
    """

    def __init__(self, target: Target, device: torch.device, to_features: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self._target, self._device, self._to_features = target, device, to_features
        self._step = 0

    def forward(self, inputs_B1FL: Tensor) -> Tensor:
        """Logits of shape (B, C), on the device of the inputs; in expectation all inputs are of one utterance."""
        differentiated = torch.is_grad_enabled() and inputs_B1FL.requires_grad
        self._step += differentiated
        features_BFL = inputs_B1FL.squeeze(1).float().to(self._device)
        if self._to_features is not None:
            features_BFL = self._to_features(features_BFL)
        target, passes, draws = self._target, self._target.passes, 1
        if target.expectation is not None:
            draws = len(target.expectation.weights)
            target = replace(target, keys_B=[*target.keys_B] * len(features_BFL))
        logits_BC = target(features_BFL, self._step).to(inputs_B1FL.device)
        if differentiated:

            def count_backward(gradient_BC: Tensor) -> None:
                passes.backward += len(gradient_BC) * draws

            logits_BC.register_hook(count_backward)  # type: ignore[no-untyped-call]
        return logits_BC


def classifier_of(
    problem: Problem, clip_values: ClipValues | None, to_features: Callable[[Tensor], Tensor] | None = None
) -> Any:
    """The model as an ART PyTorchClassifier, to be used while this problem is solved and never kept.

    In expectation every gradient draws anew, and what is asked for without one, such as the steps of a line search,
    meets the draws of the gradient before it. ART does not say whose images it shows: the problem is then one
    utterance's. It clips to ``clip_values``, which broadcast to (F, L); ``to_features`` is as of `HiddenNetwork`.
    """
    assert problem.expectation is None or len(problem.keys_B) == 1, f"{len(problem.keys_B)} utterances for ART"
    import_art()
    from art.estimators.classification import PyTorchClassifier

    device = problem.clean.device
    hidden = HiddenNetwork(problem, device, to_features)
    estimator = PyTorchClassifier(
        model=hidden,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, *problem.clean.shape[1:]),
        nb_classes=problem.num_classes,
        clip_values=clip_values,
        preprocessing=None,
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    by_class = estimator.class_gradient

    def class_gradient(x: Array, label: Any = None, **kwargs: Any) -> Any:
        """By one backward pass, where ART takes one a class; utterances do not see each other in eval mode."""
        if not isinstance(label, np.ndarray):
            return by_class(x, label=label, **kwargs)
        inputs = torch.from_numpy(x).to(estimator.device).requires_grad_()
        chosen_B1 = torch.from_numpy(label.astype(np.int64)).to(estimator.device)[:, None]
        (gradient,) = torch.autograd.grad(hidden(inputs).gather(1, chosen_B1).sum(), inputs)
        return gradient.cpu().numpy()[:, None]

    estimator.class_gradient = class_gradient
    return estimator


def generated(attack: Any, problem: Problem, **words: Any) -> Tensor:
    """What an attack of ART's makes of the clean features, given true classes unless ``y`` is said: shape (B, F, L)."""
    images, labels = problem.clean.cpu().numpy()[:, None].copy(), problem.labels_B.cpu().numpy()
    made: Array = attack.generate(images, **{"y": labels} | words)
    return torch.from_numpy(np.ascontiguousarray(made[:, 0], dtype=np.float32)).to(problem.clean.device)


def right_when_clean(problem: Problem) -> Tensor:
    """Rows of the utterances that the model gets right without an attack, shape (N,); ever, where it is randomised."""
    return problem.right(problem.clean, problem.labels_B).nonzero().flatten()


def clip_values_of(box: Box, *, scalar: bool = False) -> ClipValues | None:
    """Bounds of a box for ART, of all mel bins together for classes that know no others; None where there is no box.
    ART refuses an empty range: a mel bin that can take one value only is widened by one rounding.
    """
    if box.lower_F1 is None or box.upper_F1 is None:
        return None
    lower, upper = (side.detach().cpu().numpy().astype(np.float32) for side in (box.lower_F1, box.upper_F1))
    upper = np.maximum(upper, np.nextafter(lower, np.float32(np.inf)))
    return (float(lower.min()), float(upper.max())) if scalar else (lower, upper)


def _climb(class_name: str, problem: Problem) -> Tensor:
    """What a class that steps along gradients finds from each start, until one succeeds, chosen as `pgd.descend` does.

    It runs on a PyTorchClassifier that answers no more than it needs. In expectation its gradient is `Target.answer`'s,
    of the whole batch at once.
    """
    settings, single = problem.settings, class_name == "FastGradientMethod"
    words = {} if single else {"eps_step": settings.step_size, "max_iter": settings.steps, "verbose": False}
    starts = [problem.clean] if single else problem.starts(problem.ball)

    def ascend(rows_N: Tensor | None, restart: int) -> Tensor:
        part, start = problem, starts[restart]
        if rows_N is not None:
            part, start = problem.subset(rows_N), start[rows_N]
        estimator = classifier_of(replace(part, expectation=None), clip_values_of(part.box))
        # For a success rate that only ART's log would see it asks for predictions: two passes an utterance.
        estimator.predict = lambda images, **_: np.zeros((len(images), part.num_classes), np.float32)
        if part.expectation is not None:
            draws = count(restart * problem.steps)

            def expected_gradient(x: Any, y: Any) -> Any:
                moved_BFL = torch.as_tensor(x, device=part.labels_B.device)[:, 0]
                answer = part.answer(moved_BFL, part.labels_B, cross_entropy, step=next(draws))
                gradient_B1FL = answer.gradient[:, None]
                return gradient_B1FL if isinstance(x, Tensor) else gradient_B1FL.cpu().numpy()

            estimator.loss_gradient = expected_gradient
        attack = getattr(import_art(), class_name)(
            estimator, eps=settings.epsilon, batch_size=len(part.keys_B), **words
        )
        if not single:
            # ART 1.20.1 knows two starts only: the input, and a random one. Its HopSkipJump takes an ``x_adv_init``; a
            # PGD that did would make this hook needless, and a test fails.
            start_N1FL, pgd = part.box.clip(start.detach())[:, None], getattr(attack, "_attack", attack)
            plain = pgd._compute_pytorch
            pgd._compute_pytorch = lambda moved_N1FL, *others: plain(
                start_N1FL if pgd._i_max_iter == 0 else moved_N1FL, *others
            )
        lower_F1, upper_F1, movable = part.box.lower_F1, part.box.upper_F1, None
        if lower_F1 is not None and upper_F1 is not None and not bool((lower_F1 < upper_F1).all()):
            # ART's own bounds cannot meet (`clip_values_of`).
            movable = (lower_F1 < upper_F1).expand_as(part.clean)[:, None].float().cpu().numpy()
        return generated(attack, part, mask=movable)

    held = None if single or problem.start_BFL is None else problem.box.clip(problem.start_BFL.detach().clone())
    return best_of_starts(problem, problem.labels_B, len(starts), ascend, incumbent=held)


craft_fgsm = partial(_climb, "FastGradientMethod")
craft_bim = partial(_climb, "BasicIterativeMethod")
craft_pgd = partial(_climb, "ProjectedGradientDescentPyTorch")


def craft_mim(problem: Problem) -> Tensor:
    """ART's MomentumIterativeMethod with the paper's decay of 1: each gradient counts by its own L1 norm."""
    attack = import_art().MomentumIterativeMethod(
        classifier_of(problem, clip_values_of(problem.box)),
        norm="inf",
        decay=1.0,
        eps=problem.settings.epsilon,
        eps_step=problem.settings.step_size,
        max_iter=problem.settings.steps,
        batch_size=len(problem.keys_B),
        verbose=False,
    )
    return generated(attack, problem)


def craft_deepfool(problem: Problem) -> Tensor:
    """ART's DeepFool on the model that clips to the box first, so that its nearest utterance lies inside.

    Told of a box, ART's class stretches its steps by the box's width, and ends that much too far away. It leads away
    from the predicted class, so that it is given only what is right when clean. What rounding to the box mends is
    returned clean.
    """
    adversarial_BFL, right_N = problem.clean.clone(), right_when_clean(problem)
    if not len(right_N):
        return adversarial_BFL
    part = problem.subset(right_N)
    attack = import_art().DeepFool(
        classifier_of(part, None, to_features=problem.box.clip),
        max_iter=part.settings.steps,
        epsilon=DEEPFOOL_OVERSHOOT,
        nb_grads=part.num_classes,
        batch_size=1,  # in a larger batch all go on until the last one is through
        verbose=False,
    )
    adversarial_BFL[right_N] = generated(attack, part)
    inside_BFL = problem.box.clip(adversarial_BFL)
    with torch.no_grad():
        wrong_B = problem(inside_BFL).argmax(1) != problem.labels_B
    return torch.where(wrong_B[:, None, None], inside_BFL, problem.clean)
