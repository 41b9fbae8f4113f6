"""Gram matrices that are kept: computed once for equal entries, and only inside of `kept_grams`."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from svdctl.analysis.network_spectrum import spectrum
from svdctl.spectral import Convolution, gram, norm_bound, singular_values
from svdctl.spectral.gram import kept_grams


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Return the shapes of the kernels whose Gram matrices are computed, and keep those of small kernels as well."""
    shapes: list[torch.Size] = []
    original = gram._samples_of

    def counted(kernels: torch.Tensor, product: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.append(kernels.shape)
        return original(kernels, product)

    monkeypatch.setattr(gram, "_samples_of", counted)
    monkeypatch.setattr(gram, "_KEPT_FROM", 8)
    return shapes


def both(kernel: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return an upper end and all values; both take Gram matrices in float64."""
    conv = Convolution.make(kernel)
    return norm_bound(conv, tolerance=1e-5).upper, singular_values(conv, (6, 6))


@pytest.mark.parametrize("change", [torch.clone, lambda kernel: kernel.mT.contiguous().mT])
def test_equal_entries_are_computed_once(
    change: Callable[[torch.Tensor], torch.Tensor], computed: list[torch.Size]
) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(8, 8, 3, 3)
    expected = both(kernel)
    assert len(computed) == 2
    with kept_grams():
        first, again = both(kernel), both(change(kernel))
        assert len(computed) == 3
        kernel[0, 0, 0, 0] += 1e-3
        moved = both(kernel)
        assert len(computed) == 4
    for found in (first, again):
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    after = both(kernel)
    assert len(computed) == 6
    assert after[0] == moved[0] != expected[0]
    assert torch.equal(after[1], moved[1])


def test_what_is_kept_has_a_limit(computed: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_KEPT_BYTES", 1)
    torch.manual_seed(0)
    kernels = [torch.randn(8, 8, 3, 3) for _ in range(2)]
    with kept_grams():
        for kernel in kernels:
            both(kernel)
        assert len(computed) == 2
        both(kernels[0])
        assert len(computed) == 3
        assert len(gram._kept) == 1
    assert not gram._kept


def test_a_spectrum_computes_each_large_layer_once(computed: list[torch.Size]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3))
    spectrum(model, (8, 8, 8), tolerance=1e-5)
    assert computed == [(1, 1, 8, 8, 3, 3)] * 2
