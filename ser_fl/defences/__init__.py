"""Test-time defences: what stands between features and an unchanged classifier when it is evaluated."""

from ser_fl.defences.defence import DEFENCES, Classifier, Defence, Deterministic, NoDefence, build_defence
from ser_fl.defences.randomisation import ExpectedRandomisation, Randomisation, RandomisationEnsemble
from ser_fl.defences.squeezing import MedianSmoothing, Quantisation

__all__ = [
    "DEFENCES",
    "Classifier",
    "Defence",
    "Deterministic",
    "ExpectedRandomisation",
    "MedianSmoothing",
    "NoDefence",
    "Quantisation",
    "Randomisation",
    "RandomisationEnsemble",
    "build_defence",
]

DEFENCES.update(
    randomisation=Randomisation,
    randomisation_expected=ExpectedRandomisation,
    randomisation_ensemble=RandomisationEnsemble,
    quantisation=Quantisation,
    smoothing=MedianSmoothing,
)
