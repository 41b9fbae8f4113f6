"""Singular values of convolutions as pure functions on kernels: exact, bounded, clipped."""

from svdctl.spectral.bounds import Bracket, is_bounded, norm_bound, scale_to_bound
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.projection import assign_kernel, clip_kernel, divide_kernel
from svdctl.spectral.values import singular_values

__all__ = [
    "Bracket",
    "Convolution",
    "assign_kernel",
    "clip_kernel",
    "divide_kernel",
    "is_bounded",
    "norm_bound",
    "scale_to_bound",
    "singular_values",
]
