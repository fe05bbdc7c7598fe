"""A share of a corpus: what one host of some speakers holds, and tells a server that holds none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ser_fl.config.schema import Config, parse
from ser_fl.data.client_manifest import Sizes, digest_of_speakers
from ser_fl.data.clients import natural_clients
from ser_fl.data.features import FeatureStore, compute_features
from ser_fl.data.frontend import FeatureStatistics
from ser_fl.data.prepared import cache_dir_of, open_configured_corpus
from ser_fl.data.splits import Indices, Split, part_sizes, split_settled
from ser_fl.data.utterance import Corpus, Utterance
from ser_fl.errors import UserError, unknown_name


@dataclass(frozen=True, slots=True)
class Host:
    """Where a share lies: known to its host alone, and never sent by a server."""

    root: str | None = None
    """Folder of the corpus, or the manifest file; None for the built-in corpus."""
    cache_dir: str | None = None
    """Where features are kept; None as in `data.cache_dir`."""
    speakers: tuple[str, ...] = ()
    """Those whose data it shares; empty: all in the folder."""

    def config_of(self, settings: Mapping[str, Any]) -> Config:
        """The experiment as a server describes it, on this host's own files.

        Raises:
            UserError: a setting is wrong, or the corpus needs a folder and this host names none.
        """
        own = {"root": self.root, "cache_dir": self.cache_dir}
        data = {**settings["data"], **own}
        if data["name"] != "builtin" and self.root is None:
            raise UserError(f"the experiment is on {data['name']}, and this host names no folder of it: give --data")
        return parse({**settings, "data": data})


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerFacts:
    """What a host tells of a speaker before an experiment begins."""

    speaker: str
    sex: str | None
    emotions: tuple[str, ...]


class Hosted:
    """The `Corpus` of a host: of the speakers that it shares, and no others."""

    def __init__(self, corpus: Corpus, speakers: Sequence[str]) -> None:
        """Of all speakers where none is named."""
        shared = set(speakers)
        self._corpus = corpus
        self.name = corpus.name
        self.synthetic = corpus.synthetic
        self.utterances = tuple(u for u in corpus.utterances if not shared or u.speaker in shared)
        self.skipped = corpus.skipped  # of the whole folder

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        """As the corpus does."""
        return self._corpus.read(utterance)

    def content_digest(self, utterance: Utterance) -> bytes:
        """As the corpus does."""
        return self._corpus.content_digest(utterance)


def open_hosted(config: Config, host: Host) -> Hosted:
    """The corpus of a host.

    Raises:
        UserError: a speaker that is named is not in it, or it cannot be read.
    """
    corpus = open_configured_corpus(config)
    known = {utterance.speaker for utterance in corpus.utterances}
    for speaker in host.speakers:
        if speaker not in known:
            raise unknown_name("speaker", speaker, sorted(known))
    return Hosted(corpus, host.speakers)


def facts_of(corpus: Hosted) -> list[SpeakerFacts]:
    """Of every speaker, by name."""
    emotions: dict[str, set[str]] = {}
    sexes: dict[str, str | None] = {}
    for utterance in corpus.utterances:
        emotions.setdefault(utterance.speaker, set()).add(utterance.emotion)
        sexes[utterance.speaker] = utterance.sex
    return [
        SpeakerFacts(speaker=speaker, sex=sexes[speaker], emotions=tuple(sorted(emotions[speaker])))
        for speaker in sorted(emotions)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A host's data, split as everybody's are and spread over the clients that it hosts."""

    store: FeatureStore
    split: Split
    clients: dict[str, Indices]

    def statistics(self) -> dict[str, FeatureStatistics]:
        """Of each client's training features: sums, no data."""
        features_NFL = self.store.features_NFL
        return {client: FeatureStatistics.of(features_NFL[torch.tensor(held)]) for client, held in self.clients.items()}

    def sizes(self) -> Sizes:
        """Utterances of each part by speaker."""
        return part_sizes(self.store.utterances, self.split)

    def digests(self) -> dict[str, str]:
        """Of each speaker's data."""
        return digest_of_speakers(self.store.utterances, self.split)


def open_share(config: Config, host: Host, classes: Sequence[str]) -> Share:
    """Features, split and clients of what a host shares.

    Args:
        config: with the split settled by names (`settle_split`).
        host: where its data are.
        classes: of the whole experiment; a host may lack some.
    """
    corpus = open_hosted(config, host)
    store = compute_features(corpus, config.frontend, cache_dir=cache_dir_of(config), classes=tuple(classes))
    split = split_settled(store.utterances, config.split)
    clients = natural_clients(store.utterances, split.train, config.clients)  # the server caps them over all nodes
    return Share(store=store, split=split, clients=clients)
