"""Which utterances of a corpus train, select and test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ser_fl.config.data import SplitConfig
from ser_fl.data.utterance import Utterance
from ser_fl.errors import UserError, unknown_name
from ser_fl.randomness import generator

Indices = tuple[int, ...]
"""Positions in the utterance table, ascending."""
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")

_WAYS_OUT: Mapping[str, Mapping[str, str]] = {
    "within_speaker": {
        "train": "lower split.test_fraction or split.validation_fraction",
        "validation": "raise split.validation_fraction",
        "test": "raise split.test_fraction",
    },
    "speaker_independent": {
        "train": "lower split.num_test_speakers or split.num_validation_speakers, or name fewer speakers",
    },
    "published": {"train": "use split=within_speaker or split=speaker_independent"},
}
"""What to do about an empty part; the advice for "train" also serves parts without one of their own."""


class BrokenPromise(AssertionError):
    """Our mistake: utterances were spread in a way that would make figures wrong. Raised under ``python -O`` too."""


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts of a corpus."""

    train: Indices
    validation: Indices
    test: Indices

    @property
    def parts(self) -> dict[Part, Indices]:
        """The parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def split_corpus(utterances: Sequence[Utterance], config: SplitConfig) -> Split:
    """Split a corpus as configured; what the split promises is checked on the outcome.

    Raises:
        UserError: an unknown speaker, too few speakers, or an empty part.
        BrokenPromise: an utterance, or where it is promised a speaker, would be in two parts.
    """
    split = split_settled(utterances, settle_split({u.speaker: u.sex for u in utterances}, config))
    check_parts({part: len(indices) for part, indices in split.parts.items()}, config)
    return split


def settle_split(speakers: Mapping[str, str | None], config: SplitConfig) -> SplitConfig:
    """The same split with its speakers named, so that a node that holds only some of them splits as one that holds all.

    Folds come from an order of the speakers that is drawn once from ``split.seed``: fold i tests speakers i*k to
    (i+1)*k - 1 of it (the last fold may be smaller) and validates on those that follow, so that over all folds every
    speaker is tested once.

    Args:
        speakers: every speaker of the corpus and their sex.
        config: as configured; folds become named speakers.

    Raises:
        UserError: an unknown speaker, one that is named twice, or a fold that is not there.
    """
    if config.name != "speaker_independent":
        return config
    for name in (*config.test_speakers, *config.validation_speakers):
        if name not in speakers:
            raise unknown_name("speaker", name, sorted(speakers))
    order = _fold_order(speakers, config.seed)
    if config.test_speakers:
        testers = list(config.test_speakers)
        others = [speaker for speaker in order if speaker not in config.test_speakers]
    else:
        start = config.fold * config.num_test_speakers
        num_folds = -(-len(order) // config.num_test_speakers)
        if config.fold >= num_folds:
            raise UserError(f"split.fold must be below {num_folds} ({len(order)} speakers), got {config.fold}")
        testers = order[start : start + config.num_test_speakers]
        others = order[start + len(testers) :] + order[:start]
    validators = list(config.validation_speakers) or others[: config.num_validation_speakers]
    for speaker in testers:
        if speaker in validators:
            raise UserError(f"speaker {speaker!r} is named for test and for validation")
    named = {"fold": 0, "test_speakers": tuple(testers), "validation_speakers": tuple(validators)}
    return SplitConfig(**{**vars(config), **named})


def split_settled(utterances: Sequence[Utterance], settled: SplitConfig) -> Split:
    """Split some speakers' utterances; a part may be empty, since others may hold what is in it.

    Args:
        utterances: all of each speaker.
        settled: from `settle_split`.

    Raises:
        BrokenPromise: an utterance, or where it is promised a speaker, would be in two parts.
    """
    split_by = {
        "within_speaker": _within_speaker,
        "speaker_independent": _speaker_independent,
        "published": _published,
    }[settled.name]
    split = split_by(utterances, settled)
    _check_disjoint({part: [utterances[i].utterance_id for i in indices] for part, indices in split.parts.items()})
    if settled.name == "speaker_independent":
        _check_disjoint({part: {utterances[i].speaker for i in indices} for part, indices in split.parts.items()})
    return split


def check_parts(sizes: Mapping[Part, int], config: SplitConfig) -> None:
    """Refuse a split with an empty part.

    Raises:
        UserError: it says what to change.
    """
    if config.name == "published" and not any(sizes.values()):
        raise UserError("this corpus has no split of its own: use split=within_speaker or split=speaker_independent")
    for part in PARTS:
        if not sizes[part]:
            way_out = _WAYS_OUT[config.name].get(part, _WAYS_OUT[config.name]["train"])
            raise UserError(f"split {config.name!r} leaves no {part} utterances of {sum(sizes.values())}: {way_out}")


def holders(utterances: Sequence[Utterance], part: Iterable[int]) -> dict[str, Indices]:
    """Who holds the utterances of a part: each speaker the own recordings, whoever trains on them."""
    grouped: dict[str, list[int]] = {}
    for index in part:
        grouped.setdefault(utterances[index].speaker, []).append(index)
    return {speaker: tuple(grouped[speaker]) for speaker in sorted(grouped)}


def part_sizes(utterances: Sequence[Utterance], split: Split) -> dict[Part, dict[str, int]]:
    """How many utterances of each part each speaker has."""
    held = {part: holders(utterances, indices) for part, indices in split.parts.items()}
    return {part: {speaker: len(of_speaker) for speaker, of_speaker in held[part].items()} for part in PARTS}


def _within_speaker(utterances: Sequence[Utterance], config: SplitConfig) -> Split:
    """The paper's split: a share of every speaker's utterances is one pooled test set; validation by the same rule.

    The share is spread evenly over a speaker's emotions (the paper's code draws it without regard to them).
    """
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for speaker, indices in holders(utterances, range(len(utterances))).items():
        order = torch.randperm(len(indices), generator=generator("split", config.seed, speaker)).tolist()
        by_emotion = sorted((indices[i] for i in order), key=lambda index: utterances[index].emotion)
        tested, rest = _take_evenly(by_emotion, config.test_fraction)
        validated, trained = _take_evenly(rest, config.validation_fraction)
        test += tested
        validation += validated
        train += trained
    return Split(tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(test)))


def _speaker_independent(utterances: Sequence[Utterance], settled: SplitConfig) -> Split:
    """By named speakers; everybody else trains."""
    part_of = dict.fromkeys(settled.validation_speakers, "validation") | dict.fromkeys(settled.test_speakers, "test")
    return _by_part(part_of.get(utterance.speaker, "train") for utterance in utterances)


def _published(utterances: Sequence[Utterance], settled: SplitConfig) -> Split:
    """The corpus's own split; utterances without one are left out."""
    return _by_part(utterance.split for utterance in utterances)


def _by_part(names: Iterable[str | None]) -> Split:
    """From the part of each utterance; None is no part."""
    indices: dict[str | None, list[int]] = {part: [] for part in (*PARTS, None)}
    for index, part in enumerate(names):
        indices[part].append(index)
    return Split(*(tuple(indices[part]) for part in PARTS))


def _fold_order(sexes: Mapping[str, str | None], seed: int) -> list[str]:
    """All speakers in a drawn order that spreads each sex evenly: the k-th of n stands at (k + 1/2) / n of the way."""
    speakers = sorted(sexes)
    drawn = [speakers[i] for i in torch.randperm(len(speakers), generator=generator("folds", seed)).tolist()]
    place: dict[str, float] = {}
    for sex in sorted({sex or "" for sex in sexes.values()}):
        of_sex = [speaker for speaker in drawn if (sexes[speaker] or "") == sex]
        place |= {speaker: (k + 0.5) / len(of_sex) for k, speaker in enumerate(of_sex)}
    return sorted(drawn, key=place.__getitem__)


def _check_disjoint(named: Mapping[Part, Iterable[str]]) -> None:
    """No utterance or speaker twice."""
    seen: dict[str, str] = {}
    for part, name in ((part, name) for part, names in named.items() for name in sorted(names)):
        if name in seen:
            raise BrokenPromise(f"{name} is in the {seen[name]} part and in the {part} part")
        seen[name] = part


def _take_evenly(items: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """Split a sequence into evenly spaced items, ``fraction`` of it rounded to the nearest count, and the rest.

    >>> _take_evenly([1, 2, 3, 4, 5], 0.4)
    ([2, 4], [1, 3, 5])
    """
    count = round(fraction * len(items))
    taken = {int((k + 0.5) * len(items) / count) for k in range(count)}
    return [item for i, item in enumerate(items) if i in taken], [
        item for i, item in enumerate(items) if i not in taken
    ]
