"""Factors of channels have a row: LayerScale, and the blocks of ConvNeXt."""

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlock

import svdctl


def convnext_block() -> CNBlock:
    torch.manual_seed(0)
    block = CNBlock(4, 0.5, 0.0)
    nn.init.normal_(block.layer_scale)
    return block


def test_a_block_has_a_row_of_its_factors_beside_those_of_its_layers() -> None:
    block = convnext_block()
    found = svdctl.spectrum(nn.Sequential(block), (4, 8, 8), bounds_only=True)
    assert [layer.kind for layer in found] == ["LayerScale", "Conv2d", "LayerNorm", "Linear", "Linear"]
    row = found["0"]
    assert row.bound is not None
    # The factors multiply the block's own part, as a diagonal matrix does.
    largest = float(torch.linalg.matrix_norm(torch.diag(block.layer_scale.detach().flatten().double()), 2))
    assert row.bound.lower <= largest <= row.bound.upper <= 1.00001 * largest
    assert row in found.exceeding(0.99 * largest)
    assert row not in found.exceeding(1.01 * largest)


def test_factors_that_are_not_finite_have_no_bound() -> None:
    block = convnext_block()
    block.layer_scale.data[1] = torch.nan
    row = svdctl.spectrum(nn.Sequential(block), (4, 8, 8), bounds_only=True)["0"]
    assert row.bound is None
    assert "not finite" in row.note


def test_a_block_with_a_forward_pass_of_its_own_has_no_bound() -> None:
    class Doubled(CNBlock):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input + 2 * self.layer_scale * self.block(input)

    row = svdctl.spectrum(nn.Sequential(Doubled(4, 0.5, 0.0)), (4, 8, 8), bounds_only=True)["0"]
    assert row.bound is None
    assert "forward pass" in row.note


def test_layers_of_timm() -> None:
    timm = pytest.importorskip("timm")
    from timm.models.convnext import ConvNeXtBlock

    layers = (timm.layers.LayerScale2d(4, 0.5), ConvNeXtBlock(4, ls_init_value=0.25), ConvNeXtBlock(4))
    network = nn.Sequential(*layers, ConvNeXtBlock(4, ls_init_value=None))
    found = svdctl.spectrum(network, (4, 8, 8), bounds_only=True)
    bounds = {layer.name: layer.bound for layer in found if layer.kind == "LayerScale"}
    assert list(bounds) == ["0", "1", "2"]
    assert all(bound is not None for bound in bounds.values())
    assert bounds["0"].upper == pytest.approx(0.5, rel=1e-5)  # type: ignore[union-attr]
    assert bounds["1"].upper == pytest.approx(0.25, rel=1e-5)  # type: ignore[union-attr]
