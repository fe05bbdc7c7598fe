"""The data of an experiment: features, split, clients, standardisation, all of them or a node's, and who knows what.

A node holds the speakers whose data lie on one machine. A server knows names, counts and sums, never audio or features.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain
from typing import Any

import torch

from ser_fl.config.schema import Config, parse
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.copies import with_copies
from ser_fl.data.enrolment import enrolled, scale_of, training_mean
from ser_fl.data.features import FeatureStore, OnFeatures, compute_features
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.heard import Shared
from ser_fl.data.joint import Member, each_alone, members_of, own_classes, split_each
from ser_fl.data.normalisation import Scale, SpeakerScales
from ser_fl.data.partitioning import EVERYBODY, assign_clients, natural_clients
from ser_fl.data.shortcuts import facts_of_table, shortcuts
from ser_fl.data.splits import PARTS, Indices, Part, Split, facts_of, holders, split_corpus
from ser_fl.data.utterance import Corpus, SkippedFile, Utterance, plain
from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.parties import LeftOut

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
    num_examples: Mapping[str, int] = field(default_factory=dict)
    """Training utterances of each client."""
    skipped: tuple[SkippedFile, ...] = ()
    """Files that could not be used and were left out, with ``data.on_unreadable=skip``."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of each speaker's utterances, of nodes on other machines: whoever speaks for one later must hold the same."""
    left_out: Sequence[LeftOut] = ()
    """Nodes that were not enrolled; one is added where it tries to take the place of another."""
    shared: Shared | None = None
    """What the test part shares with what training hears; None until somebody looks."""
    fallback: Scale | None = None
    """The mean of training speakers' scales, where they tell it (`normalisation.share_mean`); or of corpora's."""
    corpora: Mapping[str, Member] = field(default_factory=dict)
    """Several, by name; empty where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The data of one machine, split as everybody's are, and spread over the clients that train on them."""

    store: FeatureStore
    split: Split
    clients: dict[str, Indices]

    def sizes_and_digests(self) -> tuple[Sizes, dict[str, str]]:
        """How much each speaker has of each part, and a digest of their utterances, labels and split."""
        utterances = self.store.utterances
        parts = dict(zip(PARTS, self.split, strict=True))
        digests = {utterance.speaker: blake2b(digest_size=16) for utterance in utterances}
        part_of = {index: part for part, indices in parts.items() for index in indices}
        for index, utterance in enumerate(utterances):
            content = repr((utterance.utterance_id, utterance.emotion, part_of.get(index)))
            digests[utterance.speaker].update(content.encode())
        sizes = {
            part: {speaker: len(own) for speaker, own in holders(utterances, indices).items()}
            for part, indices in parts.items()
        }
        return sizes, {speaker: digest.hexdigest() for speaker, digest in digests.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Partition):
    """An experiment's data on one machine, standardised."""

    standardisation: Standardisation
    skipped: tuple[SkippedFile, ...] = ()
    """Files that could not be used and were left out, with ``data.on_unreadable=skip``."""
    fallback: Scale | None = None
    corpora: Mapping[str, Member] = field(default_factory=dict)
    """Both as in `ClientManifest`."""

    def client_manifest(self) -> ClientManifest:
        sizes, digests = self.sizes_and_digests()
        return ClientManifest(
            classes=self.store.classes,
            client_ids=tuple(self.clients),
            num_examples={client_id: len(held) for client_id, held in self.clients.items()},
            sizes=sizes,
            standardisation=self.standardisation,
            digest=digest_of_all(digests, tuple(self.clients), self.standardisation),
            skipped=self.skipped,
            fallback=self.fallback,
            corpora=self.corpora,
        )


def prepare(config: Config, on_features: OnFeatures | None = None) -> Prepared:
    """Features, split, clients and standardisation of an experiment. Each client gives the sums of its own training
    features, and the server adds them; or each speaker is scaled by own clips. Emotions that are scored but not trained
    on, none of which a model can get right, are told.
    """
    corpus = open_configured_corpus(config)
    for name, own in each_alone(corpus.utterances).items():
        facts_of(own, config.split, name)  # texts that are missing are told before features take time
    members = members_of(corpus.utterances)
    _refuse_mixed_clients(members, config)
    store = compute_features(corpus, config.frontend, cache_dir=config.data.cache_dir, progress=on_features)
    store = replace(store, own_classes=own_classes(members, store.classes))
    validated = config.selection.needs_validation
    split = split_each(store.utterances, config.split, corpus=corpus.name, validated=validated)
    clients = assign_clients(store.utterances, split.train, config.clients, seed=config.split.seed)
    if config.federation.name == "centralised":  # the same utterances, where the number of clients is capped too
        clients = {EVERYBODY: tuple(sorted(index for held in clients.values() for index in held))}
    store = with_copies(store, corpus, split.train, config, on_features)
    _warn_of_lacking_emotions(store, split, clients)
    for own in each_alone(store.utterances).values():
        for shortcut in shortcuts(own, facts_of_table(own)):
            if shortcut.suspicious:
                _LOG.warning("%s: the model may learn it in place of emotions; see `ser-fl corpus check`", shortcut)
    fallback = None
    if config.normalisation.name == "speaker":
        fallback = training_mean(store, split) if config.normalisation.share_mean else None
        store, split = enrolled(store, split, config.enrolment, seed=config.split.seed, fallback=fallback)
        standardisation = Standardisation.of_scaled(config.frontend)
    elif members:  # each corpus by the sums of its own clients
        held_by = holders(store.utterances, split.train, "corpus")
        scales = {name: scale_of(store.features_NFL, rows) for name, rows in held_by.items()}
        members = {name: replace(member, scale=scales[name]) for name, member in members.items()}
        store = replace(store, scales=SpeakerScales.of_names(scales, (each.corpus for each in store.utterances)))
        fallback, standardisation = Scale.average(scales.values()), Standardisation.of_scaled(config.frontend)
    else:
        sums = [FeatureStatistics.of(store.features_NFL[torch.tensor(held)]) for held in clients.values()]
        standardisation = Standardisation.from_statistics(sums, config.frontend)
    return Prepared(
        store=store,
        split=split,
        clients=clients,
        standardisation=standardisation,
        skipped=corpus.skipped,
        fallback=fallback,
        corpora=members,
    )


def _refuse_mixed_clients(members: Mapping[str, Member], config: Config) -> None:
    """Refuse (`UserError`) clients that would hold utterances of corpora whose emotions differ."""
    mixing = config.federation.name == "centralised" or config.clients.by in ("iid", "dirichlet")
    if mixing and len({member.emotions for member in members.values()}) > 1:
        given = (
            "federation=centralised" if config.federation.name == "centralised" else f"clients.by={config.clients.by}"
        )
        raise UserError(
            f"a client goes by the emotions of one corpus, and those of {config.data.written} differ, got {given}: "
            "take federation=federated clients=speaker"
        )


def _warn_of_lacking_emotions(store: FeatureStore, split: Split, clients: Mapping[str, Indices]) -> None:
    """Say which parts lack emotions that training has or tests need, and how many clients hold one alone. A part of
    fewer utterances than emotions cannot have them all, which is no news.
    """
    emotions = [utterance.emotion for utterance in store.utterances]
    trained, *others = (Counter(emotions[index] for index in indices) for indices in split)
    for part, scored in zip(PARTS[1:], others, strict=True):
        for lacking, its, other, counts in (("training", trained, part, scored), (part, scored, "training", trained)):
            names = [f"{emotion} ({counts[emotion]})" for emotion in sorted(counts) if emotion not in its]
            if names and its.total() >= len(trained):
                _LOG.warning("the %s part lacks these emotions of the %s part: %s", lacking, other, ", ".join(names))
    alone = [client for client, held in clients.items() if len({emotions[index] for index in held}) == 1]
    if alone:
        _LOG.warning("%d of %d clients hold one emotion only, the first is %s", len(alone), len(clients), alone[0])


def digest_of_all(speakers: Mapping[str, str], client_ids: Sequence[str], standardisation: Standardisation) -> str:
    """One digest of an experiment's data, from that of each speaker, the same on whatever nodes the speakers are."""
    digest = blake2b(repr((sorted(speakers.items()), tuple(client_ids))).encode(), digest_size=16)
    for tensor in standardisation.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Host:
    """Where a node's data lie: known to the node alone, and never sent by a server."""

    root: str | None = None
    """Folder of the corpus, or the manifest file; None for the built-in corpus."""
    cache_dir: str | None = None
    """Where features are kept; None as in `data.cache_dir`."""
    speakers: tuple[str, ...] = ()
    """Those whose data take part; empty: all in the folder."""
    least_utterances: int = 1
    """Training utterances of a client that takes part; with fewer it stays home."""
    least_scored: int = 1
    """Utterances that a speaker is validated, or tested, with."""
    simulated: bool = False
    """Whether it stands for a node in a simulation on one machine: no other takes part with hostile clients."""

    def config_of(self, settings: Mapping[str, Any]) -> Config:
        """The experiment as a server describes it, on this node's own files. A wrong setting, or a corpus that needs a
        folder where this node names none, is a `UserError`.
        """
        data = {**settings["data"], "root": self.root, "cache_dir": self.cache_dir}
        if data["name"] != "builtin" and self.root is None:
            raise UserError(f"the experiment is on {data['name']}, and this host names no folder of it: give --data")
        config = parse({**settings, "data": data})
        if config.adversaries.name != "none" and not self.simulated:
            raise UserError(f"this host refuses hostile clients, got adversaries={config.adversaries.name}")
        return config


def open_node_corpus(config: Config, host: Host) -> Corpus:
    """The corpus of a node: of the speakers that take part. `skipped` is of the whole folder. A `UserError` says that a
    speaker that is named is not in it, or that it cannot be read.
    """
    corpus = copy(open_configured_corpus(config))
    known = {utterance.speaker for utterance in corpus.utterances}
    hosted = tuple(map(plain, host.speakers))
    for speaker in hosted:
        if speaker not in known:
            raise unknown_name("speaker", speaker, sorted(known))
    if hosted:
        corpus.utterances = tuple(u for u in corpus.utterances if u.speaker in hosted)
    return corpus


def open_partition(config: Config, host: Host, classes: Sequence[str]) -> Partition:
    """Features, split and clients of a node's data. The split is settled by names (`settle_split`); ``classes`` are of
    the whole experiment: a node may lack some.
    """
    corpus = open_node_corpus(config, host)
    store = compute_features(corpus, config.frontend, cache_dir=config.data.cache_dir, classes=tuple(classes))
    split = split_corpus(store.utterances, config.split, whole=False)
    clients = natural_clients(store.utterances, split.train, config.clients)  # the server caps them
    store = with_copies(store, corpus, split.train, config)
    if config.normalisation.name == "speaker":
        store, split = enrolled(store, split, config.enrolment, seed=config.split.seed)
    clients = {name: held for name, held in clients.items() if len(held) >= host.least_utterances}
    trained = set(chain(*clients.values()))
    split = Split(
        train=tuple(row for row in split.train if row in trained),
        validation=_of_enough(store.utterances, split.validation, host.least_scored),
        test=_of_enough(store.utterances, split.test, host.least_scored),
    )
    return Partition(store=store, split=split, clients=clients)


def _of_enough(utterances: Sequence[Utterance], part: Indices, least: int) -> Indices:
    """A part without the speakers who have fewer utterances in it."""
    held = holders(utterances, part)
    return tuple(row for row in part if len(held[utterances[row].speaker]) >= least)
