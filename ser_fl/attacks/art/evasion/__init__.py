"""Our attacks as evasion attacks of ART, for any of its PyTorchClassifiers and inputs of any shape.

They are used like ART's own: ``CarliniWagnerL2(classifier).generate(x, y)``. Importing this package imports ART.
"""

from ser_fl.attacks.art.evasion.autopgd import AutoPGD
from ser_fl.attacks.art.evasion.eot import ExpectationOverTransformationPGD
from ser_fl.attacks.art.evasion.minimal import CarliniWagnerL2, CarliniWagnerLInf, FastMinimumNorm

__all__ = ["AutoPGD", "CarliniWagnerL2", "CarliniWagnerLInf", "ExpectationOverTransformationPGD", "FastMinimumNorm"]
