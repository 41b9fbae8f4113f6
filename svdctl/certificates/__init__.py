"""Proofs about whole networks: Lipschitz constants, rounding, certified radii."""

from svdctl.certificates.lipschitz import LipschitzBound, lipschitz_bound, rounding_bound
from svdctl.certificates.radius import RADII, Certificates, Certifier, certified_curve
from svdctl.layers.layer_bounds import Gain, layer_gain, linear_gain

__all__ = [
    "RADII",
    "Certificates",
    "Certifier",
    "Gain",
    "LipschitzBound",
    "certified_curve",
    "layer_gain",
    "linear_gain",
    "lipschitz_bound",
    "rounding_bound",
]
