"""The data of an experiment: features, split, clients, standardisation, and what a server knows of them.

A server knows names, counts and sums, and neither audio nor features.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b

import torch

from ser_fl.config.schema import Config
from ser_fl.data.features import FeatureStore, OnFeatures, compute_features, open_configured_corpus
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.splits import EVERYBODY, PARTS, Indices, Part, Split, assign_clients, holders, split_corpus
from ser_fl.data.utterance import SkippedFile

_LOG = logging.getLogger(__name__)

Sizes = dict[Part, dict[str, int]]
"""Utterances of each part by speaker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientManifest:
    """The clients of an experiment, and how much each speaker has of each part."""

    classes: tuple[str, ...]
    client_ids: tuple[str, ...]
    """In the order in which their updates are summed."""
    sizes: Sizes
    standardisation: Standardisation
    digest: str
    """Of utterances, labels, split, clients and standardisation: a resumed run must find the data that it left."""
    skipped: tuple[SkippedFile, ...] = ()
    """Files that could not be used and were left out, with ``data.on_unreadable=skip``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The data of one machine, split as everybody's are, and spread over the clients that train on them."""

    store: FeatureStore
    split: Split
    clients: dict[str, Indices]

    def statistics(self) -> dict[str, FeatureStatistics]:
        """Sums over each client's training features, and no data."""
        features_NFL = self.store.features_NFL
        return {client: FeatureStatistics.of(features_NFL[torch.tensor(held)]) for client, held in self.clients.items()}

    def sizes_and_digests(self) -> tuple[Sizes, dict[str, str]]:
        """How much each speaker has of each part, and a digest of their utterances, labels and split."""
        utterances = self.store.utterances
        held = {part: holders(utterances, indices) for part, indices in zip(PARTS, self.split, strict=True)}
        digests = {utterance.speaker: blake2b(digest_size=16) for utterance in utterances}
        part_of = {index: part for part, indices in zip(PARTS, self.split, strict=True) for index in indices}
        for index, utterance in enumerate(utterances):
            content = repr((utterance.utterance_id, utterance.emotion, part_of.get(index)))
            digests[utterance.speaker].update(content.encode())
        sizes: Sizes = {part: {speaker: len(own) for speaker, own in held[part].items()} for part in PARTS}
        return sizes, {speaker: digest.hexdigest() for speaker, digest in digests.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Partition):
    """An experiment's data on one machine, standardised."""

    standardisation: Standardisation
    skipped: tuple[SkippedFile, ...] = ()
    """Files that could not be used and were left out, with ``data.on_unreadable=skip``."""

    def client_manifest(self) -> ClientManifest:
        """What the server knows of it."""
        sizes, digests = self.sizes_and_digests()
        return ClientManifest(
            classes=self.store.classes,
            client_ids=tuple(self.clients),
            sizes=sizes,
            standardisation=self.standardisation,
            digest=digest_of_all(digests, tuple(self.clients), self.standardisation),
            skipped=self.skipped,
        )


def prepare(config: Config, on_features: OnFeatures | None = None) -> Prepared:
    """Features, split, clients and standardisation of an experiment.

    Standardisation is federated: each client gives the sums of its own training features, and the server adds them.
    Emotions that are scored and not in the training part, of which a model can get none right, are told.
    """
    corpus = open_configured_corpus(config)
    store = compute_features(corpus, config.frontend, cache_dir=config.data.cache_dir, progress=on_features)
    split = split_corpus(store.utterances, config.split)
    clients = assign_clients(store.utterances, split.train, config.clients, seed=config.split.seed)
    if config.federation.name == "centralised":  # the same utterances, where the number of clients is capped too
        clients = {EVERYBODY: tuple(sorted(index for held in clients.values() for index in held))}
    trained = {store.utterances[index].emotion for index in split.train}
    for part, indices in zip(PARTS, split, strict=True):
        counts = Counter(store.utterances[index].emotion for index in indices)
        if untrained := [f"{emotion} ({counts[emotion]})" for emotion in sorted(counts) if emotion not in trained]:
            _LOG.warning("the training part lacks these emotions of the %s part: %s", part, ", ".join(untrained))
    partition = Partition(store=store, split=split, clients=clients)
    sums = reduce(FeatureStatistics.merge, partition.statistics().values())
    return Prepared(
        store=store,
        split=split,
        clients=clients,
        standardisation=Standardisation.from_statistics(sums, config.frontend),
        skipped=corpus.skipped,
    )


def digest_of_all(speakers: Mapping[str, str], client_ids: Sequence[str], standardisation: Standardisation) -> str:
    """One digest of an experiment's data, from that of each speaker, the same on whatever nodes the speakers are."""
    digest = blake2b(repr((sorted(speakers.items()), tuple(client_ids))).encode(), digest_size=16)
    for tensor in standardisation.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
