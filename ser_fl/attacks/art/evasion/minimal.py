"""Our attacks that look for the nearest adversarial input, as attacks of ART."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from torch import Tensor

from ser_fl.attacks.art.evasion.base import NORMS, TensorAttack
from ser_fl.attacks.art.evasion.parameters import Parameter, choice, real, whole
from ser_fl.attacks.carlini_wagner import SEARCH_STEPS, carlini_wagner_l2, carlini_wagner_linf
from ser_fl.attacks.fmn import fast_minimum_norm
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import Box


class CarliniWagnerL2(TensorAttack):
    """Carlini and Wagner's L2 attack, `ser_fl.attacks.carlini_wagner.carlini_wagner_l2`; stands in for
    CarliniL2Method.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        max_iter: iterations for each constant, at most.
        binary_search_steps: constants that are tried.
        given: ``targeted``, ``batch_size`` and ``verbose``, as of `TensorAttack`.
    """

    parameters: ClassVar[Mapping[str, Parameter]] = {
        **TensorAttack.parameters,
        "max_iter": whole(20, least=1),
        "binary_search_steps": whole(SEARCH_STEPS, least=1),
    }

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        return carlini_wagner_l2(
            target,
            clean,
            labels_B,
            box=box,
            steps=self.max_iter,
            search_steps=self.binary_search_steps,
            targeted=self.targeted,
        )


class CarliniWagnerLInf(TensorAttack):
    """Carlini and Wagner's L-infinity attack, `ser_fl.attacks.carlini_wagner.carlini_wagner_linf`; stands in for
    CarliniLInfMethod.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        initial_tau: the largest change of a value that is looked at, >= 0.
        max_iter: iterations, for all bounds together.
        given: ``targeted``, ``batch_size`` and ``verbose``, as of `TensorAttack`.
    """

    parameters: ClassVar[Mapping[str, Parameter]] = {
        **TensorAttack.parameters,
        "initial_tau": real(1.0),
        "max_iter": whole(40, least=1),
    }

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        return carlini_wagner_linf(
            target,
            clean,
            labels_B,
            tau_B=clean.new_full((len(clean),), self.initial_tau),
            box=box,
            steps=self.max_iter,
            targeted=self.targeted,
        )


class FastMinimumNorm(TensorAttack):
    """The fast minimum-norm attack, `ser_fl.attacks.fmn.fast_minimum_norm`, which ART does not have.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        norm: the norm that is made small, np.inf, "inf", 2 or "2".
        max_iter: iterations.
        given: ``targeted``, ``batch_size`` and ``verbose``, as of `TensorAttack`.
    """

    parameters: ClassVar[Mapping[str, Parameter]] = {
        **TensorAttack.parameters,
        "norm": choice(np.inf, NORMS),
        "max_iter": whole(30, least=1),
    }

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        return fast_minimum_norm(
            target,
            clean,
            labels_B,
            norm=NORMS[self.norm],
            box=box,
            steps=self.max_iter,
            targeted=self.targeted,
        )
