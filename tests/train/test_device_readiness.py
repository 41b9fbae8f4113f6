"""The training step on a GPU: nothing waits for the host, nothing breaks a compiled graph."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import LIPCONV, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.layers.minmax import MinMax
from svdctl.layers.normalize import Normalize
from svdctl.layers.ops.soc_ops import REFINE_EVERY
from svdctl.layers.tt import TTConv2d
from svdctl.models.build import build_model
from svdctl.train import start as recipe
from svdctl.train.setup import launch, load_parts
from svdctl.train.trainer import EPOCH, Trainer
from svdctl.utils.progress import Reporter
from tests.distributed.runs import write
from tests.synchronisation import NoHostReads
from tests.train.small_network import tt_network

TT = {"kind": "tt", "rank": 6}
KEPT = ("free", "penalty", "retract", "parametrize")
KINDS: dict[str, dict[str, Any]] = {
    "divide-retract": {},
    "divide-qr": {"layer": {**TT, "frames": {"kind": "retract", "method": "qr"}}},
    "divide-penalty": {"layer": {**TT, "frames": {"kind": "penalty", "weight": 10}}},
    "divide-parametrize": {"layer": {**TT, "frames": {"kind": "parametrize"}}},
    "divide-free": {"layer": {**TT, "frames": {"kind": "free"}}},
    "divide-dense": {"layer": {"kind": "standard"}},
    "none-dense": {"layer": {"kind": "standard"}, "control": {"kind": "none"}},
    **{
        f"each-{frames}": {"layer": {**TT, "frames": {"kind": frames}}, "control": {"kind": "divide-each"}}
        for frames in KEPT
    },
}
ORTHOGONAL: dict[str, dict[str, Any]] = {
    "soc": {"kind": "soc"},
    **{f"sott-{frames}": {"kind": "sott", "rank": 4, "frames": {"kind": frames}} for frames in KEPT},
}
"""Layers of a LipConvNet, with a step at which norms of their skew kernels are refined."""
HARDWARE: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"precision": "bf16-mixed"},
    "contiguous": {"channels_last": False},
}


def make(data: Path, kind: str, **hardware: Any) -> TrainConfig:
    flags = {"preset": "quickstart", "dataset": f"npz:{data}", "batch_size": 16, "set": ["model.width=1"]}
    table = resolve(flags).config.model_dump()
    return TrainConfig.model_validate({**table, **KINDS[kind], "hardware": hardware})


def trainer_of(config: TrainConfig, network: nn.Module | None = None) -> Trainer:
    parts, fabric = load_parts(config), launch(config)
    model = (network or build_model(config, 3)).to(fabric.device).train()
    controller = Controller.from_config(model, None, config.control, config.batchnorm)
    return Trainer(config, model, fabric, parts.train, parts.held_out, controller)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hardware", HARDWARE)
def test_a_step_reads_nothing_back(tmp_path: Path, kind: str, hardware: str) -> None:
    trainer = trainer_of(make(write(tmp_path / "data.npz", 38), kind, accelerator="cpu", **HARDWARE[hardware]))
    for batch in trainer.batches.epoch(0):
        with NoHostReads():
            trainer.train_step(batch)
    assert trainer.read(trainer.totals[EPOCH], 0)["loss"] > 0


@pytest.mark.parametrize("kind", ORTHOGONAL)
def test_a_step_of_orthogonal_layers_reads_nothing_back(tmp_path: Path, kind: str) -> None:
    flags = {"preset": "lipconv-quickstart", "dataset": f"npz:{write(tmp_path / 'data.npz', 38)}", "batch_size": 16}
    table = resolve({**flags, "set": ["model.in_channels=2"]}, LIPCONV).config.model_dump()
    trainer = trainer_of(
        TrainConfig.model_validate({**table, "layer": ORTHOGONAL[kind], "hardware": {"accelerator": "cpu"}})
    )
    batch = next(iter(trainer.batches.epoch(0)))
    with NoHostReads():
        trainer.train_step(batch)
        trainer.controller.apply_(REFINE_EVERY)
    assert trainer.controller.due(REFINE_EVERY) == ("norm estimates",)
    assert trainer.controller.why_not_captured(REFINE_EVERY) is None


def test_the_detector_detects() -> None:
    x = torch.eye(3)
    for waits in (
        lambda: float(x[0, 0]), lambda: x[x > 0], lambda: (x > 0).nonzero(), lambda: bool((x > 0).all()),
        lambda: torch.linalg.eigvalsh(x), lambda: torch.matrix_exp(x), lambda: torch.linalg.matrix_norm(x, 2),
        lambda: torch.inverse(x),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="waits for the device"), NoHostReads():
            waits()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("kind", "hardware"),
    # By QR, a GPU's retraction reads whether its way by products has held.
    [
        *((kind, name) for name in HARDWARE for kind in KINDS if kind != "divide-qr"),
        pytest.param("divide-parametrize", "compile", marks=pytest.mark.long),
    ],
)
def test_a_step_on_cuda_does_not_wait_for_the_host(tmp_path: Path, kind: str, hardware: str) -> None:
    compiled = hardware == "compile"
    more = {"compile": True, "precision": "bf16-mixed"} if compiled else HARDWARE[hardware]
    config = make(write(tmp_path / "data.npz", 38), kind, accelerator="cuda", **more)
    # Of a whole network the compiler takes a minute.
    trainer = trainer_of(config, tt_network("parametrize") if compiled else None)
    assert trainer.train_data.images.is_cuda
    batches = list(trainer.batches.epoch(0))
    trainer.train_step(batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batches[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.read(trainer.totals[EPOCH], 0)["loss"] > 0


LAYERS: dict[str, Any] = {
    **{
        f"tt-{frames}-{stride}": lambda frames=frames, stride=stride: TTConv2d(
            8, 12, 3, rank=(5, 4), stride=stride, padding=1, frames=frames
        )
        for frames in ("free", "penalty", "retract", "parametrize")
        for stride in (1, 2)
    },
    "tt-whole": lambda: TTConv2d(8, 8, 3, rank=8),
    "normalize": lambda: Normalize((0.5,) * 8, (0.25,) * 8),
    "minmax": MinMax,
    "network": lambda: nn.Sequential(nn.Conv2d(8, 3, 1), build_model(resolve({"preset": "quickstart"}).config, 10)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_forward_pass_is_one_graph(name: str) -> None:
    torch._dynamo.reset()
    found = torch._dynamo.explain(LAYERS[name]().train())(torch.randn(2, 8, 16, 16))
    assert (found.graph_break_count, found.graph_count) == (0, 1), found.break_reasons


def test_a_compiler_finds_the_contraction_of_tt_layers_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(write(tmp_path / "data.npz", 38), "divide-retract", accelerator="cpu")
    chosen: dict[str, tuple[bool, bool]] = {}
    plain = TTConv2d._cheapest
    model = trainer_of(config).model
    names = {layer: name for name, layer in model.named_modules()}
    with monkeypatch.context() as patch:
        patch.setattr(TTConv2d, "_cheapest", lambda self, shape: chosen.setdefault(names[self], plain(self, shape)))
        model(torch.zeros(16, 3, 32, 32))
    compiling = config.model_copy(update={"hardware": config.hardware.model_copy(update={"compile": True})})
    trainer = trainer_of(compiling)
    found = {name: layer.contraction for name, layer in trainer.model.named_modules() if isinstance(layer, TTConv2d)}
    assert {name: found[name] for name in chosen} == chosen
    assert len(set(chosen.values())) > 1

    def refused(self: TTConv2d, shape: torch.Size) -> tuple[bool, bool]:
        raise AssertionError("chosen again")

    monkeypatch.setattr(TTConv2d, "_cheapest", refused)
    torch._dynamo.reset()
    # Of another number of images, as the last ones of an epoch, too.
    follow = torch.compile(trainer.model, backend="eager", fullgraph=True)
    assert [follow(torch.zeros(images, 3, 32, 32)).shape for images in (16, 3)] == [(16, 3), (3, 3)]


@pytest.mark.slow
def test_a_compiled_run_ends_with_the_weights_of_a_plain_one(tmp_path: Path) -> None:
    data = write(tmp_path / "data.npz", 38)
    ends = []
    for compiled in (False, True):
        # Without BatchNorm, which would amplify the other order of sums.
        flags = {
            "preset": "lipconv-quickstart", "dataset": f"npz:{data}", "batch_size": 16, "epochs": 2, "conv_type": "tt",
            "dec_rank": "4", "lr_max": 0.01, "compile": compiled, "accelerator": "cpu", "out_dir": str(tmp_path),
            "set": ["model.in_channels=2"],
        }  # fmt: skip
        result = recipe.run(resolve(flags, LIPCONV).config, base="test", reporter=Reporter())
        ends.append(read_checkpoint(result.folder).model)
    plain, compiled_end = ends
    assert list(plain) == list(compiled_end)
    for name, value in plain.items():
        torch.testing.assert_close(compiled_end[name], value, rtol=1e-3, atol=1e-4)
