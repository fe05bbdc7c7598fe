"""How far a model's probabilities can be believed, and the one number that mends them: logits are divided by a
temperature T > 0, which moves every probability and no class (temperature scaling: Guo et al., arXiv 1706.04599). T is
where the negative log-likelihood of the validation utterances is least. Holders of the data give sums in place of
logits and labels.

Attacks are crafted on logits that no temperature has touched. Divided by a large one, a loss has small gradients: the
model would seem robust and be none (gradient masking: Carlini and Wagner, arXiv 1608.04644).

Legend: N utterances, C classes, G temperatures, B bins of confidence, S = 1 + 3 B sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ser_fl.metrics import Floats

_STEPS = 16
"""Temperatures of an octave."""
TEMPERATURES = tuple(2 ** (step / _STEPS) for step in range(-2 * _STEPS, 3 * _STEPS + 1))
"""Where the negative log-likelihood is asked for: from 0.25 to 8, 1 among them."""
NUM_BINS = 15
"""Of the expected calibration error, as Guo et al. have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How far the probabilities of some utterances can be believed; NaN without any."""

    nll: float
    """Mean negative log-likelihood of the true class, in nats; 0 is best, log C is what chance has."""
    ece: float
    """Expected calibration error, in [0, 1]: utterances fall into 15 equal bins by confidence, the probability of the
    likeliest class, each bin without its lower edge; the mean of |accuracy - mean confidence| over bins, weighted by
    their utterances (Naeini et al., AAAI 2015)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A temperature, and what it rests on."""

    temperature: float
    num_utterances: int
    """Validation utterances, once for each model that they were shown to."""
    words: tuple[str, ...]
    """What there is to doubt in it, a line each."""


def confidence_sums(logits_NC: Floats, labels_N: Sequence[int], temperature: float | None) -> Floats:
    """What a holder tells of its utterances: for each temperature a row of the summed negative log-likelihood, then of
    each bin the utterances, the sum of their confidences, and how many are right. Without a temperature the rows are of
    `TEMPERATURES`, shape (G, 4), with one bin; with one they are of 1 and of it, shape (2, 1 + 3 * 15). A row that is
    not finite tells of logits that are not.
    """
    temperatures, num_bins = (TEMPERATURES, 1) if temperature is None else ((1.0, temperature), NUM_BINS)
    sums_GS = np.empty((len(temperatures), 1 + 3 * num_bins))
    labels = np.asarray(labels_N, dtype=np.int64)
    right_N = logits_NC.argmax(axis=1) == labels
    with np.errstate(invalid="ignore"):
        for sums_S, each in zip(sums_GS, temperatures, strict=True):
            scaled_NC = logits_NC / each
            log_NC = scaled_NC - np.logaddexp.reduce(scaled_NC, axis=1, keepdims=True)
            confidence_N = np.exp(log_NC.max(axis=1))
            bins_N = np.clip(np.ceil(confidence_N * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
            by_bin = (np.bincount(bins_N, of_N, num_bins) for of_N in (None, confidence_N, right_N))
            sums_S[:] = -log_NC[np.arange(len(labels)), labels].sum(), *np.concatenate([*by_bin])
    return sums_GS


def fitted(by_holder: Mapping[str, Floats], missing: Sequence[str]) -> Fit:
    """The temperature of the least negative log-likelihood, from the sums of `confidence_sums` by holder of validation
    utterances, and the names of those that gave none. Between the temperatures tried it is the vertex of the parabola
    through the least and its neighbours, in log T.
    """
    words = [f"without the validation utterances of {len(missing)} speakers, first {missing[0]}"] if missing else []
    sums_GS = sum(by_holder.values(), np.zeros((len(TEMPERATURES), 4)))
    if not (num_utterances := int(sums_GS[0, 1])):
        return Fit(temperature=1.0, num_utterances=0, words=(*words, "no validation utterance: the temperature is 1"))
    nll_G = sums_GS[:, 0]
    least = int(nll_G.argmin())
    temperature = TEMPERATURES[least]
    if temperature in (TEMPERATURES[0], TEMPERATURES[-1]):
        words.append(f"the temperature is {temperature:g}, the border of those tried: the best may lie beyond")
    else:
        lower, middle, upper = nll_G[least - 1 : least + 2].tolist()
        if (curvature := lower - 2 * middle + upper) > 0:
            temperature *= 2 ** ((lower - upper) / (2 * curvature) / _STEPS)
    return Fit(temperature=temperature, num_utterances=num_utterances, words=tuple(words))


def calibration_of(sums_S: Floats) -> Calibration:
    """The figures of one row of sums.

    >>> import numpy as np
    >>> right, wrong = np.log([[0.9, 0.1]]), np.log([[0.3, 0.7]])
    >>> sums_GS = confidence_sums(np.concatenate([right, wrong]), [0, 0], 1.0)
    >>> round(calibration_of(sums_GS[0]).ece, 12)  # (|1 - 0.9| + |0 - 0.7|) / 2
    0.4
    """
    count_B, confidence_B, right_B = sums_S[1:].reshape(3, -1)
    if not (count := float(count_B.sum())):
        return Calibration(nll=float("nan"), ece=float("nan"))
    return Calibration(nll=float(sums_S[0]) / count, ece=float(np.abs(right_B - confidence_B).sum()) / count)
