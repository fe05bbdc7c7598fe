"""Shortcuts: what tells the emotion of an utterance without anybody listening to how it is said.

Each fact of the recordings is a probe of its own: it predicts the emotion from this one fact, cross-validated, and its
UAR is held against chance. A network finds what such a probe finds, and is then no recogniser of emotions.

Legend: N utterances, C classes, T samples.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ser_fl.data.utterance import Utterance
from ser_fl.metrics import confusion_matrix, scores

FOLDS = 5
BINS = 8
"""Numbers are told apart by quantiles: so many ranges of about as many utterances."""
FRAME_S = 0.02
QUIET_DB = -40.0
"""Frames so far below the loudest one are silence at the ends."""
SUSPICIOUS = 0.1
"""A fact of the recording is told from this share of the way from chance to certainty on: one of eleven emotions that
was recorded elsewhere goes so far."""
SUSPICIOUS_OF_SPEECH = 0.5
"""The same for duration, level and silence, which emotions do change."""
DEVIATIONS = 4.0
"""And only where chance alone would hardly ever do as well."""
_OF_SPEECH = frozenset({"duration", "level", "silence before", "silence after"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcut:
    """How well one fact tells the emotion."""

    fact: str
    """ "speaker", "folder", "format", "sample rate", "channels" or a name of `acoustic_facts`."""
    uar: float
    """Cross-validated, in [0, 1]."""
    chance: float
    suspicious: bool
    """It is so much above chance that a network may learn it in place of emotions."""

    def __str__(self) -> str:
        return f"the {self.fact} alone tells the emotion with UAR {100 * self.uar:.1f} (chance {100 * self.chance:.1f})"


def acoustic_facts(samples_T: NDArray[np.float32], sample_rate_hz: int) -> dict[str, float]:
    """Duration and silence at the ends in seconds, level and noise floor in dB relative to full scale.

    The level is that of all samples, the noise floor that of the quietest tenth of the frames of 20 ms.
    """
    length = max(1, round(FRAME_S * sample_rate_hz))
    whole = samples_T[: max(len(samples_T) // length * length, min(len(samples_T), length))]
    frames = whole.reshape(-1, min(length, len(whole))).astype(np.float64)
    decibels = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-10)
    heard = np.flatnonzero(decibels >= decibels.max() + QUIET_DB)
    return {
        "duration": len(samples_T) / sample_rate_hz,
        "level": float(10 * np.log10(np.square(samples_T.astype(np.float64)).mean() + 1e-10)),
        "noise floor": float(np.quantile(decibels, 0.1)),
        "silence before": float(heard[0] * FRAME_S),
        "silence after": float((len(decibels) - 1 - heard[-1]) * FRAME_S),
    }


def facts_of_table(utterances: Sequence[Utterance]) -> dict[str, list[Hashable]]:
    """What the utterance table itself says: speaker, and of files their folder and format.

    Folders that hold one emotion each are how a corpus is laid out, and nothing of it can be heard: they are left out.
    """
    facts: dict[str, list[Hashable]] = {"speaker": [utterance.speaker for utterance in utterances]}
    paths = [utterance.path for utterance in utterances if utterance.path is not None]
    if len(paths) == len(utterances):
        folders = [path.parent.as_posix() for path in paths]
        held: dict[str, set[str]] = {}
        for folder, utterance in zip(folders, utterances, strict=True):
            held.setdefault(folder, set()).add(utterance.emotion)
        if any(len(emotions) > 1 for emotions in held.values()):
            facts["folder"] = list(folders)
        facts["format"] = [path.suffix.lower() for path in paths]
    return facts


def shortcuts(
    utterances: Sequence[Utterance], facts: Mapping[str, Sequence[Hashable]], *, seed: int = 0
) -> list[Shortcut]:
    """A probe for every fact that differs between utterances, the most telling one first.

    A fact's values (numbers: ranges of values) predict the emotion that they speak most for, with emotions that are
    rare made as important as frequent ones: argmax over c of p(value | c), counted on the other folds.

    Args:
        utterances: N of them.
        facts: by name, one value an utterance; None where it is not known.
        seed: of the folds.
    """
    if not utterances:
        return []
    classes = sorted({utterance.emotion for utterance in utterances})
    labels_N = np.array([classes.index(utterance.emotion) for utterance in utterances])
    counts_C = np.bincount(labels_N, minlength=len(classes))
    order_N, folds_N = np.random.default_rng(seed).permutation(len(labels_N)), np.empty_like(labels_N)
    for label in range(len(classes)):  # each emotion is dealt out to the folds
        of_label = order_N[labels_N[order_N] == label]
        folds_N[of_label] = np.arange(len(of_label)) % FOLDS
    found = []
    for fact, values in facts.items():
        numbers, different = [value for value in values if isinstance(value, float)], list(dict.fromkeys(values))
        if len(different) < 2:
            continue
        if len(numbers) == len(values) and len(different) > BINS:
            edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1]))
            values_N = np.searchsorted(edges, numbers, side="right")
        else:
            codes = {value: code for code, value in enumerate(different)}
            values_N = np.array([codes[value] for value in values])
        predicted_N = np.zeros_like(labels_N)
        for fold in range(FOLDS):
            held_out = folds_N == fold
            seen = np.zeros((values_N.max() + 1, len(classes)))
            np.add.at(seen, (values_N[~held_out], labels_N[~held_out]), 1)
            # Half an utterance more of each: what no other fold has seen speaks for the most likely emotion of all.
            likelihood = (seen + 0.5 / len(seen)) / (seen.sum(axis=0) + 0.5)
            predicted_N[held_out] = likelihood[values_N[held_out]].argmax(axis=1)
        uar = scores(confusion_matrix(labels_N.tolist(), predicted_N.tolist(), len(classes))).uar
        chance = 1 / len(classes)
        deviation = math.sqrt(chance * (1 - chance) * np.sum(1 / counts_C)) / len(classes)
        least = SUSPICIOUS_OF_SPEECH if fact in _OF_SPEECH else SUSPICIOUS
        suspicious = uar > chance + DEVIATIONS * deviation and uar >= chance + least * (1 - chance)
        found.append(Shortcut(fact=fact, uar=uar, chance=chance, suspicious=suspicious))
    return sorted(found, key=lambda shortcut: -shortcut.uar)
