"""Functionals of a recording: figures of how each thing that is measured over time is spread, whatever its length. A
plain classifier hears them (`ser_fl.baselines`).

Legend: B batch, T samples, F functionals, M mel bins, L frames.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ser_fl.config.frontend import AnyFrontend
from ser_fl.data.frontend import FrontEnd, LogMel, repeat_to_length, resample
from ser_fl.errors import UserError

Kind = Literal["logmel", "opensmile"]
PERCENTILES = (10, 25, 50, 75, 90)
_APART = 2
OPENSMILE_LICENCE = "openSMILE's licence allows research only, no product and no commercial use (audEERING GmbH)"
_NUM_EGEMAPS = 88
_SHORTEST_EGEMAPS_S = 0.06
"""A window of its pitch."""


@dataclass(frozen=True, slots=True)
class FunctionalsConfig:
    """Which functionals, of recordings at the rate and up to the length that a front end hears."""

    kind: Kind
    frontend: AnyFrontend

    @property
    def num_features(self) -> int:
        """F."""
        return _NUM_EGEMAPS if self.kind == "opensmile" else self.frontend.num_mels * (4 + len(PERCENTILES))

    @property
    def num_frames(self) -> int:
        """A functional has no time."""
        return 1

    @property
    def key(self) -> tuple[object, ...]:
        """What the values depend on."""
        own = self.frontend
        heard = own.num_samples, own.sample_rate_hz
        if self.kind == "opensmile":
            return "eGeMAPSv02", installed_opensmile().__version__, *heard
        form = own.window_samples, own.hop_samples, own.num_mels, own.fmin_hz, own.fmax_hz, own.log_offset
        return "functionals", PERCENTILES, _APART, *heard, *form

    def build(self) -> "Functionals":
        return (EGeMAPS if self.kind == "opensmile" else LogMelFunctionals)(self.frontend)


class Functionals(FrontEnd):
    """Functionals of shape (B, F, 1), of clips that end where their samples are NaN: as they were recorded, cut at the
    front end's length and never repeated, but where they are shorter than ``shortest`` samples.
    """

    def __init__(self, config: AnyFrontend, shortest: int) -> None:
        super().__init__(config)
        self.shortest = shortest

    def clip(self, waveform_T: Tensor, sample_rate_hz: int) -> Tensor:
        once_T = resample(waveform_T, sample_rate_hz, self.sample_rate_hz)[: self.num_samples]
        once_T = repeat_to_length(once_T, max(self.shortest, len(once_T)))
        return pad(once_T, (0, self.num_samples - len(once_T)), value=torch.nan)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        return torch.stack([self.of(clip_T[~clip_T.isnan()]) for clip_T in waveform_BT])[..., None]

    def of(self, clip_T: Tensor) -> Tensor:
        """Functionals of shape (F,)."""
        raise NotImplementedError


class LogMelFunctionals(Functionals):
    """Of every mel bin of our own front end (of encoders: of what they hear), over the frames of a clip: mean,
    deviation (the population's) and `PERCENTILES`; of its change over two frames mean size and deviation. M means come
    first, then M deviations, and so on.
    """

    def __init__(self, config: AnyFrontend) -> None:
        super().__init__(config, config.window_samples + _APART * config.hop_samples)
        self.logmel = LogMel(config)

    def of(self, clip_T: Tensor) -> Tensor:
        bins_ML = self.logmel(clip_T[None])[0]
        shares = torch.tensor(PERCENTILES, dtype=bins_ML.dtype) / 100
        spread_PM = bins_ML.quantile(shares, dim=1)
        changes_ML = bins_ML[:, _APART:] - bins_ML[:, :-_APART]
        moments = (bins_ML.mean(dim=1), bins_ML.std(dim=1, correction=0), spread_PM.flatten())
        return torch.cat([*moments, changes_ML.abs().mean(dim=1), changes_ML.std(dim=1, correction=0)])


class EGeMAPS(Functionals):
    """The 88 functionals of the extended Geneva set, eGeMAPSv02 (Eyben et al., IEEE Trans. Affective Computing 7(2),
    2016), as the package opensmile computes them.

    Raises:
        UserError: it is not installed.
    """

    def __init__(self, config: AnyFrontend) -> None:
        super().__init__(config, round(_SHORTEST_EGEMAPS_S * config.sample_rate_hz))
        opensmile = installed_opensmile()
        self.smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)

    def of(self, clip_T: Tensor) -> Tensor:
        table = self.smile.process_signal(clip_T.numpy(), self.sample_rate_hz)
        return torch.tensor(table.to_numpy(dtype="float32")[0])


def installed_opensmile() -> Any:
    """The package; a `UserError` where it is missing."""
    try:
        import opensmile
    except ImportError:
        raise UserError(
            f"features=opensmile needs the extra `baseline`: pip install 'ser-fl[baseline]'; {OPENSMILE_LICENCE}"
        ) from None
    return opensmile
