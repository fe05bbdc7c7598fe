"""A node's partition of the corpus: the speakers whose data lie on one machine, and what a server learns of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch

from ser_fl.config.schema import Config, parse
from ser_fl.data.client_manifest import Sizes, digest_of_speakers
from ser_fl.data.clients import natural_clients
from ser_fl.data.features import FeatureStore, compute_features
from ser_fl.data.frontend import FeatureStatistics
from ser_fl.data.prepared import cache_dir_of, open_configured_corpus
from ser_fl.data.splits import Indices, Split, part_sizes, split_settled
from ser_fl.data.utterance import Corpus
from ser_fl.errors import UserError, unknown_name


@dataclass(frozen=True, slots=True)
class Host:
    """Where a node's data lie: known to the node alone, and never sent by a server."""

    root: str | None = None
    """Folder of the corpus, or the manifest file; None for the built-in corpus."""
    cache_dir: str | None = None
    """Where features are kept; None as in `data.cache_dir`."""
    speakers: tuple[str, ...] = ()
    """Those whose data take part; empty: all in the folder."""

    def config_of(self, settings: Mapping[str, Any]) -> Config:
        """The experiment as a server describes it, on this node's own files.

        Raises:
            UserError: a setting is wrong, or the corpus needs a folder and this node names none.
        """
        data = {**settings["data"], "root": self.root, "cache_dir": self.cache_dir}
        if data["name"] != "builtin" and self.root is None:
            raise UserError(f"the experiment is on {data['name']}, and this host names no folder of it: give --data")
        return parse({**settings, "data": data})


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerFacts:
    """What a node tells of a speaker before an experiment begins."""

    speaker: str
    sex: str | None
    emotions: tuple[str, ...]


def open_node_corpus(config: Config, host: Host) -> Corpus:
    """The corpus of a node: of the speakers that take part, and no others. `skipped` is of the whole folder.

    Raises:
        UserError: a speaker that is named is not in it, or it cannot be read.
    """
    corpus = open_configured_corpus(config)
    known = {utterance.speaker for utterance in corpus.utterances}
    for speaker in host.speakers:
        if speaker not in known:
            raise unknown_name("speaker", speaker, sorted(known))
    shared = copy(corpus)
    if host.speakers:
        shared.utterances = tuple(u for u in corpus.utterances if u.speaker in host.speakers)
    return shared


def facts_of(corpus: Corpus) -> list[SpeakerFacts]:
    """What is told of every speaker, by name."""
    emotions: dict[str, set[str]] = {}
    for utterance in corpus.utterances:
        emotions.setdefault(utterance.speaker, set()).add(utterance.emotion)
    sexes = {utterance.speaker: utterance.sex for utterance in corpus.utterances}
    return [
        SpeakerFacts(speaker=speaker, sex=sexes[speaker], emotions=tuple(sorted(emotions[speaker])))
        for speaker in sorted(emotions)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePartition:
    """A node's data, split as everybody's are, and spread over the clients that it trains."""

    store: FeatureStore
    split: Split
    clients: dict[str, Indices]

    def statistics(self) -> dict[str, FeatureStatistics]:
        """Sums over each client's training features, and no data."""
        features_NFL = self.store.features_NFL
        return {client: FeatureStatistics.of(features_NFL[torch.tensor(held)]) for client, held in self.clients.items()}

    def sizes(self) -> Sizes:
        """Utterances of each part by speaker."""
        return part_sizes(self.store.utterances, self.split)

    def digests(self) -> dict[str, str]:
        """A digest of each speaker's utterances, labels and split."""
        return digest_of_speakers(self.store.utterances, self.split)


def open_partition(config: Config, host: Host, classes: Sequence[str]) -> NodePartition:
    """Features, split and clients of a node's data.

    Args:
        config: with the split settled by names (`settle_split`).
        host: where the data lie.
        classes: of the whole experiment; a node may lack some.
    """
    corpus = open_node_corpus(config, host)
    store = compute_features(corpus, config.frontend, cache_dir=cache_dir_of(config), classes=tuple(classes))
    split = split_settled(store.utterances, config.split)
    clients = natural_clients(store.utterances, split.train, config.clients)  # the server caps them over all nodes
    return NodePartition(store=store, split=split, clients=clients)
