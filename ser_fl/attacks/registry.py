"""Every attack of the benchmark by name: what it is, what it costs by default, and how to run it.

MIM, DeepFool and HopSkipJump are ART's; the others are our own, FGSM, BIM and PGD equal to ART's to the last bit.

To add an attack, write a function that maps a `Problem` to adversarial features and give it an entry in `ATTACKS`.

When to choose which: `apgd_ce` and `apgd_t` together are the ones to report, `pgd` the one that others report too;
`fgsm` and `bim` show whether gradients are masked (they must not beat it); `mim` transfers best to other models; `fmn`
finds the smallest epsilon of each utterance, and `fmn_l2` the smallest L2 norm; `cw_l2`, `cw_linf` and `deepfool`
look for the same and are what others report; `pgd_paper` and `fgsm` are the paper's; `square` and `hopskipjump` need no
gradient and expose models that hide theirs; `universal` is what an attacker can do who must choose before it hears
anything; `noise_uniform` and `noise_gaussian` are the controls that an attack has to beat. `suites` has sets of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ser_fl.attacks.art import any_attack
from ser_fl.attacks.attack import Attack, Crafted, Entry
from ser_fl.attacks.autopgd import craft_apgd_ce, craft_apgd_dlr, craft_apgd_t
from ser_fl.attacks.linf import craft_bim, craft_fgsm, craft_mim, craft_pgd
from ser_fl.attacks.minimal import craft_cw_l2, craft_cw_linf, craft_deepfool, craft_fmn, craft_fmn_l2
from ser_fl.attacks.noise import craft_noise_gaussian, craft_noise_uniform
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.square import craft_square
from ser_fl.attacks.suites import SUITES
from ser_fl.attacks.universal import craft_universal
from ser_fl.errors import UserError, unknown_name

__all__ = ["ATTACKS", "Attack", "AttackSettings", "Crafted", "Entry", "build", "resolve"]


VERSION = 1
"""Raised by whoever changes what an attack makes for the same settings: what benchmarks of earlier versions kept is
then made anew."""


def _quarter(epsilon: float) -> float:
    return epsilon / 4


def _tenth(epsilon: float) -> float:
    return epsilon / 10


ATTACKS: Mapping[str, Entry] = MappingProxyType(
    {
        "fgsm": Entry(
            craft=craft_fgsm,
            library="ser_fl.descend",
            norm="inf",
            paper="Goodfellow et al. 2015, arXiv 1412.6572",
            steps=1,
            step_size=float,
            settable=frozenset(),
            adaptive=True,
        ),
        "bim": Entry(
            craft=craft_bim,
            library="ser_fl.descend",
            norm="inf",
            paper="Kurakin et al. 2017, arXiv 1607.02533",
            steps=10,
            step_size=_quarter,
            settable=frozenset({"steps", "step_size"}),
            adaptive=True,
            warm=True,
        ),
        "pgd": Entry(
            craft=craft_pgd,
            library="ser_fl.descend",
            norm="inf",
            paper="Madry et al. 2018, arXiv 1706.06083",
            steps=50,
            step_size=_quarter,
            restarts=5,
            settable=frozenset({"steps", "step_size", "restarts"}),
            adaptive=True,
            warm=True,
        ),
        # Weak: without a random start, and with steps of ART's default 0.1, which above an epsilon of 0.05 throw every
        # cell from one face of the ball to the other. Here for comparison with the paper only.
        "pgd_paper": Entry(
            craft=craft_pgd,
            library="ser_fl.descend",
            norm="inf",
            paper="Chang et al. 2022, arXiv 2203.04696, as in its published code",
            steps=5,
            step_size=lambda epsilon: 0.1,
            settable=frozenset({"steps"}),
            adaptive=True,
            quiet_step=True,
        ),
        "mim": Entry(
            craft=craft_mim,
            library="art.MomentumIterativeMethod",
            norm="inf",
            paper="Dong et al. 2018, arXiv 1710.06081",
            steps=10,
            step_size=_tenth,
            settable=frozenset({"steps", "step_size"}),
        ),
        "apgd_ce": Entry(
            craft=craft_apgd_ce,
            library="ser_fl.AutoPGD",
            norm="inf",
            paper="Croce and Hein 2020, arXiv 2003.01690",
            steps=100,
            restarts=1,
            settable=frozenset({"steps", "restarts"}),
            adaptive=True,
            warm=True,
        ),
        "apgd_dlr": Entry(
            craft=craft_apgd_dlr,
            library="ser_fl.AutoPGD",
            norm="inf",
            paper="Croce and Hein 2020, arXiv 2003.01690",
            steps=100,
            restarts=1,
            settable=frozenset({"steps", "restarts"}),
            min_classes=3,
            adaptive=True,
            warm=True,
        ),
        "apgd_t": Entry(
            craft=craft_apgd_t,
            library="ser_fl.AutoPGD",
            norm="inf",
            paper="Croce and Hein 2020, arXiv 2003.01690",
            steps=100,
            restarts=1,
            settable=frozenset({"steps", "restarts"}),
            min_classes=4,
            adaptive=True,
            warm=True,
        ),
        "square": Entry(
            craft=craft_square,
            library="ser_fl.Square",
            norm="inf",
            paper="Andriushchenko et al. 2020, arXiv 1912.00049",
            knowledge="score",
            steps=1000,
            adaptive=True,
        ),
        "hopskipjump": Entry(
            craft=any_attack.craft_hopskipjump,
            library="art.HopSkipJump",
            norm="inf",
            paper="Chen et al. 2020, arXiv 1904.02144",
            knowledge="decision",
            steps=10,
            minimal=True,
            needs_box=True,
        ),
        "universal": Entry(
            craft=craft_universal,
            library="ser_fl.Universal",
            norm="inf",
            paper="Moosavi-Dezfooli et al. 2017, arXiv 1610.08401",
            steps=50,
            adaptive=True,
            whole_set=True,
        ),
        "noise_uniform": Entry(
            craft=craft_noise_uniform,
            library="ser_fl.Noise",
            norm="inf",
            paper="Carlini et al. 2019, arXiv 1902.06705",
            knowledge="score",
            steps=100,
            adaptive=True,
        ),
        "noise_gaussian": Entry(
            craft=craft_noise_gaussian,
            library="ser_fl.Noise",
            norm="inf",
            paper="Carlini et al. 2019, arXiv 1902.06705",
            knowledge="score",
            steps=100,
            adaptive=True,
        ),
        "cw_l2": Entry(
            craft=craft_cw_l2,
            library="ser_fl.carlini_wagner_l2",
            norm="2",
            paper="Carlini and Wagner 2017, arXiv 1608.04644",
            steps=20,
            minimal=True,
            adaptive=True,
        ),
        "cw_linf": Entry(
            craft=craft_cw_linf,
            library="ser_fl.carlini_wagner_linf",
            norm="inf",
            paper="Carlini and Wagner 2017, arXiv 1608.04644",
            steps=40,
            minimal=True,
            adaptive=True,
        ),
        "fmn": Entry(
            craft=craft_fmn,
            library="ser_fl.fast_minimum_norm",
            norm="inf",
            paper="Pintor et al. 2021, arXiv 2102.12827",
            steps=30,
            minimal=True,
            adaptive=True,
        ),
        "fmn_l2": Entry(
            craft=craft_fmn_l2,
            library="ser_fl.fast_minimum_norm",
            norm="2",
            paper="Pintor et al. 2021, arXiv 2102.12827",
            steps=30,
            minimal=True,
            adaptive=True,
        ),
        "deepfool": Entry(
            craft=craft_deepfool,
            library="art.DeepFool",
            norm="2",
            paper="Moosavi-Dezfooli et al. 2016, arXiv 1511.04599",
            steps=50,
            minimal=True,
        ),
    }
)


def _entry(name: str) -> Entry:
    if name in ATTACKS:
        return ATTACKS[name]
    if not name.startswith(any_attack.PREFIX):
        if ":" in name:
            raise UserError(
                f"the attack {name!r} is of another library than ART: take art:ClassName, or one of "
                f"{', '.join(sorted(ATTACKS))}"
            )
        raise unknown_name("attack", name, [*ATTACKS, *SUITES, "art:ClassName"])
    class_name = name.removeprefix(any_attack.PREFIX)
    return Entry(
        craft=any_attack.craft,
        library=f"art.{class_name}",
        norm=any_attack.norm_of(name),
        paper=f"see ART's {class_name}",
        knowledge=any_attack.KNOWLEDGE.get(class_name, "undefended"),
        minimal=True,
        needs_box=class_name in any_attack.NEEDS_BOX,
    )


def resolve(settings: AttackSettings) -> AttackSettings:
    """Settings with every None filled by this attack's default, where it has one.

    A setting that the attack does not have is put to what the attack does, with a warning: what a record says is what
    ran.

    Raises:
        UserError: unknown name; the known ones are listed.
    """
    entry = _entry(settings.name)
    if settings.name not in ATTACKS:
        return any_attack.resolve(settings)
    defaults = {
        "steps": entry.steps,
        "step_size": entry.step_size and entry.step_size(settings.epsilon),
        "restarts": entry.restarts,
    }
    chosen = {word: getattr(settings, word) for word in defaults if getattr(settings, word) is not None}
    for word in chosen.keys() - entry.settable:
        if chosen.pop(word) != defaults[word]:
            warnings.warn(
                f"{settings.name} has its own {word}: {defaults[word]}; the given one is unused", stacklevel=3
            )
    return replace(settings, **(defaults | chosen))


def build(settings: AttackSettings) -> Attack:
    """The attack that settings name.

    Raises:
        UserError: unknown name; the known ones are listed.
    """
    resolved = resolve(settings)
    entry = _entry(settings.name)
    step_size = resolved.step_size
    if step_size is not None and resolved.epsilon > 0 and step_size > resolved.epsilon and not entry.quiet_step:
        warnings.warn(
            f"{settings.name}: a step size of {step_size:g} exceeds epsilon {resolved.epsilon:g}, so that every step "
            "ends on the ball's edge",
            stacklevel=2,
        )
    return Attack(settings=resolved, entry=entry)
