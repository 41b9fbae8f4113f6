"""Plain networks in onnxruntime: the same logits, for batches of two sizes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import svdctl
from svdctl.layers.normalize import Normalize
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv1d, TTConv2d
from svdctl.models.lipconvnet import LipConvNet
from svdctl.models.wrn import WideResNet

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SCORES = Normalize((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def lipconvnet(conv: Callable[..., nn.Module]) -> nn.Module:
    def made(i: int, o: int, k: int, *, padding: int, **settings: object) -> nn.Module:
        return conv(i, o, k, eval_terms=4, **settings)

    return LipConvNet(1, 4, in_channels=4, conv=made, normalize=SCORES)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tt": (
        lambda: WideResNet(10, 1, 4, conv=partial(TTConv2d, rank=4), stem=nn.Conv2d, normalize=SCORES),
        (3, 32, 32),
    ),
    "tt, one axis": (
        lambda: nn.Sequential(TTConv1d(4, 8, 3, rank=2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)),
        (4, 8),
    ),
    "soc": (lambda: lipconvnet(SOC), (3, 32, 32)),
    "sott": (lambda: lipconvnet(partial(SOTT, rank=3)), (3, 32, 32)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["tt", "sott", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tt, one axis", "soc"))]
)
def test_logits_are_those_of_torch_to_rounding(name: str, tmp_path: Path) -> None:
    """float32: errors of some 1e-6 of the largest logit are rounding in another order."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    network = make()
    network(torch.rand(8, *shape))  # statistics of BatchNorm
    x = torch.rand(2, *shape)
    plain = svdctl.to_plain(network, x)
    path = tmp_path / "network.onnx"
    exported = torch.onnx.export(
        plain, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False, optimize=False
    )
    exported.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for batch in (x, torch.rand(5, *shape)):
        (found,) = session.run(None, {given.name: batch.numpy()})
        wanted = network.eval()(batch).detach()
        assert found.shape == wanted.shape
        assert float((torch.from_numpy(found) - wanted).norm() / wanted.norm()) < 1e-5
