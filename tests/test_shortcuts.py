"""Probes for what tells the emotion and is none: against hand-made corpora whose shortcut is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ser_fl.data.shortcuts import Shortcut, acoustic_facts, facts_of_table, shortcuts
from ser_fl.data.utterance import Utterance


def utterance(number: int, speaker: str, emotion: str, path: str | None = None) -> Utterance:
    return Utterance(
        utterance_id=f"u{number}", speaker=speaker, emotion=emotion, path=None if path is None else Path(path)
    )


def by_fact(found: list[Shortcut]) -> dict[str, Shortcut]:
    return {shortcut.fact: shortcut for shortcut in found}


def test_speakers_of_one_emotion_tell_it() -> None:
    """26 of 29 speakers have one emotion: guessing by the speaker is right for all of their utterances."""
    emotions = ("anger", "joy", "sadness")
    table = [
        utterance(20 * s + k, f"s{s:02d}", emotions[s % 3 if s < 26 else k % 3]) for s in range(29) for k in range(20)
    ]
    speaker = by_fact(shortcuts(table, facts_of_table(table)))["speaker"]
    right = (26 * 20 + 3 * 20 / 3) / (29 * 20)  # of the three others a third
    assert speaker.suspicious and speaker.chance == pytest.approx(1 / 3)
    assert speaker.uar == pytest.approx(right, abs=0.05)


def test_speakers_who_act_every_emotion_tell_none() -> None:
    table = [utterance(k, f"s{k % 8}", ("anger", "joy")[k // 8 % 2]) for k in range(320)]
    speaker = by_fact(shortcuts(table, facts_of_table(table)))["speaker"]
    assert not speaker.suspicious and speaker.uar < 0.6


@pytest.mark.parametrize("fact", ["sample rate", "channels", "noise floor", "format"])
def test_a_fact_of_the_recording_that_goes_with_the_emotion_is_suspicious(fact: str) -> None:
    stream = np.random.default_rng(1)
    table = [utterance(k, f"s{k % 10}", ("anger", "joy", "neutral")[k % 3]) for k in range(300)]
    joy = np.array([row.emotion == "joy" for row in table])
    values = np.where(joy, -30.0, -60.0) + stream.normal(0, 2, 300)  # joy was recorded elsewhere
    others = {"innocent": stream.normal(0, 1, 300).tolist()}
    found = by_fact(shortcuts(table, {fact: values.tolist(), **others}))
    assert found[fact].suspicious and found[fact].uar > 0.6
    assert not found["innocent"].suspicious


def test_a_little_is_not_suspicious_and_few_utterances_are_no_proof() -> None:
    table = [utterance(k, "s", ("anger", "joy")[k % 2]) for k in range(8)]
    assert not any(shortcut.suspicious for shortcut in shortcuts(table, {"sample rate": [k % 2 for k in range(8)]}))
    stream = np.random.default_rng(2)
    table = [utterance(k, "s", ("anger", "joy")[k % 2]) for k in range(2000)]
    level = [stream.normal(0.3 * (k % 2), 1) for k in range(2000)]
    assert not by_fact(shortcuts(table, {"level": level}))["level"].suspicious


def test_loud_anger_is_speech_and_a_loud_noise_floor_is_not() -> None:
    """The same numbers are told for the one and not for the other."""
    stream = np.random.default_rng(3)
    table = [utterance(k, "s", ("anger", "joy")[k % 2]) for k in range(1000)]
    values = [float(stream.normal(1.2 * (k % 2), 1)) for k in range(1000)]
    found = by_fact(shortcuts(table, {"level": values, "noise floor": values}))
    assert found["level"].uar == found["noise floor"].uar == pytest.approx(0.72, abs=0.04)
    assert found["noise floor"].suspicious and not found["level"].suspicious


def test_rare_emotions_count_as_much_as_frequent_ones() -> None:
    """A probe that says the frequent emotion everywhere has a UAR of chance, whatever its accuracy."""
    table = [utterance(k, f"s{k % 7}", "joy" if k % 10 == 0 else "anger") for k in range(700)]
    assert by_fact(shortcuts(table, facts_of_table(table)))["speaker"].uar < 0.62


def test_folders_by_emotion_are_a_layout_and_folders_by_session_a_fact() -> None:
    layout = [utterance(k, "s", e, f"/c/{e}/{k}.wav") for k, e in enumerate(["anger", "joy"] * 20)]
    assert "folder" not in facts_of_table(layout)
    sessions = [utterance(k, "s", e, f"/c/{k % 3}/{k}.wav") for k, e in enumerate(["anger", "joy"] * 20)]
    assert set(facts_of_table(sessions)) == {"speaker", "folder", "format"}
    assert [shortcut.fact for shortcut in shortcuts(sessions, facts_of_table(sessions))] == ["folder"]


def test_acoustic_facts_of_a_tone_in_silence() -> None:
    rate = 16_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    samples = np.concatenate([np.zeros(rate // 2), tone, np.zeros(rate)]).astype(np.float32)
    facts = acoustic_facts(samples, rate)
    assert facts["duration"] == 2.5
    assert facts["silence before"] == pytest.approx(0.5) and facts["silence after"] == pytest.approx(1.0)
    assert facts["level"] == pytest.approx(10 * np.log10(0.125 / 2.5), abs=0.01)
    assert facts["noise floor"] == pytest.approx(-100)


@pytest.mark.parametrize("length", [1, 5, 319, 320, 321])
def test_acoustic_facts_of_the_shortest_files(length: int) -> None:
    facts = acoustic_facts(np.full(length, 0.1, dtype=np.float32), 16_000)
    assert facts["level"] == facts["noise floor"] == pytest.approx(-20, abs=1e-3)
    assert facts["silence before"] == facts["silence after"] == 0
