"""Several processes train as one does: real processes, whole runs."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.control.change_counts import Changes
from svdctl.train import run
from tests.distributed.runs import KINDS, double_network, make, train, write
from tests.distributed.start import HERE, finish, start

QUICK = ["clip-retract", "recipe", "lipconv-sott"]
SCRIPT = str(HERE / "runs.py")


CLOSE = 1e-7
"""Sums in another order differ by 1e-16, which twenty steps of training on batches of three and eight make 5e-9 of."""


def deviation(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of a tensor."""
    assert list(weights) == list(expected)
    gaps = [
        float((weights[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-6))
        for name, value in expected.items()
    ]
    return max(gaps)


def compare(folder: Path, kinds: list[str], devices: int, steps: int) -> None:
    """Run all kinds on one process, this one, and on several, at the same time."""
    data = write(folder / "data.npz", 38)
    shared_run = start([SCRIPT, "train", str(data), str(folder), str(devices), str(steps), *kinds])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_model", double_network)
        train(data, folder, 1, steps, kinds)
    finish(shared_run, 280)
    for kind in kinds:
        alone = torch.load(folder / f"{kind}-1.0.pt")
        shared = [torch.load(folder / f"{kind}-{devices}.{rank}.pt") for rank in range(devices)]
        assert deviation(shared[0], alone) < CLOSE, kind
        for other in shared[1:]:
            assert all(torch.equal(shared[0][name], other[name]) for name in alone), kind
        # Names, shapes and dtypes of what is saved are those of one process too.
        saved, single = (read_checkpoint(folder / f"{kind}-{number}") for number in (devices, 1))
        assert deviation(saved.model, single.model) < CLOSE
        changes = Changes.of_state(saved.training["controller"]["changes"])
        assert changes == Changes.of_state(single.training["controller"]["changes"])
        assert any(changes.control.changed.values()) == bool(changes.control.changed)
        kept, expected = (made.training["controller"]["vectors"] for made in (saved, single))
        assert list(kept) == list(expected)
        assert all(torch.allclose(kept[name], value, rtol=0, atol=1e-6) for name, value in expected.items())


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    # Almost three epochs, and two passes of a control that runs at every fourth step.
    compare(tmp_path, QUICK, 2, steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 5])
def test_any_number_of_processes_ends_with_the_weights_of_one(tmp_path: Path, devices: int) -> None:
    # Of five processes two have none of the three images of an epoch's last batch.
    compare(tmp_path, list(KINDS), devices, steps=20)


def test_a_batch_smaller_than_the_processes_is_refused_before_they_start(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="a batch of 16 leaves nothing for some of 17 processes"):
        make(tmp_path / "none.npz", tmp_path, "none-dense", devices=17)
