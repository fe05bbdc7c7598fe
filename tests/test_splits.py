"""Splits and clients: every utterance once, no speaker where it must not be, shares as promised."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ser_fl.config.data import ClientsConfig, SplitConfig
from ser_fl.data import partitioning, splits
from ser_fl.data.partitioning import _fill_empty, assign_clients
from ser_fl.data.splits import BrokenPromise, Indices, Split, holders, split_corpus
from ser_fl.data.utterance import Utterance, text_digest
from ser_fl.errors import UserError

EMOTIONS = ("anger", "fear", "happiness", "neutral", "sadness")
WITHIN = SplitConfig(
    name="within_speaker",
    seed=0,
    test_fraction=0.2,
    validation_fraction=0.1,
    test_speakers=(),
    validation_speakers=(),
    fold=0,
    num_test_speakers=3,
    num_validation_speakers=1,
)
INDEPENDENT = replace(WITHIN, name="speaker_independent")
BY_SPEAKER = ClientsConfig(by="speaker", num_clients=None, dirichlet_alpha=0.5)
Table = tuple[Utterance, ...]


def table(counts: dict[str, dict[str, int]], **fields: Any) -> Table:
    """So many utterances of each speaker and emotion, in the order of their ids."""
    made = (
        Utterance(utterance_id=f"{speaker}/{emotion}/{number:03d}", emotion=emotion, speaker=speaker, **fields)
        for speaker, of_speaker in counts.items()
        for emotion, count in of_speaker.items()
        for number in range(count)
    )
    return tuple(sorted(made, key=lambda utterance: utterance.utterance_id))


def even_table(num_speakers: int = 10, count: int = 4) -> Table:
    return table({f"s{number:02d}": dict.fromkeys(EMOTIONS, count) for number in range(num_speakers)})


def speakers(utterances: Table, part: Sequence[int]) -> set[str]:
    return {utterances[index].speaker for index in part}


def of_speaker(utterances: Table, part: Sequence[int], speaker: str) -> list[str]:
    """Utterance ids."""
    return [utterances[index].utterance_id for index in part if utterances[index].speaker == speaker]


def parts(split: Split) -> tuple[Indices, Indices, Indices]:
    return split.train, split.validation, split.test


def every_index_once(groups: Sequence[Indices]) -> list[int]:
    return sorted(index for group in groups for index in group)


@pytest.mark.parametrize("config", [WITHIN, INDEPENDENT], ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(3))
def test_every_utterance_is_in_exactly_one_part(config: SplitConfig, seed: int) -> None:
    utterances = even_table()
    split = split_corpus(utterances, replace(config, seed=seed))
    assert every_index_once(parts(split)) == list(range(len(utterances)))
    assert all(list(part) == sorted(part) for part in parts(split))


def test_within_speaker_takes_the_same_share_of_every_speaker() -> None:
    """20 % of a speaker's n utterances test, 10 % of the rest validate, rounded to whole utterances."""
    sizes = {"s0": 10, "s1": 23, "s2": 50, "s3": 101}
    utterances = table({speaker: dict.fromkeys(EMOTIONS, 0) | {"anger": size} for speaker, size in sizes.items()})
    split = split_corpus(utterances, WITHIN)
    for speaker, size in sizes.items():
        num_test = round(size * 0.2)
        assert len(of_speaker(utterances, split.test, speaker)) == num_test
        assert len(of_speaker(utterances, split.validation, speaker)) == round((size - num_test) * 0.1)


def test_within_speaker_spreads_the_share_over_emotions() -> None:
    """Every 5th of a sequence in the order of emotions: of c utterances of an emotion, c / 5 to within one.

    MK0 of nEMO has no "surprise" at all; the others' shares must not suffer from it.
    """
    sizes = {"anger": 31, "fear": 29, "happiness": 12, "neutral": 40, "sadness": 18}
    utterances = table({"MK0": sizes, "other": {**sizes, "surprise": 25}})
    split = split_corpus(utterances, WITHIN)
    for speaker in ("MK0", "other"):
        tested = Counter(utterances[index].emotion for index in split.test if utterances[index].speaker == speaker)
        for emotion, size in sizes.items():
            assert abs(tested[emotion] - size / 5) < 1.01, (speaker, emotion)
    assert {utterances[index].emotion for index in split.test} == {*sizes, "surprise"}
    assert not [i for i in split.test if utterances[i].speaker == "MK0" and utterances[i].emotion == "surprise"]


def test_a_speakers_part_does_not_depend_on_who_else_is_in_the_corpus() -> None:
    few, many = even_table(3, count=20), even_table(8, count=20)
    for speaker in ("s00", "s01", "s02"):
        first, second = split_corpus(few, WITHIN), split_corpus(many, WITHIN)
        for part, other in zip(parts(first), parts(second), strict=True):
            assert of_speaker(few, part, speaker) == of_speaker(many, other, speaker)


def test_speaker_independent_has_no_speaker_on_two_sides() -> None:
    utterances = even_table()
    split = split_corpus(utterances, replace(INDEPENDENT, num_validation_speakers=2))
    sides = [speakers(utterances, part) for part in parts(split)]
    assert [len(side) for side in sides] == [5, 2, 3]
    assert len(set.union(*sides)) == 10


def test_folds_test_every_speaker_once() -> None:
    """10 speakers by 3: folds of 3, 3, 3 and 1."""
    utterances = even_table()
    tested = [speakers(utterances, split_corpus(utterances, replace(INDEPENDENT, fold=fold)).test) for fold in range(4)]
    assert [len(fold) for fold in tested] == [3, 3, 3, 1]
    assert sorted(speaker for fold in tested for speaker in fold) == sorted(speakers(utterances, range(200)))
    with pytest.raises(UserError, match=r"split\.fold must be below 4 \(10 speakers\), got 4"):
        split_corpus(utterances, replace(INDEPENDENT, fold=4))


@pytest.mark.parametrize(("women", "men"), [(4, 5), (6, 6), (2, 7), (0, 5)])
def test_folds_spread_women_and_men_evenly(women: int, men: int) -> None:
    """Every fold has its share of women, to the nearest one above or below."""
    sexes = {f"s{number:02d}": "female" if number < women else "male" for number in range(women + men)}
    utterances = tuple(replace(utterance, sex=sexes[utterance.speaker]) for utterance in even_table(women + men))
    for seed in range(5):
        for fold in range((women + men) // 3):
            split = split_corpus(utterances, replace(INDEPENDENT, fold=fold, seed=seed))
            tested = [sexes[speaker] for speaker in speakers(utterances, split.test)]
            share = len(tested) * women / (women + men)
            assert abs(tested.count("female") - share) < 1


def test_named_speakers_are_the_ones_that_test_and_validate() -> None:
    utterances = even_table()
    named = replace(INDEPENDENT, test_speakers=("s07", "s01"), validation_speakers=("s04",))
    split = split_corpus(utterances, named)
    assert speakers(utterances, split.test) == {"s01", "s07"}
    assert speakers(utterances, split.validation) == {"s04"}
    assert len(speakers(utterances, split.train)) == 7
    drawn = split_corpus(utterances, replace(named, validation_speakers=(), num_validation_speakers=2))
    assert speakers(utterances, drawn.test) == {"s01", "s07"}
    assert len(speakers(utterances, drawn.validation)) == 2


@pytest.mark.parametrize("setting", ["test_speakers", "validation_speakers"])
def test_unknown_speaker_lists_the_known_ones(setting: str) -> None:
    with pytest.raises(UserError, match=r"unknown speaker 's3'.*Known: s00, s01, s02$"):
        split_corpus(even_table(3), replace(INDEPENDENT, **{setting: ("s3",)}))


def test_speaker_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="speaker 's01' is named for test and for validation"):
        split_corpus(even_table(), replace(INDEPENDENT, test_speakers=("s01",), validation_speakers=("s01",)))


@pytest.mark.parametrize(
    ("utterances", "config", "part"),
    [
        (even_table(3), INDEPENDENT, "train"),
        (even_table(4), INDEPENDENT, "train"),
        (even_table(5), replace(INDEPENDENT, test_speakers=tuple(f"s{n:02d}" for n in range(5))), "train"),
        (even_table(2), replace(WITHIN, test_fraction=0.0), "test"),
        (even_table(2), replace(WITHIN, validation_fraction=0.0), "validation"),
        (table({"a": {"anger": 2}, "b": {"fear": 2}}), WITHIN, "validation"),
    ],
)
def test_empty_part_is_named(utterances: Table, config: SplitConfig, part: str) -> None:
    message = rf"split '{config.name}' leaves no {part} utterances of {len(utterances)}: \w+ split\.\w+"
    with pytest.raises(UserError, match=message):
        split_corpus(utterances, config)


def test_published_split_is_the_corpus_own() -> None:
    utterances = tuple(
        replace(utterance, split=(None, "train", "train", "validation", "test")[number % 5])
        for number, utterance in enumerate(even_table(2))
    )
    split = split_corpus(utterances, replace(WITHIN, name="published"))
    for part in ("train", "validation", "test"):
        expected = tuple(index for index, utterance in enumerate(utterances) if utterance.split == part)
        assert getattr(split, part) == expected
    with pytest.raises(UserError, match="no split of its own: use split=within_speaker"):
        split_corpus(even_table(2), replace(WITHIN, name="published"))


def test_published_split_without_a_part_names_it() -> None:
    utterances = tuple(
        replace(utterance, split="train" if number % 2 else "test") for number, utterance in enumerate(even_table(2))
    )
    with pytest.raises(UserError, match="split 'published' leaves no validation utterances of 40: use split=within"):
        split_corpus(utterances, replace(WITHIN, name="published"))


# Ways in which a split could go wrong, of 40 utterances by two speakers: what is checked on every outcome.
BROKEN_SPLITS = {
    "train and test": (Split((0, 1), (2,), (1, 3)), r"s00/anger/001 is in the train part and in the test part"),
    "train and validation": (Split((0, 1), (1,), (3,)), r"s00/anger/001 is in the train part and in the validation"),
    "validation and test": (Split((0,), (2, 3), (3,)), r"s00/anger/003 is in the validation part and in the test"),
    "twice in one part": (Split((0, 0), (2,), (3,)), r"s00/anger/000 is in the train part and in the train part"),
}


@pytest.mark.parametrize("fault", BROKEN_SPLITS)
def test_utterance_in_two_parts_is_never_let_through(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    split, message = BROKEN_SPLITS[fault]
    monkeypatch.setattr(splits, "_divide", lambda utterances, config: split)
    with pytest.raises(BrokenPromise, match=message):
        split_corpus(even_table(2), WITHIN)


@pytest.mark.parametrize("split", [Split((0, 21), (22,), (1,)), Split((0,), (1,), (22,)), Split((22,), (1,), (23,))])
def test_speaker_in_two_parts_is_never_let_through(monkeypatch: pytest.MonkeyPatch, split: Split) -> None:
    monkeypatch.setattr(splits, "_divide", lambda utterances, config: split)
    with pytest.raises(BrokenPromise, match=r"s0[01] is in the \w+ part and in the \w+ part"):
        split_corpus(even_table(3), INDEPENDENT)
    monkeypatch.setattr(splits, "_divide", lambda utterances, config: split)
    assert split_corpus(even_table(2), WITHIN) == split, "within speakers that is the point"


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({"a": (0, 1), "b": (1, 2, 3)}, "s00/anger/001 is in 2 clients"),
        ({"a": (0, 1), "b": (2, 3, 9)}, "s00/happiness/001 is in a client and not in the training part"),
        ({"a": (0, 1), "b": (3,)}, "s00/anger/002 is of the training part and in no client"),
    ],
)
@pytest.mark.parametrize("by", ["speaker", "session", "iid", "dirichlet"])
def test_utterance_in_two_clients_or_none_is_never_let_through(
    monkeypatch: pytest.MonkeyPatch, by: str, clients: dict[str, Indices], message: str
) -> None:
    for maker in ("natural_clients", "_drawn_clients"):
        monkeypatch.setattr(partitioning, maker, lambda *arguments: clients)
    with pytest.raises(BrokenPromise, match=message):
        assign_clients(even_table(2), (0, 1, 2, 3), replace(BY_SPEAKER, by=by), seed=0)


@pytest.mark.parametrize("config", [WITHIN, INDEPENDENT], ids=lambda config: config.name)
def test_split_follows_its_seed_and_nothing_else(config: SplitConfig) -> None:
    utterances = even_table()
    torch.manual_seed(1)
    first = split_corpus(utterances, config)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert split_corpus(utterances, config) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert split_corpus(utterances, replace(config, seed=1)) != first


def test_holders_are_speakers_with_their_own_recordings() -> None:
    utterances = even_table(3)
    split = split_corpus(utterances, WITHIN)
    held = holders(utterances, split.test)
    assert list(held) == ["s00", "s01", "s02"]
    assert every_index_once(list(held.values())) == list(split.test)
    assert all(speakers(utterances, part) == {speaker} for speaker, part in held.items())


def test_a_client_a_speaker() -> None:
    utterances = even_table(5)
    split = split_corpus(utterances, WITHIN)
    clients = assign_clients(utterances, split.train, BY_SPEAKER, seed=0)
    assert clients == holders(utterances, split.train)
    fewer = assign_clients(utterances, split.train, replace(BY_SPEAKER, num_clients=2), seed=0)
    assert fewer == {speaker: clients[speaker] for speaker in ("s00", "s01")}


def test_a_client_a_session() -> None:
    utterances = tuple(
        replace(utterance, session=f"Ses{int(utterance.speaker[1:]) // 2}") for utterance in even_table(6)
    )
    train = tuple(range(0, len(utterances), 2))
    clients = assign_clients(utterances, train, replace(BY_SPEAKER, by="session"), seed=0)
    assert list(clients) == ["Ses0", "Ses1", "Ses2"]
    assert every_index_once(list(clients.values())) == list(train)
    assert all({utterances[i].session for i in held} == {name} for name, held in clients.items())


def test_sessions_of_a_corpus_without_any() -> None:
    with pytest.raises(UserError, match=r"clients\.by=session: utterance 's00/anger/000' has no session"):
        assign_clients(even_table(2), (0, 1, 2), replace(BY_SPEAKER, by="session"), seed=0)


@pytest.mark.parametrize("num_clients", [1, 3, 7, 40])
def test_iid_clients_differ_by_one_utterance_at_most(num_clients: int) -> None:
    utterances = even_table()
    config = replace(BY_SPEAKER, by="iid", num_clients=num_clients)
    clients = assign_clients(utterances, tuple(range(10, 170)), config, seed=0)
    sizes = [len(held) for held in clients.values()]
    assert len(sizes) == num_clients
    assert max(sizes) - min(sizes) <= 1
    assert every_index_once(list(clients.values())) == list(range(10, 170))


def test_iid_clients_mix_speakers() -> None:
    utterances = even_table()
    clients = assign_clients(utterances, tuple(range(200)), replace(BY_SPEAKER, by="iid", num_clients=5), seed=0)
    assert all(len(speakers(utterances, held)) >= 8 for held in clients.values())


def dirichlet_shares(alpha: float, seeds: int, num_clients: int = 4, count: int = 100) -> list[float]:
    """Every client's share of every emotion, over many draws."""
    utterances = table({"s": dict.fromkeys(EMOTIONS, count)})
    config = ClientsConfig(by="dirichlet", num_clients=num_clients, dirichlet_alpha=alpha)
    shares = []
    for seed in range(seeds):
        clients = assign_clients(utterances, tuple(range(len(utterances))), config, seed=seed)
        assert every_index_once(list(clients.values())) == list(range(len(utterances)))
        for held in clients.values():
            emotions = Counter(utterances[index].emotion for index in held)
            shares += [emotions[emotion] / count for emotion in EMOTIONS]
    return shares


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_dirichlet_shares_spread_as_the_distribution_says(alpha: float) -> None:
    """A share of Dirichlet(alpha) over K has variance (1/K) (1 - 1/K) / (K alpha + 1); 100 draws of 5 emotions."""
    shares = torch.tensor(dirichlet_shares(alpha, seeds=100))
    expected = 0.25 * 0.75 / (4 * alpha + 1)
    assert shares.mean().item() == pytest.approx(0.25)
    assert shares.var(correction=0).item() == pytest.approx(expected, rel=0.12)


def test_large_alpha_is_near_uniform() -> None:
    assert all(abs(share - 0.25) <= 0.011 for share in dirichlet_shares(1e8, seeds=5))


def test_small_alpha_gives_an_emotion_to_one_client() -> None:
    largest = torch.tensor(dirichlet_shares(1e-4, seeds=10)).reshape(10, 4, 5).amax(1)
    assert largest.mean().item() > 0.95


@pytest.mark.parametrize("by", ["dirichlet", "iid"])
def test_no_client_is_empty(by: str) -> None:
    utterances = even_table(2, count=2)
    everything = tuple(range(len(utterances)))
    for seed in range(20):
        config = replace(BY_SPEAKER, by=by, num_clients=len(utterances) - 2, dirichlet_alpha=0.1)
        clients = assign_clients(utterances, everything, config, seed=seed)
        assert all(clients.values())
        assert every_index_once(list(clients.values())) == list(everything)


@pytest.mark.parametrize("by", ["dirichlet", "iid"])
def test_number_of_drawn_clients_defaults_to_that_of_training_speakers(by: str) -> None:
    utterances = even_table(6)
    train = tuple(index for index in range(len(utterances)) if utterances[index].speaker != "s03")
    assert len(assign_clients(utterances, train, replace(BY_SPEAKER, by=by), seed=0)) == 5


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("speaker", r"clients\.num_clients must be at most 2 \(one a speaker\), got 41"),
        ("session", r"clients\.num_clients must be at most 1 \(one a session\), got 41"),
        ("iid", r"clients\.num_clients must be at most the 40 training utterances, got 41"),
        ("dirichlet", r"clients\.num_clients must be at most the 40 training utterances, got 41"),
    ],
)
def test_too_many_clients(by: str, message: str) -> None:
    utterances = tuple(replace(utterance, session="one") for utterance in even_table(2))
    with pytest.raises(UserError, match=message):
        assign_clients(utterances, tuple(range(40)), replace(BY_SPEAKER, by=by, num_clients=41), seed=0)


@pytest.mark.parametrize("by", ["dirichlet", "iid"])
def test_clients_follow_their_seed_and_nothing_else(by: str) -> None:
    utterances, train = even_table(), tuple(range(100))
    config = replace(BY_SPEAKER, by=by, num_clients=4)
    torch.manual_seed(1)
    first = assign_clients(utterances, train, config, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert assign_clients(utterances, train, config, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert assign_clients(utterances, train, config, seed=4) != first


@pytest.mark.parametrize("seed", range(20))
def test_empty_clients_are_filled_from_the_largest_of_the_moment(seed: int) -> None:
    """Against the same by looking at every client each time."""
    stream = torch.Generator().manual_seed(seed)
    sizes = torch.randint(12, (15,), generator=stream) * torch.randint(2, (15,), generator=stream)
    sizes[seed % 15] += 15
    ours = [list(range(100 * client, 100 * client + size)) for client, size in enumerate(sizes.tolist())]
    expected = [list(part) for part in ours]
    while not all(expected):
        largest = max(expected, key=len)
        next(part for part in expected if not part).append(largest.pop())
    _fill_empty(ours)
    assert ours == expected and all(ours)


BY_TEXT = replace(WITHIN, name="text_independent")
BY_BOTH = replace(WITHIN, name="speaker_and_text_independent")


def read_table(num_speakers: int = 10, num_texts: int = 10) -> Table:
    """Every speaker reads every text with every emotion."""
    return tuple(
        replace(utterance, text=f"Sentence {int(utterance.utterance_id[-3:])}.")
        for utterance in even_table(num_speakers, num_texts)
    )


def texts(utterances: Table, part: Sequence[int]) -> set[str | None]:
    return {utterances[index].text for index in part}


def test_text_independent_has_no_text_on_two_sides_and_every_speaker_on_all() -> None:
    """10 texts: a fifth test, a sixth of the others, and two at least, validate."""
    utterances = read_table()
    split = split_corpus(utterances, BY_TEXT)
    assert [len(texts(utterances, part)) for part in parts(split)] == [6, 2, 2]
    assert len(set.union(*(texts(utterances, part) for part in parts(split)))) == 10
    assert all(len(speakers(utterances, part)) == 10 for part in parts(split))
    assert every_index_once(parts(split)) == list(range(len(utterances)))


def test_all_others_train_where_nobody_validates() -> None:
    """Of two speakers one is then enough for each of the two parts; so of texts, and of both. Who must have validation
    utterances is told how."""
    utterances = even_table(2)
    config = replace(INDEPENDENT, num_test_speakers=1, num_validation_speakers=0)
    split = split_corpus(utterances, config, validated=False)
    assert split.validation == () and len(split.train) == len(split.test) == 20
    nobody = replace(BY_TEXT, num_validation_texts=0, num_validation_speakers=0)
    split = split_corpus(read_table(), nobody, validated=False)
    assert split.validation == () and len(split.train) == 4 * len(split.test) == 400
    split = split_corpus(read_table(), replace(nobody, name=BY_BOTH.name), validated=False)
    assert split.validation == () and [len(split.train), len(split.test)] == [7 * 8 * 5, 3 * 2 * 5]
    with pytest.raises(UserError, match=r"leaves no validation utterances of 40: .*, or take selection=last"):
        split_corpus(utterances, config)


def test_speaker_and_text_independent_shares_neither_and_leaves_mixtures_out() -> None:
    utterances = read_table()
    split = split_corpus(utterances, replace(BY_BOTH, num_validation_speakers=None))
    sizes = [(len(speakers(utterances, part)), len(texts(utterances, part)), len(part)) for part in parts(split)]
    assert sizes == [(5, 6, 5 * 6 * 5), (2, 2, 2 * 2 * 5), (3, 2, 3 * 2 * 5)], (
        "a sixth of 7 is 1: two where there is room"
    )
    for grouping in (speakers, texts):
        assert sum(len(grouping(utterances, part)) for part in parts(split)) == 10


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (BY_TEXT, [2, 2, 2, 2, 2]),
        (replace(BY_TEXT, num_test_texts=3), [1, 3, 3, 3]),
        (replace(BY_TEXT, num_folds=4), [2, 2, 3, 3]),
    ],
)
def test_folds_of_texts_test_every_text_once(config: SplitConfig, sizes: list[int]) -> None:
    utterances = read_table()
    count = splits.num_folds(splits.facts_of(utterances, config), config)
    tested = [texts(utterances, split_corpus(utterances, replace(config, fold=fold)).test) for fold in range(count)]
    assert sorted(map(len, tested)) == sizes
    assert set.union(*tested) == texts(utterances, range(len(utterances)))
    assert sum(len(fold) for fold in tested) == 10
    with pytest.raises(UserError, match=rf"split\.fold must be below {count} \(10 texts\), got {count}"):
        split_corpus(utterances, replace(config, fold=count))


def test_folds_by_number_are_of_equal_size() -> None:
    """10 speakers in 4 folds: 2, 3, 2, 3; and 11 folds of 10 speakers there are none."""
    utterances, config = even_table(), replace(INDEPENDENT, num_folds=4)
    tested = [speakers(utterances, split_corpus(utterances, replace(config, fold=fold)).test) for fold in range(4)]
    assert [len(fold) for fold in tested] == [2, 3, 2, 3]
    assert set.union(*tested) == speakers(utterances, range(200))
    assert splits.num_folds(splits.facts_of(utterances, config), config) == 4
    with pytest.raises(UserError, match=r"split\.num_folds must be at most 10 \(one a speaker\), got 11"):
        split_corpus(utterances, replace(config, num_folds=11))


def test_texts_are_named_by_their_words_or_digests_in_any_spelling() -> None:
    utterances = read_table()
    by_words = split_corpus(utterances, replace(BY_TEXT, test_texts=("sentence 3", "Sentence  7!")))
    assert texts(utterances, by_words.test) == {"Sentence 3.", "Sentence 7."}
    digests = tuple(text_digest(f"Sentence {number}.") for number in (3, 7))
    assert split_corpus(utterances, replace(BY_TEXT, test_texts=digests)) == by_words
    with pytest.raises(UserError, match="no utterance says 'Sentence 11'"):
        split_corpus(utterances, replace(BY_TEXT, test_texts=("Sentence 11",)))


def test_a_split_by_texts_says_whose_are_missing_and_where_they_belong() -> None:
    table = read_table()
    utterances = (*table[:-2], *(replace(one, text=None) for one in table[-2:]))
    needs, number = "split=text_independent needs the text of every utterance, and", len(table)
    some = (
        f"{needs} 2 of {number} of data=nemo have none, the first {table[-2].utterance_id}: fill in column `raw_text`"
    )
    with pytest.raises(UserError, match=re.escape(some)):
        split_corpus(utterances, BY_TEXT, corpus="nemo")
    none = tuple(replace(one, text=None) for one in table)
    with pytest.raises(UserError, match=f"{needs} none of data=manifest has one: fill in column `text` of the table"):
        split_corpus(none, BY_TEXT, corpus="manifest")
    with pytest.raises(UserError, match="none of this corpus has one: give a manifest with a column `text`"):
        split_corpus(none, replace(BY_TEXT, name="speaker_and_text_independent"))


def test_texts_that_tell_the_emotion_are_spread_by_emotion() -> None:
    """SAVEE's actors read other sentences for every emotion: 5 of each; each fifth has one of each emotion."""
    utterances = tuple(
        replace(utterance, text=f"{utterance.emotion} {int(utterance.utterance_id[-3:])}")
        for utterance in even_table(4, 5)
    )
    for fold in range(5):
        split = split_corpus(utterances, replace(BY_TEXT, fold=fold))
        assert Counter(text.split()[0] for text in texts(utterances, split.test) if text) == dict.fromkeys(EMOTIONS, 1)


def test_segments_of_one_recording_stay_together() -> None:
    whole = even_table(6, 10)
    utterances = tuple(
        replace(utterance, utterance_id=f"{utterance.utterance_id}#{number}", recording=utterance.utterance_id)
        for utterance in whole
        for number in range(3)
    )
    for config in (WITHIN, INDEPENDENT):
        split, of_recordings = split_corpus(utterances, config), split_corpus(whole, config)
        for part, expected in zip(parts(split), parts(of_recordings), strict=True):
            assert part == tuple(3 * index + number for index in expected for number in range(3))


def test_a_node_splits_as_everybody_does() -> None:
    """From what the nodes tell of their speakers: the parts of each are those of the whole corpus."""
    utterances = read_table()
    few = table({f"s{number}": dict.fromkeys("ABCDEFG", 1) for number in range(6)})
    for corpus, config in ((utterances, BY_TEXT), (utterances, BY_BOTH), (utterances, INDEPENDENT), (few, WITHIN)):
        names = sorted(speakers(corpus, range(len(corpus))))
        nodes = [tuple(u for u in corpus if u.speaker in held) for held in (names[::2], names[1::2])]
        told = [fact for node in nodes for fact in splits.facts_of(node, config)]
        settled = splits.settle_split(sorted(told, key=lambda fact: fact.speaker), config)
        whole = split_corpus(corpus, config)
        for part in ("train", "validation", "test"):
            theirs = {
                node[index].utterance_id
                for node in nodes
                for index in getattr(split_corpus(node, settled, whole=False), part)
            }
            assert theirs == {corpus[index].utterance_id for index in getattr(whole, part)}


def test_six_speakers_with_each_emotion_once_test_six_emotions() -> None:
    """Evenly spaced places alone would test the fourth emotion six times."""
    utterances = table({f"s{number}": dict.fromkeys("ABCDEFG", 1) for number in range(6)})
    split = split_corpus(utterances, WITHIN)
    assert len({utterances[index].emotion for index in split.test}) == 6 == len(split.test)
    assert {utterances[index].emotion for index in split.train} == set("ABCDEFG")


def test_speakers_of_one_emotion_each_are_spread_over_the_parts() -> None:
    """Three speakers of each of five emotions, in five folds of three: every emotion trains, whoever tests."""
    utterances = table({f"{emotion}{number}": {emotion: 4} for emotion in EMOTIONS for number in range(3)})
    for fold in range(5):
        split = split_corpus(utterances, replace(INDEPENDENT, fold=fold, num_validation_speakers=3))
        assert {utterances[index].emotion for index in split.train} == set(EMOTIONS)
        assert len({utterances[index].emotion for index in split.test}) >= 2
        assert len({utterances[index].emotion for index in split.validation}) == 3


COUNTS = st.dictionaries(
    st.sampled_from("abcdef"), st.dictionaries(st.sampled_from("ABCDE"), st.integers(1, 6), min_size=1), min_size=1
)


@settings(max_examples=150, deadline=None)
@given(COUNTS, st.integers(0, 3), st.sampled_from((0.2, 0.3, 0.5)), st.randoms(use_true_random=False))
def test_within_speaker_parts_have_every_emotion_they_can(
    counts: dict[str, dict[str, int]], seed: int, fraction: float, order: Random
) -> None:
    """The test part has as many of the emotions that more than one recording is of as a matching of its places with
    them allows (scipy); no recording is in two parts; nobody's share changes; the order of the table does not matter.
    """
    utterances = table(counts)
    config = replace(WITHIN, seed=seed, test_fraction=fraction)
    num_test = {speaker: round(fraction * sum(own.values())) for speaker, own in counts.items()}
    assume(0 < sum(num_test.values()) < len(utterances))
    try:
        split = split_corpus(utterances, config)
    except UserError:  # few recordings: nothing is left to validate
        assert not [own for speaker, own in counts.items() if sum(own.values()) - num_test[speaker] > 5]
        return
    assert every_index_once(parts(split)) == list(range(len(utterances)))
    assert Counter(utterances[index].speaker for index in split.test) == Counter(num_test)
    total = Counter(utterance.emotion for utterance in utterances)
    wanted = sorted(emotion for emotion, count in total.items() if count > 1)
    places = [speaker for speaker, number in num_test.items() for _ in range(number)]
    graph = np.array([[emotion in counts[speaker] for emotion in wanted] for speaker in places], dtype=int)
    most = (maximum_bipartite_matching(csr_array(graph)) >= 0).sum() if places and wanted else 0
    assert len({utterances[index].emotion for index in split.test} & set(wanted)) == most
    shuffled = list(utterances)
    order.shuffle(shuffled)
    again = split_corpus(sorted(shuffled, key=lambda utterance: utterance.utterance_id), config)
    assert again == split


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(0, 2), st.sampled_from(("speaker_independent", "text_independent")), st.integers(1, 3))
def test_folds_share_nothing_and_test_everything_once(
    counts: dict[str, dict[str, int]], seed: int, name: Any, number: int
) -> None:
    utterances = tuple(replace(utterance, text=f"text {utterance.utterance_id[-3:]}") for utterance in table(counts))
    config = replace(WITHIN, name=name, seed=seed, num_folds=number)
    tested: list[int] = []
    named = [utterance.speaker if name == "speaker_independent" else utterance.text for utterance in utterances]
    assume(number <= len({*named}) - 2 and (number > 1))  # else a part is empty, or there are too few for the folds
    for fold in range(number):
        split = split_corpus(utterances, replace(config, fold=fold))
        assert every_index_once(parts(split)) == list(range(len(utterances)))
        groups = [{named[index] for index in part} for part in parts(split)]
        assert sum(map(len, groups)) == len(set.union(*groups))
        tested += split.test
    assert sorted(tested) == list(range(len(utterances)))


def test_two_texts_are_too_few_for_three_parts() -> None:
    """RAVDESS has two statements."""
    with pytest.raises(UserError, match="needs three texts at least, one for each part, and there are 2"):
        split_corpus(read_table(2, 2), BY_TEXT)
    with pytest.raises(UserError, match="needs three speakers at least, one for each part, and there are 2"):
        split_corpus(read_table(2, 3), INDEPENDENT)
