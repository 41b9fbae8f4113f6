"""The callback in trainings by both packages of Lightning."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svdctl
from svdctl.errors import UsageError
from svdctl.layers.norms import is_layer_bounded

PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
MAXIMUM = 0.5


class Package:
    """What the tests need of one of the packages."""

    def __init__(self, name: str) -> None:
        self.pl = pytest.importorskip(PACKAGES[name])
        self.callbacks = importlib.import_module(f"{PACKAGES[name]}.callbacks")
        self.plugins = importlib.import_module(f"{PACKAGES[name]}.plugins")
        self.strategies = importlib.import_module(f"{PACKAGES[name]}.strategies")
        self.Control = getattr(svdctl.integrations, name).Control

    def module(self, network: nn.Module | None = None, *, momentum: float = 0.9, lr: float = 0.1) -> Any:
        class Regression(self.pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.network = network or nn.Sequential(
                    nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
                )

            def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
                return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

            def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
                self.log("loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]))

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=lr, momentum=momentum)

        return Regression()

    def trainer(self, folder: Path, callbacks: list[Any], **settings: Any) -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        quiet |= {"num_sanity_val_steps": 0, "default_root_dir": folder, "enable_checkpointing": False}
        return self.pl.Trainer(**{**quiet, "max_epochs": 1, **settings}, callbacks=callbacks)


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> Package:
    return Package(request.param)


def batches(count: int = 6, *, alike: bool = False) -> torch.utils.data.DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4 * count, 2, 6, 6, generator=generator)
    labels = torch.randint(3, (4 * count,), generator=generator)
    if alike:
        images, labels = images[:4].repeat(count, 1, 1, 1), labels[:4].repeat(count)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 4)


def control_of(package: Package, **settings: Any) -> Any:
    return package.Control(**{"method": "divide-exact", "max_sigma": MAXIMUM, "linear_max": MAXIMUM, **settings})


def are_bounded(network: nn.Module) -> list[bool]:
    return [is_layer_bounded(layer, MAXIMUM) for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]


def test_accumulated_batches_count_once(package: Package, tmp_path: Path) -> None:
    control = control_of(package, seal=False)
    module = package.module()
    package.trainer(tmp_path, [control], accumulate_grad_batches=3).fit(module, batches(6))
    assert control.controller.steps == 2
    assert all(are_bounded(module.network))
    assert not all(are_bounded(package.module().network))


def test_the_fit_ends_with_a_proof(package: Package, tmp_path: Path) -> None:
    control = control_of(package, every_steps=100)
    module = package.module()
    package.trainer(tmp_path, [control]).fit(module, batches())
    assert all(are_bounded(module.network))
    assert not control.controller.optimizer._optimizer_step_post_hooks
    package.trainer(tmp_path, [control]).fit(module, batches())
    assert control.controller.steps == 6


def test_steps_of_a_manual_optimisation_count(package: Package, tmp_path: Path) -> None:
    module = package.module()
    module.automatic_optimization = False

    def training_step(batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = module.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            module.manual_backward(nn.functional.cross_entropy(module.network(batch[0]), batch[1]))
            optimizer.step()

    module.training_step = training_step
    control = control_of(package, seal=False)
    package.trainer(tmp_path, [control]).fit(module, batches(3))
    assert control.controller.steps == 6


class Halt(Exception):  # noqa: N818 - it is no error
    """The end of a training in the middle of an epoch."""


@pytest.mark.parametrize(("method", "tensorised"), [("divide", False), ("clip", False), ("divide", True)])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    package: Package, tmp_path: Path, method: str, tensorised: bool
) -> None:
    class HaltAt(package.pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "halted.ckpt")
                raise Halt

    def fitted(callbacks: list[Any], **settings: Any) -> Any:
        control = control_of(package, method=method, every_steps=3 if method == "clip" else 1, seal=False)
        torch.manual_seed(2)
        tt = nn.Sequential(svdctl.TTConv2d(2, 4, 3, rank=2), nn.Flatten(), nn.Linear(64, 3)) if tensorised else None
        module = package.module(tt)
        # Lightning begins with the first batch again in the middle of an epoch, so that all are to be the same.
        package.trainer(tmp_path, [control, *callbacks], max_epochs=2).fit(module, batches(alike=True), **settings)
        assert control.controller.steps == 12
        return module.state_dict()

    with pytest.raises(Halt):
        fitted([HaltAt()])
    whole, resumed = fitted([]), fitted([], ckpt_path=tmp_path / "halted.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # Without the state of the control the vectors of division start anew, and steps are counted from 0.
    state = torch.load(tmp_path / "halted.ckpt", weights_only=True)
    assert next(value for key, value in state["callbacks"].items() if "Control" in key)["step"] == 4


@pytest.mark.parametrize("first", [True, False])
def test_averages_are_of_controlled_weights(package: Package, tmp_path: Path, first: bool) -> None:
    if not hasattr(package.callbacks, "WeightAveraging"):
        pytest.skip("this version has no WeightAveraging")
    average = package.callbacks.WeightAveraging()
    control = control_of(package, method="divide-exact", seal=False)
    module = package.module(lr=1.0)
    order = [average, control] if first else [control, average]
    package.trainer(tmp_path, order, max_steps=1).fit(module, batches())
    # Of one step the average is the weight after it.
    assert all(are_bounded(module.network))


def test_checkpoints_hold_training_weights_and_best_is_sealed(package: Package, tmp_path: Path) -> None:
    def fitted(name: str, control: Any) -> tuple[Any, Path]:
        folder = tmp_path / name
        best = package.callbacks.ModelCheckpoint(folder, monitor="loss", filename="best", save_last=True)
        trainer = package.trainer(folder, [control, best], enable_checkpointing=True, max_epochs=3)
        trainer.fit(package.module(), batches(), batches(1))
        return best, folder

    # Control never acts in three epochs: the training is that without it, but for best.pt.
    settings = {"method": "divide", "max_sigma": MAXIMUM, "every_steps": 1000}
    best, folder = fitted("controlled", package.Control(**settings))
    plain, _ = fitted("plain", package.callbacks.Callback())
    for kind in ("best_model_path", "last_model_path"):
        state = torch.load(getattr(best, kind), weights_only=True)["state_dict"]
        assert all(
            torch.equal(value, state[name])
            for name, value in torch.load(getattr(plain, kind), weights_only=True)["state_dict"].items()
        )
    sealed = torch.load(folder / "best.pt", weights_only=True)
    unsealed = torch.load(best.best_model_path, weights_only=True)
    assert not {"optimizer_states", "callbacks", "loops"} & set(sealed)
    assert sealed["global_step"] == unsealed["global_step"]
    module, before = package.module(), package.module()
    module.load_state_dict(sealed["state_dict"])
    before.load_state_dict(unsealed["state_dict"])
    assert not are_bounded(before.network)[0]
    assert all(are_bounded(module.network)[:2])
    assert torch.equal(module.network[4].weight, before.network[4].weight)
    package.trainer(tmp_path, []).validate(module, batches(1), ckpt_path=folder / "best.pt", verbose=False)


def test_best_is_of_the_average(package: Package, tmp_path: Path) -> None:
    if not hasattr(package.callbacks, "WeightAveraging"):
        pytest.skip("this version has no WeightAveraging")
    best = package.callbacks.ModelCheckpoint(tmp_path, monitor="loss", filename="best")
    callbacks = [package.Control(max_sigma=100.0), package.callbacks.WeightAveraging(), best]
    package.trainer(tmp_path, callbacks, enable_checkpointing=True).fit(package.module(), batches(), batches(1))
    sealed = torch.load(tmp_path / "best.pt", weights_only=True)
    unsealed = torch.load(tmp_path / "best.ckpt", weights_only=True)
    # No layer is above this maximum: what was sealed is what was averaged.
    assert all(torch.equal(value, unsealed["state_dict"][name]) for name, value in sealed["state_dict"].items())
    assert not torch.equal(
        sealed["state_dict"]["network.0.weight"], unsealed["current_model_state"]["network.0.weight"]
    )


def test_each_of_two_controls_has_its_part_and_its_optimiser(package: Package, tmp_path: Path) -> None:
    module = package.module(nn.ModuleDict({"left": nn.Conv2d(2, 3, 3), "right": nn.Conv2d(2, 3, 3)}))
    module.automatic_optimization = False
    module.configure_optimizers = lambda: [
        torch.optim.SGD(part.parameters(), lr=0.1) for part in module.network.values()
    ]

    def training_step(batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        left, right = module.optimizers()
        module.manual_backward(sum(part(batch[0]).square().mean() for part in module.network.values()))
        left.step()
        if batch_idx % 2 == 0:
            right.step()

    module.training_step = training_step
    parts = [
        package.Control(module=f"network.{name}", max_sigma=limit) for name, limit in (("left", 0.5), ("right", 0.25))
    ]
    trainer = package.trainer(tmp_path, parts)
    trainer.fit(module, batches(6))
    assert [part.controller.steps for part in parts] == [6, 3]
    assert is_layer_bounded(module.network["left"], 0.5)
    assert is_layer_bounded(module.network["right"], 0.25)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    kept = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert sorted(state["step"] for state in kept.values()) == [3, 6]

    with pytest.raises(UsageError, match="2 optimisers step"):
        package.trainer(tmp_path, [package.Control(max_sigma=1.0)]).fit(module, batches(6))


def test_two_controls_of_the_same_layers_are_refused(package: Package, tmp_path: Path) -> None:
    controls = [package.Control(max_sigma=1.0), package.Control(max_sigma=2.0, module="network")]
    with pytest.raises(UsageError, match="same layers"):
        package.trainer(tmp_path, controls).fit(package.module(), batches())


def test_the_penalty_reaches_gradients_once_per_step(package: Package, tmp_path: Path) -> None:
    def gradients(with_control: bool) -> tuple[dict[str, Tensor], Any]:
        torch.manual_seed(3)
        layer = svdctl.TTConv2d(2, 4, 3, rank=2, frames="penalty")
        module = package.module(nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3)), lr=0.0)
        seen: dict[str, Tensor] = {}
        with torch.no_grad():
            layer.frame_in.mul_(1.5)

        class Watch(package.pl.Callback):
            def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                seen.update({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})

        control = package.Control(max_sigma=100.0, every_steps=1000, seal=False)
        callbacks = [control, Watch()] if with_control else [Watch()]
        trainer = package.trainer(tmp_path, callbacks, accumulate_grad_batches=2, max_epochs=2)
        trainer.fit(module, batches(2))
        return seen, control

    (plain, _), (penalised, control) = gradients(False), gradients(True)
    penalty = control.controller.penalty()
    control.controller.optimizer.zero_grad()
    penalty.backward()
    layer = control.controller.layers["network.0"]
    assert float(layer.frame_in.grad.norm()) > 0
    torch.testing.assert_close(penalised["network.0.frame_in"] - plain["network.0.frame_in"], layer.frame_in.grad)


def test_steps_that_the_scaler_skips_do_not_count(package: Package, tmp_path: Path) -> None:
    module = package.module()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)
    control = control_of(package)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    precision = package.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    package.trainer(tmp_path, [control], plugins=[precision]).fit(module, batches(4))
    assert control.controller.steps == 3
    assert all(are_bounded(module.network))


def test_gradients_that_the_optimiser_unscales_get_a_scaled_penalty(package: Package, tmp_path: Path) -> None:
    layer = svdctl.TTConv2d(2, 4, 3, rank=2, frames="penalty")
    with torch.no_grad():
        layer.frame_in.mul_(1.5)
    control = package.Control(max_sigma=100.0, seal=False)
    trainer = package.trainer(tmp_path, [control])
    trainer.fit(package.module(nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3))), batches(1))
    optimizer = control.controller.optimizer
    scaler = type("Scaler", (), {"get_scale": staticmethod(lambda: 8.0)})
    scaled = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))

    def gradient() -> Tensor:
        layer.frame_in.grad = None
        control.on_before_optimizer_step(scaled, trainer.lightning_module, optimizer)
        return layer.frame_in.grad.clone()

    unscaled = gradient()
    optimizer._step_supports_amp_scaling = True
    torch.testing.assert_close(gradient(), 8 * unscaled)


def test_steps_of_a_tuning_callback_do_not_count(package: Package, tmp_path: Path) -> None:
    module = package.module()
    module.lr = 0.1
    tuner = package.callbacks.LearningRateFinder(num_training_steps=5)
    control = control_of(package)
    package.trainer(tmp_path, [control, tuner]).fit(module, batches(4))
    assert control.controller.steps == 4


def test_a_state_that_is_loaded_within_a_fit_is_taken(package: Package, tmp_path: Path) -> None:
    control = control_of(package)

    class Back(package.pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            control.load_state_dict({**control.state_dict(), "step": 10})

    package.trainer(tmp_path, [control, Back()]).fit(package.module(), batches(4))
    assert control.controller.steps == 14


def test_a_fit_after_one_that_an_error_ended_counts_its_own_steps(package: Package, tmp_path: Path) -> None:
    module = package.module()
    optimizer = module.configure_optimizers()
    module.configure_optimizers = lambda: optimizer

    class HaltOnce(package.pl.Callback):
        halted = False

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if not self.halted:
                self.halted = True
                raise Halt

    control, halt = control_of(package), HaltOnce()
    with pytest.raises(Halt):
        package.trainer(tmp_path, [control, halt]).fit(module, batches(4))
    package.trainer(tmp_path, [control, halt]).fit(module, batches(4))
    assert control.controller.steps == 4


def test_a_best_checkpoint_that_is_gone_is_a_warning(package: Package, tmp_path: Path) -> None:
    best = package.callbacks.ModelCheckpoint(tmp_path, monitor="loss")

    class Lose(package.pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            best.best_model_path = str(tmp_path / "gone.ckpt")

    trainer = package.trainer(tmp_path, [control_of(package), Lose(), best], enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"gone\.ckpt is not there"):
        trainer.fit(package.module(), batches(), batches(1))
    assert not (tmp_path / "best.pt").exists()


def test_best_is_not_written_where_it_is_not_wanted(package: Package, tmp_path: Path) -> None:
    best = package.callbacks.ModelCheckpoint(tmp_path, monitor="loss")
    trainer = package.trainer(tmp_path, [control_of(package, best=False), best], enable_checkpointing=True)
    trainer.fit(package.module(), batches(), batches(1))
    assert Path(best.best_model_path).exists()
    assert not (tmp_path / "best.pt").exists()


def test_best_follows_a_checkpoint_that_keeps_its_name(package: Package, tmp_path: Path) -> None:
    best = package.callbacks.ModelCheckpoint(tmp_path, monitor="step_of", mode="max", filename="best")
    module = package.module()
    module.validation_step = lambda batch, batch_idx: module.log("step_of", float(module.global_step))
    control = control_of(package, max_sigma=100.0)
    package.trainer(tmp_path, [control, best], enable_checkpointing=True, max_epochs=3).fit(
        module, batches(2), batches(1)
    )
    assert torch.load(tmp_path / "best.pt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharded_weights_are_refused(package: Package, name: str) -> None:
    strategy = getattr(package.strategies, name)
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(UsageError, match=f"{name} gives each process parts of the weights"):
        package.Control(max_sigma=1.0).on_fit_start(trainer, None)


def test_settings_that_there_are_not_are_refused_at_once(package: Package) -> None:
    with pytest.raises(TypeError, match="maximum"):
        package.Control(max_sigma=1.0, maximum=2.0)


def test_a_network_without_a_controlled_layer_is_refused(package: Package, tmp_path: Path) -> None:
    module = package.module(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)))
    with pytest.raises(UsageError, match="linear_max"):
        package.trainer(tmp_path, [package.Control(max_sigma=1.0)]).fit(module, batches())


DISTRIBUTED = """
import sys
import torch
from tests.integrations.test_lightning import Package, batches, control_of

package = Package(sys.argv[1])
control = control_of(package, method="clip", every_steps=2)
module = package.module()
best = package.callbacks.ModelCheckpoint(sys.argv[2], save_last=True)
trainer = package.trainer(
    sys.argv[2], [control, best], enable_checkpointing=True, strategy="ddp", devices=2, max_epochs=2
)
trainer.fit(module, batches(8))
torch.save(module.state_dict(), f"{sys.argv[2]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_hold_the_same_weights(package: Package, tmp_path: Path) -> None:
    script = tmp_path / "distributed.py"
    script.write_text(DISTRIBUTED, encoding="utf-8")
    name = package.Control.__module__.rpartition(".")[2]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, name, tmp_path], cwd=root, env=environment, check=True, timeout=240)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    module = package.module()
    module.load_state_dict(torch.load(tmp_path / "best.pt", weights_only=True)["state_dict"])
    assert all(are_bounded(module.network))


def test_a_part_that_there_is_not_is_refused_by_name(package: Package, tmp_path: Path) -> None:
    control = package.Control(max_sigma=1.0, module="netwrk")
    with pytest.raises(UsageError, match=r"module='netwrk'.* did you mean network\? \(there are network\)"):
        package.trainer(tmp_path, [control]).fit(package.module(), batches())
    with pytest.raises(UsageError, match="module is the name of a part of the LightningModule"):
        package.Control(max_sigma=1.0, module=3)
