"""What batch norm's averaged statistics cost a federated model: test UAR with three sets of running statistics.

    python scripts/norm_statistics.py RUN [RUN ...]

The weights of each run stay as they are; only the running means and variances of its batch norms are replaced: as
averaged by the server, as computed over all training clips together, and as computed over each speaker's own training
clips and used for that speaker's test clips (what FedBN would keep on the client: Li et al., arXiv 2102.07623).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from ser_fl.compose import compose
from ser_fl.data.datamodule import Examples, load_examples
from ser_fl.data.partition import holders
from ser_fl.data.prepared import prepare
from ser_fl.metrics import confusion_matrix, scores
from ser_fl.models.bundle import load_model

BATCH = 64


def recalibrate(network: nn.Module, features_NFL: Tensor) -> None:
    """Replace running statistics by the mean over batches of these clips."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average over batches
            module.train()
    with torch.no_grad():
        for features_BFL in torch.split(features_NFL, BATCH):
            network(features_BFL)
    network.eval()


def predict(network: nn.Module, examples: Examples) -> list[int]:
    """Predicted classes."""
    with torch.no_grad():
        batches = torch.split(examples.features_NFL, BATCH)
        return [int(c) for features_BFL in batches for c in network(features_BFL).argmax(1)]


def main(run: Path) -> None:
    """Print the three figures of a run."""
    prepared, bundle = prepare(compose(config_file=run / "config.yaml")), load_model(run)
    store, split, classes = prepared.store, prepared.split, len(bundle.classes)
    train, test = (load_examples(store, part, bundle.standardisation) for part in (split.train, split.test))
    labels = test.labels_N.tolist()
    averaged = predict(bundle.network, test)
    shuffled = train.features_NFL[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    recalibrate(bundle.network, shuffled)
    pooled = predict(bundle.network, test)
    own: dict[int, int] = {}
    known = holders(store.utterances, split.train)
    for speaker, indices in holders(store.utterances, split.test).items():
        if speaker in known:
            recalibrate(bundle.network, load_examples(store, known[speaker], bundle.standardisation).features_NFL)
            predictions = predict(bundle.network, load_examples(store, indices, bundle.standardisation))
            own |= zip(indices, predictions, strict=True)
    figures = {"averaged": averaged, "pooled": pooled}
    if len(own) == len(labels):  # no speaker of the test part is new
        figures["each speaker's own"] = [own[index] for index in split.test]
    for name, predictions in figures.items():
        uar = scores(confusion_matrix(labels, predictions, classes)).uar
        print(f"{run.name}: test UAR {uar:.3f} with {name} statistics")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder in sys.argv[1:]:
        main(Path(folder))
