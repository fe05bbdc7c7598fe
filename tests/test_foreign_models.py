"""Models and arrays of any make in the benchmark: the figures are the usual ones, or one line says what does not fit.

Legend: B and N utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ser_fl
from ser_fl.attacks.attack import AttackSettings
from ser_fl.attacks.threat_model import Box
from ser_fl.errors import UserError
from ser_fl.runs.records import AttackRecord

N, F, L, C = 6, 4, 5, 3
BOX = Box(torch.full((F, 1), -1.5), torch.full((F, 1), 1.5))
SETTINGS: dict[str, Any] = {
    "attacks": ["fgsm", AttackSettings(name="pgd", epsilon=0.1, steps=3, restarts=1)],
    "epsilons": (0.1,),
    "box": BOX,
}


class Network(nn.Module):
    """Two layers with weights that depend on nothing else."""

    def __init__(self, inputs: int = F * L) -> None:
        super().__init__()
        weights = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, C))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=weights, dtype=torch.float32) / 2

    def forward(self, features: Tensor) -> Any:
        return self.layers(features)


class Answering(Network):
    """The same, its logits in something else."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, features: Tensor) -> Any:
        return self.wrap(super().forward(features))


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor


Named = namedtuple("Named", "hidden logits")


@pytest.fixture(scope="module")
def features(labels: Tensor) -> Tensor:
    """Utterances that the network recognises."""
    drawn = BOX.clip(torch.randn((60, F, L), generator=torch.Generator().manual_seed(1), dtype=torch.float32))
    said = Network()(drawn).argmax(1).tolist()
    rows = {label: iter([row for row, answer in enumerate(said) if answer == label]) for label in range(C)}
    return drawn[[next(rows[label]) for label in labels.tolist()]]


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def usual(features: Tensor, labels: Tensor) -> list[AttackRecord]:
    records = attack(Network(), features, labels)
    assert len({record.robust_uar for record in records}) > 1, "attacks change something"
    return records


@pytest.fixture
def float64_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def attack(model: Any, features: Any, labels: Any, **changes: Any) -> list[AttackRecord]:
    records = ser_fl.benchmark(model, features, labels, **(SETTINGS | changes))
    return [replace(record, seconds=0.0) for record in records]


@pytest.mark.parametrize(
    "labels_as",
    [
        lambda labels: torch.eye(C)[labels],
        lambda labels: torch.eye(C, dtype=torch.float16)[labels],
        lambda labels: torch.eye(C)[labels].int().numpy(),
        lambda labels: labels.tolist(),
        lambda labels: labels.to(torch.uint8),
        lambda labels: labels.double(),
        lambda labels: labels.numpy().astype(np.uint16)[:, None],
        lambda labels: list(labels),
        lambda labels: np.eye(C, dtype=bool)[labels].tolist(),
    ],
)
def test_labels_of_any_kind(
    features: Tensor, labels: Tensor, usual: list[AttackRecord], labels_as: Callable[[Tensor], Any]
) -> None:
    assert attack(Network(), features, labels_as(labels)) == usual


@pytest.mark.parametrize(
    "features_as",
    [
        lambda features: features.numpy(),
        lambda features: features.double().numpy(),
        lambda features: features.numpy().astype(">f4"),
        lambda features: features.numpy()[::-1][::-1],
        lambda features: features.tolist(),
        lambda features: list(features),
        lambda features: [row.numpy() for row in features],
        lambda features: features.double(),
        lambda features: features.clone().requires_grad_(),
    ],
)
def test_features_of_any_kind(
    features: Tensor, labels: Tensor, usual: list[AttackRecord], features_as: Callable[[Tensor], Any]
) -> None:
    assert attack(Network(), features_as(features), labels) == usual


def test_whole_numbers_are_features_too(features: Tensor, labels: Tensor) -> None:
    whole = (features * 10).round()
    changes: dict[str, Any] = {"box": None, "epsilons": (2.0,), "attacks": ["fgsm"]}
    expected = attack(Network(), whole, labels, **changes)
    assert attack(Network(), whole.to(torch.int16), labels, **changes) == expected
    assert attack(Network(), whole.int().tolist(), labels, **changes) == expected


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, logits * 0),
        lambda logits: [logits, None],
        lambda logits: {"hidden": logits * 0, "logits": logits},
        lambda logits: Output(logits * 0, logits),
        lambda logits: Named(logits * 0, logits),
        lambda logits: SimpleNamespace(loss=None, logits=logits),
        lambda logits: logits.double(),
    ],
)
def test_answers_of_any_kind(
    features: Tensor, labels: Tensor, usual: list[AttackRecord], wrap: Callable[[Tensor], Any]
) -> None:
    assert attack(Answering(wrap), features, labels) == usual


def test_plain_function_is_a_model(features: Tensor, labels: Tensor, usual: list[AttackRecord]) -> None:
    network = Network()
    assert attack(lambda given: network(given), features, labels) == usual


def test_model_that_caches_a_tensor_can_train_afterwards(
    features: Tensor, labels: Tensor, usual: list[AttackRecord]
) -> None:
    class Caching(Network):
        scale: Tensor | None = None

        def forward(self, features: Tensor) -> Any:
            if self.scale is None:
                self.scale = torch.ones_like(features[:1])
            return super().forward(features * self.scale)

    for inference in (False, True):
        model = Caching()
        with torch.inference_mode(inference):
            assert attack(model, features + 0, labels) == usual
        assert model.scale is not None and not model.scale.is_inference()
        assert all(parameter.grad is None for parameter in model.parameters())
        nn.functional.cross_entropy(model(features), labels).backward()  # raises where the cache is of inference mode


def test_model_of_other_numbers_is_given_them(features: Tensor, labels: Tensor) -> None:
    """What the benchmark measures without an attack is what the model itself says of features of its own type."""
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model = Network().to(dtype)
        seen = set()
        model.register_forward_pre_hook(lambda module, given, seen=seen: seen.add(given[0].dtype))
        records = attack(model, features, labels)
        with torch.no_grad():
            right = model(BOX.clip(features).to(dtype)).argmax(1) == labels
        recalls = [right[labels == label].double().mean().item() for label in range(C)]
        assert records[0].robust_uar == pytest.approx(sum(recalls) / C)
        assert records[1].robust_uar <= records[0].robust_uar
        assert seen == {dtype}
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.usefixtures("float64_default")
def test_default_of_float64_is_the_models_own(features: Tensor, labels: Tensor, usual: list[AttackRecord]) -> None:
    defaults = set()

    class Own(Network):
        def forward(self, features: Tensor) -> Any:
            defaults.add(torch.zeros(1).dtype)
            return super().forward(features)

    assert attack(Own(), features, labels) == usual
    assert defaults == {torch.float64}
    assert torch.get_default_dtype() == torch.float64
    assert attack(Own().double(), features, labels)[0].robust_uar == usual[0].robust_uar


def test_default_of_float64_changes_no_attack_that_art_users_call(features: Tensor, labels: Tensor) -> None:
    from art.estimators.classification import PyTorchClassifier

    from ser_fl.attacks.art.evasion import AutoPGD, FastMinimumNorm

    classifier = PyTorchClassifier(Network(), nn.CrossEntropyLoss(), (F, L), C)
    for kind in (AutoPGD, FastMinimumNorm):
        made = []
        for default in (torch.float32, torch.float64):
            torch.set_default_dtype(default)
            try:
                made.append(kind(classifier).generate(features.numpy(), labels.numpy()))
            finally:
                torch.set_default_dtype(torch.float32)
        assert np.array_equal(*made) and not np.array_equal(made[0], features)


@pytest.mark.gpu
def test_model_on_a_gpu_is_given_its_features_there(
    features: Tensor, labels: Tensor, usual: list[AttackRecord]
) -> None:
    records = attack(Network().cuda(), features.numpy(), labels.tolist())
    assert [record.device for record in records] == ["cuda"] * len(records)
    assert [record.robust_uar for record in records] == [record.robust_uar for record in usual]


@pytest.mark.parametrize("shape", [(1, F, L), (F * L,), (2, F // 2, L), (2, 1, F // 2, L)])
def test_model_is_given_features_in_its_own_shape(
    features: Tensor, labels: Tensor, usual: list[AttackRecord], shape: tuple[int, ...]
) -> None:
    """A network that flattens gives the same figures whatever shape it is given its cells in."""
    shapes = set()

    class Shaped(Network):
        def forward(self, features: Tensor) -> Any:
            shapes.add(tuple(features.shape[1:]))
            return super().forward(features)

    box = Box(torch.tensor(-1.5), torch.tensor(1.5))
    assert attack(Shaped(), features.reshape(N, *shape), labels, box=box) == usual
    assert shapes == {shape}
    sides = Box(torch.full((*shape[:-1], 1), -1.5), torch.full(shape, 1.5))
    assert attack(Shaped(), features.reshape(N, *shape), labels, box=sides) == usual


def test_defence_may_change_the_size_of_one_channel(features: Tensor, labels: Tensor) -> None:
    """Randomisation pads; the figures are those of the model that takes no channel."""

    class Pooling(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            pooled = features.reshape(len(features), -1, features.shape[-1]).mean(2)
            return pooled[:, :C] * 5

    changes: dict[str, Any] = {"defences": ("none", "randomisation"), "adaptive": ("fgsm",)}
    many = features.repeat(1, 16, 8)
    expected = attack(Pooling(), many, labels, **changes, box=None)
    assert attack(Pooling(), many[:, None], labels, **changes, box=None) == expected


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda given: given.mean((1, 2)), r"\(6,\).*stack"),
        (lambda given: given.mean((1, 2))[:, None], "one logit.*stack"),
        (lambda given: given, r"\(6, 4, 5\)"),
        (lambda given: given.mean((1, 2)).argmax(), "int64"),
        (lambda given: given[:2, 0], r"\(6, classes\).*\(2, 5\)"),
        (lambda given: {"scores": given}, "dict of scores"),
        (lambda given: None, "NoneType"),
        (lambda given: (), "tuple"),
        (lambda given: given.detach().numpy()[:, 0], "ndarray"),
        (lambda given: given[:, 0].detach(), "no gradient comes through.*square"),
        (lambda given: given @ torch.zeros(9, 2), r"fails on features of shape \(6, 4, 5\).*RuntimeError"),
        (lambda given: 1 / 0, "ZeroDivisionError"),
        (lambda given: torch.where(given[:, 0] > 99, 0.0, torch.nan), "NaN to 6 of 6 utterances, the first '000000'"),
        (lambda given: given[:, 0] + torch.where(torch.arange(N) == 3, torch.nan, 0)[:, None], "NaN to 1 .* '000003'"),
    ],
)
def test_model_that_does_not_fit_is_refused_before_any_attack(
    features: Tensor, answer: Callable[[Tensor], Any], words: str
) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match=words):
        attack(answer, features, [0] * N, on_attack=lambda name, *_: told.append(name))
    assert told == []


def test_model_without_gradients_is_open_to_attacks_that_need_none(features: Tensor, labels: Tensor) -> None:
    network = Network()

    def black_box(given: Tensor) -> Tensor:
        return torch.from_numpy(network(given).detach().numpy())

    square = AttackSettings(name="square", epsilon=0.5, steps=20)
    records = ser_fl.benchmark(black_box, features, labels, attacks=[square], box=BOX)
    assert [replace(record, seconds=0.0) for record in records] == attack(network, features, labels, attacks=[square])
    assert records.checks is not None and "gradients reach the input" in records.checks.failed


def test_nan_on_the_way_is_no_recognition(features: Tensor) -> None:
    def cracking(given: Tensor) -> Tensor:
        """Well on clean features, NaN on louder ones."""
        mean = given.mean((1, 2))
        logits = torch.stack([mean, -mean], dim=1)
        return torch.where((given.abs().amax((1, 2)) > features.abs().max() + 0.01)[:, None], torch.nan, logits)

    with pytest.raises(UserError, match="NaN to features that an attack made"):
        attack(cracking, features, [0] * N, attacks=["noise_uniform"], epsilons=(1.0,), box=None)


def with_nan(features: Tensor, value: float = torch.nan) -> Tensor:
    broken = features.clone()
    broken[2, 1, 1] = value
    return broken


@pytest.mark.parametrize(
    ("features_as", "words"),
    [
        (with_nan, "finite.* 1 of 6 .*'000002'"),
        (lambda features: with_nan(features.double(), 1e300), "finite"),
        (lambda features: features[:0], "not empty"),
        (lambda features: features[:, :, :0], "not empty"),
        (lambda features: [], "not empty"),
        (lambda features: features[0, 0], r"\(5,\)"),
        (lambda features: 3.0, "features"),
        (lambda features: features + 0j, "real"),
        (lambda features: (features + 0j).numpy(), "real"),
        (lambda features: [[1.0, 2.0], [1.0]], "as many for every utterance"),
        (lambda features: [features[0], features[1, :, :3]], "as many for every utterance"),
        (lambda features: "speech.wav", "speech.wav"),
        (lambda features: None, "give features and labels"),
        (lambda features: features[:5], "one an utterance"),
    ],
)
def test_features_that_do_not_fit(
    features: Tensor, labels: Tensor, features_as: Callable[[Tensor], Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        attack(Network(), features_as(features), labels)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([0, 1, 2, 0, 1, 3], "0 to 2.*got 3 for utterance 5"),
        ([0, -1, 2, 0, 1, 2], "got -1 for utterance 1"),
        ([0, 1, 0.5, 0, 1, 2], "whole numbers.*0.5 for utterance 2"),
        ([0, 1, float("nan"), 0, 1, 2], "nan for utterance 2"),
        ([0, 1], r"\(2,\) for 6"),
        ([], "for 6"),
        (3, "one an utterance"),
        (["anger"] * N, "anger"),
        (np.full((N, C), 1 / 3), "one-hot"),
        (np.eye(C)[[0, 1, 2, 0, 1, 2]] * 2, "one-hot"),
        (np.eye(4)[[0, 1, 2, 0, 1, 2]], r"\(6, 3\)"),
        (np.zeros((N, 1, 1)), r"\(6, 1, 1\)"),
        (None, "give features and labels"),
    ],
)
def test_labels_that_do_not_fit(features: Tensor, given: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        attack(Network(), features, given)


def test_other_things_that_do_not_fit(features: Tensor, labels: Tensor) -> None:
    with pytest.raises(UserError, match=r"defence changes the size.*\(2, 2, 5\)"):
        attack(Network(), features.reshape(N, 2, F // 2, L), labels, box=None, defences=["randomisation"])
    with pytest.raises(UserError, match="crnn"):
        attack("crnn", features, labels)
    with pytest.raises(UserError, match=r"box must broadcast.*\(7, 1\)"):
        attack(Network(), features, labels, box=Box(torch.zeros(7, 1), torch.ones(7, 1)))
    with pytest.raises(UserError, match="speakers must be one an utterance, got 1 for 6"):
        attack(Network(), features, labels, speakers=["a"])
    with pytest.raises(UserError, match=r"meta.*cpu"):
        attack(Network().to("meta"), features, labels)


def test_probabilities_are_told_and_logits_are_not(
    features: Tensor, labels: Tensor, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.warns(UserWarning, match="probabilities"):
        attack(Answering(lambda logits: logits.softmax(1)), features, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(Answering(lambda logits: logits.log_softmax(1)), features, labels)


def test_ids_may_be_numbers(features: Tensor, labels: Tensor) -> None:
    named: Sequence[Any] = range(N)
    assert attack(Network(), features, labels, ids=named) == attack(Network(), features, labels, ids=list("012345"))
