"""Attacks against what a pass costs, and against the libraries that others use for them.

All on one CRNN that has learnt an easy task, one batch, one box, one budget and one thread, in one process; times are
processor times, which what else the machine does falls on less. Peers are used as their documentation says: their own
wrapper around the network, one batch, no random start, nothing printed.

Legend: B utterances, F mel bins, L frames.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figures import Figure, alternately, ratio
from ser_fl.attacks.art.estimator import clip_values_of, import_art
from ser_fl.attacks.attack import AttackSettings, Problem
from ser_fl.attacks.carlini_wagner import SEARCH_STEPS
from ser_fl.attacks.pgd import pgd
from ser_fl.attacks.registry import build
from ser_fl.attacks.target import Passes
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose
from ser_fl.models.networks import build_network

BATCH, NUM_MELS, NUM_FRAMES, NUM_CLASSES = 16, 64, 188, 6
STEPS = 10
EPSILON = 0.05
STEP_SIZE = EPSILON / 4
BOX_WIDTH = 6.0
"""The same in every bin, so that one epsilon is one epsilon after the box is mapped to [0, 1] too."""
PGD_REPEATS = 21
CW_STEPS = 20
CW_REPEATS = 1
APGD_STEPS = 20
APGD_REPEATS = 3
ART_BATCHES = (1, 4, BATCH)
SEED = 1

Craft = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What is attacked."""

    network: nn.Module
    features_BFL: Tensor
    labels_B: Tensor
    box: Box
    passes: Passes = field(default_factory=Passes)

    def wrong(self, features_BFL: Tensor) -> Tensor:
        """Which utterances are misclassified, shape (B,)."""
        with torch.no_grad():
            return self.network(features_BFL).argmax(1) != self.labels_B  # type: ignore[no-any-return]

    def broken(self, features_BFL: Tensor) -> Tensor:
        """Which utterances are misclassified that were right when clean, shape (B,)."""
        return self.wrong(features_BFL) & ~self.wrong(self.features_BFL)

    def l2(self, adversarial_BFL: Tensor) -> Tensor:
        """Size of each perturbation, shape (B,)."""
        size_B: Tensor = torch.linalg.vector_norm((adversarial_BFL - self.features_BFL).flatten(1), dim=1)
        return size_B

    def by(self, settings: AttackSettings, rows_N: Tensor | None = None) -> Tensor:
        """What an attack of ours makes of the utterances, or of some of them."""
        rows_N = torch.arange(len(self.labels_B)) if rows_N is None else rows_N
        attack = build(settings)
        return torch.cat(
            [
                attack.craft(
                    Problem(
                        network=self.network,
                        num_classes=NUM_CLASSES,
                        clean=self.features_BFL[part_N],
                        labels_B=self.labels_B[part_N],
                        keys_B=[str(row) for row in part_N.tolist()],
                        box=self.box,
                        settings=attack.settings,
                        seed=SEED,
                        passes=Passes(),
                    )
                )
                for part_N in torch.split(rows_N, BATCH)
            ]
        )

    def counted(self, craft: Craft) -> tuple[Tensor, dict[str, int]]:
        """The result of an attack, and the passes of an utterance that it took."""

        def count(network: nn.Module, inputs: Any, logits_BC: Tensor) -> None:
            self.passes.forward += len(logits_BC)
            if logits_BC.requires_grad:
                logits_BC.register_hook(count_backward)  # type: ignore[no-untyped-call]

        def count_backward(gradient_BC: Tensor) -> None:
            self.passes.backward += len(gradient_BC)

        self.passes.forward = self.passes.backward = 0
        with ExitStack() as hooks:
            hooks.callback(self.network.register_forward_hook(count).remove)
            adversarial_BFL = craft()
        return adversarial_BFL, {"forward": self.passes.forward, "backward": self.passes.backward}


def figures() -> Iterator[Figure]:
    """PGD by ART and foolbox, C&W L2 by ART and torchattacks, AutoPGD by ART, against ours: what is installed."""
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers, on numbers that they are given
        target = trained()
        yield from pgd_figures(target)
        yield from cw_figures(target)
        yield apgd_figure(target)


@contextmanager
def one_thread() -> Iterator[None]:
    """As clients run by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained() -> Target:
    """A CRNN of ``model=crnn`` after 60 steps on noise around a pattern per class, and a batch of it."""
    stream = torch.Generator().manual_seed(SEED)
    lower_F1 = torch.linspace(-3.2, -2.8, NUM_MELS)[:, None]
    box = Box(lower_F1, lower_F1 + BOX_WIDTH)
    patterns_CF1 = 0.16 * torch.randn(NUM_CLASSES, NUM_MELS, 1, generator=stream)

    def drawn() -> tuple[Tensor, Tensor]:
        labels_B = torch.randint(NUM_CLASSES, (BATCH,), generator=stream)
        noise_BFL = torch.randn(BATCH, NUM_MELS, NUM_FRAMES, generator=stream)
        return box.clip(patterns_CF1[labels_B] + noise_BFL), labels_B

    network = build_network(compose(["model=crnn"]).model, NUM_CLASSES, seed=SEED)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for _ in range(60):
            features_BFL, labels_B = drawn()
            optimiser.zero_grad()
            functional.cross_entropy(network(features_BFL), labels_B).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    network.eval().requires_grad_(False)  # so that no peer computes gradients of parameters
    return Target(network, *drawn(), box)


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """The processor time that it takes, in seconds."""

    def measure() -> float:
        started = time.process_time()
        run()
        return time.process_time() - started

    return measure


def art_classifier(target: Target) -> Any:
    """ART's own estimator straight over the network."""
    import_art()
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        target.network,
        loss=nn.CrossEntropyLoss(),
        input_shape=(NUM_MELS, NUM_FRAMES),
        nb_classes=NUM_CLASSES,
        clip_values=clip_values_of(target.box),
        preprocessing=None,
        device_type="cpu",
    )


def pgd_figures(target: Target) -> Iterator[Figure]:
    """The same ten steps by each library; they must agree before they are timed."""
    peers: dict[str, Craft] = {"ser_fl": ours(target), "ART": by_art(target)}
    if (foolbox := by_foolbox(target)) is not None:
        peers["foolbox"] = foolbox
    found = {name: target.counted(craft) for name, craft in peers.items()}
    expected_BFL, _ = found["ser_fl"]
    detail: dict[str, Any] = {
        "passes": {name: passes for name, (_, passes) in found.items()},
        "success": {name: float(target.wrong(made).float().mean()) for name, (made, _) in found.items()},
        "accuracy": 1 - float(target.wrong(target.features_BFL).float().mean()),
        "largest_difference": {name: float((made - expected_BFL).abs().max()) for name, (made, _) in found.items()},
    }
    for name, (made_BFL, _) in found.items():
        # A cell whose gradient is nearly zero may go the other way where features are mapped to [0, 1] and back.
        apart = float(((made_BFL - expected_BFL).abs() > 1e-5).float().mean())
        if apart > 1e-3:
            raise RuntimeError(f"PGD of {name} ends elsewhere in {apart:.2%} of all cells")
    seconds = alternately(
        {name: timed(run) for name, run in {"pass": passes_of_plain_torch(target), **peers}.items()}, PGD_REPEATS
    )
    one_pass = [taken / STEPS for taken in seconds["pass"]]
    name = f"PGD-{STEPS}, batch {BATCH}"
    yield ratio(f"{name}: in forward-and-backward passes", seconds["ser_fl"], one_pass, bar=10.5, **detail)
    for peer in [name for name in peers if name != "ser_fl"]:
        yield ratio(f"{name}: time of ser_fl / {peer}", seconds["ser_fl"], seconds[peer], bar=1.0, **detail)


def passes_of_plain_torch(target: Target) -> Callable[[], None]:
    """As many forward passes, each with its backward pass to the input, as PGD has steps."""

    def run() -> None:
        for _ in range(STEPS):
            inputs_BFL = target.features_BFL.clone().requires_grad_()
            torch.autograd.grad(functional.cross_entropy(target.network(inputs_BFL), target.labels_B), inputs_BFL)

    return run


def ours(target: Target) -> Craft:
    """PGD as training uses it."""
    return lambda: pgd(
        target.network,
        target.features_BFL,
        target.labels_B,
        epsilon=EPSILON,
        step_size=STEP_SIZE,
        steps=STEPS,
        box=target.box,
    )


def by_art(target: Target) -> Craft:
    """ART's PGD on tensors, from the clean utterance."""
    classifier = art_classifier(target)
    from art.attacks.evasion import ProjectedGradientDescent

    attack = ProjectedGradientDescent(
        classifier,
        eps=EPSILON,
        eps_step=STEP_SIZE,
        max_iter=STEPS,
        num_random_init=0,
        batch_size=BATCH,
        verbose=False,
    )
    x, y = target.features_BFL.numpy(), target.labels_B.numpy()
    return lambda: torch.from_numpy(attack.generate(x, y))


def by_foolbox(target: Target) -> Craft | None:
    """PGD of foolbox from the clean utterance, its inputs in [0, 1]; None where it is not installed."""
    try:
        from foolbox import PyTorchModel
        from foolbox.attacks import LinfPGD
        from foolbox.criteria import Misclassification
    except ImportError:
        return None
    assert target.box.lower_F1 is not None
    lower_F1: Tensor = target.box.lower_F1

    class FromUnit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = target.network

        def forward(self, units_BFL: Tensor) -> Tensor:
            logits_BC: Tensor = self.network(units_BFL * BOX_WIDTH + lower_F1)
            return logits_BC

    model = PyTorchModel(FromUnit().eval(), bounds=(0, 1), device="cpu")
    attack = LinfPGD(abs_stepsize=STEP_SIZE / BOX_WIDTH, steps=STEPS, random_start=False)
    units_BFL, criterion = (target.features_BFL - lower_F1) / BOX_WIDTH, Misclassification(target.labels_B)

    def run() -> Tensor:
        made_BFL: Tensor = attack.run(model, units_BFL, criterion, epsilon=EPSILON / BOX_WIDTH)
        return made_BFL * BOX_WIDTH + lower_F1

    return run


def cw_figures(target: Target) -> Iterator[Figure]:
    """C&W L2 of the catalogue against ART's at each batch size, and torchattacks' where that is installed.

    All have the same number of nominal iterations, gradient steps of one utterance: so many for each constant, times
    the constants of the search; torchattacks has one constant, and gives it all of them. What an iteration costs is
    theirs to choose: ART's looks for the length of its step by trial, and goes backward twice.
    """
    peers = {"ser_fl": cw_ours(target)} | {f"ART, batch {size}": cw_by_art(target, size) for size in ART_BATCHES}
    if (torchattacks := cw_by_torchattacks(target)) is not None:
        peers["torchattacks"] = torchattacks
    found = {name: target.counted(craft) for name, craft in peers.items()}
    detail: dict[str, Any] = {
        "passes": {name: passes for name, (_, passes) in found.items()},
        "success": {name: float(target.broken(made).float().mean()) for name, (made, _) in found.items()},
        "median_l2": {name: median_of(target.l2(made)[target.broken(made)]) for name, (made, _) in found.items()},
    }
    # They have run.
    seconds = alternately({name: timed(craft) for name, craft in peers.items()}, CW_REPEATS, warm_ups=0)
    name = f"C&W L2, {SEARCH_STEPS} x {CW_STEPS} iterations, batch {BATCH}"
    best = min((peer for peer in peers if peer.startswith("ART")), key=lambda peer: statistics.median(seconds[peer]))
    yield ratio(f"{name}: time of ser_fl / {best}", seconds["ser_fl"], seconds[best], bar=0.1, **detail)
    if torchattacks is not None:
        yield ratio(f"{name}: time of ser_fl / torchattacks", seconds["ser_fl"], seconds["torchattacks"], **detail)
    for peer in (best, "torchattacks"):
        if peer not in peers:
            continue
        ours_BFL, theirs_BFL = found["ser_fl"][0], found[peer][0]
        both_B = target.broken(ours_BFL) & target.broken(theirs_BFL)
        yield Figure(
            name=f"{name}: success of ser_fl less that of {peer}",
            value=detail["success"]["ser_fl"] - detail["success"][peer],
            bar=0.0,
            reach="at least",
            detail=detail,
        )
        if bool(both_B.any()):
            yield Figure(
                name=f"{name}: paired median L2 of ser_fl / {peer}",
                value=median_of(target.l2(ours_BFL)[both_B]) / median_of(target.l2(theirs_BFL)[both_B]),
                bar=1.0,
                detail=detail | {"paired": int(both_B.sum())},
            )


def median_of(sizes: Tensor) -> float:
    """The median; not a number where there are none."""
    return statistics.median(sizes.tolist()) if len(sizes) else math.nan


def cw_ours(target: Target) -> Craft:
    """The registry's."""
    settings = AttackSettings(name="cw_l2", epsilon=2 * BOX_WIDTH, steps=CW_STEPS)  # any distance will do
    return lambda: target.by(settings)


def cw_by_art(target: Target, batch_size: int) -> Craft:
    """ART's class, from a constant of 4: with its own of 0.01 so few constants break nothing."""
    classifier = art_classifier(target)
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(
        classifier,
        max_iter=CW_STEPS,
        binary_search_steps=SEARCH_STEPS,
        initial_const=4.0,
        batch_size=batch_size,
        verbose=False,
    )
    x, y = target.features_BFL.numpy(), target.labels_B.numpy()

    def craft() -> Tensor:
        with np.errstate(all="ignore"):
            return torch.from_numpy(attack.generate(x, y))

    return craft


def apgd_figure(target: Target) -> Figure:
    """AutoPGD on the cross-entropy, the registry's against ART's: as many steps, one random start."""
    classifier = art_classifier(target)
    from art.attacks.evasion import AutoProjectedGradientDescent

    attack = AutoProjectedGradientDescent(
        classifier,
        eps=EPSILON,
        eps_step=2 * EPSILON,  # as in the paper, and as ours
        max_iter=APGD_STEPS,
        nb_random_init=1,
        batch_size=BATCH,
        loss_type="cross_entropy",
        verbose=False,
    )
    settings = AttackSettings(name="apgd_ce", epsilon=EPSILON, steps=APGD_STEPS, restarts=1)
    x, y = target.features_BFL.numpy(), target.labels_B.numpy()

    peers: dict[str, Craft] = {
        "ser_fl": lambda: target.by(settings),
        "ART": lambda: torch.from_numpy(attack.generate(x, y)),
    }
    found = {name: target.counted(run) for name, run in peers.items()}
    seconds = alternately({name: timed(run) for name, run in peers.items()}, APGD_REPEATS, warm_ups=0)  # they have run
    return ratio(
        f"AutoPGD-{APGD_STEPS}, batch {BATCH}: time of ser_fl / ART",
        seconds["ser_fl"],
        seconds["ART"],
        bar=1.0,
        passes={name: passes for name, (_, passes) in found.items()},
        success={name: float(target.wrong(made_BFL).float().mean()) for name, (made_BFL, _) in found.items()},
    )


def cw_by_torchattacks(target: Target) -> Craft | None:
    """CW of torchattacks with its default constant and learning rate; None where it is not installed.

    Its inputs are images in [0, 1]: the box is mapped to them. Two mistakes of its own are kept from it. A pixel of 0
    or 1 has an infinite place in its tanh space and never moves, so that pixels keep a millionth off. And it takes the
    largest of the logits times zeros and ones, which is 0 where all that it wants are negative: every utterance's
    logits are shifted to begin at 0.
    """
    try:
        from torchattacks import CW
    except ImportError:
        return None
    assert target.box.lower_F1 is not None
    lower_F1: Tensor = target.box.lower_F1

    class FromImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = target.network

        def forward(self, images_B1FL: Tensor) -> Tensor:
            logits_BC: Tensor = self.network(images_B1FL.squeeze(1) * BOX_WIDTH + lower_F1)
            return logits_BC - logits_BC.detach().amin(dim=1, keepdim=True)

    model = FromImages().eval()
    images_B1FL = ((target.features_BFL - lower_F1) / BOX_WIDTH).clamp(1e-6, 1 - 1e-6)[:, None]

    def craft() -> Tensor:
        made_B1FL: Tensor = CW(model, steps=CW_STEPS * SEARCH_STEPS)(images_B1FL, target.labels_B)
        return made_B1FL.squeeze(1) * BOX_WIDTH + lower_F1

    return craft
