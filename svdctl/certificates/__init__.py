"""Proofs about whole networks: Lipschitz constants, rounding, certified radii."""

from svdctl.certificates.lipschitz import LipschitzBound as LipschitzBound
from svdctl.certificates.lipschitz import lipschitz_bound as lipschitz_bound
from svdctl.certificates.lipschitz import rounding_bound as rounding_bound
from svdctl.certificates.radius import RADII as RADII
from svdctl.certificates.radius import Certificates as Certificates
from svdctl.certificates.radius import Certifier as Certifier
from svdctl.certificates.radius import certified_curve as certified_curve
from svdctl.layers.layer_bounds import Gain as Gain
from svdctl.layers.layer_bounds import layer_gain as layer_gain
from svdctl.layers.layer_bounds import linear_gain as linear_gain
