"""The average of the weights: what it is, that it changes nothing of the training, and that it is what counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import svdctl
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.control.controller import Controller
from svdctl.errors import UsageError
from svdctl.layers.stiefel import frame_error
from svdctl.layers.tt import TTConv2d
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from svdctl.train.weight_average import WeightAverage
from tests import fake_cuda
from tests.dispatched_operations import DispatchedOperations
from tests.fake_cuda import CUDA, without_numbers
from tests.synchronisation import NoHostReads
from tests.train.small_network import tt_network
from tests.train.test_captured_steps import training
from tests.train.test_resume import assert_same, crash, draw_nothing, make, without_times
from tests.train.test_runs import Recorder

EMA = ("ema.decay=0.8", "layer.frames.kind=retract")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


def test_it_is_the_exponential_average_of_weights_and_statistics() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).double()
    network.register_buffer("constant", torch.ones(2))
    average = WeightAverage(network, 0.6)
    wanted = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for value in network.parameters():
                value.add_(torch.randn_like(value))
        network(torch.randn(2, 3, 8, 8, dtype=torch.float64))
        network.constant += 1
        average.set_step(step)
        average.update_()
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            is_copied = name in ("constant", "1.num_batches_tracked")
            wanted[name] = value.clone() if is_copied else decay * wanted[name] + (1 - decay) * value
    average.refresh_()
    found = average.network.state_dict()
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
    assert int(found["1.num_batches_tracked"]) == 12
    assert not average.network.training


def test_frames_of_the_network_are_orthonormal_and_its_layers_those_of_the_average() -> None:
    network = tt_network("retract").double()
    average = WeightAverage(network, 0.5)
    for step in range(20):
        for layer in network.modules():
            if isinstance(layer, TTConv2d):
                with torch.no_grad():
                    for frame in (layer.frame_in, layer.frame_out):
                        frame.copy_(torch.linalg.qr(torch.randn_like(frame)).Q)
        average.set_step(step)
        average.update_()
    plain = tt_network("free").double()
    plain.load_state_dict({**plain.state_dict(), **average.state_dict()})
    average.refresh_()
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(average.network.modules(), plain.modules(), strict=True)
        if isinstance(mine, TTConv2d)
    ]
    assert len(pairs) == 2
    for mine, theirs in pairs:
        assert float(frame_error(theirs.frame_out)) > 0.3
        assert float(frame_error(mine.frame_out)) < 1e-12
        assert float(frame_error(mine.frame_in)) < 1e-12
        torch.testing.assert_close(_dense(mine), _dense(theirs))


def _dense(layer: TTConv2d) -> torch.Tensor:
    """The kernel of a layer, `(O, I, h, w)`."""
    return torch.einsum("ob,bahw,ia->oihw", layer.frame_out, layer.core, layer.frame_in)


@pytest.mark.parametrize("sets", [(), ("control.kind=clip", "control.every_steps=2", "checkpoint.every_steps=2")])
def test_it_changes_nothing_of_the_training(sets: tuple[str, ...], tmp_path: Path) -> None:
    plain = recipe.run(make(tmp_path, "train", EMA[1], *sets), base="test", reporter=Recorder())
    averaged = recipe.run(make(tmp_path, "train", *EMA, *sets), base="test", reporter=Recorder())
    without, with_it = read_checkpoint(plain.folder), read_checkpoint(averaged.folder)
    raw = with_it.training["raw"]
    assert all(torch.equal(value, raw[name]) for name, value in without.model.items())
    assert any(not torch.equal(value, with_it.model[name]) for name, value in without.model.items())
    lines = [
        [without_times(line) for line in read_log(run.folder / "metrics.jsonl") if line["kind"] == "step"]
        for run in (plain, averaged)
    ]
    assert lines[0] == lines[1] != []


def test_it_is_what_is_sealed_evaluated_and_saved(tmp_path: Path) -> None:
    config = make(tmp_path, "train", *EMA, "control.max_sigma=0.3", "optimizer.lr=0.5", "batchnorm.max_gain=2")
    result = recipe.run(config, base="test", reporter=Recorder())
    reported = {row.name: row for row in result.layers}
    for name in ("last.pt", "best.pt", "epoch-2.pt"):
        network = svdctl.load(result.folder / name)
        report = Controller.from_config(network, None, config.control, config.batchnorm).report()
        assert sum(row.maximum is not None for row in report) > 5
        assert all(row.maximum is None or row.bound <= row.maximum for row in report)
        assert any(row.maximum is not None and row.largest > 0.9 * row.maximum for row in report)
        framed = [layer for layer in network.modules() if isinstance(layer, TTConv2d) and layer.has_frames]
        assert framed
        assert all(float(frame_error(layer.frame_out.double())) < 1e-5 for layer in framed)
        if name == "last.pt":
            assert all(reported[row.name].bound == pytest.approx(row.bound, rel=0.01) for row in report)


def test_a_kill_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    names = crash(
        "train",
        (*EMA, "checkpoint.every_steps=2", "control.kind=clip", "control.every_steps=2", "epochs=2"),
        tmp_path,
        lambda name: any(part in name for part in ("after best.pt", "after last.pt", "after line of epoch")),
    )
    assert len(names) > 20


def test_stopped_and_resumed_it_is_the_same(tmp_path: Path) -> None:
    config = make(tmp_path, "train", *EMA, "evaluation.every_epochs=2", "augment.mixup=0.3", "accumulate=2")
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=2))
    for stop in (5, 7):
        part = recipe.resume(part.folder, reporter=Recorder(interrupt_after=stop))
        assert not part.completed
    assert_same(recipe.resume(part.folder, reporter=Recorder()), whole, "ema")


def test_a_step_reads_nothing_back_and_makes_few_operations_more(tmp_path: Path) -> None:
    counts = {}
    for sets in (EMA[1:], EMA):
        with training(make(tmp_path, "train", *sets)) as (trainer, _):
            first, second, *_ = trainer.batches.epoch(0)
            trainer.train_step(first)
            with NoHostReads():
                trainer._step_on_device(second)
            with DispatchedOperations() as operations:
                trainer._step_on_device(second)
            tensors = len(trainer.model.state_dict())
            lists = sum(count for kind, count in operations.counts.items() if kind.startswith("_foreach_"))
            counts[sets] = operations.total - lists, lists
    (plain, plain_lists), (own, own_lists) = counts.values()
    assert own == plain
    # Differences, weighed and added, or copies: at most four kernels.
    assert 0 < own_lists - plain_lists <= 3 * tensors


@pytest.mark.skipif(not fake_cuda.is_possible(), reason="this torch asks the driver for fake tensors")
def test_on_a_cuda_device_it_stays_there() -> None:
    network = tt_network("retract")
    average = WeightAverage(network, 0.9)
    with without_numbers(network, average):
        average.set_step(3)
        average.update_()
        assert {value.device for value in average._average.values()} == {CUDA}


def test_flags_and_faults(tmp_path: Path) -> None:
    assert make(tmp_path, "train", "ema.decay=0.99").ema.decay == 0.99
    with pytest.raises(UsageError, match="averages weights, and those of SOTT layers are coordinates"):
        make(tmp_path, "train-lipconv", "ema.decay=0.99")
    flags: dict[str, Any] = {"preset": "wrn-cifar10", "ema": 0.999}
    assert resolve(flags).config.ema.decay == 0.999
