"""How a corpus is divided: which utterances train, select and test.

Speakers, texts and recordings (of which a long one is several utterances) are taken whole where a split says so.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from ser_fl.config.data import SplitConfig
from ser_fl.data.corpora.registry import CORPORA
from ser_fl.data.fair_shares import exchanges, places
from ser_fl.data.utterance import Utterance, plain, text_digest
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
        "train": "lower split.num_test_speakers or split.num_validation_speakers, or name fewer speakers"
    },
    "text_independent": {"train": "each part needs a text: lower split.num_test_texts or split.num_validation_texts"},
    "speaker_and_text_independent": {"train": "use split=speaker_independent or split=text_independent"},
    "published": {"train": "use split=within_speaker or split=speaker_independent"},
}
"""What to do about an empty part; the advice for "train" also serves parts without one of their own."""


class BrokenPromise(AssertionError):
    """Our mistake: utterances were spread in a way that would make figures wrong. Raised under ``python -O`` too."""


class Split(NamedTuple):
    """Disjoint parts of a corpus, in the order of `PARTS`."""

    train: Indices
    validation: Indices
    test: Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerFacts:
    """What a split must know of a speaker, which is all that a node tells before an experiment begins."""

    speaker: str
    sex: str | None
    emotions: Mapping[str, int]
    """Recordings of each."""
    texts: Mapping[str, Collection[str]]
    """Emotions of each text, by its digest; empty where the split does not ask. Somebody who guesses a text can find
    it among digests."""


def facts_of(utterances: Sequence[Utterance], config: SplitConfig, corpus: str = "") -> list[SpeakerFacts]:
    """Facts of every speaker, in the corpus of a name.

    Raises:
        UserError: the split is by texts, and an utterance has none.
    """
    if config.is_by_text and (lacking := [one.utterance_id for one in utterances if one.text is None]):
        whose = f"data={corpus}" if corpus else "this corpus"
        count = f"{len(lacking)} of {len(utterances)} of {whose} have none, the first {lacking[0]}"
        texts_in = CORPORA[corpus].texts_in if corpus in CORPORA else ""
        raise UserError(
            f"split={config.name} needs the text of every utterance, and "
            f"{f'none of {whose} has one' if len(lacking) == len(utterances) else count}: "
            f"{f'fill in {texts_in}' if texts_in else 'give a manifest with a column `text`'}, or take "
            "split=speaker_independent"
        )
    facts = []
    for speaker, held in holders(utterances, range(len(utterances))).items():
        texts: dict[str, set[str]] = {}
        for index in held if config.is_by_text else ():
            texts.setdefault(text_digest(utterances[index].text or ""), set()).add(utterances[index].emotion)
        of_recordings = {utterances[index].recording: utterances[index].emotion for index in reversed(held)}
        facts.append(
            SpeakerFacts(
                speaker=speaker,
                sex=utterances[held[-1]].sex,
                emotions=dict(sorted(Counter(of_recordings.values()).items())),
                texts={text: sorted(texts[text]) for text in sorted(texts)},
            )
        )
    return facts


def split_corpus(
    utterances: Sequence[Utterance],
    config: SplitConfig,
    *,
    corpus: str = "",
    whole: bool = True,
    validated: bool = True,
) -> Split:
    """Split a corpus as configured; what the split promises is checked on the outcome.

    Args:
        utterances: all of each speaker.
        config: how.
        corpus: its name, for messages.
        whole: False for some of the speakers only, with the split of `settle_split`: a part may then be empty, since
            others may hold what is in it.
        validated: False where nobody need validate (`selection.by=last`).

    Raises:
        UserError: an unknown speaker or text, too few of them, or an empty part.
        BrokenPromise: an utterance, or where it is promised a speaker or a text, would be in two parts.
    """
    if whole:
        config = settle_split(facts_of(utterances, config, corpus), config)
    split = _divide(utterances, config)
    seen: dict[str, Part] = {}
    for part, indices in zip(PARTS, split, strict=True):
        names = sorted(utterances[index].utterance_id for index in indices)
        if config.is_by_speaker:
            names += sorted({f"speaker {utterances[index].speaker}" for index in indices})
        if config.is_by_text:
            names += sorted({f"text {text_digest(utterances[index].text or '')}" for index in indices})
        if config.name != "published":
            names += sorted({f"recording {utterances[index].recording}" for index in indices})
        for name in names:
            if name in seen:
                raise BrokenPromise(f"{name} is in the {seen[name]} part and in the {part} part")
            seen[name] = part
    if whole:
        check_parts({part: len(indices) for part, indices in zip(PARTS, split, strict=True)}, config, validated)
    return split


def settle_split(facts: Sequence[SpeakerFacts], config: SplitConfig) -> SplitConfig:
    """The same split with all named that depends on the whole corpus, so that a node that holds only some of the
    speakers splits as one that holds all: who and what tests and validates, and within speakers who exchanges what.

    Raises:
        UserError: an unknown speaker or text, one that is named twice, or a fold that is not there.
    """
    if config.name == "within_speaker":
        held = {one.speaker: one.emotions for one in facts}
        fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
        return replace(config, exchanges=tuple(exchanges(held, fractions)))
    named: dict[str, Any] = {}
    if config.is_by_speaker:
        sexes = {one.speaker: one.sex or "" for one in facts}
        emotions = {one.speaker: frozenset(one.emotions) for one in facts}
        named |= _settled("speaker", sexes, emotions, config)
    if config.is_by_text:
        spoken: dict[str, frozenset[str]] = {}
        for one in facts:
            for text, own in one.texts.items():
                spoken[text] = spoken.get(text, frozenset()) | {*own}
        named |= _settled("text", {text: " ".join(sorted(spoken[text])) for text in spoken}, spoken, config)
    return replace(config, **{"fold": 0, "num_folds": None, **named}) if named else config


def num_folds(facts: Sequence[SpeakerFacts], config: SplitConfig) -> int:
    """How many folds test every speaker, or every text, once; 1 of a split without folds."""
    if config.test_speakers or config.test_texts or not (config.is_by_speaker or config.is_by_text):
        return 1
    unit: _Grouping = "speaker" if config.is_by_speaker else "text"
    names = {one.speaker for one in facts} if config.is_by_speaker else {text for one in facts for text in one.texts}
    return len(_fold_sizes(unit, len(names), config))


_Grouping = Literal["speaker", "text"]


def _fold_sizes(unit: _Grouping, number: int, config: SplitConfig) -> list[int]:
    if config.num_folds is None:
        each = config.num_test_speakers if unit == "speaker" else config.num_test_texts or max(1, round(number / 5))
        return [min(each, number - start) for start in range(0, number, each)]
    if config.num_folds > number:
        raise UserError(f"split.num_folds must be at most {number} (one a {unit}), got {config.num_folds}")
    return [number * (i + 1) // config.num_folds - number * i // config.num_folds for i in range(config.num_folds)]


def _settled(
    unit: _Grouping, kinds: Mapping[str, str], emotions: Mapping[str, frozenset[str]], config: SplitConfig
) -> dict[str, tuple[str, ...]]:
    """The speakers (or texts) that test and that validate.

    Folds come from an order, drawn once from ``split.seed``, that spreads each kind (a speaker's sex, a text's
    emotions) evenly: the k-th of n stands at (k + 1/2) / n of the way. A fold is the next of this order, the last one
    may be smaller; those that validate follow. So over all folds each is tested once. Where an emotion would be
    lacking, others are taken (`_fair`).
    """
    known = sorted(kinds)
    stream = generator("folds" if unit == "speaker" else "text folds", config.seed)
    drawn = [known[i] for i in torch.randperm(len(known), generator=stream).tolist()]
    place: dict[str, float] = {}
    for kind in sorted({*kinds.values()}):
        of_kind = [name for name in drawn if kinds[name] == kind]
        place |= {name: (k + 0.5) / len(of_kind) for k, name in enumerate(of_kind)}
    order = sorted(drawn, key=place.__getitem__)
    given = {part: _given(unit, getattr(config, f"{part}_{unit}s"), known) for part in ("test", "validation")}
    number: int | None = getattr(config, f"num_validation_{unit}s")
    if len(known) < (least := 2 if number == 0 else 3):
        raise UserError(
            f"split={config.name} needs {'two' if least == 2 else 'three'} {unit}s at least, one for each part, and "
            f"there are {len(known)}: take split=within_speaker"
        )
    testers = given["test"]
    if not testers:
        sizes = _fold_sizes(unit, len(order), config)
        fold = config.fold
        if unit == "text" and config.is_by_speaker:
            fold %= len(sizes)  # the speakers' folds go through those of the texts
        if fold >= len(sizes):
            raise UserError(f"split.fold must be below {len(sizes)} ({len(order)} {unit}s), got {fold}")
        rest = order
        for size in sizes[: fold + 1]:
            testers = _fair(rest, size, emotions)
            rest = [name for name in rest if name not in testers]
    start = order.index(testers[0]) if not given["test"] else 0
    others = [name for name in order[start:] + order[:start] if name not in testers]
    if number is None:  # a sixth, and where there is room not one alone
        number = max(min(2, len(others) // 3), round(len(others) / 6), 1)
    validators = given["validation"] or _fair(others, number, emotions)
    for name in testers:
        if name in validators:
            raise UserError(f"{unit} {name!r} is named for test and for validation")
    return {f"test_{unit}s": tuple(testers), f"validation_{unit}s": tuple(validators)}


def _given(unit: _Grouping, names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Speakers that the user names, or digests of texts."""
    if unit == "text":
        digests = [name if name in known else text_digest(name) for name in names]
        for name, digest in zip(names, digests, strict=True):
            if digest not in known:
                raise UserError(f"split.test_texts or split.validation_texts: no utterance says {name!r}")
        return digests
    names = [plain(name) for name in names]
    for name in names:
        if name not in known:
            raise unknown_name(unit, name, known)
    return names


def _fair(order: Sequence[str], number: int, emotions: Mapping[str, frozenset[str]]) -> list[str]:
    """The first of an order, unless they or the rest would then lack an emotion that two have. In that case one after
    the other who adds most emotions, and takes no such emotion from the rest.
    """
    holders_of = Counter(emotion for name in order for emotion in emotions[name])
    shared = {emotion for emotion, count in holders_of.items() if count > 1}

    def covered(names: Iterable[str]) -> set[str]:
        return shared & {emotion for name in names for emotion in emotions[name]}

    first, rest = list(order[:number]), list(order)
    if number >= len(order) or covered(first) == shared == covered(order[number:]):
        return first
    chosen: list[str] = []
    while len(chosen) < number:
        lacking = shared - covered(chosen)
        left = Counter(emotion for name in rest for emotion in emotions[name])
        gains = {
            name: (not any(left[emotion] == 1 for emotion in emotions[name]), len(lacking & emotions[name]))
            for name in rest
        }
        best = max(rest, key=gains.__getitem__)  # of equals the first
        chosen.append(best)
        rest.remove(best)
    return chosen


def check_parts(sizes: Mapping[Part, int], config: SplitConfig, validated: bool) -> None:
    """Refuse a split with an empty part, which that of validation may be unless it is ``validated``: the `UserError`
    says what to change.
    """
    if config.name == "published" and not any(sizes.values()):
        raise UserError("this corpus has no split of its own: use split=within_speaker or split=speaker_independent")
    for part in PARTS:
        if not sizes[part] and (validated or part != "validation"):
            way_out = _WAYS_OUT[config.name].get(part, _WAYS_OUT[config.name]["train"])
            way_out += ", or take selection=last" if part == "validation" else ""
            raise UserError(f"split {config.name!r} leaves no {part} utterances of {sum(sizes.values())}: {way_out}")


def holders(
    utterances: Sequence[Utterance], part: Iterable[int], by: Literal["speaker", "session", "corpus"] = "speaker"
) -> dict[str, Indices]:
    """Who holds the utterances of a part: each speaker the own recordings, whoever trains on them."""
    grouped: dict[str, list[int]] = {}
    for index in part:
        grouped.setdefault(getattr(utterances[index], by), []).append(index)
    return {name: tuple(grouped[name]) for name in sorted(grouped)}


def _divide(utterances: Sequence[Utterance], config: SplitConfig) -> Split:
    """The parts. A published split is the corpus's own: utterances without one are left out. By named speakers or
    texts, all others train; by both, utterances of whom one names and of what another are left out.

    Within speakers, as in the paper, a share of every speaker's recordings, rounded to the nearest count, is one pooled
    test set; validation by the same rule. It is spread evenly over a speaker's emotions (the paper's code disregards
    them).
    """
    parts: list[str | None]
    if config.name == "within_speaker":
        parts = ["train"] * len(utterances)
        for speaker, indices in holders(utterances, range(len(utterances))).items():
            grouped: dict[str, list[int]] = {}
            for index in indices:
                grouped.setdefault(utterances[index].recording, []).append(index)
            recordings = list(grouped.values())
            order = torch.randperm(len(recordings), generator=generator("split", config.seed, speaker)).tolist()
            rest = sorted((recordings[i] for i in order), key=lambda own: utterances[own[0]].emotion)
            for part, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
                swaps = [(given, taken) for *whose, given, taken in config.exchanges if whose == [part, speaker]]
                drawn = set(places([utterances[own[0]].emotion for own in rest], fraction, swaps))
                for place in drawn:
                    for index in rest[place]:
                        parts[index] = part
                rest = [own for place, own in enumerate(rest) if place not in drawn]
    elif config.name == "published":
        parts = [utterance.split for utterance in utterances]
    else:
        by_speaker = dict.fromkeys(config.validation_speakers, "validation") | dict.fromkeys(
            config.test_speakers, "test"
        )
        by_text = dict.fromkeys(config.validation_texts, "validation") | dict.fromkeys(config.test_texts, "test")
        parts = []
        for utterance in utterances:
            said = set[str]()
            if config.is_by_speaker:
                said.add(by_speaker.get(utterance.speaker, "train"))
            if config.is_by_text:
                said.add(by_text.get(text_digest(utterance.text or ""), "train"))
            parts.append(said.pop() if len(said) == 1 else None)
    return Split(*(tuple(index for index, part in enumerate(parts) if part == wanted) for wanted in PARTS))
