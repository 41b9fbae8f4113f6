"""Where singular values are computed: as measured."""

from typing import Literal

import pytest
import torch

from svdctl.errors import ShapeError
from svdctl.spectral import Convolution, singular_values, values
from svdctl.spectral.faster_device import device_for_values
from svdctl.spectral.tridiagonal import eigenvalues_by_bisection

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("side", "threads", "by", "wanted"),
    [
        # 160 channels: 0.33 s on 16 cores, 0.75 s on an H200; 320 channels: 1.06 s and 0.41 s.
        (160, 16, "eigenvalues", CPU),
        (320, 16, "eigenvalues", CUDA),
        (160, 1, "eigenvalues", CUDA),
        (320, 1, "eigenvalues", CUDA),
        (16, 1, "eigenvalues", CPU),
        (160, 1, "svd", CPU),
        (160, 16, "svd", CPU),
        (640, 16, "svd", CUDA),
    ],
)
def test_the_faster_device(side: int, threads: int, by: str, wanted: torch.device) -> None:
    assert device_for_values(side, CUDA, by=by, threads=threads) == wanted
    assert device_for_values(side, CPU, by=by, threads=threads) == CPU


@pytest.mark.parametrize(
    ("side", "count", "threads", "wanted"),
    [
        (160, 2000, 16, CUDA),
        (64, 4000, 16, CUDA),
        (192, 2700, 16, CUDA),
        (192, 130, 16, CPU),
        (192, 130, 1, CUDA),
        (160, 20, 16, CPU),
        (16, 500, 1, CPU),
        (64, 15, 1, CPU),
    ],
)
def test_many_matrices_are_worth_the_launches(side: int, count: int, threads: int, wanted: torch.device) -> None:
    assert device_for_values(side, CUDA, count=count, threads=threads) == wanted
    assert device_for_values(side, CUDA, by="svd", count=count, threads=threads) == CPU
    assert device_for_values(side, CPU, count=count, threads=threads) == CPU


def test_more_threads_favour_the_host() -> None:
    for by in ("eigenvalues", "svd"):
        on_host = [
            sum(device_for_values(side, CUDA, by=by, threads=threads) == CPU for side in range(1, 700))
            for threads in (1, 2, 4, 16, 64)
        ]
        assert on_host == sorted(on_host)
        # A larger side never goes back to the host.
        chosen = [device_for_values(side, CUDA, by=by, threads=4) == CPU for side in range(1, 700)]
        assert chosen == sorted(chosen, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2])
def test_values_are_computed_where_the_rule_says(
    stride: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def chosen(side: int, device: torch.device, *, by: str = "eigenvalues", count: int = 1) -> torch.device:
        assert by == "svd" or count == (33 if stride == 1 else 9)
        asked.append((side, device, by))
        return torch.device("meta")

    conv = Convolution.make(torch.randn(9, 3, 3, 3, dtype=dtype), stride=stride)
    found = singular_values(conv, (8, 8))
    assert found.device == CPU
    monkeypatch.setattr(values, "device_for_values", chosen)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        singular_values(conv, (8, 8))
    assert asked == [(3 if stride == 1 else 9, CPU, "svd" if dtype == torch.float64 else "eigenvalues")]


LAYERS = [
    (Convolution.make(torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(0))), (8, 8)),
    (Convolution.make(torch.randn(5, 6, 3, 3, generator=torch.Generator().manual_seed(1)), dilation=2), (6, 9)),
    (Convolution.make(torch.randn(10, 5, 1, 1, generator=torch.Generator().manual_seed(2)), groups=2), (4, 4)),
    (Convolution.make(torch.zeros(5, 5, 3, 3)), (5, 5)),
    (Convolution.make(torch.randn(9, 3, 3, 3, generator=torch.Generator().manual_seed(3)), stride=2), (8, 6)),
    (Convolution.make(torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(4)).double()), (8, 8)),
]


@pytest.mark.parametrize("accuracy", ["full", "fast"])
@pytest.mark.parametrize("at_once", [1, 1 << 14, 1 << 32])
def test_the_values_of_many_layers_together_are_those_of_each(
    accuracy: Literal["full", "fast"], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [singular_values(conv, size, accuracy=accuracy) for conv, size in LAYERS]
    batches = []

    def eigenvalues(matrices: torch.Tensor) -> torch.Tensor:
        batches.append(len(matrices))
        return eigenvalues_by_bisection(matrices)

    monkeypatch.setattr(values, "few_batches_are_faster", lambda device: True)
    monkeypatch.setattr(values, "_BYTES_AT_ONCE", {"cpu": at_once})
    monkeypatch.setattr(values, "eigenvalues_of", eigenvalues)
    found = values.all_singular_values(*zip(*LAYERS, strict=True), accuracy=accuracy)
    for (conv, _), one, other in zip(LAYERS, found, alone, strict=True):
        assert one.dtype == conv.kernel.dtype
        slack = {"full": 2e-7, "fast": 2e-3}[accuracy] * float(other[0])
        torch.testing.assert_close(one, other, rtol=0, atol=slack)
    if at_once == 1 << 32:
        # Of two sides, and of float64 by eigenvalues only if the values may be coarse.
        assert len(batches) == {"full": 2, "fast": 3}[accuracy]


def test_one_layer_that_is_not_finite_is_refused_among_many() -> None:
    broken = Convolution.make(torch.full((4, 4, 3, 3), torch.nan))
    with pytest.raises(ShapeError, match="the kernel holds values that are not finite; it has no singular values"):
        values.all_singular_values([LAYERS[0][0], broken], [(8, 8), (8, 8)])
