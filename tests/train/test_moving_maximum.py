"""The schedule of `control.max_sigma`: what holds at each step, in proofs, reports and files."""

from pathlib import Path

import pytest
import torch
from torch import nn

import svdctl
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.control.clip import Clip
from svdctl.control.control_method import ControlContext, ControlMethod
from svdctl.control.controller import Controller
from svdctl.control.divide import Divide
from svdctl.errors import UsageError
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from tests.dense import dense_values
from tests.synchronisation import NoHostReads
from tests.train.test_captured_steps import training
from tests.train.test_resume import assert_same, draw_nothing, make
from tests.train.test_runs import Recorder

MOVED = (
    "control.max_sigma=0.3", "control.linear_max=0.6", "control.max_sigma_start=0.9", "control.max_sigma_epochs=2",
    "optimizer.lr=0.5", "layer.kind=standard",
)  # fmt: skip
MAXIMA = [0.9 - 0.1 * step for step in range(6)] + [0.3] * 4
"""At each step: six in two epochs, then the final one."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


def norms_of(network: nn.Module) -> dict[str, float]:
    layers = dict(network.named_modules())
    found = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d | nn.Linear)}
    return {name: svdctl.spectral_norm_bound(layer).lower for name, layer in found.items()}


@pytest.mark.parametrize(
    "kind", ["clip", "divide", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("assign", "divide-exact"))]
)
def test_layers_are_within_the_maximum_of_each_step(kind: str, tmp_path: Path) -> None:
    config = make(tmp_path, "train", f"control.kind={kind}", "control.every_steps=1", *MOVED)
    with training(config) as (trainer, _):
        for epoch in range(3):
            for batch in trainer.batches.epoch(epoch):
                trainer.train_step(batch)
                step = trainer.counters.step
                for name, norm in norms_of(trainer.model).items():
                    allowed = MAXIMA[step] * (2 if name.startswith(("head", "linear", "fc")) else 1)
                    if kind != "divide":
                        assert norm <= allowed * (1 + 1e-9), (name, step)
                        assert kind != "assign" or norm >= 0.9 * allowed, (name, step)
                    assert trainer.controller.maximum(name) == pytest.approx(allowed, rel=1e-12)
        assert trainer.controller.maximum(name) == 0.6
        proved = trainer.seal()
        assert all(
            bracket.upper <= (0.6 if "head" in name or "fc" in name or "linear" in name else 0.3)
            for name, bracket in proved.items()
        )


def test_seals_logs_and_checkpoints_have_the_maximum_of_the_moment(tmp_path: Path) -> None:
    proved = "control.prove_every_steps=2"
    config = make(tmp_path, "train", "control.kind=clip", "control.every_steps=100", proved, *MOVED)
    result = recipe.run(config, base="test", reporter=Recorder())
    log = read_log(result.folder / "metrics.jsonl")
    for line in (proofs := [line for line in log if line["kind"] == "proof"]):
        maxima = {key[4:]: value for key, value in line.items() if key.startswith("max/")}
        assert maxima.keys() == {key[6:] for key in line if key.startswith("bound/")}
        assert {round(value, 9) for value in maxima.values()} == {
            round(share * MAXIMA[line["step"]], 9) for share in (1, 2)
        }
    assert [line["step"] for line in proofs] == [2, 4, 8]
    lines = [line for line in log if line["kind"] == "epoch"]
    assert [line["max_sigma"] for line in lines] == pytest.approx([0.6, 0.3, 0.3])
    for epoch, maximum in ((1, 0.6), (2, 0.3), (3, 0.3)):
        checkpoint = read_checkpoint(result.folder / f"epoch-{epoch}.pt")
        assert checkpoint.metrics["max_sigma"] == pytest.approx(maximum)
        norms = norms_of(svdctl.load(result.folder / f"epoch-{epoch}.pt"))
        convolutions = [norm for name, norm in norms.items() if not name.startswith(("head", "linear", "fc"))]
        # The steps between pass the maximum, so that the seal has brought layers down to it.
        assert 0.95 * maximum < max(convolutions) <= maximum
    assert result.layers[0].maximum == 0.3
    # The first epoch's network is not bounded as asked, and cannot be the picked one.
    assert read_checkpoint(result.folder / "best.pt").metrics["step"] >= 6


def test_a_run_that_ends_before_the_maximum_is_reached_picks_none(tmp_path: Path) -> None:
    result = recipe.run(make(tmp_path, "train", *MOVED, "max_steps=4"), base="test", reporter=Recorder())
    assert not (result.folder / "best.pt").exists()
    assert any("before `control.max_sigma` was reached" in line for line in result.summary)


@pytest.mark.parametrize("kind", [pytest.param("clip", marks=pytest.mark.slow), "divide"])
def test_stopped_and_resumed_it_is_the_same(kind: str, tmp_path: Path) -> None:
    sets = (f"control.kind={kind}", "control.every_steps=2", "control.prove_every_steps=1", *MOVED, "ema.decay=0.8")
    config = make(tmp_path, "train", *sets, "checkpoint.every_steps=4")
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=2))
    part = recipe.resume(part.folder, reporter=Recorder(interrupt_after=5))
    assert not part.completed
    assert_same(recipe.resume(part.folder, reporter=Recorder()), whole, kind)


@pytest.mark.parametrize("kind", ["divide", "divide-each"])
def test_a_graph_of_a_step_reads_the_maximum_from_a_tensor(kind: str, tmp_path: Path) -> None:
    """With none of Python's numbers changed, as in a replay, it divides by the maximum of the moment."""
    layer = ("layer.kind=tt", "layer.rank=4", "layer.frames.kind=free")
    moved = [one for one in MOVED if not one.startswith("layer.")]
    with training(make(tmp_path, "train", f"control.kind={kind}", *moved, *layer)) as (trainer, _), torch.no_grad():
        controller = trainer.controller
        assert controller.why_not_captured(1) is None
        layers = list(controller._controlled.values())
        for one in layers:
            one.ops.scale_([one.module], [50.0])
        recorded = ControlContext(1, None, torch.Generator(), controller._scale)
        found = []
        for scale in (3.0, 1.5):
            controller._scale.fill_(scale)
            for _ in range(20):
                with NoHostReads():
                    factors = controller._method.factors(layers, controller.config, recorded)
            found.append([float(of_layer[0]) for of_layer in factors])
        for first, second in zip(*found, strict=True):
            assert first < 1
            assert second == pytest.approx(first / 2, rel=0.05)


def test_a_method_that_takes_numbers_is_not_recorded_while_they_move() -> None:
    class Halves(ControlMethod):
        kind, config = "halves", Divide

        def has_factors(self, config: Divide) -> bool:
            return True

    controller = Controller(nn.Conv2d(3, 4, 3), method="divide", max_sigma=1.0)
    controller._method = Halves()
    controller.scale_maxima(2.0)
    assert "takes the maximum as a number" in str(controller.why_not_captured(1))
    controller.scale_maxima(1.0)
    assert controller.why_not_captured(1) is None


def test_divided_layers_of_one_shape_have_each_its_own_maximum() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        for layer in network:
            layer.weight.mul_(50)
    controller = Controller(network, None, method="divide", max_sigma={"0": 0.5, "*": 1.0})
    for _ in range(40):
        controller.step()
    first, second = (float(dense_values(layer.double(), (4, 8, 8)).max()) for layer in network)
    assert first == pytest.approx(0.5, rel=0.1)
    assert second == pytest.approx(1.0, rel=0.1)


def test_faults_and_flags() -> None:
    found = resolve({"preset": "wrn-cifar10", "clipping": "clip", "clip_to": 1.0, "clip_from": 8.0, "clip_epochs": 5})
    assert found.config.control == Clip(max_sigma=1.0, max_sigma_start=8.0, max_sigma_epochs=5)
    with pytest.raises(UsageError, match="--clip-from and --clip-epochs belong together"):
        resolve({"preset": "wrn-cifar10", "clipping": "clip", "clip_from": 8.0})
    with pytest.raises(UsageError, match="more than the 3 epochs of the run"):
        resolve({"preset": "wrn-cifar10", "clipping": "clip", "clip_from": 8.0, "clip_epochs": 5, "epochs": 3})
    with pytest.raises(UsageError, match="--clip-from needs a control"):
        resolve({"preset": "wrn-cifar10", "clip_from": 8.0, "clip_epochs": 5})
