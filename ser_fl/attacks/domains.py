"""What attacks move: standardised log-mel features, or the samples of recordings.

A `Domain` says what is moved, in which box, how far a budget lets it go, how it becomes the features that a classifier
is shown, and how far it went. All else of an attack and of a benchmark is the same for both; see `waveform_domain`.

Legend: N utterances, F mel bins, L frames.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ser_fl.attacks.attack import Attack, Problem
from ser_fl.attacks.threat_model import Box, Norm, distance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crafted:
    """Adversarial utterances as a classifier is shown them, how far they went, and what they cost."""

    adversarial_NFL: Tensor
    written_NFL: Tensor | None = None
    """Of recordings: the same after a 16-bit WAV file."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """What was measured, one value an utterance: "l2", "linf" and others."""
    forward_passes: int = 0
    """Utterances that went forward through the model, ART's own checks included."""
    backward_passes: int = 0
    seconds: float = 0.0

    @classmethod
    def join(cls, parts: Sequence[Self], rows: Sequence[int], empty: Tensor) -> Self:
        """Parts of one domain in the order that the rows say; without a part, ``empty``, of shape (0, F, L)."""
        order = torch.tensor(rows, dtype=torch.int64).argsort()
        names = parts[0].figures if parts else ()
        written = [part.written_NFL for part in parts if part.written_NFL is not None]
        return cls(
            adversarial_NFL=torch.cat([empty, *(part.adversarial_NFL for part in parts)])[order],
            written_NFL=torch.cat(written)[order] if written else None,
            figures={name: torch.cat([part.figures[name] for part in parts])[order] for name in names},
            forward_passes=sum(part.forward_passes for part in parts),
            backward_passes=sum(part.backward_passes for part in parts),
            seconds=sum(part.seconds for part in parts),
        )


@dataclass(frozen=True, slots=True)
class Domain:
    """What an attack moves: as it stands, standardised log-mel features within epsilons."""

    name: str = "logmel"
    """As records name it."""
    sweeps: bool = True
    """Whether an attack goes on where a smaller budget led to. Else each budget is attacked by itself, and an attack
    that looks for the smallest perturbation is made once and held against all."""

    def problems(self, problem: Problem) -> list[tuple[list[int], Problem]]:
        """A batch of features as what is moved here: the rows of some utterances, and theirs; every row once."""
        return [(list(range(len(problem.keys_B))), problem)]

    def craft(self, attack: Attack, problem: Problem) -> Crafted:
        """What a classifier is shown of a batch of features under attack, and figures of how far that went."""
        return Crafted(adversarial_NFL=attack.craft(problem))

    def held(self, crafted: Crafted, attack: Attack, clean_NFL: Tensor) -> Crafted:
        """What keeps to the budget, clean utterances in place of the rest; with figures "l2" and "linf"."""
        norms: dict[str, Norm] = {"l2": "2", "linf": "inf"}
        figures = {name: distance(clean_NFL, crafted.adversarial_NFL, norm) for name, norm in norms.items()}
        return replace(crafted, figures=figures)

    def lacks(self, measured: Collection[str], attack: Attack, ids: Sequence[str], adaptive: bool) -> bool:
        """Whether more is asked for than was measured of these utterances, or kept of them, when they were attacked."""
        return False

    def widest(self, features_NFL: Tensor, box: Box) -> float:
        """The epsilon that allows everything: the box's widest side, or the range of the features without a box."""
        if box.lower_F1 is None or box.upper_F1 is None:
            return float(features_NFL.max() - features_NFL.min())
        return float((box.upper_F1 - box.lower_F1).max())


LOGMEL = Domain()
