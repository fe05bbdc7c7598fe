"""Speakers that nobody trained on, and the clips that enrol them, as what an attack may move.

Legend: N utterances of the test set, K clips that enrol a speaker, B of a batch, F bins, L frames.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack, Problem
from ser_fl.attacks.domains import Crafted, Domain
from ser_fl.attacks.enrolment import EnrolmentClips, ScaledFeatures, scale_by
from ser_fl.attacks.threat_model import Box, distance
from ser_fl.attacks.waveform_domain import FULL_SCALE, Waveform, WaveformToFeatures
from ser_fl.data.normalisation import Scale
from ser_fl.errors import UserError
from ser_fl.robustness.test_set import TestSet, rows_of

ScaleOf = Callable[[Sequence[str]], Scale]
"""By which the speakers of utterances are scaled, columns of shape (B, F, 1)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strangers:
    """Speakers of a test set who are enrolled by clips of theirs that are not scored."""

    test_set: TestSet
    standardisation: nn.Module
    raw_NFL: Tensor
    """All utterances of the test set, as the front end gives them."""
    enrolments: Mapping[str, Sequence[EnrolmentClips]]
    """By speaker."""

    @classmethod
    def of(cls, test_set: TestSet, standardisation: nn.Module) -> Self:
        """Of a run's test set: of recordings too, whose scales are then made anew by the way that attacked ones take.
        A `UserError` says that nobody is enrolled by own clips.
        """
        store, device = test_set.store, test_set.features_NFL.device
        if store is None or store.scales is None or test_set.scale is None:
            raise UserError(
                "enrolment_attack goes with a run that scales speakers by own clips, and this one has "
                "normalisation=pooled: leave enrolment_attack out"
            )
        enrolled_by = {who: rows for who, rows in store.scales.enrolled_by.items() if who in test_set.speakers}
        if not enrolled_by:
            raise UserError(
                "enrolment_attack needs unseen speakers who are enrolled by clips that are not scored, got none: set "
                "enrolment=10 or another number (all are scored themselves, none are no clips)"
            )
        ids = {who: tuple(store.utterances[row].utterance_id for row in rows) for who, rows in enrolled_by.items()}
        if isinstance(domain := test_set.domain, Waveform):
            with torch.no_grad():
                raw_NFL = torch.cat([domain.raw(*domain.read(utterance_id)) for utterance_id in test_set.ids])
            found = cls(
                test_set=test_set,
                standardisation=standardisation,
                raw_NFL=raw_NFL,
                enrolments={who: list(_recorded(domain, ids[who], store.scales.near, device)) for who in ids},
            )
            scale = found.scaled({who: scale_by(clips) for who, clips in found.enrolments.items()})
            own = replace(domain, scale_of=lambda ids: scale.rows(rows_of(test_set.ids, ids)))
            features_NFL = found.shown(test_set.ids, scale)
            return replace(found, test_set=replace(test_set, scale=scale, domain=own, features_NFL=features_NFL))
        enrolments: dict[str, list[EnrolmentClips]] = {}
        for who, rows in enrolled_by.items():
            scale = test_set.scale.rows(rows_of(test_set.speakers, [who])).to(device)
            raw_KFL = store.features_NFL[list(rows)].to(device)
            clean_KFL, box = scale(raw_KFL), test_set.box.to(device)
            if box.lower_F1 is not None and box.upper_F1 is not None:  # nobody clips the clips that enrol
                box = Box(clean_KFL.minimum(box.lower_F1), clean_KFL.maximum(box.upper_F1))
            unit_KF1 = scale.deviation.expand(len(rows), -1, -1)
            way = ScaledFeatures(clean_KFL, raw_KFL, unit_KF1, nn.Identity())
            places = tuple(range(len(rows)))
            clips = EnrolmentClips(
                ids=ids[who], places=places, clean=clean_KFL, box=box, to_features=way, near=store.scales.near
            )
            enrolments[who] = [clips]
        known = rows_of([utterance.utterance_id for utterance in store.utterances], test_set.ids)
        raw_NFL = store.features_NFL[known].to(device)
        return cls(test_set=test_set, standardisation=standardisation, raw_NFL=raw_NFL, enrolments=enrolments)

    def rows(self, who: str) -> list[int]:
        return [row for row, speaker in enumerate(self.test_set.speakers) if speaker == who]

    def scaled(self, scales: Mapping[str, Scale]) -> Scale:
        """Of each utterance of the test set, columns of shape (N, F, 1), where these speakers' are others."""
        assert self.test_set.scale is not None
        mean_NF1, deviation_NF1 = self.test_set.scale.mean.clone(), self.test_set.scale.deviation.clone()
        for who, scale in scales.items():
            mean_NF1[self.rows(who)], deviation_NF1[self.rows(who)] = scale.mean, scale.deviation
        return Scale(mean_NF1, deviation_NF1)

    def shown(self, ids: Sequence[str], scale: Scale) -> Tensor:
        """Features of some clean utterances as a classifier is shown them by a scale, shape (B, F, L)."""
        rows = rows_of(self.test_set.ids, ids)
        with torch.no_grad():
            standardised_BFL: Tensor = self.standardisation(
                scale.rows(rows).to(self.raw_NFL.device)(self.raw_NFL[rows])
            )
        return standardised_BFL

    def scale_of(self, ids: Sequence[str]) -> Scale:
        """By the clean enrolment."""
        assert self.test_set.scale is not None
        return self.test_set.scale.rows(rows_of(self.test_set.ids, ids))

    def domain(self, scale_of: ScaleOf) -> Domain:
        """What attacks on utterances move, where their speakers are scaled so."""
        if isinstance(self.test_set.domain, Waveform):
            return replace(self.test_set.domain, scale_of=scale_of)
        return RescaledFeatures(strangers=self, scale_of=scale_of)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RescaledFeatures(Domain):
    """Features in units of the clean enrolment, shown as another one scales them."""

    strangers: Strangers
    scale_of: ScaleOf
    sweeps: bool = False

    def problems(self, problem: Problem) -> list[tuple[list[int], Problem]]:
        strangers, ids, device = self.strangers, problem.keys_B, problem.clean.device
        before, now = strangers.scale_of(ids).to(device), self.scale_of(ids).to(device)
        raw_BFL = strangers.raw_NFL[rows_of(strangers.test_set.ids, ids)]
        way = ScaledFeatures(
            problem.clean, raw_BFL, before.deviation, strangers.standardisation, now.mean, now.deviation
        )
        return [(list(range(len(ids))), replace(problem, to_features=way))]

    def craft(self, attack: Attack, problem: Problem) -> Crafted:
        ((_, part),) = self.problems(problem)
        moved_BFL = attack.craft(part)
        with torch.no_grad():
            figures = {"l2": distance(part.clean, moved_BFL, "2"), "linf": distance(part.clean, moved_BFL, "inf")}
            return Crafted(adversarial_NFL=part.features(moved_BFL), figures=figures)

    def held(self, crafted: Crafted, attack: Attack, clean_NFL: Tensor) -> Crafted:
        return crafted


def _recorded(
    domain: Waveform, ids: Sequence[str], near: Scale | None, device: torch.device
) -> Iterator[EnrolmentClips]:
    """Clips of each sampling rate."""
    for rows, clips in domain.clips(ids, device):
        yield EnrolmentClips(
            ids=tuple(ids[row] for row in rows),
            places=tuple(rows),
            clean=clips.waveform_BT,
            box=FULL_SCALE.to(device),
            to_features=WaveformToFeatures(clips, domain.frontend, nn.Identity()),
            near=near,
        )
