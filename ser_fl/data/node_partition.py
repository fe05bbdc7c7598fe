"""A node's partition of the corpus: the speakers whose data lie on one machine, and what a server learns of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from ser_fl.config.schema import Config, parse
from ser_fl.data.features import compute_features, open_configured_corpus
from ser_fl.data.prepared import Partition
from ser_fl.data.splits import natural_clients, split_corpus
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


def open_node_corpus(config: Config, host: Host) -> Corpus:
    """The corpus of a node: of the speakers that take part, and no others. `skipped` is of the whole folder.

    Raises:
        UserError: a speaker that is named is not in it, or it cannot be read.
    """
    corpus = copy(open_configured_corpus(config))
    known = {utterance.speaker for utterance in corpus.utterances}
    for speaker in host.speakers:
        if speaker not in known:
            raise unknown_name("speaker", speaker, sorted(known))
    if host.speakers:
        corpus.utterances = tuple(u for u in corpus.utterances if u.speaker in host.speakers)
    return corpus


def facts_of(corpus: Corpus) -> list[dict[str, Any]]:
    """What a node tells of every speaker before an experiment begins: name, sex and emotions."""
    emotions: dict[str, set[str]] = {}
    for utterance in corpus.utterances:
        emotions.setdefault(utterance.speaker, set()).add(utterance.emotion)
    sexes = {utterance.speaker: utterance.sex for utterance in corpus.utterances}
    return [
        {"speaker": speaker, "sex": sexes[speaker], "emotions": sorted(emotions[speaker])}
        for speaker in sorted(emotions)
    ]


def open_partition(config: Config, host: Host, classes: Sequence[str]) -> Partition:
    """Features, split and clients of a node's data.

    Args:
        config: with the split settled by names (`settle_split`).
        host: where the data lie.
        classes: of the whole experiment; a node may lack some.
    """
    corpus = open_node_corpus(config, host)
    store = compute_features(corpus, config.frontend, cache_dir=config.data.cache_dir, classes=tuple(classes))
    split = split_corpus(store.utterances, config.split, whole=False)
    clients = natural_clients(store.utterances, split.train, config.clients)  # the server caps them over all nodes
    return Partition(store=store, split=split, clients=clients)
