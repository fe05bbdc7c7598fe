"""Sets of attacks by name, so that two benchmarks of one suite mean the same.

When to choose which: `quick` shows in minutes whether a model is robust at all; `standard` is the one to report, with
the stronger half of what AutoAttack runs and a look at masked gradients and noise; `thorough` is for a model that is
claimed to be robust; `paper` is what the field's papers run, by the library's own code: for comparison, not for claims.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ser_fl.config.robustness import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What a suite runs."""

    attacks: tuple[str, ...]
    """Names of the registry, in the order of the records."""
    subsets: Mapping[str, int] = field(default_factory=dict)
    """Utterances for those of its attacks that are too slow for all, where nothing else is said."""
    backend: Backend | None = None
    """Whose code runs them, where nothing else is said."""


_STANDARD = ("fgsm", "bim", "pgd", "apgd_ce", "apgd_t", "cw_linf", "fmn", "square", "noise_uniform")
_MORE = ("apgd_dlr", "mim", "pgd_paper", "cw_l2", "fmn_l2", "deepfool", "hopskipjump", "universal", "noise_gaussian")
SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "quick": Suite(attacks=("fgsm", "bim", "apgd_ce", "noise_uniform")),
        "standard": Suite(attacks=_STANDARD, subsets={"square": 120}),
        "paper": Suite(attacks=("fgsm", "bim", "pgd", "cw_l2"), backend="art"),
        "thorough": Suite(attacks=(*_STANDARD, *_MORE), subsets={"square": 120, "deepfool": 60, "hopskipjump": 12}),
    }
)
SUITE_ON_RECORDINGS = ("pgd", "apgd_ce", "cw_l2")
"""What every suite stands for on recordings."""


def expand(names: Iterable[str], fits: Callable[[str], bool] = lambda name: True) -> tuple[str, ...]:
    """Names of attacks, each once, with those of its attacks in place of a suite's, as far as they fit.

    What a suite holds and does not fit is left out with a warning; what is named outright stays, to be refused.

    >>> expand(["noise_gaussian", "quick", "bim"])
    ('noise_gaussian', 'fgsm', 'bim', 'apgd_ce', 'noise_uniform')
    """
    attacks: dict[str, None] = {}
    for name in names:
        if name not in SUITES:
            attacks[name] = None
            continue
        attacks |= dict.fromkeys(filter(fits, SUITES[name].attacks))
        if left := ", ".join(attack for attack in SUITES[name].attacks if not fits(attack)):
            warnings.warn(f"the suite {name} is run without what does not fit here: {left}", stacklevel=3)
    return tuple(attacks)


def subsets_of(names: Sequence[str]) -> dict[str, int]:
    """Sizes of subsets that the suites among these names ask for; the larger where two of them differ.

    >>> subsets_of(["standard", "thorough"])["square"]
    120
    """
    sizes: dict[str, int] = {}
    for name in names:
        if name in SUITES:
            sizes |= {attack: max(size, sizes.get(attack, 0)) for attack, size in SUITES[name].subsets.items()}
    return sizes
