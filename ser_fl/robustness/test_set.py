"""What is attacked: utterances, who spoke them, and the classifier.

Legend: N utterances, F mel bins, L frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from ser_fl.attacks.attack import AttackSettings, Problem
from ser_fl.attacks.domains import LOGMEL, Domain
from ser_fl.attacks.target import Expectation, Passes
from ser_fl.attacks.threat_model import Box
from ser_fl.data.features import FeatureStore
from ser_fl.data.normalisation import Scale
from ser_fl.randomness import derive_seed
from ser_fl.runs.records import SpeechRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    model: nn.Module
    """Maps features of shape (B, F, L) to logits of shape (B, C), which no temperature has touched: it could hide
    gradients (`ser_fl.calibration`); in evaluation mode."""
    features_NFL: Tensor
    """Standardised, inside the box."""
    labels_N: Tensor
    ids: tuple[str, ...]
    num_classes: int
    box: Box
    seed: int
    batch_size: int = 64
    speakers: tuple[str, ...] = ()
    """Who speaks each utterance; empty where nobody says."""
    sexes: tuple[str | None, ...] = ()
    """Of the speakers; empty where nobody says."""
    emotions: tuple[str, ...] = ()
    """Names of the classes; empty for their numbers."""
    recordings: tuple[str, ...] = ()
    """What each utterance is a part of; empty where each is its own."""
    domain: Domain = LOGMEL
    """What attacks move."""
    speech: SpeechRecord | None = None
    """Whose utterances these are, with those that a subset leaves out; None where nobody says."""
    scale: Scale | None = None
    """By which each utterance was scaled, columns of shape (N, F, 1); None where all are scaled alike."""
    store: FeatureStore | None = None
    """That the features were taken from; None of arrays."""

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, size: int | None) -> Self:
        """A fixed subset of about ``size`` utterances, spread evenly over the emotions; all where it is None."""
        if size is None or size >= len(self):
            return self
        return self.take(balanced_rows(self.labels_N.tolist(), self.ids, size, self.seed))

    def take(self, rows: Sequence[int]) -> Self:
        rows = list(rows)  # a tuple would index dimensions
        if rows == list(range(len(self))):
            return self
        return replace(
            self,
            features_NFL=self.features_NFL[rows],
            labels_N=self.labels_N[rows],
            ids=tuple(self.ids[row] for row in rows),
            speakers=tuple(self.speakers[row] for row in rows) if self.speakers else (),
            sexes=tuple(self.sexes[row] for row in rows) if self.sexes else (),
            recordings=tuple(self.recordings[row] for row in rows) if self.recordings else (),
            scale=self.scale and self.scale.rows(rows),
        )

    def problem(
        self, settings: AttackSettings, *, expectation: Expectation | None = None, start_NFL: Tensor | None = None
    ) -> Problem:
        """All utterances as what an attack is given."""
        return Problem(
            network=self.model,
            num_classes=self.num_classes,
            clean=self.features_NFL,
            labels_B=self.labels_N,
            keys_B=self.ids,
            box=self.box,
            settings=settings,
            seed=self.seed,
            passes=Passes(),
            expectation=expectation,
            start_BFL=start_NFL,
        )


def rows_of(all_ids: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Where utterances lie among all."""
    places = {utterance_id: row for row, utterance_id in enumerate(all_ids)}
    return [places[utterance_id] for utterance_id in ids]


def balanced_rows(labels_N: Sequence[int], ids: Sequence[str], size: int, seed: int) -> list[int]:
    """Rows of a subset: emotions in turn, each in an order drawn per utterance, so that all attacks share it."""
    queues: dict[int, list[int]] = {}
    for row in sorted(range(len(ids)), key=lambda row: derive_seed("subset", seed, ids[row])):
        queues.setdefault(labels_N[row], []).append(row)
    chosen: list[int] = []
    while len(chosen) < size:
        for label in sorted(queues):
            if queues[label] and len(chosen) < size:
                chosen.append(queues[label].pop(0))
    return sorted(chosen)
