"""Recordings under attack: read again, attacked on their samples, written as WAV files and heard again.

What an attack makes are floating-point samples. A WAV file holds 16 bits, so that a perturbation may be lost in the
rounding: every adversarial recording is written, read back and turned into features once more.

Legend: N utterances, B of a batch, T samples, F mel bins, L frames.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ser_fl.attacks.art.estimator import Passes
from ser_fl.attacks.psychoacoustic import MaskingBall
from ser_fl.attacks.target import Expectation
from ser_fl.attacks.training_attacks import attacked
from ser_fl.attacks.waveform import FULL_SCALE, WaveformAttack, WaveformBudget, WaveformProblem, snr_db
from ser_fl.attacks.waveform_input import Clips
from ser_fl.config.schema import Config
from ser_fl.data.audio import read_audio, write_wav
from ser_fl.data.features import FeatureStore
from ser_fl.data.prepared import open_configured_corpus
from ser_fl.devices import send
from ser_fl.files import write_json
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.robustness.perception import pesq_of, stoi_of

Read = Callable[[str], tuple[Tensor, int]]
"""An utterance's recording by its id: shape (T,), and its sampling rate in Hz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assault:
    """One attack at one budget, by an attacker who knows of a defence or of none."""

    name: str
    attack: WaveformAttack
    budget: WaveformBudget | None
    """None for an attack that has its own, or that looks for the quietest perturbation."""
    steps: int
    restarts: int | None
    """None for an attack that starts once, at the clean clip."""
    expectation: Expectation | None = None
    """What the attacker knows of the defence."""

    @property
    def words(self) -> list[str]:
        """For the names of files."""
        budget = [] if self.budget is None else [f"{self.budget.unit}_{self.budget.value:g}"]
        return [self.name, *budget, *([] if self.expectation is None else ["adaptive"])]


def reader_of(trained: Config, store: FeatureStore) -> Read:
    """Reads recordings of a run's corpus again."""
    corpus = open_configured_corpus(trained)
    by_id = {utterance.utterance_id: utterance for utterance in store.utterances}
    return lambda utterance_id: corpus.read(by_id[utterance_id])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heard:
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
    def join(cls, parts: Sequence[Heard]) -> Heard:
        """One after the other."""
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in cls.__slots__})

    def take(self, rows: Sequence[int]) -> Heard:
        """Some of the utterances, in this order."""
        return Heard(**{name: getattr(self, name)[list(rows)] for name in self.__slots__})

    def or_clean(self, kept_N: Tensor, clean_NFL: Tensor) -> Heard:
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
        self.list = folder / "waveforms.json"

    def has(self, ids: Sequence[str], words: Sequence[str]) -> bool:
        """Whether there are files already of those of some utterances that are kept."""
        return all(self.path(key, *words).exists() for key in self.ids.intersection(ids))

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
        """Write both, and add them to ``waveforms.json``, where pairs of earlier benchmarks stay."""
        clean, adversarial = self.path(utterance_id, "clean"), self.path(utterance_id, *words)
        write_wav(clean, clean_T, sample_rate_hz)
        write_wav(adversarial, adversarial_T, sample_rate_hz)
        names = {"utterance_id": utterance_id, "clean": clean.name, "adversarial": adversarial.name}
        others = [pair for pair in self._earlier() if pair["adversarial"] != adversarial.name]
        write_json(self.list, {"pairs": [*others, {**names, **figures}]})

    def _earlier(self) -> list[dict[str, Any]]:
        """Pairs of the list; none where it is damaged, as it is made of what benchmarks write anew."""
        try:
            pairs = json.loads(self.list.read_text(encoding="utf-8"))["pairs"]
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return []
        kept = pairs if isinstance(pairs, list) else []
        return [pair for pair in kept if isinstance(pair, dict) and "adversarial" in pair]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Studio:
    """Everything that recordings pass through: where they come from, the model, and where WAV files go."""

    bundle: EmotionModel
    """On the device of the test_set."""
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

    def attack(self, assault: Assault, ids: Sequence[str], labels_B: Tensor, passes: Passes) -> Heard:
        """Attack a batch; clips of one sampling rate go together."""
        recordings = [self.read(utterance_id) for utterance_id in ids]
        by_rate: dict[int, list[int]] = {}
        for row, (_, rate) in enumerate(recordings):
            by_rate.setdefault(rate, []).append(row)
        parts = []
        for rate, rows in by_rate.items():
            waveforms = [recordings[row][0] for row in rows]
            keys = [ids[row] for row in rows]
            parts.append(self._attack_clips(assault, waveforms, rate, keys, labels_B[rows], passes))
        order = [row for rows in by_rate.values() for row in rows]
        return Heard.join(parts).take([order.index(row) for row in range(len(ids))])

    def _attack_clips(
        self,
        assault: Assault,
        waveforms: Sequence[Tensor],
        sample_rate_hz: int,
        keys: Sequence[str],
        labels_B: Tensor,
        passes: Passes,
    ) -> Heard:
        clips = Clips.of(waveforms, sample_rate_hz, self.bundle.frontend).to(self.device)
        problem = WaveformProblem(
            network=self.bundle.network,
            frontend=self.bundle.frontend,
            standardisation=self.bundle.standardisation,
            clips=clips,
            labels_B=labels_B,
            keys_B=keys,
            budget=assault.budget,
            steps=assault.steps,
            restarts=assault.restarts or 0,
            seed=self.seed,
            passes=passes,
            expectation=assault.expectation,
        )
        with attacked(self.bundle.network):
            crafted_BT = assault.attack.craft(problem)
        with torch.no_grad():
            adversarial_BT = clips.moved(FULL_SCALE.to(self.device).clip(crafted_BT))
            step_BT = (adversarial_BT - clips.waveform_BT).cpu()
            share_B = torch.full((len(clips),), torch.nan)
            if self.masked:
                share_B = MaskingBall.around(clips).share_below(adversarial_BT).cpu()
            features_BFL = problem.to_features(adversarial_BT)
        snr_B = snr_db(clips, adversarial_BT).cpu()
        written, pesq, stoi = [], [], []
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
                        "attack": assault.name,
                        "snr_db": float(snr_B[row]),
                        "pesq": pesq[-1],
                        "stoi": stoi[-1],
                    }
                    self.pairs.keep(key, clean_T, adversarial_T, sample_rate_hz, assault.words, figures)
        return Heard(
            features_NFL=features_BFL,
            written_NFL=torch.cat(written),
            l2_N=torch.linalg.vector_norm(step_BT.double(), dim=1),
            linf_N=step_BT.abs().amax(1),
            snr_db_N=snr_B,
            masked_N=share_B,
            pesq_N=torch.tensor(pesq),
            stoi_N=torch.tensor(stoi),
        )
