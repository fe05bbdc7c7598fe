"""Who trains, selects and tests on what: splits of a corpus, and clients of its training part."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from typing import Literal

import torch
from torch import Generator, Tensor

from ser_fl.config.schema import ClientsConfig, SplitConfig
from ser_fl.data.utterance import Utterance
from ser_fl.errors import UserError, unknown_name
from ser_fl.randomness import generator

EVERYBODY = "all"
"""Id of a client that holds everything."""
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
"""What to do about an empty part; by "train" where the part itself is not named."""


class BrokenPromise(AssertionError):
    """Our mistake: utterances were spread in a way that would make figures wrong. Raised under ``python -O`` too."""


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts of a corpus."""

    train: Indices
    validation: Indices
    test: Indices


def split_corpus(utterances: Sequence[Utterance], config: SplitConfig) -> Split:
    """Split a corpus as configured; what the split promises is checked on the outcome.

    Raises:
        UserError: an unknown speaker, too few speakers, or an empty part.
        BrokenPromise: an utterance, or where it is promised a speaker, would be in two parts.
    """
    split = split_share(utterances, settle_split({u.speaker: u.sex for u in utterances}, config))
    check_parts({part: len(getattr(split, part)) for part in PARTS}, config)
    return split


def settle_split(speakers: Mapping[str, str | None], config: SplitConfig) -> SplitConfig:
    """The split by names: who holds only some of a corpus's speakers splits them by it as whoever holds all.

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
        named = set(testers)
        others = [speaker for speaker in order if speaker not in named]
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
    # mypy does not see that pydantic's dataclass is one.
    return replace(  # type: ignore[type-var]
        config, fold=0, test_speakers=tuple(testers), validation_speakers=tuple(validators)
    )


def split_share(utterances: Sequence[Utterance], settled: SplitConfig) -> Split:
    """Split some speakers' utterances; a part may be empty, since others may hold what is in it.

    Raises:
        BrokenPromise: an utterance, or where it is promised a speaker, would be in two parts.
    """
    split = {
        "within_speaker": _within_speaker,
        "speaker_independent": _speaker_independent,
        "published": _published,
    }[settled.name](utterances, settled)
    _check_disjoint(split, utterances, by_speaker=settled.name == "speaker_independent")
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


def _within_speaker(utterances: Sequence[Utterance], config: SplitConfig) -> Split:
    """The paper's split: a share of every speaker's utterances is one pooled test set; validation by the same rule.

    The share is spread evenly over a speaker's emotions (the paper's code draws it without regard to them).
    """
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for speaker, indices in _by_speaker(utterances, range(len(utterances))).items():
        by_emotion = _shuffled_by_emotion(indices, utterances, "split", config.seed, speaker)
        held, rest = _take_evenly(by_emotion, config.test_fraction)
        chosen, kept = _take_evenly(rest, config.validation_fraction)
        test += held
        validation += chosen
        train += kept
    return Split(tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(test)))


def _speaker_independent(utterances: Sequence[Utterance], settled: SplitConfig) -> Split:
    """By named speakers; everybody else trains.

    Folds are named by `settle_split`, from an order of the speakers that is drawn once from ``split.seed``: fold i
    tests speakers i*k to (i+1)*k - 1 of it (the last fold may be smaller) and validates on those that follow, so that
    over all folds every speaker is tested once.
    """
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    tested, validated = set(settled.test_speakers), set(settled.validation_speakers)
    for index, utterance in enumerate(utterances):
        speaker = utterance.speaker
        parts["test" if speaker in tested else "validation" if speaker in validated else "train"].append(index)
    return Split(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]))


def _fold_order(sexes: Mapping[str, str | None], seed: int) -> list[str]:
    """All speakers in a drawn order that spreads each sex evenly: the k-th of n stands at (k + 1/2) / n of the way."""
    speakers = sorted(sexes)
    drawn = [speakers[i] for i in torch.randperm(len(speakers), generator=generator("folds", seed)).tolist()]
    place: dict[str, float] = {}
    for sex in sorted({sex or "" for sex in sexes.values()}):
        of_sex = [speaker for speaker in drawn if (sexes[speaker] or "") == sex]
        place |= {speaker: (k + 0.5) / len(of_sex) for k, speaker in enumerate(of_sex)}
    return sorted(drawn, key=place.__getitem__)


def _published(utterances: Sequence[Utterance], config: SplitConfig) -> Split:
    """The corpus's own split; utterances without one are left out."""
    parts: dict[str | None, list[int]] = defaultdict(list)
    for index, utterance in enumerate(utterances):
        parts[utterance.split].append(index)
    return Split(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]))


def assign_clients(
    utterances: Sequence[Utterance], train: Indices, config: ClientsConfig, *, seed: int
) -> dict[str, Indices]:
    """Spread the training utterances over clients: client id to its utterances, each in exactly one client.

    Raises:
        UserError: more clients than utterances, speakers or sessions, or sessions asked of a corpus without any.
        BrokenPromise: an utterance would be in two clients, in none, or would not be of the training part.
    """
    if config.by in ("speaker", "session"):
        clients = _natural_clients(utterances, train, config)
    else:
        clients = _drawn_clients(utterances, train, config, seed)
    _check_assigned(clients, train, utterances, capped=config.by in ("speaker", "session") and bool(config.num_clients))
    return clients


def _natural_clients(utterances: Sequence[Utterance], train: Indices, config: ClientsConfig) -> dict[str, Indices]:
    grouped: dict[str, list[int]] = defaultdict(list)
    for index in train:
        key = utterances[index].speaker if config.by == "speaker" else utterances[index].session
        if key is None:
            raise UserError(f"clients.by=session: utterance {utterances[index].utterance_id!r} has no session")
        grouped[key].append(index)
    names = sorted(grouped)
    if config.num_clients is not None and config.num_clients > len(names):
        raise UserError(
            f"clients.num_clients must be at most {len(names)} (one a {config.by}), got {config.num_clients}"
        )
    return {name: tuple(grouped[name]) for name in names[: config.num_clients]}


def _drawn_clients(
    utterances: Sequence[Utterance], train: Indices, config: ClientsConfig, seed: int
) -> dict[str, Indices]:
    """iid: shuffled and dealt out. dirichlet: each emotion's utterances in proportions drawn from Dirichlet(alpha).

    A client that the Dirichlet draw leaves empty gets one utterance of the largest client.
    """
    num_clients = config.num_clients or len({utterances[index].speaker for index in train})
    if num_clients > len(train):
        raise UserError(f"clients.num_clients must be at most the {len(train)} training utterances, got {num_clients}")
    stream = generator("clients", seed, config.by, num_clients)
    shuffled = [train[i] for i in torch.randperm(len(train), generator=stream).tolist()]
    if config.by == "iid":
        dealt = [shuffled[k::num_clients] for k in range(num_clients)]
    else:
        dealt = [[] for _ in range(num_clients)]
        for emotion in sorted({utterances[index].emotion for index in train}):
            of_emotion = [index for index in shuffled if utterances[index].emotion == emotion]
            shares = _dirichlet(num_clients, config.dirichlet_alpha, stream)
            bounds = (shares.cumsum(0) * len(of_emotion)).round().long().tolist()
            for client, (start, stop) in enumerate(zip([0, *bounds[:-1]], bounds, strict=True)):
                dealt[client] += of_emotion[start:stop]
        _fill_empty(dealt)
    if num_clients == 1:
        return {EVERYBODY: tuple(sorted(dealt[0]))}
    width = len(str(num_clients - 1))
    return {f"client{k:0{width}d}": tuple(sorted(part)) for k, part in enumerate(dealt)}


def _fill_empty(dealt: list[list[int]]) -> None:
    """Give every empty part one utterance of the part that is the largest by then, of several the first."""
    by_size = [(-len(part), client) for client, part in enumerate(dealt)]
    heapify(by_size)
    for part in [part for part in dealt if not part]:
        negative_size, largest = by_size[0]
        part.append(dealt[largest].pop())
        heapreplace(by_size, (negative_size + 1, largest))


def _dirichlet(size: int, alpha: float, stream: Generator) -> Tensor:
    """Shares from a symmetric Dirichlet, float64.

    By logarithms of Gamma draws, which underflow for a small alpha: log Gamma(a) = log Gamma(a + 1) + log(U) / a.
    """
    draws = torch._standard_gamma(torch.full((size,), alpha + 1, dtype=torch.float64), generator=stream)
    uniform = torch.rand(size, dtype=torch.float64, generator=stream)
    return torch.softmax(draws.log() + uniform.log() / alpha, dim=0)


def holders(utterances: Sequence[Utterance], part: Indices) -> dict[str, Indices]:
    """Who holds the utterances of a part: speakers hold their own recordings, whoever trains on them."""
    return {speaker: tuple(indices) for speaker, indices in _by_speaker(utterances, part).items()}


def part_sizes(utterances: Sequence[Utterance], part: Indices) -> dict[str, int]:
    """How many utterances of a part each speaker has."""
    return {speaker: len(held) for speaker, held in holders(utterances, part).items()}


def _check_disjoint(split: Split, utterances: Sequence[Utterance], *, by_speaker: bool) -> None:
    """No utterance in two parts and, where it is promised, no speaker."""
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    held_by = [{part: [utterances[i].utterance_id for i in indices] for part, indices in parts.items()}]
    if by_speaker:
        held_by.append({part: sorted({utterances[i].speaker for i in indices}) for part, indices in parts.items()})
    for held in held_by:
        seen: dict[str, str] = {}
        for part, name in ((part, name) for part, names in held.items() for name in names):
            if name in seen:
                raise BrokenPromise(f"{name} is in the {seen[name]} part and in the {part} part")
            seen[name] = part


def _check_assigned(
    clients: Mapping[str, Indices], train: Indices, utterances: Sequence[Utterance], *, capped: bool
) -> None:
    """Every training utterance in one client, or with ``capped`` in at most one; no other utterance in any."""
    assigned = Counter(index for indices in clients.values() for index in indices)
    wanted = set(train)
    for index in sorted(assigned | Counter(wanted)):
        name = utterances[index].utterance_id
        if index not in wanted:
            raise BrokenPromise(f"{name} is in a client and not in the training part")
        if assigned[index] > 1:
            raise BrokenPromise(f"{name} is in {assigned[index]} clients")
        if not assigned[index] and not capped:
            raise BrokenPromise(f"{name} is of the training part and in no client")


def _by_speaker(utterances: Sequence[Utterance], part: Iterable[int]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = defaultdict(list)
    for index in part:
        grouped[utterances[index].speaker].append(index)
    return {speaker: grouped[speaker] for speaker in sorted(grouped)}


def _shuffled_by_emotion(
    indices: Sequence[int], utterances: Sequence[Utterance], purpose: str, seed: int, speaker: str
) -> list[int]:
    order = torch.randperm(len(indices), generator=generator(purpose, seed, speaker)).tolist()
    return sorted((indices[i] for i in order), key=lambda index: utterances[index].emotion)


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
