"""What is attacked: utterances, who spoke them, and the classifier.

Legend: N utterances, F mel bins, L frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ser_fl.attacks.domains import LOGMEL, Domain
from ser_fl.attacks.threat_model import Box
from ser_fl.config.schema import Config, checked
from ser_fl.config.text import read_settings
from ser_fl.data.features import FeatureStore, OnFeatures, compute_features, load_examples, open_configured_corpus
from ser_fl.data.heard import Heard
from ser_fl.data.splits import Indices, split_corpus
from ser_fl.devices import send
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel, load_model
from ser_fl.models.networks import NetworkSource
from ser_fl.randomness import derive_seed
from ser_fl.runs.folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    model: nn.Module
    """Maps features of shape (B, F, L) to logits of shape (B, C); in evaluation mode."""
    features_NFL: Tensor
    """Standardised, inside the box."""
    labels_N: Tensor
    ids: tuple[str, ...]
    num_classes: int
    box: Box
    seed: int
    batch_size: int = 64
    speakers: tuple[str, ...] = ()
    """Who speaks each utterance; empty where nobody says."""
    sexes: tuple[str | None, ...] = ()
    """Of the speakers; empty where nobody says."""
    emotions: tuple[str, ...] = ()
    """Names of the classes; empty for their numbers."""
    domain: Domain = LOGMEL
    """What attacks move."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> TestSet:
        """The model itself moves there."""
        return replace(
            self,
            model=self.model.to(device),
            features_NFL=send(self.features_NFL, device),
            labels_N=send(self.labels_N, device),
            box=self.box.to(device),
        )

    def subset(self, size: int | None) -> TestSet:
        """A fixed subset of about ``size`` utterances, spread evenly over the emotions; all where it is None."""
        if size is None or size >= len(self):
            return self
        return self.take(balanced_rows(self.labels_N.tolist(), self.ids, size, self.seed))

    def take(self, rows: Sequence[int]) -> TestSet:
        rows = list(rows)  # a tuple would index dimensions
        if rows == list(range(len(self))):
            return self
        return replace(
            self,
            features_NFL=self.features_NFL[rows],
            labels_N=self.labels_N[rows],
            ids=tuple(self.ids[row] for row in rows),
            speakers=tuple(self.speakers[row] for row in rows) if self.speakers else (),
            sexes=tuple(self.sexes[row] for row in rows) if self.sexes else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedRun:
    folder: Path
    config: Config
    model: EmotionModel

    def store(self, on_features: OnFeatures | None = None) -> FeatureStore:
        """Features of the whole corpus; a `UserError` where that moved, or has other emotions than the model."""
        corpus, cache_dir = open_configured_corpus(self.config), self.config.data.cache_dir
        store = compute_features(corpus, self.config.frontend, cache_dir=cache_dir, progress=on_features)
        if store.classes != self.model.classes:
            raise UserError(
                f"the corpus at {self.config.data.root} has the emotions {', '.join(store.classes)}, the model of "
                f"{self.folder} knows {', '.join(self.model.classes)}: set root=DIR to the corpus it was trained on"
            )
        return store

    def test_rows(self, store: FeatureStore, *, allow_seen: bool = False) -> Indices:
        """The test utterances of the run's split, drawn on a corpus that may have grown since.

        Raises:
            UserError: the run was trained on some of them, or selected by them, and that is not allowed.
        """
        rows, run = split_corpus(store.utterances, self.config.split).test, RunFolder(self.folder)
        if (heard := Heard.read(run.heard, run.heard_sounds)) is not None:
            heard.refuse(store, rows, self.config.frontend, allow_seen=allow_seen)
        return rows

    def test_set(
        self, store: FeatureStore, *, seed: int = 0, batch_size: int = 64, allow_seen: bool = False
    ) -> TestSet:
        """The model and its test utterances, standardised; a `UserError` as `test_rows` says."""
        rows = self.test_rows(store, allow_seen=allow_seen)
        examples = load_examples(store, rows, self.model.standardisation)
        utterances = [store.utterances[row] for row in rows]
        return TestSet(
            model=self.model.network,
            features_NFL=examples.features_NFL,
            labels_N=examples.labels_N,
            ids=tuple(utterance.utterance_id for utterance in utterances),
            num_classes=len(self.model.classes),
            box=Box.of(self.model.standardisation.lower_F1, self.model.standardisation.upper_F1),
            seed=seed,
            batch_size=batch_size,
            speakers=tuple(utterance.speaker for utterance in utterances),
            sexes=tuple(utterance.sex for utterance in utterances),
            emotions=self.model.classes,
        )


def load_run(
    folder: Path, *, root: Path | str | None = None, client_id: str | None = None, network: NetworkSource | None = None
) -> TrainedRun:
    """A run's settings and its model.

    Args:
        folder: of the run.
        root: folder of the corpus, where it is no longer the one in the run's ``config.yaml``.
        client_id: whose own model is meant, in a run without averaging; None for the run's model.
        network: of a run that was trained with a network of its own.

    Raises:
        UserError: no such run, client or model.
    """
    run = RunFolder(folder)
    run.refuse_links_out()
    settings = read_settings(run.config, Config)
    if root is not None and isinstance(data := settings.get("data"), dict):
        data["root"] = str(root)
    config = checked(Config, settings)
    return TrainedRun(folder=folder, config=config, model=load_model(run, client_id=client_id, network=network))


def rows_of(all_ids: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Where utterances lie among all."""
    places = {utterance_id: row for row, utterance_id in enumerate(all_ids)}
    return [places[utterance_id] for utterance_id in ids]


def balanced_rows(labels_N: Sequence[int], ids: Sequence[str], size: int, seed: int) -> list[int]:
    """Rows of a subset: emotions in turn, each in an order drawn per utterance, so that all attacks share it."""
    queues: dict[int, list[int]] = {}
    for row in sorted(range(len(ids)), key=lambda row: derive_seed("subset", seed, ids[row])):
        queues.setdefault(labels_N[row], []).append(row)
    chosen: list[int] = []
    while len(chosen) < size:
        for label in sorted(queues):
            if queues[label] and len(chosen) < size:
                chosen.append(queues[label].pop(0))
    return sorted(chosen)
