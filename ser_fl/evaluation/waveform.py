"""Attacks on recorded audio: crafted on the samples, measured in SNR, written as WAV files and heard again.

What an attack makes are floating-point samples. A WAV file holds 16 bits, so that a perturbation may be lost in the
rounding: every adversarial recording is written, read back and shown to the model again, and successes that do not
survive that are counted.

Legend: N utterances, B of a batch, T samples, F mel bins, L frames, R runs of a defence.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ser_fl.attacks.estimator import Passes
from ser_fl.attacks.gradient import attacked
from ser_fl.attacks.masking import MaskingBall
from ser_fl.attacks.suites import SUITES
from ser_fl.attacks.waveform import (
    FULL_SCALE,
    WaveformAttack,
    WaveformBudget,
    WaveformProblem,
    attack_named,
    snr_db,
)
from ser_fl.attacks.waveform_input import Clips
from ser_fl.config import BenchmarkConfig, Config
from ser_fl.data.audio import read_audio, write_wav
from ser_fl.data.features import FeatureStore
from ser_fl.data.prepared import open_configured_corpus
from ser_fl.defences import Defence
from ser_fl.devices import send
from ser_fl.errors import UserError
from ser_fl.evaluation.challenge import Challenge
from ser_fl.evaluation.judgement import LIBRARY, WORST_CASE, as_tuples
from ser_fl.evaluation.pace import OnAttack, silent
from ser_fl.evaluation.perception import pesq_of, stoi_of
from ser_fl.evaluation.robustness import OnRecords
from ser_fl.evaluation.shown import Shown, mean_over_successes, show, success_rate
from ser_fl.metrics import scores
from ser_fl.models.bundle import EmotionModel
from ser_fl.records import AttackRecord, write_json

DOMAIN = "waveform"
MASKING = "masking"
"""The norm that a record names where the budget is the clip's own masking threshold."""
_TOLERANCE_DB = 1e-3
SUITE = ("pgd", "apgd_ce", "cw_l2")
"""What the suites of the other domain stand for here."""
SNR_DBS = (60.0, 50.0, 40.0, 30.0, 20.0, 10.0, 0.0)
"""Budgets where none is given."""

Read = Callable[[str], tuple[Tensor, int]]
"""An utterance's recording by its id: shape (T,), and its sampling rate in Hz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attack, and all budgets that it is run at."""

    name: str
    attack: WaveformAttack
    budgets: tuple[WaveformBudget | None, ...]
    steps: int
    restarts: int | None
    """None for an attack that starts once, at the clean clip."""


def plans_of(config: BenchmarkConfig) -> list[Plan]:
    """What the settings of a benchmark with ``domain=waveform`` ask for.

    Raises:
        UserError: an attack that does not go on waveforms, or one that cannot keep to any of the budgets.
    """
    budgets = [WaveformBudget("snr_db", value) for value in config.snr_dbs]
    budgets += [WaveformBudget("amplitude", value) for value in config.amplitudes]
    if not budgets:
        budgets = [WaveformBudget("snr_db", value) for value in SNR_DBS]
    plans = []
    names = [name for given in config.attacks for name in (SUITE if given in SUITES else (given,))]
    for name in dict.fromkeys(names):
        attack = attack_named(name)
        own = tuple(budget for budget in dict.fromkeys(budgets) if budget.unit in attack.units)
        if attack.units and not own:
            raise UserError(f"{name} keeps to budgets of {' or '.join(attack.units)} only: set snr_dbs, such as [30]")
        plans.append(
            Plan(
                name=name,
                attack=attack,
                budgets=own or (None,),
                steps=config.steps or attack.steps,
                restarts=attack.restarts if config.restarts is None or attack.restarts is None else config.restarts,
            )
        )
    return plans


def reader_of(trained: Config, store: FeatureStore) -> Read:
    """Reads recordings of a run's corpus again."""
    corpus = open_configured_corpus(trained)
    by_id = {utterance.utterance_id: utterance for utterance in store.utterances}
    return lambda utterance_id: corpus.read(by_id[utterance_id])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """What an attack made of some utterances, and how far it went: features for the model, one figure an utterance."""

    features_NFL: Tensor
    """Of the adversarial samples as they were crafted."""
    written_NFL: Tensor
    """Of the same after a 16-bit WAV file."""
    l2_N: Tensor
    linf_N: Tensor
    snr_db_N: Tensor
    masked_N: Tensor
    """Share of time-frequency bins in which the perturbation lies under the masking threshold; NaN where not asked."""
    pesq_N: Tensor
    stoi_N: Tensor

    @classmethod
    def join(cls, parts: Sequence[Made]) -> Made:
        """One after the other."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in cls.__slots__})

    def take(self, rows: Sequence[int]) -> Made:
        """Some of the utterances, in this order."""
        return Made(**{name: getattr(self, name)[list(rows)] for name in self.__slots__})

    def or_clean(self, kept_N: Tensor, clean_NFL: Tensor) -> Made:
        """The clean utterances in place of those that are not kept."""
        kept_N11 = kept_N.to(clean_NFL.device)[:, None, None]
        zero_N, infinite_N = torch.zeros_like(self.l2_N), torch.full_like(self.l2_N, torch.inf)
        return replace(
            self,
            features_NFL=torch.where(kept_N11, self.features_NFL, clean_NFL),
            written_NFL=torch.where(kept_N11, self.written_NFL, clean_NFL),
            l2_N=torch.where(kept_N, self.l2_N, zero_N),
            linf_N=torch.where(kept_N, self.linf_N, zero_N),
            snr_db_N=torch.where(kept_N, self.snr_db_N, infinite_N),
        )


class WavPairs:
    """Clean and adversarial WAV files of some utterances, in the ``adversarial`` folder of a run.

    Every file is written whole and renamed into place. Its name is made of the utterance's id, in letters and digits
    only, so that no id leads out of the folder, and of a digest, so that no two ids share one.
    """

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder = folder
        self.ids = frozenset(ids)
        self.written: list[dict[str, Any]] = []

    def path(self, utterance_id: str, *words: str) -> Path:
        """Where a recording of an utterance lies: ``.clean`` or the attack and its budget come behind its name."""
        readable = re.sub(r"[^A-Za-z0-9]+", "_", utterance_id).strip("_")[:60]
        digest = blake2b(utterance_id.encode(), digest_size=4).hexdigest()
        return self.folder / ".".join([f"{readable}-{digest}", *words, "wav"])

    def keep(
        self,
        utterance_id: str,
        clean_T: Tensor,
        adversarial_T: Tensor,
        sample_rate_hz: int,
        words: Sequence[str],
        figures: Mapping[str, float | str | None],
    ) -> None:
        """Write both, and add them to ``waveforms.json``."""
        clean, adversarial = self.path(utterance_id, "clean"), self.path(utterance_id, *words)
        write_wav(clean, clean_T, sample_rate_hz)
        write_wav(adversarial, adversarial_T, sample_rate_hz)
        names = {"utterance_id": utterance_id, "clean": clean.name, "adversarial": adversarial.name}
        self.written.append({**names, **figures})
        write_json(self.folder / "waveforms.json", {"pairs": self.written})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Studio:
    """Everything that recordings pass through: where they come from, the model, and where WAV files go."""

    bundle: EmotionModel
    """On the device of the challenge."""
    read: Read
    seed: int
    device: torch.device
    pairs: WavPairs | None = None
    masked: bool = False
    """Whether to measure how much of every perturbation lies under the masking threshold, which takes its time."""

    def features(self, waveform_T: Tensor, sample_rate_hz: int) -> Tensor:
        """Standardised features of one recording, shape (1, F, L): as a new recording is read, and by the same way."""
        clip_T = self.bundle.frontend.clip(waveform_T, sample_rate_hz)
        features_1FL: Tensor = self.bundle.standardisation(self.bundle.frontend(send(clip_T[None], self.device)))
        return features_1FL

    def clean(self, ids: Sequence[str]) -> Tensor:
        """Features of utterances as they were recorded, shape (N, F, L)."""
        with torch.no_grad():
            return torch.cat([self.features(*self.read(utterance_id)) for utterance_id in ids])

    def attack(
        self, plan: Plan, budget: WaveformBudget | None, ids: Sequence[str], labels_B: Tensor, passes: Passes
    ) -> Made:
        """Attack a batch; clips of one sampling rate go together."""
        recordings = [self.read(utterance_id) for utterance_id in ids]
        by_rate: dict[int, list[int]] = {}
        for row, (_, rate) in enumerate(recordings):
            by_rate.setdefault(rate, []).append(row)
        parts = []
        for rate, rows in by_rate.items():
            waveforms = [recordings[row][0] for row in rows]
            keys = [ids[row] for row in rows]
            parts.append(self._attack_clips(plan, budget, waveforms, rate, keys, labels_B[rows], passes))
        order = [row for rows in by_rate.values() for row in rows]
        return Made.join(parts).take([order.index(row) for row in range(len(ids))])

    def _attack_clips(
        self,
        plan: Plan,
        budget: WaveformBudget | None,
        waveforms: Sequence[Tensor],
        sample_rate_hz: int,
        keys: Sequence[str],
        labels_B: Tensor,
        passes: Passes,
    ) -> Made:
        clips = Clips.of(waveforms, sample_rate_hz, self.bundle.frontend).to(self.device)
        problem = WaveformProblem(
            network=self.bundle.network,
            frontend=self.bundle.frontend,
            standardisation=self.bundle.standardisation,
            clips=clips,
            labels_B=labels_B,
            keys_B=keys,
            budget=budget,
            steps=plan.steps,
            restarts=plan.restarts or 0,
            seed=self.seed,
            passes=passes,
        )
        with attacked(self.bundle.network):
            crafted_BT = plan.attack.craft(problem)
        with torch.no_grad():
            adversarial_BT = clips.moved(FULL_SCALE.to(self.device).clip(crafted_BT))
            step_BT = (adversarial_BT - clips.waveform_BT).cpu()
            share_B = torch.full((len(clips),), torch.nan)
            if self.masked:
                share_B = MaskingBall.around(clips).share_below(adversarial_BT).cpu()
            features_BFL = problem.to_features(adversarial_BT)
        snr_B = snr_db(clips, adversarial_BT).cpu()
        written, pesq, stoi = [], [], []
        words = [plan.name] if budget is None else [plan.name, f"{budget.unit}_{budget.value:g}"]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for row, (key, clean_T) in enumerate(zip(keys, waveforms, strict=True)):
                heard = int(clips.heard_B[row])
                adversarial_T = clean_T.clone()
                adversarial_T[:heard] = adversarial_BT[row, :heard].cpu()
                file = Path(folder) / "recording.wav"
                write_wav(file, adversarial_T, sample_rate_hz)
                written.append(self.features(*read_audio(file)))
                pair = clean_T[:heard], adversarial_T[:heard], sample_rate_hz
                pesq.append(pesq_of(*pair))
                stoi.append(stoi_of(*pair))
                if self.pairs is not None and key in self.pairs.ids:
                    figures: dict[str, float | str | None] = {
                        "attack": plan.name,
                        "snr_db": float(snr_B[row]),
                        "pesq": pesq[-1],
                        "stoi": stoi[-1],
                    }
                    self.pairs.keep(key, clean_T, adversarial_T, sample_rate_hz, words, figures)
        return Made(
            features_NFL=features_BFL,
            written_NFL=torch.cat(written),
            l2_N=torch.linalg.vector_norm(step_BT.double(), dim=1),
            linf_N=step_BT.abs().amax(1),
            snr_db_N=snr_B,
            masked_N=share_B,
            pesq_N=torch.tensor(pesq),
            stoi_N=torch.tensor(stoi),
        )


def benchmark_waveforms(
    challenge: Challenge,
    bundle: EmotionModel,
    read: Read,
    plans: Sequence[Plan],
    defences: Sequence[Defence],
    *,
    subsets: Mapping[str, int] | None = None,
    pairs: WavPairs | None = None,
    on_attack: OnAttack = silent,
    on_records: OnRecords = lambda records: None,
) -> list[AttackRecord]:
    """Run every attack at every budget, show what it made to every defence, and take the worst case per utterance.

    Args:
        challenge: utterances; their features are computed anew, by the way that adversarial recordings take.
        bundle: the model with its front end, on the device of the challenge, in evaluation mode.
        read: gives recordings.
        plans: what is run.
        defences: "none" among them if the bare model is wanted.
        subsets: attack names to a number of utterances, for attacks that are too slow for all.
        pairs: which recordings are kept as WAV files; None for none.
        on_attack: told of progress.
        on_records: given the records of all attacks that are done, whenever one is.

    Returns:
        For every defence a record "clean", one an attack and budget and, of budgets that two attacks or more kept to,
        "worst_case".

    Raises:
        UserError: a recording cannot be read, or there are too few classes for an attack.
    """
    for plan in plans:
        if challenge.num_classes < plan.attack.min_classes:
            raise UserError(f"{plan.name} needs at least {plan.attack.min_classes} classes: take apgd_ce")
    studio = Studio(
        bundle=bundle,
        read=read,
        seed=challenge.seed,
        device=challenge.features_NFL.device,
        pairs=pairs,
        masked=any(plan.budgets == (None,) for plan in plans),
    )
    challenge = replace(challenge, features_NFL=studio.clean(challenge.ids))
    cleans = {defence.name: show(challenge, challenge.features_NFL, defence) for defence in defences}
    records = [_record(challenge, defence.name, "clean", cleans[defence.name]) for defence in defences]
    withstood: dict[tuple[WaveformBudget, str], list[Tensor]] = {}
    for plan in plans:
        part = challenge.subset((subsets or {}).get(plan.name))
        crafted: _Crafted | None = None
        for budget in plan.budgets:
            if crafted is None or not plan.attack.minimal:
                crafted = _craft(studio, part, plan, None if plan.attack.minimal else budget, on_attack)
            made = crafted.made
            if plan.attack.minimal and budget is not None:
                made = made.or_clean(made.snr_db_N >= budget.value - _TOLERANCE_DB, part.features_NFL)
            for defence in defences:
                record, right_RN = _judge(part, plan, budget, defence, replace(crafted, made=made))
                records.append(record)
                if budget is not None:
                    spread_RN = torch.ones(len(right_RN), len(challenge), dtype=torch.bool)
                    spread_RN[:, challenge.rows_of(part.ids)] = right_RN
                    withstood.setdefault((budget, defence.name), []).append(spread_RN)
            on_records(list(records))
    for (budget, name), every_RN in withstood.items():
        if len(every_RN) > 1:
            survived_RN = cleans[name].right_RN & torch.stack(every_RN).all(0)
            records.append(_worst_case(challenge, name, budget, cleans[name], survived_RN))
    return records


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Crafted:
    made: Made
    passes: Passes
    seconds: float


def _craft(studio: Studio, part: Challenge, plan: Plan, budget: WaveformBudget | None, on_attack: OnAttack) -> _Crafted:
    label = plan.name if budget is None else f"{plan.name} at {budget}"
    passes, parts, total = Passes(), [], len(part.ids)
    started = time.perf_counter()
    for first in range(0, total, part.batch_size):
        on_attack(label, first, total)
        batch = slice(first, first + part.batch_size)
        parts.append(studio.attack(plan, budget, part.ids[batch], part.labels_N[batch], passes))
    on_attack(label, total, total)
    return _Crafted(made=Made.join(parts), passes=passes, seconds=time.perf_counter() - started)


def _judge(
    part: Challenge, plan: Plan, budget: WaveformBudget | None, defence: Defence, crafted: _Crafted
) -> tuple[AttackRecord, Tensor]:
    """The record of one attack and budget under one defence, and which utterances are still recognised, (R, N)."""
    made, weights = crafted.made, defence.run_weights
    clean, adversarial, written = (
        show(part, features_NFL, defence) for features_NFL in (part.features_NFL, made.features_NFL, made.written_NFL)
    )
    success_RN = clean.right_RN & ~adversarial.right_RN
    lost_R = (success_RN & written.right_RN).sum(1).double()

    def median(value_N: Tensor) -> float | None:
        return median_over_successes(value_N, success_RN, weights)

    record = replace(
        _record(part, defence.name, plan.name, clean, adversarial, budget),
        library=plan.attack.library,
        norm=MASKING if budget is None else budget.norm,
        steps=plan.steps,
        restarts=plan.restarts,
        attack_success_rate=success_rate(clean.right_RN, success_RN, weights),
        mean_l2=mean_over_successes(made.l2_N, success_RN, weights),
        max_linf=float(made.linf_N.max()),
        median_snr_db=median(made.snr_db_N),
        median_pesq=median(made.pesq_N),
        median_stoi=median(made.stoi_N),
        masked_share=median(made.masked_N),
        lost_to_quantisation=float(torch.tensor(weights, dtype=torch.float64) @ lost_R),
        forward_passes=crafted.passes.forward,
        backward_passes=crafted.passes.backward,
        seconds=crafted.seconds,
    )
    return record, adversarial.right_RN


def median_over_successes(value_N: Tensor, success_RN: Tensor, run_weights: Sequence[float]) -> float | None:
    """Median over the successes that `success_rate` counts, each by the weight of its run.

    It is the smallest value that half of them do not exceed; None where there was no success or nothing was measured
    (NaN).

    >>> median_over_successes(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([[True, True, True]]), (1.0,))
    2.0
    """
    weight_N = torch.tensor(run_weights, dtype=torch.float64) @ success_RN.double()
    counted_N = (weight_N > 0) & ~value_N.isnan()
    if not bool(counted_N.any()):
        return None
    value_N, weight_N = value_N[counted_N].double(), weight_N[counted_N]
    order = value_N.argsort(stable=True)
    reached = weight_N[order].cumsum(0) >= weight_N.sum() * (0.5 - 1e-9)
    return float(value_N[order][reached][0])


def _worst_case(
    challenge: Challenge, defence: str, budget: WaveformBudget, clean: Shown, survived_RN: Tensor
) -> AttackRecord:
    """An utterance counts as recognised if it withstood every attack of this budget.

    UAR needs recalls only, so that the confusion matrix keeps what was right and counts the rest as the next class.
    """
    wrong_N = (clean.labels_N + 1) % challenge.num_classes
    worst = replace(clean, votes_RN=torch.where(survived_RN, clean.labels_N, wrong_N))
    rate = success_rate(clean.right_RN, clean.right_RN & ~survived_RN, clean.run_weights)
    return replace(
        _record(challenge, defence, WORST_CASE, clean, worst, budget), norm=budget.norm, attack_success_rate=rate
    )


def _record(
    challenge: Challenge,
    defence: str,
    name: str,
    clean: Shown,
    adversarial: Shown | None = None,
    budget: WaveformBudget | None = None,
) -> AttackRecord:
    """What a record says of every row alike; without adversarial utterances, the score without an attack."""
    confusion = (adversarial or clean).confusion
    return AttackRecord(
        attack=name,
        library=LIBRARY,
        knowledge="undefended",
        domain=DOMAIN,
        norm="none",
        epsilon=budget.value if budget is not None and budget.unit == "amplitude" else None,
        snr_db=budget.value if budget is not None and budget.unit == "snr_db" else None,
        steps=None,
        step_size=None,
        restarts=None,
        eot_samples=0,
        defence=defence,
        clean_uar=scores(clean.confusion).uar,
        robust_uar=scores(confusion).uar,
        attack_success_rate=0.0,
        mean_l2=0.0,
        max_linf=0.0,
        median_snr_db=None,
        num_examples=len(challenge.ids),
        forward_passes=0,
        backward_passes=0,
        seconds=0.0,
        seed=challenge.seed,
        device=challenge.features_NFL.device.type,
        confusion=as_tuples(confusion),
    )
