"""Our attacks as ART's users know attacks: checked parameters, targets, masks, bars, on any classifier."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ser_fl
from ser_fl.attacks.art.estimator import import_art
from ser_fl.attacks.art.evasion import (
    AutoPGD,
    CarliniWagnerL2,
    CarliniWagnerLInf,
    ExpectationOverTransformationPGD,
    FastMinimumNorm,
)

import_art()
from art.attacks.evasion import (  # noqa: E402
    AutoProjectedGradientDescent,
    CarliniL2Method,
    CarliniLInfMethod,
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier  # noqa: E402

SHAPE, CLASSES, NUM = (3, 6, 8), 5, 7


def unchanged(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs


def eot(classifier: Any, **given: Any) -> Any:
    return ExpectationOverTransformationPGD(classifier, unchanged, **({"samples": 1} | given))


OURS: dict[str, Any] = {
    "CarliniWagnerL2": CarliniWagnerL2,
    "CarliniWagnerLInf": CarliniWagnerLInf,
    "FastMinimumNorm": FastMinimumNorm,
    "AutoPGD": AutoPGD,
    "ExpectationOverTransformationPGD": eot,
}
PEERS: dict[str, Any] = {
    "CarliniWagnerL2": CarliniL2Method,
    "CarliniWagnerLInf": CarliniLInfMethod,
    "AutoPGD": AutoProjectedGradientDescent,
    "ExpectationOverTransformationPGD": ProjectedGradientDescentPyTorch,
}
NAN = float("nan")
NUMBERS = [1, 5, 0, -1, 2.5, "5", None, True, [1], NAN]
VALUES: dict[str, list[Any]] = {
    "targeted": [True, False, "false", 1, 0, None],
    "verbose": [True, False, "no", 1, None],
    "norm": [np.inf, "inf", 2, "l2", 0.5, None, 1],
    **dict.fromkeys(("max_iter", "batch_size", "binary_search_steps", "nb_random_init"), NUMBERS),
    **dict.fromkeys(("num_random_init", "eps", "eps_step"), NUMBERS),
    "loss_type": ["cross_entropy", "difference_logits_ratio", "logits"],
}
STRICTER: dict[str, Any] = {
    "targeted": ["false", 1, 0, None],  # true, for ART's C&W L-infinity; the others refuse them
    "verbose": ["no", 1, None],
    "norm": [1],
    # True would be 1 of whatever is counted, and NaN a radius that holds nothing. No iteration returns the input.
    **dict.fromkeys(("max_iter", "binary_search_steps"), (True, 2.5, NAN, 0)),
    **dict.fromkeys(("batch_size", "num_random_init", "nb_random_init"), (True, 2.5, NAN)),
    **dict.fromkeys(("eps", "eps_step"), (True, NAN)),
}
"""What one of ART's classes takes and ours do not."""
MORE = {"eps": [0], "eps_step": [0], "nb_random_init": [0]}
"""What ours take and ART's do not: the input itself, and no random start."""


@pytest.fixture(scope="module")
def classifier() -> Any:
    """A plain classifier of images."""
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 4 * 6, 12), nn.Linear(12, CLASSES)
    )
    with torch.no_grad():  # no class is likelier than others
        network[-1].bias -= network.eval()(torch.rand(64, *SHAPE)).mean(0)
    return PyTorchClassifier(
        network, loss=nn.CrossEntropyLoss(), input_shape=SHAPE, nb_classes=CLASSES, clip_values=(0.0, 1.0)
    )


@pytest.fixture(scope="module")
def images(classifier: Any) -> tuple[np.ndarray, np.ndarray]:
    x = torch.rand(NUM, *SHAPE, generator=torch.Generator().manual_seed(3)).numpy()
    return x, classifier.predict(x).argmax(1)


def accepts(make: Any, classifier: Any, word: str, value: Any) -> bool:
    try:
        make(classifier, **{word: value})
    except (ValueError, TypeError):
        return False
    return True


@pytest.mark.parametrize("name", PEERS)
def test_what_arts_class_refuses_ours_refuses_and_what_it_takes_ours_takes(name: str, classifier: Any) -> None:
    shared = [word for word in PEERS[name].attack_params if word in OURS[name](classifier).attack_params]
    assert {"targeted", "batch_size", "max_iter", "verbose"} <= set(shared)
    for word in set(shared) - {"summary_writer"} - ({"eps_step"} if name == "AutoPGD" else set()):
        for value in VALUES[word]:
            ours, theirs = (accepts(make, classifier, word, value) for make in (OURS[name], PEERS[name]))
            if ours != theirs:
                excused = (MORE if ours else STRICTER).get(word, [])
                assert any(value is one for one in excused), (word, value)


BAD: list[tuple[str, Any]] = [
    *(("targeted", value) for value in ("false", 1, None, np.int64(0))),
    *(("verbose", value) for value in ("no", 0)),
    *(("batch_size", value) for value in (0, -1, True, "5", 2.0, None, np.float64(3), np.bool_(True), [4])),
    *(("max_iter", value) for value in (0, True, "5", 10.0, np.nan)),
    ("summary_writer", True),
    ("summary_writer", "runs"),
]
BAD_OF: dict[str, list[tuple[str, Any]]] = {
    "CarliniWagnerL2": [("binary_search_steps", value) for value in (0, True, 2.5)],
    "CarliniWagnerLInf": [("initial_tau", value) for value in (-1, np.nan, np.inf, "1", True, None)],
    "FastMinimumNorm": [("norm", value) for value in (1, True, "l2", None, np.array([2]), [2])],
    "AutoPGD": [
        *(("norm", value) for value in (1, True, None, np.array([2, 2]))),
        *(("eps", value) for value in (-0.5, np.nan, np.inf, "0.1", True, None, np.array([0.1]), torch.tensor(0.1))),
        *(("seed", value) for value in (-1, 0.5, True)),
        *(("nb_random_init", value) for value in (-1, True, 1.0)),
        *(("loss_type", value) for value in ("logits", None, ["cross_entropy"])),
        *(("eps_step", value) for value in (0.1, 0)),
    ],
    "ExpectationOverTransformationPGD": [
        *(("eps", value) for value in (-0.5, np.nan)),
        *(("eps_step", value) for value in (-0.1, np.inf, "0.1", None)),
        *(("samples", value) for value in (0, True, "4")),
        *(("num_random_init", value) for value in (-1, 0.0)),
    ],
}


@pytest.mark.parametrize("name", OURS)
def test_impossible_parameters_are_refused_in_one_sentence_whenever_they_are_given(name: str, classifier: Any) -> None:
    make = OURS[name]
    attack = make(classifier)
    before = repr(attack)
    for word, value in [*BAD, *BAD_OF[name]]:
        for give in (lambda **given: make(classifier, **given), attack.set_params):
            with pytest.raises(ValueError, match=rf"^{word} must be .*, got ") as error:
                give(**{word: value})
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has no parameter 'steps': it has targeted, batch_size"):
        attack.set_params(steps=4)
    with pytest.raises(TypeError, match="has no parameter 'confidence'"):
        make(classifier, confidence=0.5)
    with pytest.raises(ValueError, match="batch_size must be"):
        attack.set_params(max_iter=3, batch_size=0)  # both or none
    assert repr(attack) == before


@pytest.mark.parametrize("name", OURS)
def test_numbers_of_numpy_are_numbers(name: str, classifier: Any) -> None:
    attack = OURS[name](classifier, max_iter=np.int64(3), batch_size=np.uint8(4), targeted=np.bool_(False))
    attack.set_params(max_iter=np.int32(2))
    assert (type(attack.max_iter), attack.max_iter, type(attack.batch_size), attack.targeted) == (int, 2, int, False)
    if "eps" in attack.attack_params:
        attack.set_params(eps=np.float32(0.25), norm=np.float64(2))
        assert (type(attack.eps), attack.eps) == (float, 0.25)


@pytest.mark.parametrize("name", OURS)
def test_every_parameter_is_listed_shown_and_can_be_set(name: str, classifier: Any) -> None:
    attack = OURS[name](classifier)
    assert {"targeted", "batch_size", "verbose", "summary_writer", "max_iter"} <= set(attack.attack_params)
    attack.set_params(**{word: getattr(attack, word) for word in attack.attack_params})
    for word in attack.attack_params:
        assert f"{word}=" in repr(attack)
    settable = {word for word, parameter in attack.parameters.items() if parameter.settable}
    assert set(inspect.signature(type(attack)).parameters) - {"classifier", "estimator"} == settable


@pytest.mark.parametrize("name", OURS)
def test_targets_are_hit_where_they_can_be(name: str, classifier: Any, images: tuple[np.ndarray, np.ndarray]) -> None:
    x, labels = images
    targets = (labels + 1) % CLASSES
    attack = OURS[name](classifier, targeted=True, verbose=False)
    reach = {"eps": 1.0, "initial_tau": 1.0, "eps_step": 0.01 if name.startswith("Expectation") else None}
    attack.set_params(**{word: value for word, value in reach.items() if word in attack.attack_params})
    made = attack.generate(x, targets)
    assert (classifier.predict(made).argmax(1) == targets).all()
    with pytest.raises(ValueError, match="Target labels"):
        attack.generate(x)


@pytest.mark.parametrize("targeted", [False, True])
def test_without_a_transformation_pgd_is_arts_also_towards_targets(
    targeted: bool, classifier: Any, images: tuple[np.ndarray, np.ndarray]
) -> None:
    x, labels = images
    how = {"eps": 0.05, "eps_step": 0.02, "max_iter": 5, "batch_size": NUM, "targeted": targeted, "verbose": False}
    theirs = ProjectedGradientDescentPyTorch(classifier, **how).generate(x, (labels + 2) % CLASSES)
    np.testing.assert_allclose(eot(classifier, **how).generate(x, (labels + 2) % CLASSES), theirs, atol=1e-6)


def test_a_target_counts_as_hit_by_the_start_that_hits_it(
    classifier: Any, images: tuple[np.ndarray, np.ndarray]
) -> None:
    """What one start has found no other takes away, whichever way success is read."""
    x, labels = images
    targets = np.argsort(classifier.predict(x), axis=1)[:, -2]
    hits = []
    for restarts in (1, 6):
        attack = eot(classifier, targeted=True, eps=0.02, eps_step=0.02, max_iter=2, num_random_init=restarts)
        hits.append(classifier.predict(attack.generate(x, targets)).argmax(1) == targets)
    assert 0 < hits[0].sum() < NUM
    assert (hits[1] | ~hits[0]).all()
    again = AutoPGD(classifier, targeted=True, eps=0.02, max_iter=3, nb_random_init=6).generate(x, targets)
    assert (classifier.predict(again).argmax(1) == targets).sum() >= hits[0].sum()
    assert (labels != targets).all()


MASKS = {
    "of each input": lambda: np.random.default_rng(0).random((NUM, *SHAPE)) < 0.5,
    "of all inputs": lambda: (np.random.default_rng(1).random(SHAPE[1:]) < 0.6).astype(np.float32),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", OURS)
def test_nothing_moves_under_a_mask(
    name: str, kind: str, classifier: Any, images: tuple[np.ndarray, np.ndarray]
) -> None:
    x, labels = images
    mask = MASKS[kind]()
    attack = OURS[name](classifier, batch_size=3, verbose=False)
    starts = {word: 2 for word in ("nb_random_init", "num_random_init") if word in attack.attack_params}
    attack.set_params(**starts)
    made = attack.generate(x, labels, mask=mask)
    still = np.broadcast_to(mask == 0, x.shape)
    np.testing.assert_array_equal(made[still], x[still])
    assert (classifier.predict(made).argmax(1) != labels).sum() >= NUM - 2
    attack.set_params(batch_size=NUM)
    together = attack.generate(x, labels, mask=mask)
    assert (np.abs(together - made) < 1e-5).mean() > 0.99  # but for cells whose gradient is nearly 0
    np.testing.assert_array_equal(attack.generate(x, labels, mask=np.zeros(SHAPE)), x)
    np.testing.assert_array_equal(attack.generate(x, labels, mask=np.ones(SHAPE)), attack.generate(x, labels))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(SHAPE, int), "mask must be of bool or float, got int64"),
        (-np.ones(SHAPE), "mask must be >= 0"),
        (np.full(SHAPE, np.nan), "mask must be >= 0"),
        (np.ones((2, 6, 8)), r"mask must broadcast to inputs of shape \(7, 3, 6, 8\), got shape \(2, 6, 8\)"),
        (np.ones((1, 1, *SHAPE)), "mask must broadcast"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    mask: np.ndarray, message: str, classifier: Any, images: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match=message):
        AutoPGD(classifier).generate(*images, mask=mask)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.arange(3), r"y must be 7 indices or one-hot rows of 5 classes, got shape \(3,\)"),
        (np.eye(4)[[0] * NUM], "y must be 7 indices or one-hot rows of 5 classes"),
        (np.full(NUM, 5), r"y must be in \[0, 5\), got 5 to 5"),
        (np.full(NUM, -1), r"y must be in \[0, 5\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    y: np.ndarray, message: str, classifier: Any, images: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match=message):
        CarliniWagnerL2(classifier).generate(images[0], y)


def test_words_that_generate_does_not_know_are_refused(classifier: Any, images: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="AutoPGD knows no masks"):
        AutoPGD(classifier).generate(*images, masks=np.ones(SHAPE))


@pytest.mark.parametrize("name", OURS)
def test_a_bar_is_shown_where_it_is_asked_for(
    name: str, classifier: Any, images: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    attack = OURS[name](classifier, max_iter=1, batch_size=4)
    attack.generate(*images)
    assert "2/2" in capsys.readouterr().err
    attack.set_params(verbose=False)
    attack.generate(*images)
    assert capsys.readouterr().err == ""


def test_nothing_at_all_is_attacked_and_no_input_is_written_to(
    classifier: Any, images: tuple[np.ndarray, np.ndarray]
) -> None:
    x, labels = images
    before = x.copy()
    attack = AutoPGD(classifier, verbose=False, max_iter=2)
    assert attack.generate(x[:0], labels[:0]).shape == (0, *SHAPE)
    made = attack.generate(x, np.eye(CLASSES)[labels])
    assert (made != x).any()
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(made, attack.generate(x.tolist(), labels[:, None]))


def test_a_benchmark_gives_our_classes_its_epsilon() -> None:
    """It asks a class for its signature; without it AutoPGD would go to its own 0.3, and count as failed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    features = torch.randn(6, 6, 8)
    records = ser_fl.benchmark(model, features, model(features).argmax(1), attacks=[AutoPGD], epsilons=[0.2])
    (record,) = [one for one in records if one.attack == "AutoPGD"]
    assert record.attack_success_rate > 0.5
    assert record.max_linf == pytest.approx(0.2, abs=1e-4)
