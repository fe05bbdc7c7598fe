"""How a corpus is divided: which utterances train, select and test, and which client holds which to train on."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heapreplace
from typing import Literal, NamedTuple

import torch

from ser_fl.config.data import ClientsConfig, SplitConfig
from ser_fl.data.utterance import Utterance
from ser_fl.errors import UserError, unknown_name
from ser_fl.randomness import generator
from ser_fl.text import plain

Indices = tuple[int, ...]
"""Positions in the utterance table, ascending."""
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
EVERYBODY = "all"
"""Id of a client that holds everything."""

_WAYS_OUT: Mapping[str, Mapping[str, str]] = {
    "within_speaker": {
        "train": "lower split.test_fraction or split.validation_fraction",
        "validation": "raise split.validation_fraction",
        "test": "raise split.test_fraction",
    },
    "speaker_independent": {
        "train": "lower split.num_test_speakers or split.num_validation_speakers, or name fewer speakers"
    },
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


def split_corpus(utterances: Sequence[Utterance], config: SplitConfig, *, whole: bool = True) -> Split:
    """Split a corpus as configured; what the split promises is checked on the outcome.

    Args:
        utterances: all of each speaker.
        config: how.
        whole: False for some of the speakers only, with the split of `settle_split`: a part may then be empty, since
            others may hold what is in it.

    Raises:
        UserError: an unknown speaker, too few speakers, or an empty part.
        BrokenPromise: an utterance, or where it is promised a speaker, would be in two parts.
    """
    if whole:
        config = settle_split({utterance.speaker: utterance.sex for utterance in utterances}, config)
    split = _divide(utterances, config)
    seen: dict[str, Part] = {}
    for part, indices in zip(PARTS, split, strict=True):
        names = sorted(utterances[index].utterance_id for index in indices)
        if config.name == "speaker_independent":
            names += sorted({f"speaker {utterances[index].speaker}" for index in indices})
        for name in names:
            if name in seen:
                raise BrokenPromise(f"{name} is in the {seen[name]} part and in the {part} part")
            seen[name] = part
    if whole:
        check_parts({part: len(indices) for part, indices in zip(PARTS, split, strict=True)}, config)
    return split


def settle_split(speakers: Mapping[str, str | None], config: SplitConfig) -> SplitConfig:
    """The same split with its speakers named, so that a node that holds only some of them splits as one that holds all.

    Folds come from an order of the speakers, drawn once from ``split.seed``, that spreads each sex evenly: the k-th of
    n stands at (k + 1/2) / n of the way. Fold i tests speakers i*k to (i+1)*k - 1 of it (the last fold may be smaller)
    and validates on those that follow, so that over all folds every speaker is tested once. ``speakers`` maps all of
    the corpus to their sex.

    Raises:
        UserError: an unknown speaker, one that is named twice, or a fold that is not there.
    """
    if config.name != "speaker_independent":
        return config
    asked = {who: tuple(map(plain, vars(config)[who])) for who in ("test_speakers", "validation_speakers")}
    config = SplitConfig(**{**vars(config), **asked})
    for name in (*config.test_speakers, *config.validation_speakers):
        if name not in speakers:
            raise unknown_name("speaker", name, sorted(speakers))
    names = sorted(speakers)
    drawn = [names[i] for i in torch.randperm(len(names), generator=generator("folds", config.seed)).tolist()]
    place: dict[str, float] = {}
    for sex in sorted({sex or "" for sex in speakers.values()}):
        of_sex = [speaker for speaker in drawn if (speakers[speaker] or "") == sex]
        place |= {speaker: (k + 0.5) / len(of_sex) for k, speaker in enumerate(of_sex)}
    order = sorted(drawn, key=place.__getitem__)
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


def check_parts(sizes: Mapping[Part, int], config: SplitConfig) -> None:
    """Refuse a split with an empty part: the `UserError` says what to change."""
    if config.name == "published" and not any(sizes.values()):
        raise UserError("this corpus has no split of its own: use split=within_speaker or split=speaker_independent")
    for part in PARTS:
        if not sizes[part]:
            way_out = _WAYS_OUT[config.name].get(part, _WAYS_OUT[config.name]["train"])
            raise UserError(f"split {config.name!r} leaves no {part} utterances of {sum(sizes.values())}: {way_out}")


def holders(
    utterances: Sequence[Utterance], part: Iterable[int], by: Literal["speaker", "session"] = "speaker"
) -> dict[str, Indices]:
    """Who holds the utterances of a part: each speaker the own recordings, whoever trains on them."""
    grouped: dict[str, list[int]] = {}
    for index in part:
        grouped.setdefault(getattr(utterances[index], by), []).append(index)
    return {name: tuple(grouped[name]) for name in sorted(grouped)}


def _divide(utterances: Sequence[Utterance], config: SplitConfig) -> Split:
    """The parts, in one of three ways. A published split is the corpus's own: utterances without one are left out. By
    named speakers, everybody else trains.

    Within speakers, as in the paper, a share of every speaker's utterances, rounded to the nearest count, is one pooled
    test set; validation by the same rule. It is spread evenly over a speaker's emotions (the paper's code disregards
    them).
    """
    named = dict.fromkeys(config.validation_speakers, "validation") | dict.fromkeys(config.test_speakers, "test")
    parts = [each.split if config.name == "published" else named.get(each.speaker, "train") for each in utterances]
    if config.name == "within_speaker":
        parts = ["train"] * len(utterances)
        for speaker, indices in holders(utterances, range(len(utterances))).items():
            order = torch.randperm(len(indices), generator=generator("split", config.seed, speaker)).tolist()
            rest = sorted((indices[i] for i in order), key=lambda index: utterances[index].emotion)
            for part, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
                count = round(fraction * len(rest))
                for k in range(count):
                    parts[rest[int((k + 0.5) * len(rest) / count)]] = part
                rest = [index for index in rest if parts[index] == "train"]
    return Split(*(tuple(index for index, part in enumerate(parts) if part == wanted) for wanted in PARTS))


def assign_clients(
    utterances: Sequence[Utterance], train: Indices, config: ClientsConfig, *, seed: int
) -> dict[str, Indices]:
    """Spread the training utterances over clients: client id to its utterances, each in exactly one client.

    Raises:
        UserError: more clients than utterances, speakers or sessions, or sessions asked of a corpus without any.
        BrokenPromise: an utterance would be in two clients, in none, or would not be of the training part.
    """
    is_drawn = config.by in ("iid", "dirichlet")
    if is_drawn:
        clients = _drawn_clients(utterances, train, config, seed)
    else:
        clients = natural_clients(utterances, train, config)
    assigned, wanted = Counter(index for indices in clients.values() for index in indices), set(train)
    for index in sorted({*assigned, *wanted}):
        name = utterances[index].utterance_id
        if index not in wanted:
            raise BrokenPromise(f"{name} is in a client and not in the training part")
        if assigned[index] > 1:
            raise BrokenPromise(f"{name} is in {assigned[index]} clients")
        if not assigned[index]:
            raise BrokenPromise(f"{name} is of the training part and in no client")
    return clients if is_drawn else {name: clients[name] for name in capped(sorted(clients), config)}


def natural_clients(utterances: Sequence[Utterance], train: Indices, config: ClientsConfig) -> dict[str, Indices]:
    """A client for each speaker or session, however many; a `UserError` where an utterance is of no session."""
    if config.by != "session":
        return holders(utterances, train)
    for index in train:
        if utterances[index].session is None:
            raise UserError(f"clients.by=session: utterance {utterances[index].utterance_id!r} has no session")
    return holders(utterances, train, "session")


def capped(names: Sequence[str], config: ClientsConfig) -> tuple[str, ...]:
    """The first ``clients.num_clients`` speakers or sessions; all where it is null; a `UserError` for too many."""
    if config.num_clients is not None and config.num_clients > len(names):
        raise UserError(
            f"clients.num_clients must be at most {len(names)} (one a {config.by}), got {config.num_clients}"
        )
    return tuple(names[: config.num_clients])


def _drawn_clients(
    utterances: Sequence[Utterance], train: Indices, config: ClientsConfig, seed: int
) -> dict[str, Indices]:
    """iid: shuffled and dealt out. dirichlet: each emotion's utterances in proportions drawn from Dirichlet(alpha).

    Shares are softmax of logarithms of Gamma draws, in float64, since the draws themselves underflow for a small alpha:
    log Gamma(a) = log Gamma(a + 1) + log(U) / a. A client that stays empty gets one utterance of the largest client.
    """
    num_clients, alpha = (
        config.num_clients or len({utterances[index].speaker for index in train}),
        config.dirichlet_alpha,
    )
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
            draws = torch._standard_gamma(torch.full((num_clients,), alpha + 1, dtype=torch.float64), generator=stream)
            uniform = torch.rand(num_clients, dtype=torch.float64, generator=stream)
            shares = torch.softmax(draws.log() + uniform.log() / alpha, dim=0)
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
