"""The oracle of every spectral test: the layer applied to each unit vector, as a float64 matrix."""

import torch
from torch import Tensor, nn


def dense_matrix(layer: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Matrix `(outputs, inputs)` of an affine layer on inputs of `input_shape` (channels first), in float64."""
    inputs = int(torch.Size(input_shape).numel())
    with torch.no_grad():
        units = torch.eye(inputs, dtype=torch.float64).reshape(inputs, *input_shape)
        offset = layer(torch.zeros(1, *input_shape, dtype=torch.float64))
        return (layer(units) - offset).reshape(inputs, -1).T


def dense_values(layer: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Singular values of `dense_matrix`, descending."""
    return torch.linalg.svdvals(dense_matrix(layer, input_shape))
