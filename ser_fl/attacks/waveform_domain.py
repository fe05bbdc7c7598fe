"""The waveform as a domain: recorded samples are moved, within an SNR, an amplitude or a masking threshold.

A budget is a signal-to-noise ratio in dB, an L2 ball whose radius belongs to the clip; an amplitude, an L-infinity
ball; or the clip's own masking threshold: all of the samples that the front end hears, at full scale 1. A caution:
features are log(x + 1e-8), so that bins of digital silence react to the faintest noise. Where a corpus holds silence,
an attack at 60 dB may succeed by what no recording in a room would keep.

Legend: N utterances, B clips of a batch, T samples, S samples at the front end's rate, F mel bins, L frames.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack, Problem
from ser_fl.attacks.clips import ClipBall, Clips
from ser_fl.attacks.domains import Crafted, Domain
from ser_fl.attacks.psychoacoustic import MaskingBall
from ser_fl.attacks.threat_model import Ball, Box, Rows
from ser_fl.data.frontend import FrontEnd, Standardisation, resample
from ser_fl.data.normalisation import Scale
from ser_fl.devices import send

FULL_SCALE = Box(torch.tensor(-1.0), torch.tensor(1.0))
"""The values that samples may take."""
SNR_TOLERANCE_DB = 1e-3
SNR_DBS = (60.0, 50.0, 40.0, 30.0, 20.0, 10.0, 0.0)
"""Budgets where none is given."""

Read = Callable[[str], tuple[Tensor, int]]
"""An utterance's recording by its id: shape (T,), and its sampling rate in Hz."""


@dataclass(frozen=True, slots=True, eq=False)
class WaveformToFeatures(Rows):
    """From recorded waveforms to standardised features inside the box: differentiable, the `ToFeatures` of a `Target`.
    A perturbation lives on the recorded samples, at the clip's own rate: it is resampled, and repeated with its clip to
    the front end's length, so that what was crafted can be written as a WAV file and heard.
    """

    clips: Clips
    """Whose waveforms are moved; where they may not be, theirs is what is heard."""
    frontend: FrontEnd
    """On the device of the clips."""
    standardisation: nn.Module
    mean_BF1: Tensor | None = None
    """Of each clip's speaker, and the deviation; None where all are scaled alike."""
    deviation_BF1: Tensor | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features of shape (B, F, L) from waveforms of shape (B, T), padded as the clips are."""
        clips, frontend = self.clips, self.frontend
        resampled = resample(clips.moved(inputs), clips.sample_rate_hz, frontend.sample_rate_hz)
        # As long as torchaudio makes them.
        length_B = -(-clips.recorded_B * frontend.sample_rate_hz // clips.sample_rate_hz)
        repeated_BS = torch.arange(frontend.num_samples, device=length_B.device) % length_B[:, None]
        features_BFL: Tensor = frontend(resampled.gather(1, repeated_BS))
        if self.mean_BF1 is not None and self.deviation_BF1 is not None:
            features_BFL = (features_BFL - self.mean_BF1) / self.deviation_BF1
        features_BFL = self.standardisation(features_BFL)
        return features_BFL

    def ball(self, epsilon: float, snr_db: float | None, masked: bool) -> Ball:
        """What the budget allows; of a silent clip and an SNR, nothing but the clip."""
        clips = self.clips
        if masked:
            return MaskingBall.around(clips)
        if snr_db is None:
            radius_B = clips.waveform_BT.new_full((len(clips),), epsilon)
            return ClipBall(clips.waveform_BT, radius_B, "inf", clips.heard_B)
        radius_B = (clips.lengths(clips.waveform_BT) * 10 ** (-snr_db / 20)).float()
        return ClipBall(clips.waveform_BT, radius_B, "2", clips.heard_B)

    def own(self, inputs: Tensor) -> Tensor:
        return self.clips.moved(inputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Waveform(Domain):
    """The samples of recordings, within SNRs, amplitudes or masking thresholds."""

    frontend: FrontEnd
    """On the device of the model."""
    standardisation: Standardisation
    read: Read
    scale_of: Callable[[Sequence[str]], Scale] | None = None
    """By which the speakers of utterances are scaled; None where all are scaled alike."""
    masked: bool = False
    """Whether to measure how much of every perturbation lies under the masking threshold, which takes its time."""
    name: str = "waveform"
    sweeps: bool = False

    def raw(self, waveform_T: Tensor, sample_rate_hz: int) -> Tensor:
        """Features of a recording as the front end gives them, shape (1, F, L)."""
        clip_T = self.frontend.clip(waveform_T, sample_rate_hz)
        features_1FL: Tensor = self.frontend(send(clip_T[None], self.standardisation.mean_F1.device))
        return features_1FL

    def features(self, utterance_id: str, waveform_T: Tensor, sample_rate_hz: int) -> Tensor:
        """Standardised features of a recording of an utterance, shape (1, F, L): as a new recording is read, and by the
        same way.
        """
        features_1FL = self.raw(waveform_T, sample_rate_hz)
        if self.scale_of is not None:
            features_1FL = self.scale_of([utterance_id]).to(features_1FL.device)(features_1FL)
        standardised_1FL: Tensor = self.standardisation(features_1FL)
        return standardised_1FL

    def clean(self, ids: Sequence[str]) -> Tensor:
        """Features of utterances as they were recorded, shape (N, F, L)."""
        with torch.no_grad():
            return torch.cat([self.features(utterance_id, *self.read(utterance_id)) for utterance_id in ids])

    def clips(self, ids: Sequence[str], device: torch.device) -> Iterator[tuple[list[int], Clips]]:
        """Recordings of utterances, those of one sampling rate together, and which of the ids they are."""
        recordings = [self.read(utterance_id) for utterance_id in ids]
        for rate in dict.fromkeys(rate for _, rate in recordings):
            rows = [row for row, (_, its_rate) in enumerate(recordings) if its_rate == rate]
            yield rows, Clips.of([recordings[row][0] for row in rows], rate, self.frontend).to(device)

    def problems(self, problem: Problem) -> list[tuple[list[int], Problem]]:
        """The recordings of a batch; clips of one sampling rate go together."""
        device, found = problem.labels_B.device, []
        for rows, clips in self.clips(problem.keys_B, device):
            scale = None if self.scale_of is None else self.scale_of([problem.keys_B[row] for row in rows]).to(device)
            part = replace(
                problem.subset(torch.tensor(rows, device=device)),
                clean=clips.waveform_BT,
                box=FULL_SCALE.to(device),
                to_features=WaveformToFeatures(
                    clips,
                    self.frontend,
                    self.standardisation,
                    None if scale is None else scale.mean,
                    None if scale is None else scale.deviation,
                ),
            )
            found.append((rows, part))
        return found

    def craft(self, attack: Attack, problem: Problem) -> Crafted:
        problems = self.problems(problem)
        parts = [self.crafted(attack, part, attack.craft(part)) for _, part in problems]
        return Crafted.join(parts, [row for rows, _ in problems for row in rows], problem.clean[:0])

    def crafted(self, attack: Attack, problem: Problem, adversarial: Tensor) -> Crafted:
        """What a classifier is shown of adversarial clips."""
        assert isinstance(problem.to_features, WaveformToFeatures)
        clips = problem.to_features.clips
        with torch.no_grad():
            step_BT = (adversarial - clips.waveform_BT).cpu()
            share_B = torch.full((len(clips),), torch.nan)
            if self.masked:
                share_B = MaskingBall.around(clips).share_below(adversarial).cpu()
            return Crafted(
                adversarial_NFL=problem.to_features(adversarial),
                figures={
                    "l2": torch.linalg.vector_norm(step_BT.double(), dim=1),
                    "linf": step_BT.abs().amax(1),
                    "median_snr_db": clips.snr_db(adversarial).cpu(),
                    "masked_share": share_B,
                },
            )

    def held(self, crafted: Crafted, attack: Attack, clean_NFL: Tensor) -> Crafted:
        """All of it, but of an attack that looks for the quietest perturbation what is quiet enough."""
        if not attack.entry.minimal or attack.settings.snr_db is None:
            return crafted
        quiet_N = crafted.figures["median_snr_db"] >= attack.settings.snr_db - SNR_TOLERANCE_DB
        quiet_N11 = quiet_N.to(clean_NFL.device)[:, None, None]
        silence = {"l2": 0.0, "linf": 0.0, "median_snr_db": torch.inf}
        kept = {name: crafted.figures[name].masked_fill(~quiet_N, value) for name, value in silence.items()}
        written_NFL = crafted.written_NFL
        return replace(
            crafted,
            adversarial_NFL=torch.where(quiet_N11, crafted.adversarial_NFL, clean_NFL),
            written_NFL=None if written_NFL is None else torch.where(quiet_N11, written_NFL, clean_NFL),
            figures={**crafted.figures, **kept},
        )

    def lacks(self, measured: Collection[str], attack: Attack, ids: Sequence[str], adaptive: bool) -> bool:
        return self.masked and "masked_share" not in measured

    def widest(self, features_NFL: Tensor, box: Box) -> float:
        """Full scale: any clip can be made any other."""
        return 2.0
