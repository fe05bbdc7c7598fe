"""Attacks on classifiers of standardised log-mel features and of recordings, for training and for the benchmark.

`pgd` has FGSM, BIM and PGD on tensors for training too; `registry` has every attack of the benchmark by name, ours and
those of the Adversarial Robustness Toolbox (ART). What they move is said by a `domains.Domain`. Against a test-time
defence each is adaptive when it is given what `expectation.expectation_of` makes of that defence. Only this package
imports ART, and only when an attack of ART runs.
"""
