"""Recordings under attack: written as WAV files, heard again, and compared with the clean ones by PESQ and STOI.

An attack makes floating-point samples, and a WAV file holds 16 bits. A perturbation may be lost in the rounding, so
that every adversarial recording is written, read back and turned into features once more. PESQ and STOI need their
packages (extra ``perception``). They are estimates: for adversarial perturbations they do not track what listeners say
reliably (Vadillo and Santana 2022).

Legend: N utterances, B of a batch, T samples, F mel bins, L frames.
"""

import json
import math
import re
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ser_fl.attacks.attack import Attack, Problem
from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.waveform_domain import Waveform, WaveformToFeatures
from ser_fl.config.robustness import BenchmarkConfig
from ser_fl.data.audio import read_audio, write_wav
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.frontend import resample
from ser_fl.devices import send
from ser_fl.files import write_json
from ser_fl.robustness.test_set import TestSet, rows_of
from ser_fl.robustness.trained_run import TrainedRun
from ser_fl.runs.folder import RunFolder

PESQ_RATE_HZ = 16000
"""Of wide-band PESQ; STOI goes down to 10 kHz by itself."""


class WavPairs:
    """Clean and adversarial WAV files of some utterances, in the ``adversarial`` folder of a run. Every file is written
    whole and renamed into place. Its name is the utterance's id in letters and digits, so that no id leads out of the
    folder, and a digest, so that no two ids share one.
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
        try:  # where the list is damaged there are none: it is made of what benchmarks write anew
            earlier = json.loads(self.list.read_text(encoding="utf-8"))["pairs"]
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            earlier = []
        others = [
            pair
            for pair in (earlier if isinstance(earlier, list) else [])
            if isinstance(pair, dict) and pair.get("adversarial", adversarial.name) != adversarial.name
        ]
        names = {"utterance_id": utterance_id, "clean": clean.name, "adversarial": adversarial.name}
        write_json(self.list, {"pairs": [*others, {**names, **figures}]})


@dataclass(frozen=True, kw_only=True, eq=False)
class Recordings(Waveform):
    """The samples of recordings that are written, heard again and compared, and of which some are kept."""

    pairs: WavPairs | None = None
    emotions: tuple[str, ...] = ()
    """Names of the classes, for the list of pairs; empty where nobody says."""

    def crafted(self, attack: Attack, problem: Problem, adversarial: Tensor) -> Crafted:
        assert isinstance(problem.to_features, WaveformToFeatures)
        found = super().crafted(attack, problem, adversarial)
        clips = problem.to_features.clips
        written, pesq, stoi = [], [], []
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for row, key in enumerate(problem.keys_B):
                (clean_T, rate), heard = self.read(key), int(clips.heard_B[row])
                adversarial_T = clean_T.clone()
                adversarial_T[:heard] = adversarial[row, :heard].cpu()
                file = Path(folder) / "recording.wav"
                write_wav(file, adversarial_T, rate)
                written.append(self.features(key, *read_audio(file)))
                pesq.append(pesq_of(clean_T[:heard], adversarial_T[:heard], rate))
                stoi.append(stoi_of(clean_T[:heard], adversarial_T[:heard], rate))
                if self.pairs is not None and key in self.pairs.ids:
                    shown_2FL = torch.cat([self.features(key, clean_T, rate), written[-1]])
                    heard_2 = problem.network(send(shown_2FL, problem.labels_B.device)).argmax(dim=1).tolist()
                    classes = [int(problem.labels_B[row]), *heard_2]
                    names = [self.emotions[place] if self.emotions else None for place in classes]
                    figures: dict[str, float | str | None] = {
                        "attack": attack.name,
                        "snr_db": float(found.figures["median_snr_db"][row]),
                        "pesq": pesq[-1],
                        "stoi": stoi[-1],
                        **dict(zip(("emotion", "predicted_clean", "predicted_adversarial"), names, strict=True)),
                    }
                    words = _words(attack, problem.expectation is not None)
                    self.pairs.keep(key, clean_T, adversarial_T, rate, words, figures)
        heard_again = {"median_pesq": torch.tensor(pesq), "median_stoi": torch.tensor(stoi)}
        return replace(found, written_NFL=torch.cat(written), figures={**found.figures, **heard_again})

    def lacks(self, measured: Collection[str], attack: Attack, ids: Sequence[str], adaptive: bool) -> bool:
        files = self.pairs is None or self.pairs.has(ids, _words(attack, adaptive))
        return not files or super().lacks(measured, attack, ids, adaptive)


def _words(attack: Attack, adaptive: bool) -> list[str]:
    """What tells the files of one attack, budget and attacker from others of an utterance."""
    settings = attack.settings
    budget = "" if settings.masked or attack.entry.minimal else f"amplitude_{settings.epsilon:g}"
    if settings.snr_db is not None and budget:
        budget = f"snr_db_{settings.snr_db:g}"
    return [attack.name, *([budget] if budget else []), *(["adaptive"] if adaptive else [])]


def pesq_of(clean_T: Tensor, perturbed_T: Tensor, sample_rate_hz: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1 to 4.64; NaN without the package ``pesq``, or where it finds no speech."""
    if find_spec("pesq") is None or not bool(clean_T.any()):
        return math.nan
    from pesq import PesqError, pesq

    clean, perturbed = (resample(samples, sample_rate_hz, PESQ_RATE_HZ).numpy() for samples in (clean_T, perturbed_T))
    try:
        return float(pesq(PESQ_RATE_HZ, clean, perturbed, "wb"))
    except PesqError:
        return math.nan


def stoi_of(clean_T: Tensor, perturbed_T: Tensor, sample_rate_hz: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), up to 1; NaN without ``pystoi`` or for short clips."""
    if find_spec("pystoi") is None:
        return math.nan
    from pystoi import stoi

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # told of clips without 30 frames of speech, which get 1e-5
        try:
            return float(stoi(clean_T.numpy(), perturbed_T.numpy(), sample_rate_hz))
        except (RuntimeWarning, ValueError):
            return math.nan


def recordings_of(trained: TrainedRun, test_set: TestSet, config: BenchmarkConfig, run: RunFolder) -> TestSet:
    """The same utterances, to be attacked on their recorded samples; their features are computed anew, by the way that
    adversarial recordings take.
    """
    corpus = open_configured_corpus(trained.config)
    by_id = {utterance.utterance_id: utterance for utterance in corpus.utterances}
    kept, scale = test_set.subset(config.write_audio).ids if config.write_audio else (), test_set.scale
    domain = Recordings(
        frontend=trained.model.frontend,
        standardisation=trained.model.standardisation,
        read=lambda utterance_id: corpus.read(by_id[utterance_id]),
        masked=any(choice.name == "psychoacoustic" for choice in (*config.attacks, *config.adaptive)),
        pairs=WavPairs(run.adversarial, kept) if kept else None,
        emotions=test_set.emotions,
        scale_of=None if scale is None else lambda ids: scale.rows(rows_of(test_set.ids, ids)),
    )
    return replace(test_set, domain=domain, features_NFL=domain.clean(test_set.ids))
