"""Unweighted average recall and its kin, from confusion matrices, and how sure a UAR is. Confusion matrices (rows: true
class, columns: predicted class) of different holders of data can be summed, and the mean of their recalls cannot.

Legend: C classes, L labels that occur, N utterances, S resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ser_fl.randomness import derive_seed

Floats = npt.NDArray[np.float64]
Confusion = Floats

NUM_RESAMPLES = 2000
LEVEL = 0.95


def confusion_matrix(labels_N: Sequence[int], predictions_N: Sequence[int], num_classes: int) -> Confusion:
    """Count utterances by true class (row) and predicted class (column), both 0 to ``num_classes - 1``: shape (C, C),
    float64, so that expected counts over random draws fit as well.

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    labels = np.asarray(labels_N, dtype=np.int64)
    predictions = np.asarray(predictions_N, dtype=np.int64)
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Figures of one confusion matrix, all in [0, 1], or NaN where there was nothing to score."""

    uar: float
    accuracy: float
    macro_f1: float
    per_class_recall: tuple[float | None, ...]
    """Recall of each class; ``None`` for a class without a true utterance."""


def scores(confusion: Confusion) -> Scores:
    """UAR, accuracy, macro F1 and per-class recall of a confusion matrix.

    UAR (unweighted average recall) is the mean recall over the classes that have true utterances. Where every class
    is present it is scikit-learn's ``balanced_accuracy_score``; a class without true utterances has no recall and is
    left out, whether or not it was predicted. (torchmetrics counts a predicted but absent class as 0, audmetric any
    absent class: both would punish a client for a class it does not hold.) Macro F1 is taken over the same classes.
    Accuracy is what some papers call WAR or "weighted" accuracy.

    >>> import numpy as np
    >>> result = scores(np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> result.uar, result.per_class_recall
    (0.875, (0.75, 1.0, None))
    """
    support = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    correct = np.diagonal(confusion)
    present = support > 0
    if not present.any():
        nothing = float("nan")
        return Scores(uar=nothing, accuracy=nothing, macro_f1=nothing, per_class_recall=(None,) * len(support))
    recall = correct[present] / support[present]
    f1 = 2 * correct[present] / (support[present] + predicted[present])
    by_class = iter(recall.tolist())
    return Scores(
        uar=float(recall.mean()),
        accuracy=float(correct.sum() / support.sum()),
        macro_f1=float(f1.mean()),
        per_class_recall=tuple(next(by_class) if here else None for here in present.tolist()),
    )


def mean_scores(confusions: Sequence[Confusion]) -> Scores:
    """Figures of several corpora: UAR, accuracy and macro F1 are means over corpora, each of which counts as much,
    whatever its size and however many emotions it has; a recall is of all utterances of its class.

    >>> import numpy as np
    >>> mean_scores([np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 9.0], [0.0, 9.0]])]).uar
    0.75
    """
    pooled, each = scores(np.asarray(sum(confusions))), [scores(confusion) for confusion in confusions]
    if len(each) == 1:
        return pooled
    return replace(
        pooled,
        uar=float(np.mean([one.uar for one in each])),
        accuracy=float(np.mean([one.accuracy for one in each])),
        macro_f1=float(np.mean([one.macro_f1 for one in each])),
    )


def of_each_corpus(by_holder: Mapping[str, Floats], corpora: Sequence[str]) -> dict[str, dict[str, Floats]]:
    """Confusion matrices of the holders of each corpus, whose names begin with its, ``nemo:SM0``, where there are
    several.
    """
    if len(corpora) == 1:
        return {corpora[0]: dict(by_holder)}
    return {
        name: {holder: matrix for holder, matrix in by_holder.items() if holder.startswith(f"{name}:")}
        for name in corpora
    }


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrap:
    """Resamples of some utterances, to be used for every figure about them: differences of figures are then paired.

    Recordings are drawn with replacement, each with all its utterances (a cluster bootstrap: Davison and Hinkley 1997,
    section 3.8); an uncut recording is one utterance. They are drawn within their emotion (a stratified bootstrap:
    Efron and Tibshirani 1993, chapter 8), because UAR is a mean of recalls whose denominators a test part fixes: a
    plain resample could miss a small emotion. Only where a recording holds several emotions all are drawn together; an
    emotion that a resample misses does not count in it. Recordings are taken for independent; speakers are not
    resampled, so that the interval is about these speakers.
    """

    weights_SN: npt.NDArray[np.float32]
    """What each utterance counts in the UAR of each resample; a row sums to 1."""
    says_nothing: bool = False
    """Whether recordings are cut, and one of each emotion is all that can be drawn."""

    @classmethod
    def of(cls, labels_N: Sequence[int], recordings_N: Sequence[str], seed: int) -> Self:
        """Draws that depend on (seed, emotion) and on which recordings there are, not on their order."""
        weights_SN = np.zeros((NUM_RESAMPLES, len(recordings_N)), dtype=np.float32)
        rows_of: dict[str, list[int]] = {}
        for row, recording in enumerate(recordings_N):
            rows_of.setdefault(recording, []).append(row)
        is_mixed = any(len({labels_N[row] for row in held}) > 1 for held in rows_of.values())
        strata: dict[int, list[list[int]]] = {}
        for _, held in sorted(rows_of.items()):
            strata.setdefault(-1 if is_mixed else labels_N[held[0]], []).append(held)
        for label, drawn in strata.items():
            stream = np.random.default_rng(derive_seed("bootstrap", seed, label))
            counts = stream.multinomial(len(drawn), np.full(len(drawn), 1 / len(drawn)), size=NUM_RESAMPLES)
            weights_SN[:, list(chain(*drawn))] = counts.repeat([len(held) for held in drawn], axis=1)
        rows_by_label = [np.flatnonzero(np.asarray(labels_N) == label) for label in sorted({*labels_N})]
        support_LS = [weights_SN[:, rows].sum(axis=1, dtype=np.float64) for rows in rows_by_label]
        present_S = np.count_nonzero(support_LS, axis=0)
        for rows, support_S in zip(rows_by_label, support_LS, strict=True):
            weights_SN[:, rows] /= (np.maximum(support_S, 1) * present_S)[:, None]
        is_cut = len(rows_of) < len(recordings_N)
        return cls(weights_SN, says_nothing=is_cut and all(len(drawn) == 1 for drawn in strata.values()))

    @classmethod
    def over(cls, labels_N: Sequence[int], recordings_N: Sequence[str], corpora_N: Sequence[str], seed: int) -> Self:
        """Of the mean UAR of several corpora, each of which is resampled by itself."""
        names = sorted({*corpora_N})
        if len(names) < 2:
            return cls.of(labels_N, recordings_N, seed)
        weights_SN, says_nothing = np.zeros((NUM_RESAMPLES, len(labels_N)), dtype=np.float32), False
        for name in names:
            rows = [row for row, corpus in enumerate(corpora_N) if corpus == name]
            own = cls.of([labels_N[r] for r in rows], [recordings_N[r] for r in rows], derive_seed(seed, name))
            weights_SN[:, rows] = own.weights_SN / len(names)
            says_nothing |= own.says_nothing
        return cls(weights_SN, says_nothing)

    def interval(self, recognised_N: Floats) -> tuple[float, float] | None:
        """The middle 95 % of resampled UARs; None without utterances, or where draws say nothing. ``recognised_N`` is
        how likely each utterance is to be recognised, in [0, 1], or a difference of two such figures, for the interval
        of a difference of UARs.
        """
        if not len(recognised_N) or self.says_nothing:
            return None
        tail = (1 - LEVEL) / 2
        uar_S = self.weights_SN @ recognised_N.astype(np.float32)
        low, high = np.quantile(uar_S.astype(np.float64), [tail, 1 - tail])
        return float(low), float(high)


def figures_of_each(
    by_holder: Mapping[str, Floats], emotions: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Figures of each of several corpora, over the emotions that it has, from the matrices of their speakers."""
    found = {}
    for name, held in of_each_corpus(by_holder, [*emotions]).items():
        if not held:
            continue
        own = [classes.index(emotion) for emotion in emotions[name]]
        confusions = np.asarray([*held.values()])[:, own][:, :, own]
        found[name] = {
            "classes": list(emotions[name]),
            **asdict(scores(confusions.sum(axis=0))),
            "confusion": confusions.sum(axis=0).tolist(),
            "speaker_interval": interval_over_speakers(confusions),
        }
    return found


def interval_over_speakers(confusions_GCC: Floats, seed: int = 0) -> tuple[float, float] | None:
    """The middle 95 % of UARs where whole speakers are drawn again, with replacement (a cluster bootstrap: Davison and
    Hinkley 1997, section 3.8): how far UAR on other speakers may lie. Speakers are what is independent, so that it is
    wider than `Bootstrap`'s; of a handful of them it is still too narrow. ``confusions_GCC`` has the matrix of each of
    G speakers; None for fewer than two.
    """
    num_speakers = len(confusions_GCC)
    if num_speakers < 2:
        return None
    stream = np.random.default_rng(derive_seed("speakers", seed))
    drawn_SG = stream.multinomial(num_speakers, np.full(num_speakers, 1 / num_speakers), size=NUM_RESAMPLES)
    right_SC = drawn_SG @ np.diagonal(confusions_GCC, axis1=1, axis2=2)
    support_SC = drawn_SG @ confusions_GCC.sum(axis=2)
    recall_SC = np.divide(right_SC, support_SC, out=np.full(support_SC.shape, np.nan), where=support_SC > 0)
    low, high = np.quantile(np.nanmean(recall_SC, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def recording_products(
    recognised_N: Floats, labels_N: Sequence[int], recordings_N: Sequence[str], num_classes: int
) -> Floats:
    """Sums over recordings of the products of what each holds, utterances recognised and then utterances, both by
    class: shape (2C, 2C). They are what the variance of UAR over recordings takes, and add up over folds.
    """
    place = {recording: row for row, recording in enumerate(sorted(set(recordings_N)))}
    rows, labels = np.asarray([place[recording] for recording in recordings_N]), np.asarray(labels_N)
    held = np.zeros((len(place), 2 * num_classes))
    np.add.at(held, (rows, labels), recognised_N)
    np.add.at(held, (rows, labels + num_classes), 1)
    return np.asarray(held.T @ held, dtype=np.float64)


def uar_of(recognised_N: Floats, labels_N: Sequence[int]) -> float:
    """UAR: mean over the emotions that occur of the mean over their utterances.

    >>> uar_of(np.array([1.0, 0.0, 1.0]), [0, 0, 1])
    0.75
    """
    labels = np.asarray(labels_N)
    return float(np.mean([recognised_N[labels == label].mean() for label in np.unique(labels)]))


def uar_by_group(recognised_N: Floats, labels_N: Sequence[int], groups_N: Sequence[str | None]) -> dict[str, float]:
    """UAR of every group's utterances, by name in alphabetical order; None is no group."""
    labels, groups = np.asarray(labels_N), np.asarray(groups_N, dtype=object)
    names = sorted({group for group in groups_N if group is not None})
    return {name: uar_of(recognised_N[groups == name], labels[groups == name].tolist()) for name in names}
