"""The spectral norm beside those of other libraries: true norms after 200 steps of SGD on the same data."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "peers.py"


@pytest.mark.slow
def test_true_norms_after_training(monkeypatch):
    pytest.importorskip("deel.torchlip")
    pytest.importorskip("orthogonium")
    spec = importlib.util.spec_from_file_location("benchmark_peers", PATH)
    peers = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_peers", peers)
    spec.loader.exec_module(peers)
    for layer, (make, shape) in peers.TRAINED.items():
        rows = peers.trained_layers(make, shape, steps=200)
        own = rows["svdctl.parametrize.spectral_norm"]
        assert 0.99 < own.norm <= 1, layer
        if layer.startswith("Conv2d"):
            # torch bounds the reshaped kernel, whose norm is not the operator's.
            assert rows["torch spectral_norm"].norm > 1.2, layer
            assert rows["deel-torchlip SpectralConv2d"].norm < own.norm
        assert own.loss < rows["deel-torchlip Spectral" + layer.split(" ")[0]].loss * 1.01
