"""Which kernels torch is let use in a training, as its flags say."""

import os

import pytest
import torch

from svdctl.config.run_config import Hardware
from svdctl.train.setup import chosen_kernels


def flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


@pytest.mark.parametrize(
    ("deterministic", "wanted"),
    [(None, (False, False, True)), (False, (False, False, True)), (True, (True, True, False))],
)
def test_kernels_of_a_cuda_device_are_chosen_by_the_setting_and_let_go_after(
    deterministic: bool | None, wanted: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # what is set in the body is taken away again
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before, hardware = flags(), Hardware(deterministic=deterministic)
    with chosen_kernels(hardware, torch.device("cuda")):
        assert flags() == wanted
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == bool(deterministic)
    assert flags() == before
    with pytest.raises(ZeroDivisionError), chosen_kernels(hardware, torch.device("cuda", 1)):
        raise ZeroDivisionError
    assert flags() == before
    with chosen_kernels(hardware, torch.device("cpu")):
        assert flags() == before


def test_a_caller_that_asked_for_deterministic_kernels_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        with chosen_kernels(Hardware(), torch.device("cuda")):
            assert flags()[0]
        assert flags()[0]
    finally:
        torch.use_deterministic_algorithms(False)
