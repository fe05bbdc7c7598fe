"""What a classifier says of utterances that are scored, and how sure it is.

Legend: N utterances, C classes, B batch, F mel bins, L frames.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ser_fl.calibration import confidence_sums
from ser_fl.data.features import FeatureStore, load_examples
from ser_fl.data.frontend import Standardisation
from ser_fl.data.splits import Indices
from ser_fl.devices import device_of
from ser_fl.metrics import Floats
from ser_fl.models.own_classes import asked_of

EVALUATION_BATCH = 64

Perturb = Callable[[nn.Module, Tensor, Tensor, tuple[str, ...]], Tensor]
"""(network, features_BFL, labels_B, utterance ids) -> features_BFL: an attack on utterances that are scored."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def predictions_of(
    network: nn.Module,
    store: FeatureStore,
    standardisation: Standardisation,
    parts: Iterable[Indices],
    perturb: Perturb | None = None,
) -> list[int]:
    """The class of each utterance of the parts, in their order, among those that its corpus has, in fp32 and true
    evaluation mode. The network stays on its device, and is waited for once, at the end.
    """
    network.eval()
    predicted = []
    for rows in batches_of(parts):
        examples = load_examples(store, rows, standardisation, device_of(network))
        features_BFL, asked = examples.features_NFL, asked_of(network, store, rows)
        if perturb is not None:
            ids = tuple(store.utterances[row].utterance_id for row in rows)
            features_BFL = perturb(asked, features_BFL, examples.labels_N, ids)
        with torch.no_grad():  # a network of the user's may cache what it trains with later
            predicted.append(asked(features_BFL).argmax(dim=1))
    found: list[int] = torch.cat(predicted).tolist() if predicted else []
    return found


def confidences_of(
    network: nn.Module,
    store: FeatureStore,
    standardisation: Standardisation,
    holders: Mapping[str, Indices],
    temperature: float | None,
) -> dict[str, Floats]:
    """Each holder's `confidence_sums`, in fp32 and true evaluation mode; a holder sends nothing else. No two share a
    batch, so that the bits of a holder's logits do not hang on who else is on the machine.
    """
    network.eval()
    device, found = device_of(network), dict[str, Floats]()
    for holder, indices in holders.items():
        parts = ((rows, load_examples(store, rows, standardisation, device)) for rows in batches_of([indices]))
        with torch.no_grad():
            logits_NC = torch.cat([asked_of(network, store, rows)(part.features_NFL).cpu() for rows, part in parts])
        labels = store.labels_N[list(indices)].tolist()
        found[holder] = confidence_sums(logits_NC.double().numpy(), labels, temperature)
    return found


def batches_of(parts: Iterable[Indices]) -> Iterator[Indices]:
    """All parts in their order, in batches of at most `EVALUATION_BATCH`. Small parts share a batch, so that thousands
    of speakers do not cost a forward pass each; one that does not fit in begins a batch of its own.
    """
    waiting: Indices = ()
    for part in parts:
        if waiting and len(waiting) + len(part) > EVALUATION_BATCH:
            yield waiting
            waiting = ()
        waiting += part
        while len(waiting) > EVALUATION_BATCH:
            yield waiting[:EVALUATION_BATCH]
            waiting = waiting[EVALUATION_BATCH:]
    if waiting:
        yield waiting
