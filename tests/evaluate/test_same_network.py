"""A kept figure is of the network that there is now: of its forward pass too, not of its weights alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdctl.evaluate.corruptions import corruption_metric
from svdctl.evaluate.runner import EvaluationResult
from svdctl.evaluate.runner import run as evaluate
from tests.evaluate import small
from tests.evaluate.small import Followed, Linear, Recorder, make

FACTORY = "tests.evaluate.test_same_network:build"
Function = Callable[[Tensor], Tensor]
current: list[Callable[[], nn.Module]] = [Linear]


def build() -> nn.Module:
    """For `--model`: whatever a test wants now, all of the same weights."""
    return current[0]()


class Shifted(Linear):
    """The same weights, and a buffer that no state dict has."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(small.CLASSES).roll(shift), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)[:, self.order]  # type: ignore[index]


def rolled(logits: Tensor) -> Tensor:
    return logits.roll(1, 1)


@pytest.fixture
def linear(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tests.evaluate.test_same_network.current", [Linear])
    return Path(shutil.copy(shared / "linear.pth", tmp_path))


def measured(
    shared: Path, linear: Path, network: Callable[[], nn.Module], *metrics: str, **flags: Any
) -> tuple[EvaluationResult, Recorder]:
    current[0] = network
    recorder = Recorder()
    given = {"model": FACTORY, "dataset": f"npz:{shared / 'data.npz'}", "corruptions": ["contrast"], "eps": 9.0}
    result = evaluate(make(linear, metrics=list(metrics), **given | flags), reporter=recorder)
    return result, recorder


def figures(result: EvaluationResult, metric: Any) -> dict[str, Any]:
    assert not result.failures, result.failures[0].error
    return result.evaluations[0].records[metric].results


@pytest.mark.parametrize(
    ("first", "second"),
    [(Linear, lambda: Followed(rolled)), (lambda: Shifted(0), lambda: Shifted(1))],
    ids=["forward", "buffer"],
)
def test_another_forward_pass_of_the_same_weights_is_measured_again(
    shared: Path, linear: Path, first: Callable[[], nn.Module], second: Callable[[], nn.Module]
) -> None:
    metrics = ("accuracy", "cifar-c", "autoattacks")
    result, _ = measured(shared, linear, first, *metrics)
    assert figures(result, "accuracy")["accuracy"] > 0.9
    assert measured(shared, linear, first, *metrics)[1].kept == dict.fromkeys(metrics, "kept")
    result, recorder = measured(shared, linear, second, *metrics)
    assert recorder.kept == dict.fromkeys(metrics, "")
    assert any("answers otherwise" in notice for notice in recorder.notices)
    assert figures(result, "accuracy")["accuracy"] < 0.1
    assert figures(result, "cifar-c")["clean"] < 0.1
    assert figures(result, "autoattacks")["clean_accuracy"] < 0.5


def test_images_of_far_larger_logits_do_not_hide_another_forward_pass(shared: Path, linear: Path) -> None:
    def grown(move: int) -> Function:
        # Only the drawn images have such a spread.
        return lambda logits: torch.where(logits.abs().amax(1, keepdim=True) > 8, 100 * logits, logits.roll(move, 1))

    result, _ = measured(shared, linear, lambda: Followed(grown(0)), "accuracy")
    figures(result, "accuracy")
    assert measured(shared, linear, lambda: Followed(grown(1)), "accuracy")[1].kept == {"accuracy": ""}


def test_rounding_is_no_other_network(shared: Path, linear: Path) -> None:
    measured(shared, linear, Linear, "accuracy")
    _, recorder = measured(shared, linear, lambda: Followed(lambda logits: logits * (1 + 1e-6)), "accuracy")
    assert recorder.kept == {"accuracy": "kept"}


def test_data_of_another_size_keep_the_records_of_the_first(shared: Path, linear: Path, tmp_path: Path) -> None:
    measured(shared, linear, Linear, "accuracy")
    other = small.write_data(tmp_path / "more.npz", test=44)
    measured(shared, linear, Linear, "accuracy", dataset=f"npz:{other}")
    for data in (shared / "data.npz", other):
        assert measured(shared, linear, Linear, "accuracy", dataset=f"npz:{data}")[1].kept == {"accuracy": "kept"}


def test_counts_and_shards_of_another_forward_pass_do_not_count(
    shared: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(corruption_metric, "summary", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            measured(shared, linear, Linear, "cifar-c")
    for shard in ("1/2", "2/2"):
        measured(shared, linear, Linear, "autoattacks", shard=shard)
    result, recorder = measured(shared, linear, lambda: Followed(rolled), "cifar-c")
    assert figures(result, "cifar-c")["clean"] < 0.1
    assert not any("going on" in notice for notice in recorder.notices)
    result, _ = measured(shared, linear, lambda: Followed(rolled), "autoattacks", merge_shards=True)
    (failure,) = result.failures
    assert "answers otherwise" in str(failure.error)


def test_pictures_and_tables_of_other_figures_do_not_stay(shared: Path, linear: Path, tmp_path: Path) -> None:
    metrics = ("ece", "cifar-c", "autoattacks")
    measured(shared, linear, Linear, *metrics)
    folder = linear.parent / "eval-linear"
    assert {path.suffix for path in folder.iterdir()} >= {".png", ".csv"}
    (folder / "notes.txt").write_text("mine")
    exported = tmp_path / "exported"
    result, _ = measured(
        shared, linear, lambda: Followed(rolled), "cifar-c", corruptions=["natural"], cifar_c_res=exported
    )
    assert figures(result, "cifar-c")["clean"] < 0.1
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "corruptions.csv", "details", "notes.txt", "results.json",
    ]  # fmt: skip
    assert not list((folder / "details").iterdir())
    assert [path.suffix for path in exported.iterdir()] == [".csv"]


class Batch(Linear):
    """BatchNorm without statistics of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(small.CLASSES, affine=False, track_running_stats=False)

    def forward(self, pixels: Tensor) -> Tensor:
        logits = super().forward(pixels)
        return self.norm(logits) if len(logits) > 1 else logits


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Batch, "depend on the images beside it"),
        (lambda: Followed(lambda logits: logits - logits.mean(0)), "depend on the images beside it"),
        (lambda: Followed(lambda logits: nn.functional.dropout(logits, 0.5)), "other logits the second time"),
        (lambda: Followed(lambda logits: logits + torch.randn_like(logits)), "other logits the second time"),
        (lambda: Followed(lambda logits: logits.to(torch.complex64)), "complex"),
        (lambda: Followed(lambda logits: logits.to_sparse()), "must return a dense one"),
    ],
    ids=["batchnorm", "mean of the batch", "dropout", "noise", "complex", "sparse"],
)
def test_a_network_without_one_answer_to_an_image_is_refused(
    shared: Path, linear: Path, network: Callable[[], nn.Module], words: str
) -> None:
    result, _ = measured(shared, linear, network, "accuracy", "cifar-c")
    (failure,) = result.failures
    assert words in str(failure.error)
    assert not result.evaluations


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_no_metric_has_a_figure_of_logits_that_are_not_finite(
    shared: Path, linear: Path, value: float, everywhere: bool
) -> None:
    def spoil(logits: Tensor) -> Tensor:
        hit = torch.ones_like(logits, dtype=torch.bool) if everywhere else logits == logits.max(1, keepdim=True).values
        return logits.masked_fill(hit, value)

    metrics = ("accuracy", "ece", "cifar-c", "autoattacks")
    result, _ = measured(shared, linear, lambda: Followed(spoil), *metrics)
    assert [failure.metric for failure in result.failures] == [*metrics]
    assert all("not finite" in str(failure.error) for failure in result.failures)
