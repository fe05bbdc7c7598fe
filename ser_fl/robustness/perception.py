"""How different a perturbed recording sounds: PESQ and STOI, where their packages are installed.

They are estimates: for adversarial perturbations they do not track what listeners say reliably (Vadillo and Santana
2022). Packages: the extra ``perception``.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

from torch import Tensor

from ser_fl.data.frontend import resample

RATE_HZ = 16000
"""Of wide-band PESQ; STOI goes down to 10 kHz by itself."""


def pesq_of(clean_T: Tensor, perturbed_T: Tensor, sample_rate_hz: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1 to 4.64; NaN without the package ``pesq``, or where it finds no speech."""
    if find_spec("pesq") is None or not bool(clean_T.any()):
        return math.nan
    from pesq import PesqError, pesq

    clean, perturbed = (resample(samples, sample_rate_hz, RATE_HZ).numpy() for samples in (clean_T, perturbed_T))
    try:
        return float(pesq(RATE_HZ, clean, perturbed, "wb"))
    except PesqError:
        return math.nan


def stoi_of(clean_T: Tensor, perturbed_T: Tensor, sample_rate_hz: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), up to 1; NaN without ``pystoi`` or for short clips."""
    if find_spec("pystoi") is None:
        return math.nan
    import warnings

    from pystoi import stoi

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # told of clips without 30 frames of speech, which get 1e-5
        try:
            return float(stoi(clean_T.numpy(), perturbed_T.numpy(), sample_rate_hz))
        except (RuntimeWarning, ValueError):
            return math.nan
