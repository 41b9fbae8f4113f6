"""svdctl's own checkpoints, read as any other file of weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svdctl.checkpoint import checkpoint_file
from svdctl.checkpoint.checkpoint_file import Checkpoint, load, write_checkpoint
from svdctl.checkpoint.stored_layers import stored_layers
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import is_controllable
from svdctl.layers.ops.tt_ops import TT, Parametrize, Retract
from svdctl.models.build import build_model
from svdctl.models.wrn_architecture import Wrn
from svdctl.spectral import singular_values


@pytest.mark.parametrize("frames", [Retract(), Parametrize()])
def test_a_checkpoint_and_the_layers_in_it(frames: Retract | Parametrize, tmp_path: Path) -> None:
    config = TrainConfig(model=Wrn(depth=10, width=1), layer=TT(rank=8, frames=frames))
    model = build_model(config, 10)
    state = {"optimizer": {"momentum": torch.ones(3, 3, 3, 3)}}
    write_checkpoint(
        tmp_path / "last.pt",
        Checkpoint(config, tuple("0123456789"), (3, 32, 32), model.state_dict(), state, {"acc": 0.5}),
    )
    found = read_tensors(tmp_path)
    assert (found.format, found.wrapping, found.alternatives) == ("svdctl", "", ())
    assert list(found.tensors) == list(model.state_dict())
    assert found.extra["image_shape"] == [3, 32, 32]
    layers = {layer.name: layer for layer in stored_layers(found.tensors)}
    assert not [layer.reason for layer in layers.values() if layer.reason]
    for name, module in load(tmp_path).named_modules():
        if is_controllable(module):
            make = layers[name].make
            assert make is not None
            conv = make()
            wanted = operator_of(module)
            strided = replace(conv, stride=wanted.stride)
            values = [singular_values(operator, (4,) * conv.axes) for operator in (strided, wanted)]
            torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_a_state_that_is_not_there(tmp_path: Path) -> None:
    torch.save({"format": "svdctl.checkpoint", "version": 1, "metrics": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt has no weights under 'model'"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("version", [1, 2])
def test_square_frames_of_formats_before_reflections_are_the_same_frames(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(model=Wrn(depth=10, width=1), layer=TT(rank=16, frames=Parametrize()))

    def as_before(layer: torch.nn.Module) -> None:
        """Take torch's own choice of a map: `matrix_exp` of square frames."""
        for name in ("frame_in", "frame_out"):
            torch.nn.utils.parametrizations.orthogonal(layer, name)

    with monkeypatch.context() as patch:
        patch.setattr("svdctl.layers.tt.parametrize_frames_", as_before)
        before = build_model(config, 10).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in before.named_parameters():
            if "parametrizations." in name:
                # The diagonal holds signs.
                value.add_(0.3 * torch.randn_like(value).tril(-1))
    square = [name for name, value in before.named_parameters() if "original" in name and len(set(value.shape)) == 1]
    assert square
    write_checkpoint(
        tmp_path / "now.pt", Checkpoint(config, tuple("0123456789"), (3, 32, 32), before.state_dict(), {}, {})
    )
    contents = torch.load(tmp_path / "now.pt", weights_only=True)
    torch.save({**contents, "version": version}, tmp_path / "last.pt")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(tmp_path)(images), before(images))
    assert not torch.allclose(load(tmp_path / "now.pt")(images), before(images))


def _small(path: Path, change: dict[str, object]) -> None:
    config = TrainConfig(model=Wrn(depth=10, width=1))
    state = build_model(config, 10).state_dict()
    write_checkpoint(path, Checkpoint(config, tuple("0123456789"), (3, 32, 32), state, {}, {}))
    contents = torch.load(path, weights_only=True)
    if "model" in change:
        change = {**change, "model": {**contents["model"], **change["model"]}}  # type: ignore[dict-item]
    torch.save({**contents, **change}, path)


CLASSES = 2_000_000
MANY = {"classes": ["a"] * CLASSES}
HEAD = {"fc.weight": torch.zeros(1).expand(CLASSES, 64), "fc.bias": torch.zeros(1).expand(CLASSES)}
LARGE: dict[str, tuple[dict[str, object], str]] = {
    "images of 2,048 x 2,048": ({"image_shape": [3, 2_048, 2_048]}, "images of 3 x 2048 x 2048 for so few weights"),
    "images of a terabyte": ({"image_shape": [3, 10**6, 10**6]}, "for so few weights"),
    "two million classes": (MANY, "do not fit the configuration"),
    "two million classes and weights without memory": ({**MANY, "model": HEAD}, "'fc.weight' claims"),
    "weights without memory beside them": ({**MANY, "model": {"x": HEAD["fc.weight"]}}, "'x' claims"),
    "a state of training without memory": ({"training": {"a": [HEAD["fc.weight"]]}}, "of the training' claims"),
    "weights without numbers": ({"model": {"fc.weight": torch.empty(10, 64, device="meta")}}, "do not fit"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("change", "told"), LARGE.values(), ids=LARGE)
def test_a_network_far_larger_than_the_file_is_not_built(
    change: dict[str, object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small(tmp_path / "last.pt", change)
    monkeypatch.setattr(checkpoint_file, "build_model", lambda *_: pytest.fail("built"))
    with pytest.raises(CheckpointError, match=told):
        load(tmp_path)
