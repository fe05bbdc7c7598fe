"""Several corpora as one: each keeps its speakers, texts and recordings, under names that tell whose they are, and its
emotions by the common vocabulary.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any

from torch import Tensor

from ser_fl.config.data import SplitConfig
from ser_fl.data.normalisation import Scale
from ser_fl.data.splits import Split, facts_of, num_folds, split_corpus
from ser_fl.data.utterance import EMOTIONS, Corpus, SkippedFile, Utterance
from ser_fl.errors import UserError

_LOG = logging.getLogger(__name__)


class JointCorpus:
    """Utterances of several corpora (a `ser_fl.data.utterance.Corpus`). A `UserError` where no two share an emotion."""

    def __init__(self, members: Iterable[Corpus]) -> None:
        self._members = {member.name: member for member in members}
        self.name = "+".join(sorted(self._members))
        self.synthetic = any(member.synthetic for member in self._members.values())
        found = chain.from_iterable(member.utterances for member in self._members.values())
        self.utterances = tuple(sorted((each.among_others() for each in found), key=attrgetter("utterance_id")))
        self.skipped = tuple(
            SkippedFile(f"{name}:{file.utterance_id}", file.reason)
            for name, member in self._members.items()
            for file in member.skipped
        )
        emotions = {name: set(member.emotions) for name, member in members_of(self.utterances).items()}
        for name, own in emotions.items():
            if not any(own & others for other, others in emotions.items() if other != name):
                told = "; ".join(f"{corpus} has {', '.join(sorted(its))}" for corpus, its in emotions.items())
                raise UserError(
                    f"{name} shares no emotion with the other corpora: {told}; data.labels maps a manifest's"
                )
            if odd := sorted(own.difference(EMOTIONS)):
                words = ", ".join(odd)
                _LOG.warning(
                    "%s: %s are no words of the common vocabulary; data.labels.CODE=WORD maps them", name, words
                )

    def read(self, utterance: Utterance) -> tuple[Tensor, int]:
        return self._members[utterance.corpus].read(utterance.alone())

    def content_digest(self, utterance: Utterance) -> bytes:
        return self._members[utterance.corpus].content_digest(utterance.alone())


def by_corpus(utterances: Sequence[Utterance]) -> dict[str, list[int]]:
    """Where the utterances of each corpus stand, by its name."""
    rows: dict[str, list[int]] = {}
    for row, utterance in enumerate(utterances):
        rows.setdefault(utterance.corpus, []).append(row)
    return {name: rows[name] for name in sorted(rows)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """What a model knows of one of several corpora."""

    emotions: tuple[str, ...]
    """Those that it has, in the order of the classifier's outputs."""
    scale: Scale | None = None
    """By which its features are scaled; None where speakers are (normalisation=speaker)."""


def members_of(utterances: Sequence[Utterance]) -> dict[str, Member]:
    """Of several corpora, each by its name; empty of one."""
    rows_of = by_corpus(utterances)
    emotions = {name: tuple(sorted({utterances[row].emotion for row in rows})) for name, rows in rows_of.items()}
    return {name: Member(emotions=own) for name, own in emotions.items()} if len(rows_of) > 1 else {}


def own_classes(members: Mapping[str, Member], classes: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """The classes of each corpus, where corpora differ in their emotions; else empty."""
    if len({member.emotions for member in members.values()}) < 2:
        return {}
    return {name: tuple(map(classes.index, member.emotions)) for name, member in members.items()}


def each_alone(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """The utterances of each corpus, as it alone has them."""
    rows_of = by_corpus(utterances)
    several = len(rows_of) > 1
    return {name: [utterances[r].alone() if several else utterances[r] for r in rows] for name, rows in rows_of.items()}


def split_each(
    utterances: Sequence[Utterance], config: SplitConfig, corpus: str = "", *, validated: bool = True
) -> Split:
    """`split_corpus`, of each of several corpora as it is alone: a fold of all is that fold of each. Names of speakers
    and texts have their corpus before them, ``nemo:SM0``.

    Raises:
        UserError: as there, with the corpus's name; or speakers or texts are named, and none of some corpus.
    """
    rows_of = by_corpus(utterances)
    if len(rows_of) < 2:
        return split_corpus(utterances, config, corpus=corpus, validated=validated)
    parts: tuple[list[int], ...] = ([], [], [])
    for name, own in each_alone(utterances).items():
        named = dict[str, Any]()
        for setting in ("test_speakers", "validation_speakers", "test_texts", "validation_texts"):
            given: tuple[str, ...] = getattr(config, setting)
            if odd := [each for each in given if each.partition(":")[0] not in rows_of]:
                raise UserError(f"split.{setting} must say whose each is, as {name}:NAME, got {odd[0]!r}")
            named[setting] = tuple(each.removeprefix(f"{name}:") for each in given if each.startswith(f"{name}:"))
            if given and not named[setting]:
                raise UserError(f"split.{setting} must name some of every corpus, got none of {name}")
        try:
            split = split_corpus(own, replace(config, **named), corpus=name, validated=validated)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        for part, indices in zip(parts, split, strict=True):
            part += [rows_of[name][index] for index in indices]
    return Split(*(tuple(sorted(part)) for part in parts))


def num_folds_of_each(utterances: Sequence[Utterance], config: SplitConfig) -> int:
    """`num_folds`; a `UserError` where corpora differ in it."""
    counts = {name: num_folds(facts_of(own, config, name), config) for name, own in each_alone(utterances).items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(f"every corpus must have as many folds, but {told}: set split.num_folds")
    return next(iter(counts.values()))
