"""Attacks on classifiers of standardised log-mel features: our own for training, ART's for the benchmark.

`gradient` has tensor FGSM, BIM and PGD for training; `catalogue` has every attack of the benchmark by name, run by the
Adversarial Robustness Toolbox (ART). Only this package imports ART, and only when an attack of the catalogue runs.
"""
