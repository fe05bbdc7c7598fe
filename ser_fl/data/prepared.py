"""The data of an experiment: features, split, clients, standardisation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch

from ser_fl.config.schema import Config
from ser_fl.data.client_manifest import ClientManifest, digest_of_all, digest_of_speakers
from ser_fl.data.clients import EVERYBODY, assign_clients
from ser_fl.data.corpora import open_corpus
from ser_fl.data.corpora.folder import expand_home
from ser_fl.data.features import FeatureStore, OnFeatures, compute_features
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.splits import Indices, Split, part_sizes, split_corpus
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.data.utterance import Corpus, SkippedFile, Utterance
from ser_fl.errors import UserError
from ser_fl.runs.redaction import is_place

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An experiment's data, split, standardised and spread over clients."""

    store: FeatureStore
    split: Split
    clients: dict[str, Indices]
    standardisation: Standardisation
    skipped: tuple[SkippedFile, ...] = ()
    """Files that could not be used and were left out, with ``data.on_unreadable=skip``."""

    def client_manifest(self) -> ClientManifest:
        """What the server knows of it."""
        utterances, client_ids = self.store.utterances, tuple(self.clients)
        return ClientManifest(
            classes=self.store.classes,
            client_ids=client_ids,
            sizes=part_sizes(utterances, self.split),
            standardisation=self.standardisation,
            digest=digest_of_all(digest_of_speakers(utterances, self.split), client_ids, self.standardisation),
            skipped=self.skipped,
        )


def open_configured_corpus(config: Config) -> Corpus:
    """The corpus that the configuration names."""
    data = config.data
    if data.name == "builtin":
        return SyntheticCorpus(data.num_speakers, data.utterances_per_emotion)
    assert data.root is not None
    if is_place(data.root):
        raise UserError(
            f"the run has its corpus at {data.root}, which this machine does not know: say where it is, with "
            "data.root=DIR (train) or root=DIR (benchmark, transfer)"
        )
    corpus = open_corpus(
        data.name,
        Path(data.root),
        channel=data.channel,
        on_unreadable=data.on_unreadable,
        labels=data.labels or None,
        to_hz=config.frontend.sample_rate_hz,
    )
    for skipped in corpus.skipped:
        _LOG.warning("left out %s: %s", skipped.utterance_id, skipped.reason)
    return corpus


def cache_dir_of(config: Config) -> Path | None:
    """Where features are kept; None is the default."""
    return expand_home(config.data.cache_dir) if config.data.cache_dir else None


def prepare(config: Config, on_features: OnFeatures | None = None) -> Prepared:
    """Features, split, clients and standardisation of an experiment.

    Standardisation is federated: each client gives the sums of its own training features, and the server adds them.
    """
    corpus = open_configured_corpus(config)
    store = compute_features(corpus, config.frontend, cache_dir=cache_dir_of(config), progress=on_features)
    split = split_corpus(store.utterances, config.split)
    clients = assign_clients(store.utterances, split.train, config.clients, seed=config.split.seed)
    if config.federation.name == "centralised":  # the same utterances, where the number of clients is capped too
        clients = {EVERYBODY: tuple(sorted(index for held in clients.values() for index in held))}
    _warn_of_untrained(store.utterances, split)
    sums = (FeatureStatistics.of(store.features_NFL[torch.tensor(held)]) for held in clients.values())
    standardisation = Standardisation.from_statistics(reduce(FeatureStatistics.merge, sums), config.frontend)
    return Prepared(store=store, split=split, clients=clients, standardisation=standardisation, skipped=corpus.skipped)


def _warn_of_untrained(utterances: Sequence[Utterance], split: Split) -> None:
    """Tell of emotions that are scored and not in the training part: a model can get none of them right."""
    trained = {utterances[index].emotion for index in split.train}
    for part, indices in split.parts.items():
        counts = Counter(utterances[index].emotion for index in indices)
        if untrained := [f"{emotion} ({counts[emotion]})" for emotion in sorted(counts) if emotion not in trained]:
            _LOG.warning("the training part lacks these emotions of the %s part: %s", part, ", ".join(untrained))
