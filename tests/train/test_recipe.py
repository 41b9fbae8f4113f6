"""Optimisers, schedules, smoothed labels and clipped gradients: what a step does, and that it goes on after a stop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric.plugins.precision.amp import MixedPrecision
from torch import nn

from svdctl.cli.training_flags import LIPCONV, resolve
from svdctl.config.optimizer_config import AdamW, Cosine
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError
from svdctl.models.build import build_model
from svdctl.train import start as recipe
from svdctl.train.loss import LossBatch
from svdctl.train.losses.cross_entropy import CrossEntropy, CrossEntropyConfig
from svdctl.train.run_hash import run_hash
from svdctl.train.setup import accelerator_of, launch
from tests.dispatched_operations import DispatchedOperations
from tests.synchronisation import NoHostReads
from tests.train.small_network import tt_network
from tests.train.test_captured_steps import training
from tests.train.test_resume import assert_same, draw_nothing, make
from tests.train.test_runs import Recorder

ADAMW = ("optimizer.kind=adamw", "optimizer.lr=0.01", "optimizer.weight_decay=0.1")
COSINE = ("schedule.kind=cosine", "schedule.warmup=0.3")
RESUMED: dict[str, Sequence[str]] = {
    "adamw": (*ADAMW, *COSINE, "optimizer.clip_norm=0.5", "loss.label_smoothing=0.1"),
    "sgd": (*COSINE, "optimizer.clip_norm=0.5", "loss.label_smoothing=0.1"),
    "mixed parts": ("augment.mixup=0.5", "accumulate=3"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_is_stopped_and_resumed_is_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    config = make(tmp_path, "train", *RESUMED[name], "checkpoint.every_steps=4")
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=2))
    part = recipe.resume(part.folder, reporter=Recorder(interrupt_after=5))
    assert not part.completed
    assert_same(recipe.resume(part.folder, reporter=Recorder()), whole, name)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_are_those_of_plain_torch(optimizer: str, tmp_path: Path) -> None:
    """A loop of torch alone, on the same images, ends with the same weights."""
    kind = ADAMW if optimizer == "adamw" else ("optimizer.weight_decay=0.1",)
    plain = ("layer.kind=standard", "control.kind=none", "batchnorm=", *COSINE, "augment.crop=0", "augment.flip=false")
    config = make(tmp_path, "train", *kind, *plain, "optimizer.clip_norm=0.05", "loss.label_smoothing=0.2")
    model = build_model(config, 3).double()
    with training(config, model) as (trainer, _):
        own = build_model(config, 3).double().train()
        lr = config.optimizer.lr
        makes = torch.optim.AdamW if isinstance(config.optimizer, AdamW) else torch.optim.SGD
        more: dict[str, Any] = {} if isinstance(config.optimizer, AdamW) else {"momentum": 0.9, "nesterov": True}
        plains = makes(own.parameters(), lr=lr, weight_decay=0.1, **more)
        norms = []
        for step, batch in enumerate(trainer.batches.epoch(0)):
            plains.param_groups[0]["lr"] = lr * config.schedule.lr_factor(step, 9, lr)
            logits = own(batch.images.double() / 255)
            soft = F.one_hot(batch.labels, 3) * 0.8 + 0.2 / 3
            plains.zero_grad()
            (-(soft * logits.log_softmax(1)).sum(1)).mean().backward()
            norms.append(float(nn.utils.clip_grad_norm_(own.parameters(), 0.05)))
            plains.step()
            _step_in_float64(trainer, batch)
        assert max(norms) > 0.05
        for mine, wanted in zip(model.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7)


def _step_in_float64(trainer: Any, batch: Any) -> None:
    pixels = type(trainer.batches).pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer.batches), "pixels", lambda self, given: given.images.double() / 255)
        trainer.train_step(batch)
    assert pixels is type(trainer.batches).pixels


def test_a_step_reads_nothing_back_and_makes_few_operations_more(tmp_path: Path) -> None:
    counts = {}
    for name, sets in {"plain": (), "all": (*RESUMED["sgd"], "augment.mixup=0.5")}.items():
        with training(make(tmp_path, "train", "augment.flip=true", *sets)) as (trainer, _):
            first, second, *_ = trainer.batches.epoch(0)
            trainer.train_step(first)
            with NoHostReads():
                trainer._step_on_device(second)
            with DispatchedOperations() as operations:
                trainer._step_on_device(second)
            lists = sum(count for kind, count in operations.counts.items() if kind.startswith("_foreach_"))
            counts[name] = operations.total - lists, lists
            parameters = len(list(trainer.model.parameters()))
    (own, own_lists), (plain, plain_lists) = counts["all"], counts["plain"]
    assert 0 < own - plain <= 60
    # Norms and factors of all gradients, two kernels.
    assert own_lists - plain_lists == 2 * parameters


def test_in_half_precision_gradients_are_unscaled_before_they_are_clipped(tmp_path: Path) -> None:
    config = make(tmp_path, "train", "optimizer.clip_norm=0.01", "control.kind=none")
    found = []
    with training(config) as (trainer, _):
        # Fabric takes 16-mixed on CUDA alone; the scaler is the same here.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        trainer.fabric.strategy.precision = MixedPrecision("16-mixed", "cpu", scaler)
        step = trainer.optimizer.step

        def watched(*given: Any, **named: Any) -> Any:
            found.append(float(torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm()))
            return step(*given, **named)

        trainer.optimizer.step = watched
        for batch in trainer.batches.epoch(0):
            trainer.train_step(batch)
    assert found
    assert max(found) == pytest.approx(0.01, rel=1e-3)


def test_gradients_of_parts_are_those_of_the_batch(tmp_path: Path) -> None:
    """In a network whose layers look at each image on its own."""
    found = {}
    for parts in (1, 4):
        sets = ("layer.frames.kind=penalty", "layer.frames.weight=3", "augment.mixup=0.5", f"accumulate={parts}")
        with training(make(tmp_path, "train", *sets), tt_network("penalty").eval().double()) as (trainer, _):
            trainer.model.eval()
            for batch in trainer.batches.epoch(0):
                trainer.train_step(batch)
            found[parts] = [*trainer.model.parameters(), trainer.totals]
    for whole, divided in zip(*found.values(), strict=True):
        torch.testing.assert_close(divided, whole, rtol=1e-6, atol=1e-9)
    with pytest.raises(UsageError, match="--accumulate 9: a batch of 8 has fewer images than parts on 1 process;"):
        make(tmp_path, "train", "accumulate=9")


def test_mixed_images_have_the_loss_of_both_labels(tmp_path: Path) -> None:
    config = make(tmp_path, "train", "augment.mixup=0.5", "layer.kind=standard", "control.kind=none", "batchnorm=")
    with training(config) as (trainer, _):
        batch = next(trainer.batches.epoch(0))
        logits = trainer.model(trainer.batches.pixels(batch))
        share = float(batch.mix)
        soft = share * F.one_hot(batch.own_labels, 3) + (1 - share) * F.one_hot(batch.partner_labels, 3)
        wanted = -(soft * logits.log_softmax(1)).sum()
        right = soft.gather(1, logits.argmax(1)[:, None]).sum()
        trainer._step_on_device(batch)
        loss, _, correct, count, _ = trainer.totals[0].tolist()
    assert 0 < share < 1
    assert (loss, correct, count) == pytest.approx((float(wanted.detach()), float(right), 8), rel=1e-5)


def test_smoothed_labels_are_spread_over_the_classes() -> None:
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    batch = LossBatch(logits, labels, torch.zeros(5, 3, 1, 1), nn.Identity())
    soft = F.one_hot(labels, 4) * 0.7 + 0.3 / 4
    found = CrossEntropy().value(batch, CrossEntropyConfig(label_smoothing=0.3))
    torch.testing.assert_close(found, -(soft * logits.log_softmax(1)).sum())
    plain = CrossEntropy().value(batch, CrossEntropyConfig())
    assert torch.equal(plain, F.cross_entropy(logits, labels, reduction="sum"))


def test_flags() -> None:
    flags: dict[str, Any] = {"opt": "AdamW", "lr_schedule": "cosine", "warmup": 0.05, "clip_grad": 1.0}
    for command, base in (({}, {"preset": "wrn-cifar10"}), ({"command": LIPCONV}, {"block_size": 1})):
        found: TrainConfig = resolve({**base, **flags, "label_smoothing": 0.1}, **command).config
        assert found.optimizer == AdamW(clip_norm=1.0)
        assert found.schedule == Cosine(warmup=0.05)
        assert found.loss == CrossEntropyConfig(label_smoothing=0.1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"warmup": 0.1}, "--lr-schedule cosine"),
        ({"lr_schedule": "linear"}, "nor cosine or constant"),
        ({"opt": "lion"}, "sgd, adam and adamw"),
        ({"clip_grad": 0}, "--clip-grad"),
        ({"label_smoothing": 1.0}, "--label-smoothing"),
    ],
)
def test_faults_of_flags(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve({"preset": "wrn-cifar10", **flags})


@pytest.mark.parametrize("asked", ["mps", "gpu", "auto"])
def test_apples_gpus_are_refused_before_anything_starts(asked: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = make(tmp_path, "train", f"hardware.accelerator={asked}", "max_steps=1")
    if asked == "auto":
        assert accelerator_of(config.hardware) == "cpu"
        assert launch(config).device.type == "cpu"
        return
    for start in (lambda: recipe.run(config, base="test", reporter=Recorder()), lambda: recipe.plan(config, "test")):
        with pytest.raises(UsageError, match=f"hardware.accelerator = {asked}`: MPS has no float64"):
            start()
    assert not (tmp_path / "runs").exists()


def test_sharded_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="since FSDP and the like shard the kernels"):
        resolve({"preset": "quickstart", "set": ["hardware.strategy=fsdp"]})


def test_runs_without_what_is_new_keep_their_hashes() -> None:
    assert run_hash(resolve({"preset": "quickstart"}).config) == "eed0a207a5f7"
    assert run_hash(resolve({"preset": "lipconv20-soc"}, LIPCONV).config) == "f7f7baf7bb35"
