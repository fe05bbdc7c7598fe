"""One utterance, clean and adversarial, for the report's spectrogram pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from ser_fl.attacks.attack import Attack
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.robustness.crafting import features_under
from ser_fl.robustness.test_set import TestSet


def spectrogram_pair(test_set: TestSet, attacks: Sequence[Attack], bundle: EmotionModel) -> dict[str, Any]:
    """The first utterance that an attack turned from right to wrong, as plain log-mel values.

    The attack is the last iterated one by gradients in the L-infinity ball, at the epsilon that most have. Values are
    natural-log magnitudes, standardisation undone. Where no utterance of those tried was turned, the first of them is
    shown as it is.
    """
    by_gradients = [
        attack for attack in attacks if attack.norm == "inf" and attack.knowledge not in ("score", "decision")
    ]
    iterated = [attack for attack in by_gradients if (attack.settings.steps or 1) > 1]
    ((usual, _),) = Counter(attack.settings.epsilon for attack in iterated or attacks).most_common(1)
    attack = [attack for attack in iterated or attacks if attack.settings.epsilon == usual][-1]
    tried = test_set.subset(16)
    adversarial_NFL = features_under(tried, attack)
    with torch.no_grad():
        before, after = (bundle(features).argmax(dim=1) for features in (tried.features_NFL, adversarial_NFL))
    turned = ((before == tried.labels_N) & (after != tried.labels_N)).nonzero().flatten().tolist()
    row = turned[0] if turned else 0

    def logmel(features_FL: torch.Tensor) -> list[list[float]]:
        raw = features_FL * bundle.standardisation.deviation_F1 + bundle.standardisation.mean_F1
        return [[round(value, 4) for value in line] for line in raw.tolist()]

    return {
        "utterance_id": tried.ids[row],
        "attack": attack.name,
        "epsilon": attack.settings.epsilon,
        "emotion": bundle.classes[int(tried.labels_N[row])],
        "predicted_clean": bundle.classes[int(before[row])],
        "predicted_adversarial": bundle.classes[int(after[row])],
        "clean": logmel(tried.features_NFL[row]),
        "adversarial": logmel(adversarial_NFL[row]),
        "hop_s": bundle.frontend_config.hop_samples / bundle.frontend_config.sample_rate_hz,
    }
