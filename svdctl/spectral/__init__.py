"""Singular values of convolutions as pure functions on kernels: exact, bounded, clipped."""

from svdctl.spectral.bounds import Bracket, is_bounded, norm_bound, scale_to_bound
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.projection import clip_kernel
from svdctl.spectral.values import singular_values

__all__ = [
    "Bracket",
    "Convolution",
    "clip_kernel",
    "is_bounded",
    "norm_bound",
    "scale_to_bound",
    "singular_values",
]
