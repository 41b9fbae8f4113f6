"""Proofs about whole networks: Lipschitz constants, rounding, certified radii."""

from svdctl.certify.gains import Gain, layer_gain
from svdctl.certify.lipschitz import LipschitzBound, lipschitz_bound, rounding_bound
from svdctl.certify.radius import RADII, Certificates, Certifier, certified_curve

__all__ = [
    "RADII",
    "Certificates",
    "Certifier",
    "Gain",
    "LipschitzBound",
    "certified_curve",
    "layer_gain",
    "lipschitz_bound",
    "rounding_bound",
]
