"""Where singular values are computed: as measured."""

import pytest
import torch

from svdctl.spectral import Convolution, singular_values, values
from svdctl.spectral.faster_device import device_for_values

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

    def chosen(side: int, device: torch.device, *, by: str) -> torch.device:
        asked.append((side, device, by))
        return torch.device("meta")

    conv = Convolution.make(torch.randn(9, 3, 3, 3, dtype=dtype), stride=stride)
    found = singular_values(conv, (8, 8))
    assert found.device == CPU
    monkeypatch.setattr(values, "device_for_values", chosen)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        singular_values(conv, (8, 8))
    assert asked == [(3 if stride == 1 else 9, CPU, "svd" if dtype == torch.float64 else "eigenvalues")]
