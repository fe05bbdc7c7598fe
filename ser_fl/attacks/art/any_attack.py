"""Any evasion attack of ART by its class name, ``art:ClassName``, its keyword arguments filled from our settings."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import classifier_of, clip_values_of, generated, import_art, right_when_clean
from ser_fl.attacks.attack import Entry, Problem
from ser_fl.attacks.step_size import STEPS_TO_THE_EDGE
from ser_fl.attacks.threat_model import budget_of
from ser_fl.devices import seeded_streams
from ser_fl.errors import UserError, unknown_name
from ser_fl.randomness import derive_seed

PREFIX = "art:"

TRAITS: Mapping[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "BoundaryAttack": "decision box",
        "CarliniL0Method": "box",
        "CarliniL2Method": "box batch",
        "CarliniLInfMethod": "box",
        "ElasticNet": "batch",
        "GeoDA": "decision",
        "HopSkipJump": "decision box",
        "MomentumIterativeMethod": "batch",
        "NewtonFool": "batch",
        "PixelAttack": "score box scalar_bounds",
        "SaliencyMapMethod": "box scalar_bounds unlabelled",
        "ShadowAttack": "box",
        "SignOPTAttack": "decision box",
        "SimBA": "score probabilities one_hot",
        "SpatialTransformation": "decision",
        "SquareAttack": "score box",
        "ThresholdAttack": "score box scalar_bounds",
        "VirtualAdversarialMethod": "score probabilities scalar_bounds l2",
        "ZooAttack": "score scalar_bounds",
    }.items()
}
"""What a class needs that others do not; of one that is not listed, nothing.

score, decision: what it sees in place of gradients. batch: it draws nothing and treats utterances apart, so that it is
given a batch at a time. All others are given one utterance at a time, each with its own seed, so that the result does
not depend on batches. box: without one it would take the utterance's range for one (C&W, HopSkipJump, BoundaryAttack),
step for ever where the class does not change (SaliencyMapMethod), or fail. scalar_bounds: it fails with bounds per mel
bin; it is given the outermost ones, and what it returns is clipped. probabilities: it refuses logits. one_hot: it reads
true classes as rows of zeros with a one. unlabelled: it leads to the class that it is told; told none, it draws a wrong
one. l2: its epsilon is the L2 norm of the perturbation.
"""


def traits_of(name: str) -> frozenset[str]:
    """Those of a class by its name, with or without the prefix."""
    return TRAITS.get(name.removeprefix(PREFIX), frozenset())


def attack_classes() -> dict[str, type[Any]]:
    """ART's evasion attacks by name."""
    found = vars(import_art()).items()
    from art.attacks.attack import EvasionAttack

    return {name: value for name, value in found if inspect.isclass(value) and issubclass(value, EvasionAttack)}


def attack_class(name: str) -> type[Any]:
    """The class behind ``art:ClassName``; a `UserError` lists those that ART has."""
    known = attack_classes()
    class_name = name.removeprefix(PREFIX)
    if class_name not in known:
        raise unknown_name("attack", name, [PREFIX + each for each in known])
    return known[class_name]


def entry_of(name: str) -> Entry:
    """A class by its name ``art:ClassName``: its own number of steps by default, and steps of a quarter of epsilon.
    Attacks with an epsilon or a choice of norms are given "inf" for one. An unknown name is a `UserError`.
    """
    class_name, traits, accepted = name.removeprefix(PREFIX), traits_of(name), _accepted(name)
    in_linf = {"eps", "norm"} & accepted.keys() or class_name == "CarliniLInfMethod"
    words = {"steps": "max_iter", "step_size": "eps_step"}
    return Entry(
        craft,
        f"art.{class_name}",
        f"see ART's {class_name}",
        norm="inf" if in_linf and "l2" not in traits else "2",
        knowledge=next((word for word in ("score", "decision") if word in traits), "undefended"),
        steps=accepted["max_iter"].default if "max_iter" in accepted else None,
        steps_to_edge=STEPS_TO_THE_EDGE if "eps_step" in accepted else None,
        restarts=None,
        settable=frozenset(ours for ours, word in words.items() if word in accepted),
        minimal=True,
        needs_box="box" in traits,
    )


def craft(problem: Problem) -> Tensor:
    """Run the class on every utterance that is right when clean; what leaves box or budget counts as a failure.

    Raises:
        UserError: the class needs another kind of model or input, or a package that is not installed.
    """
    adversarial_BFL, name = problem.clean.clone(), problem.settings.name
    right_N = right_when_clean(problem)
    if not len(right_N):
        return adversarial_BFL
    import_art()  # before anything is seeded, since what is imported for the first time draws numbers
    for rows_N in right_N[None] if "batch" in traits_of(name) else right_N[:, None]:
        part = problem.subset(rows_N)
        with (
            seeded_streams(derive_seed(name, problem.seed, *part.keys_B), problem.clean.device, everywhere=True),
            random_states_from_the_global_one(),
        ):
            adversarial_BFL[rows_N] = part.box.clip(_generate(part))
    return adversarial_BFL


@contextmanager
def random_states_from_the_global_one() -> Iterator[None]:
    """Let ART's decision attacks seed their random states, which no seed reaches, from NumPy's global one.

    HopSkipJump, BoundaryAttack and BrendelBethgeAttack make an ``np.random.RandomState()`` each, seeded by the
    operating system, and would differ in every run. Here they see a NumPy of their own, which differs in `RandomState`
    alone. ART 1.20.1, which pyproject.toml pins, and all before it need it. A test fails once they no longer do: then
    this can go.
    """

    def random_state(seed: Any = None) -> np.random.RandomState:
        return np.random.RandomState(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002

    own_random = SimpleNamespace(**vars(np.random) | {"RandomState": random_state})
    numpy: Any = SimpleNamespace(**vars(np) | {"random": own_random})
    names = (f"art.attacks.evasion.{name}" for name in ("hop_skip_jump", "boundary", "brendel_bethge"))
    modules: list[Any] = [sys.modules[name] for name in names if name in sys.modules]
    try:
        for module in modules:
            module.np = numpy
        yield
    finally:
        for module in modules:
            module.np = np


def craft_as(class_name: str) -> Callable[[Problem], Tensor]:
    """How a class of ART crafts, whatever the name of the attack in the settings."""
    return lambda problem: craft(replace(problem, settings=replace(problem.settings, name=f"{PREFIX}{class_name}")))


def _generate(problem: Problem) -> Tensor:
    """Where ART's own words would mislead, or it would run without attacking anything, this says so first."""
    name, traits = problem.settings.name, traits_of(problem.settings.name)
    _, num_bins, num_frames = problem.clean.shape
    if name == f"{PREFIX}GeoDA" and num_bins != num_frames:
        raise UserError(f"{name} needs square features, got {num_bins} mel bins x {num_frames} frames")
    if name == f"{PREFIX}TargetedUniversalPerturbation":
        raise UserError(f"{name} leads to a chosen class, where any wrong one will do: take art:UniversalPerturbation")
    if "TensorFlow" in name:
        raise UserError(f"{name} attacks models of TensorFlow only: take the class without that word in its name")
    labels: dict[str, Any] = {"y": None} if "unlabelled" in traits else {}
    if "one_hot" in traits:
        labels = {"y": np.eye(problem.num_classes, dtype=np.float32)[problem.labels_B.cpu().numpy()]}
    if "probabilities" in traits:
        problem = replace(problem, network=nn.Sequential(problem.network, nn.Softmax(dim=1)))
    try:
        classifier = classifier_of(problem, clip_values_of(problem.box, scalar="scalar_bounds" in traits))
        return generated(attack_class(name)(classifier, **_keywords(problem)), problem, **labels)
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise UserError(f"{name} needs the package {package}, which is not installed: pip install {package}") from error
    except Exception as error:  # ART's classes were written for other models, and fail in ways of their own
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise UserError(f"{name} cannot attack log-mel features of this model ({reason[:200]})") from error


def _keywords(problem: Problem) -> dict[str, Any]:
    settings = problem.settings
    shape = tuple(problem.clean.shape)
    _, num_bins, num_frames = shape
    # SquareAttack's first squares cover this share of the cells; its default is too large for what is not square.
    largest_square = (min(num_bins, num_frames) - 1.5) ** 2 / (num_bins * num_frames)
    words = {
        "norm": "inf",
        "eps": budget_of(settings.epsilon, entry_of(settings.name).norm, shape),
        "eps_step": settings.step_size,
        "max_iter": settings.steps,
        "batch_size": len(problem.keys_B),
        "targeted": False,
        "p_init": min(0.8, largest_square),
        "attack": "px",  # SimBA's other basis needs square images
        "use_resize": False,  # ZooAttack's resized images are square
        "use_importance": False,  # and so are the patches that it looks at first
        "nb_parallel": min(128, num_bins * num_frames),  # ZooAttack's cells at a time; 128 is its default
        "finite_diff": 1e-2,  # VirtualAdversarialMethod's default of 1e-6 drowns in the rounding of float32
        "attacker_params": {"verbose": False},  # UniversalPerturbation runs DeepFool
        "verbose": False,
    }
    return {word: value for word, value in words.items() if word in _accepted(settings.name)}


def _accepted(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(attack_class(name)).parameters
