"""Small LipConvNets, trained whole: resumed to the bit, certified, refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import svdctl
import svdctl.layers.ops.soc_ops
from svdctl.certificates import Certifier
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.cli.training_progress import result_lines
from svdctl.config.train_config import TrainConfig
from svdctl.control.actions import is_layer_bounded
from svdctl.data.data_source import load as load_data
from svdctl.data.images import ImageData
from svdctl.distributed.group import Group
from svdctl.errors import CheckpointError, UsageError
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.stiefel import frame_error
from svdctl.layers.tt import TTConv2d
from svdctl.models.build import build_model
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from svdctl.train.setup import launch
from svdctl.train.validation import evaluate
from tests.train.test_runs import Recorder, assert_equal, weights


def write(path: Path, side: int = 32, classes: int = 3) -> Path:
    """Images whose brightest band tells the class."""
    generator = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for part, count in (("train", 20 * classes), ("test", 10 * classes)):
        labels = np.arange(count) % classes
        images = generator.integers(0, 60, (count, side, side, 3), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            band = side // classes
            image[band * label : band * label + band] += 150
        parts[f"x_{part}"], parts[f"y_{part}"] = images, labels
    np.savez(path, **parts)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.npz")


def make(data: Path, *sets: str, **flags: Any) -> TrainConfig:
    base = ["model.in_channels=2", "layer.rank=4", "log.every_steps=1", "augment.flip=true"]
    return resolve(
        {"dataset": f"npz:{data}", "preset": "lipconv-quickstart", "epochs": 4, "batch_size": 16,
         "out_dir": str(data.parent / "runs"), "set": [*base, *sets], **flags}, LIPCONV
    ).config  # fmt: skip


def of_layer(config: TrainConfig, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({**config.model_dump(), **changes})


KINDS: dict[str, dict[str, Any]] = {
    "soc": {"layer": {"kind": "soc"}},
    "sott-retract": {"layer": {"kind": "sott", "rank": 4, "frames": {"kind": "retract"}}},
    "sott-penalty": {"layer": {"kind": "sott", "rank": 4, "frames": {"kind": "penalty", "weight": 100}}},
    "sott-parametrize": {"layer": {"kind": "sott", "rank": (2, 3, 4, 5, 6, 7), "frames": {"kind": "parametrize"}}},
    "sott-free-adam": {
        "layer": {"kind": "sott", "rank": 4, "frames": {"kind": "free"}}, "optimizer": {"kind": "adam", "lr": 0.003},
    },
    "sott-memory": {
        "layer": {"kind": "sott", "rank": 4},
        "model": {"kind": "lipconv", "block_size": 2, "in_channels": 2, "checkpoint_activations": True},
        "schedule": {"kind": "cyclic", "lr_min": 0.001},
    },
    "tt-clip": {
        "layer": {"kind": "tt", "rank": 4, "frames": {"kind": "retract"}},
        "control": {"kind": "clip", "max_sigma": 1.0, "every_steps": 3}, "optimizer": {"kind": "sgd", "lr": 0.02},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "sott-retract")) for kind in KINDS]
)
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(
    kind: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svdctl.layers.ops.soc_ops, "REFINE_EVERY", 5)
    config = of_layer(make(data, epochs=2), **KINDS[kind])
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=7))
    assert result_lines(part)[-1] == f"  svdctl train-lipconv --resume {part.folder}"
    resumed = recipe.resume(part.folder, reporter=Recorder(), refused=LIPCONV.refused)
    assert resumed.completed
    assert_equal(weights(whole.folder), weights(part.folder))
    assert resumed.certified == whole.certified
    check_layers(svdctl.load(part.folder), config)


def check_layers(model: torch.nn.Module, config: TrainConfig) -> None:
    """What the kind of layer promises of the trained network."""
    exact = getattr(config.layer, "frames", None) is not None and config.layer.frames.kind in ("retract", "parametrize")
    cores = 0
    for name, layer in model.named_modules():
        if isinstance(layer, SOTT | TTConv2d) and exact:
            for frame in (layer.frame_in, layer.frame_out):
                assert frame is None or frame_error(frame) < 1e-5, name
        if isinstance(layer, TTConv2d):
            assert is_layer_bounded(layer, config.control.max_sigma), name
        cores += isinstance(layer, SOC | TTConv2d)
    assert cores == 5 * config.model.block_size + 1


@pytest.mark.drawn
def test_a_run_leaves_certificates_that_its_checkpoint_gives_again(data: Path) -> None:
    config = make(data, "evaluation.select=validation", epochs=8)
    recorder = Recorder()
    result = recipe.run(config, base="test", reporter=recorder)
    assert all(path.exists() for path in result.files)
    assert {"certified.png", "spectrum.png", "curves.png", "best.pt"} <= {path.name for path in result.files}
    assert resolve({"preset": str(result.folder / "config.toml")}, LIPCONV).config == config
    assert [row.name for row in result.certified] == ["last", "best"]
    for row, file in zip(result.certified, ("last.pt", "best.pt"), strict=True):
        model = svdctl.load(result.folder / file)
        arrays = np.load(data)
        images = torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2).float() / 255
        certifier = Certifier(model, (3, 32, 32))
        labels = torch.from_numpy(arrays["y_test"])
        radii = certifier.radii(certifier.logits(images), labels)
        assert row.lipschitz == certifier.bound.value
        assert row.mean_radius == pytest.approx(float(radii.mean()), rel=1e-9)
        assert row.accuracy == float((model(images).argmax(1) == labels).double().mean())
        for radius, share in row.certified.items():
            assert share == float((radii > radius / 255).double().mean())
        shares = [row.accuracy, *row.certified.values()]
        assert shares == sorted(shares, reverse=True)
        assert row.lipschitz == pytest.approx(np.prod(list(row.slack.values())), rel=1e-9)
        assert row.lipschitz == pytest.approx(4, rel=1e-4)
    assert result.metrics["test_certified_acc_36"] == result.certified[0].certified[36] > 0.5
    lines = result_lines(result)
    assert any(line.startswith("  svdctl inspect-spectrum") for line in lines)
    assert f"  svdctl eval-robust {result.folder}" in lines
    epochs = [record for record in read_log(result.folder / "metrics.jsonl") if record["kind"] == "epoch"]
    assert {"val_certified_acc", "val_mean_radius", "epsilon", "lipschitz", "frame_deviation"} <= set(epochs[0])
    best = max(epochs, key=lambda record: (record["val_certified_acc"], record["val_acc"]))
    checkpoint = read_checkpoint(result.folder / "best.pt")
    assert checkpoint.metrics["best_val_acc"] == best["val_certified_acc"]
    assert checkpoint.metrics["step"] == best["step"]


def test_more_radii_and_another_epsilon(data: Path) -> None:
    config = make(data, "certificate.radii=[10, 200]", epochs=1, epsilon=18.0)
    result = recipe.run(config, base="test", reporter=Recorder())
    assert list(result.certified[0].certified) == [10, 18, 200]
    (epoch,) = (r for r in read_log(result.folder / "metrics.jsonl") if r["kind"] == "epoch")
    assert epoch["epsilon"] == 18


def test_without_certificates_nothing_is_certified(data: Path) -> None:
    result = recipe.run(make(data, "certificate=", epochs=1), base="test", reporter=Recorder())
    assert result.certified == ()
    assert not (result.folder / "certified.png").exists()
    assert "val_certified_acc" not in (result.folder / "metrics.jsonl").read_text()


def test_answers_in_reduced_precision_are_certified_in_full(data: Path) -> None:
    config = make(data, epochs=1, precision="bf16-mixed")
    result = recipe.run(config, base="test", reporter=Recorder())
    model = svdctl.load(result.folder)
    test = load_data(config.data).test
    certifier = Certifier(model, test.image_shape)
    found = evaluate(
        model, test, launch(config), batch_size=7, memory_format=torch.contiguous_format, certifier=certifier
    )  # fmt: skip
    assert result.certified[0].mean_radius == pytest.approx(found.certificates.mean_radius, rel=1e-9)
    # The answers are those of one arithmetic, so certified ones are among the right ones.
    assert bool((found.certificates.correct | (found.certificates.radii == 0)).all())


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_evaluation(world: int, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process fills its own places; what they sum to is what one process finds."""
    config = make(data)
    model = build_model(config, 3)
    test = load_data(config.data).test.select(torch.arange(17))

    class Process:
        """Fabric as one of several processes, the sums gathered by hand."""

        world_size = world
        device = torch.device("cpu")

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

        def autocast(self) -> Any:
            return torch.autocast("cpu", enabled=False)

    def run(fabric: Any, certify: bool) -> Any:
        certifier = Certifier(model, test.image_shape) if certify else None
        return evaluate(
            model, test, fabric, batch_size=6, memory_format=torch.contiguous_format, certifier=certifier
        )  # fmt: skip

    whole = run(launch(config), True)
    processes = [Process(rank) for rank in range(world)]
    seen: list[list[torch.Tensor]] = [[] for _ in processes]

    def summed_(group: Group, values: torch.Tensor) -> torch.Tensor:
        seen[group.rank].append(values.clone())
        return values

    monkeypatch.setattr(Group, "summed_", summed_)
    for process in processes:
        run(process, True)
    totals, correct, radii = (sum(parts) for parts in zip(*seen, strict=True))
    assert totals[1] == 17
    assert float(totals[0] / 17) == pytest.approx(whole.loss)
    assert torch.equal(correct > 0, whole.certificates.correct)
    torch.testing.assert_close(radii, whole.certificates.radii)


def test_runs_of_the_other_command_are_refused(data: Path) -> None:
    folder = recipe.run(make(data, epochs=1), base="test", reporter=Recorder()).folder
    with pytest.raises(CheckpointError, match="is for a LipConvNet; use svdctl train-lipconv in place of svdctl train"):
        recipe.resume(folder, reporter=Recorder(), refused=TRAIN.refused)
    wrn = resolve({"dataset": f"npz:{data}", "preset": "quickstart", "epochs": 1, "out_dir": str(data.parent / "runs"),
                   "set": ["model.width=1", "layer.rank=4"]}).config  # fmt: skip
    folder = recipe.run(wrn, base="test", reporter=Recorder()).folder
    with pytest.raises(CheckpointError, match="use svdctl train in place of svdctl train-lipconv"):
        recipe.resume(folder, reporter=Recorder(), refused=LIPCONV.refused)


def test_what_only_the_data_tell_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    odd = make(write(tmp_path / "odd.npz", side=48))
    with pytest.raises(UsageError, match="48 x 48 have sides that 32 does not divide"):
        recipe.run(odd, base="test", reporter=Recorder())
    many = make(write(tmp_path / "many.npz", classes=66), "layer.rank=4", in_channels=2)
    with pytest.raises(UsageError, match="66 classes are more than the 64 channels"):
        recipe.run(many, base="test", reporter=Recorder())
    assert not (tmp_path / "runs").exists()


def test_the_same_run_twice_is_bitwise_equal_and_reads_as_json(data: Path) -> None:
    first, second = (recipe.run(make(data, epochs=2), base="test", reporter=Recorder()) for _ in range(2))
    assert_equal(weights(first.folder), weights(second.folder))
    for line in (first.folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_images_stay_what_they_are(data: Path) -> None:
    config = make(data)
    test = load_data(config.data).test
    before = ImageData(test.images.clone(), test.labels.clone(), test.classes)
    model = build_model(config, 3)
    certifier = Certifier(model, test.image_shape)
    evaluate(
        model, test, launch(config), batch_size=8, memory_format=torch.channels_last, certifier=certifier
    )  # fmt: skip
    assert torch.equal(before.images, test.images)
