"""Every attack and suite of the benchmark by name: what it is, what it costs by default, and how to run it.

To add an attack, write a function that maps a `Problem` to adversarial inputs and give it an entry in `ATTACKS`; for
one benchmark alone, hand a function to `ser_fl.benchmark` (`objects`).

When to choose which: `apgd_ce` and `apgd_t` together are the ones to report, `pgd` the one that others report too;
`fgsm` and `bim` show whether gradients are masked (they must not beat it); `mim` transfers best to other models; `fmn`
finds the smallest epsilon of each utterance, `fmn_l2` the smallest L2 norm; `cw_l2`, `cw_linf` and `deepfool` look for
the same and are what others report; `pgd_paper` and `fgsm` are the paper's; `square` and `hopskipjump` need no gradient
and expose models that hide theirs; `universal` must choose before it hears anything; `psychoacoustic` asks what a
listener would not hear; `noise_uniform` and `noise_gaussian` are the controls that an attack has to beat. A name that
ends in `_unlabelled` is the attack without true classes.

Of the suites, `quick` shows in minutes whether a model is robust at all; `standard` is the one to report, with the
stronger half of what AutoAttack runs and a look at masked gradients and noise; `thorough` is for a model that is
claimed to be robust; `paper` is what the field's papers run, by the library's own code: for comparison, not for claims.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ser_fl.attacks.art import any_attack, estimator
from ser_fl.attacks.art.estimator import craft_deepfool, craft_mim
from ser_fl.attacks.attack import Attack, AttackSettings, Entry
from ser_fl.attacks.autopgd import craft_apgd_ce, craft_apgd_dlr, craft_apgd_t
from ser_fl.attacks.carlini_wagner import craft_cw_l2, craft_cw_linf
from ser_fl.attacks.minimum_norm import craft_fmn, craft_fmn_l2
from ser_fl.attacks.pgd import craft_fgsm, craft_pgd
from ser_fl.attacks.score_attacks import craft_noise_gaussian, craft_noise_uniform, craft_square
from ser_fl.attacks.step_size import STEPS_TO_THE_EDGE
from ser_fl.attacks.universal import craft_universal
from ser_fl.config.robustness import Backend
from ser_fl.errors import UserError, unknown_name

VERSION = 1
"""To be raised by whoever changes what an attack makes for the same settings: older kept results are then made anew."""

_STEPS = frozenset({"steps", "step_size"})
_OURS: dict[str, Any] = {"adaptive": True}
_FILLS: dict[str, Any] = {"warm": True, "on_recordings": ("snr_db", "amplitude"), **_OURS}
_SEEKS: dict[str, Any] = {"minimal": True, **_OURS}
_PGD = Entry(
    craft_pgd,
    "ser_fl.descend",
    "Madry et al. 2018, arXiv 1706.06083",
    steps=50,
    steps_to_edge=STEPS_TO_THE_EDGE,
    restarts=5,
    settable=_STEPS | {"restarts"},
    **_FILLS,
)
_APGD = Entry(
    craft_apgd_ce,
    "ser_fl.AutoPGD",
    "Croce and Hein 2020, arXiv 2003.01690",
    steps=100,
    restarts=1,
    settable=frozenset({"steps", "restarts"}),
    **_FILLS,
)
_FMN = Entry(craft_fmn, "ser_fl.fast_minimum_norm", "Pintor et al. 2021, arXiv 2102.12827", steps=30, **_SEEKS)
_CARLINI = "Carlini and Wagner 2017, arXiv 1608.04644"
_NOISE = Entry(
    craft_noise_uniform, "ser_fl.Noise", "Carlini et al. 2019, arXiv 1902.06705", knowledge="score", steps=100, **_OURS
)

ATTACKS: Mapping[str, Entry] = {
    "fgsm": replace(
        _PGD,
        craft=craft_fgsm,
        paper="Goodfellow et al. 2015, arXiv 1412.6572",
        steps=1,
        steps_to_edge=1.0,
        restarts=0,
        settable=frozenset(),
        warm=False,
    ),
    "bim": replace(_PGD, paper="Kurakin et al. 2017, arXiv 1607.02533", steps=10, restarts=0, settable=_STEPS),
    "pgd": _PGD,
    # Weak: without a random start, and with steps of ART's default 0.1, which above an epsilon of 0.05 throw every
    # cell from one face of the ball to the other. Here for comparison with the paper only.
    "pgd_paper": replace(
        _PGD,
        paper="Chang et al. 2022, arXiv 2203.04696, as in its published code",
        steps=5,
        fixed_step=0.1,
        restarts=0,
        warm=False,
        settable=frozenset({"steps"}),
        on_recordings=(),
    ),
    "mim": Entry(
        craft_mim,
        "art.MomentumIterativeMethod",
        "Dong et al. 2018, arXiv 1710.06081",
        steps=10,
        steps_to_edge=10.0,
        settable=_STEPS,
    ),
    "apgd_ce": _APGD,
    "apgd_dlr": replace(_APGD, craft=craft_apgd_dlr, min_classes=3),
    "apgd_t": replace(_APGD, craft=craft_apgd_t, min_classes=4),
    "square": replace(
        _NOISE,
        craft=craft_square,
        library="ser_fl.Square",
        paper="Andriushchenko et al. 2020, arXiv 1912.00049",
        steps=1000,
    ),
    "hopskipjump": Entry(
        any_attack.craft_as("HopSkipJump"),  # some 2,000 forward passes an utterance in 10 steps
        "art.HopSkipJump",
        "Chen et al. 2020, arXiv 1904.02144",
        knowledge="decision",
        steps=10,
        minimal=True,
        needs_box=True,
    ),
    "universal": Entry(
        craft_universal,
        "ser_fl.Universal",
        "Moosavi-Dezfooli et al. 2017, arXiv 1610.08401",
        steps=50,
        whole_set=True,
        **_OURS,
    ),
    "noise_uniform": _NOISE,
    "noise_gaussian": replace(_NOISE, craft=craft_noise_gaussian),
    "cw_l2": Entry(
        craft_cw_l2, "ser_fl.carlini_wagner_l2", _CARLINI, norm="2", steps=20, on_recordings=("snr_db",), **_SEEKS
    ),
    "cw_linf": Entry(craft_cw_linf, "ser_fl.carlini_wagner_linf", _CARLINI, steps=40, **_SEEKS),
    "fmn": _FMN,
    "fmn_l2": replace(_FMN, craft=craft_fmn_l2, norm="2", on_recordings=("snr_db",)),
    "deepfool": Entry(
        craft_deepfool,
        "art.DeepFool",
        "Moosavi-Dezfooli et al. 2016, arXiv 1511.04599",
        norm="2",
        steps=50,
        minimal=True,
    ),
}
ON_RECORDINGS: Mapping[str, Entry] = {
    **{name: entry for name, entry in ATTACKS.items() if entry.on_recordings},
    "psychoacoustic": replace(_APGD, paper="Qin et al. 2019, arXiv 1903.10346", on_recordings=("masking",)),
}
ART_BY_DEFAULT = frozenset({"fgsm", "bim", "pgd"})
"""Attacks that ART has as well as we, and that ``backend=auto`` leaves to ART: the same bits."""
BY_ART: Mapping[str, Entry] = {
    name: replace(
        ATTACKS[name],
        craft=craft or any_attack.craft_as(class_name),
        library=f"art.{class_name}",
        adaptive=name in ART_BY_DEFAULT,
        needs_box="box" in any_attack.traits_of(class_name),
    )
    for name, class_name, craft in (
        ("fgsm", "FastGradientMethod", estimator.craft_fgsm),
        ("bim", "BasicIterativeMethod", estimator.craft_bim),
        ("pgd", "ProjectedGradientDescentPyTorch", estimator.craft_pgd),
        # Some 570 forward and 200 backward passes an utterance in 10 iterations, where ours takes 37 and 32.
        ("cw_l2", "CarliniL2Method", None),
        ("cw_linf", "CarliniLInfMethod", None),  # tens of thousands of passes an utterance
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    attacks: tuple[str, ...]
    """Names of the registry, in the order of the records."""
    subsets: Mapping[str, int] = field(default_factory=dict)
    """Utterances for those of its attacks that are too slow for all, where nothing else is said."""
    backend: Backend | None = None
    """Whose code runs them, where nothing else is said."""


_STANDARD = ("fgsm", "bim", "pgd", "apgd_ce", "apgd_t", "cw_linf", "fmn", "square", "noise_uniform")
_MORE = ("apgd_dlr", "mim", "pgd_paper", "cw_l2", "fmn_l2", "deepfool", "hopskipjump", "universal", "noise_gaussian")
SUITES: Mapping[str, Suite] = {
    "quick": Suite(attacks=("fgsm", "bim", "apgd_ce", "noise_uniform")),
    "standard": Suite(attacks=_STANDARD, subsets={"square": 120}),
    "paper": Suite(attacks=("fgsm", "bim", "pgd", "cw_l2"), backend="art"),
    "thorough": Suite(attacks=(*_STANDARD, *_MORE), subsets={"square": 120, "deepfool": 60, "hopskipjump": 12}),
}
SUITE_ON_RECORDINGS = ("pgd", "apgd_ce", "cw_l2")
"""What every suite stands for on recordings."""


def entry_of(name: str, backend: Backend = "auto") -> Entry:
    """The attack of a name, run by ART's code or ours; an unknown name is a `UserError` that lists the known ones."""
    if name in BY_ART and (backend == "art" or (backend == "auto" and name in ART_BY_DEFAULT)):
        return BY_ART[name]
    if name in ATTACKS:
        return ATTACKS[name]
    if name in ON_RECORDINGS:
        raise UserError(f"{name} goes on recordings alone: set domain=waveform")
    if name.startswith(any_attack.PREFIX):
        return any_attack.entry_of(name)
    if ":" in name:
        ours = ", ".join(sorted(ATTACKS))
        raise UserError(f"the attack {name!r} is of another library than ART: take art:ClassName, or one of {ours}")
    raise unknown_name("attack", name, [*ATTACKS, *SUITES, "art:ClassName"])


def build(settings: AttackSettings) -> Attack:
    """The attack on features that settings name, every None of them filled by its default. A setting that the attack
    does not have is put to what the attack does, with a warning: what a record says is what ran. Unknown names, and
    attacks that go on recordings alone, are a `UserError`.
    """
    entry = entry_of(settings.name, settings.backend)
    step_size = entry.fixed_step or (entry.steps_to_edge and settings.epsilon / entry.steps_to_edge)
    defaults = {"steps": entry.steps, "step_size": step_size, "restarts": entry.restarts}
    chosen = {word: getattr(settings, word) for word in defaults if getattr(settings, word) is not None}
    for word in chosen.keys() - entry.settable:
        if chosen.pop(word) != defaults[word]:
            unused = f"{settings.name} has its own {word}: {defaults[word]}; the given one is unused"
            warnings.warn(unused, stacklevel=2)
    settings = replace(settings, **(defaults | chosen))
    if (step := settings.step_size) and 0 < settings.epsilon < step and entry.fixed_step is None:
        too_long = f"{settings.name}: a step size of {step:g} exceeds epsilon {settings.epsilon:g}"
        warnings.warn(f"{too_long}, so that every step ends on the ball's edge", stacklevel=2)
    return Attack(settings=settings, entry=entry)


def build_on_recordings(settings: AttackSettings) -> Attack:
    """The attack on recorded samples that settings name; always our own. Steps are a share of the ball where nothing
    else is said (`pgd.TOTAL_RADII`), and one random start is the default. A `UserError` says that none of that name
    goes on recordings, or not within such a budget.
    """
    if settings.name not in ON_RECORDINGS:
        raise unknown_name("attack of domain=waveform", settings.name, ON_RECORDINGS)
    entry = ON_RECORDINGS[settings.name]
    unit = "masking" if settings.masked else "amplitude" if settings.snr_db is None else "snr_db"
    if unit not in entry.on_recordings:
        units = " or ".join(entry.on_recordings)
        raise UserError(f"{settings.name} keeps to budgets of {units} only: set snr_dbs, such as [30]")
    restarts = None
    if "restarts" in entry.settable:
        restarts = min(entry.restarts or 0, 1) if settings.restarts is None else settings.restarts
    steps = entry.steps if settings.steps is None or "steps" not in entry.settable else settings.steps
    return Attack(settings=replace(settings, steps=steps, restarts=restarts), entry=entry)
