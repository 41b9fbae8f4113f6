"""No change of a file that `svdctl eval-robust` keeps changes a figure that it prints; by the command line alone.

The files are taken for what they are, JSON and tensors, whatever stands in them.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svdctl.cli.app import main
from tests.evaluate.small import Linear

CALLS, STOP = [0], [10**9]
ATTACK = ("autoattacks", "--attacks", "apgd-ce", "--examples", "6", "--eps", "1.2", "--batch-size", "3")
COUNTS = ("cifar-c", "--corruptions", "contrast,fog")


class Stopped(Linear):
    """The linear network, which is interrupted in its `STOP`th call."""

    def forward(self, pixels: Tensor) -> Tensor:
        CALLS[0] += 1
        if CALLS[0] >= STOP[0]:
            raise KeyboardInterrupt
        return super().forward(pixels)


def build() -> nn.Module:
    """For `--model tests.evaluate.test_changed_files:build`."""
    return Stopped()


def draw_nothing(figure: Any, file: Any, **options: Any) -> None:
    file.write(b"")


@pytest.fixture
def call(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """The command on the linear network; all that it printed and the report. With `share`, stopped on its way."""
    shutil.copy(shared / "data.npz", tmp_path)
    shutil.copy(shared / "linear.pth", tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", draw_nothing)  # which takes longer than the rest

    def command(metric: str, *flags: str, share: float | None = None, code: int = 0) -> str:
        if share is not None:
            shutil.rmtree(tmp_path / "eval-linear", ignore_errors=True)
            command(metric, *flags)
            shutil.rmtree(tmp_path / "eval-linear")
            STOP[0] = int(CALLS[0] * share)
        CALLS[0] = 0
        places = (str(tmp_path / "linear.pth"), "--dataset", f"npz:{tmp_path / 'data.npz'}")
        # A certificate is of a network that counts nothing.
        factory = "tests.evaluate.small:build" if metric == "certified" else f"{__name__}:build"
        given = ("--model", factory, "--metrics", metric, *flags)
        monkeypatch.setattr(sys, "argv", ["svdctl", "eval-robust", *places, *given])
        with pytest.raises(SystemExit) as caught:
            main()
        STOP[0] = 10**9
        assert caught.value.code == (code if share is None else 130)
        shown = capsys.readouterr()
        report = tmp_path / "report.md"
        return shown.out + shown.err + (report.read_text() if report.is_file() else "")

    return command


def percentages(text: str) -> list[str]:
    """All figures in per cent, and Lipschitz constants."""
    return sorted(set(re.findall(r"-?\d+\.\d+ ?%|L = [\d.e-]+", text)))


def leaves(contents: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Paths and values of what is no container."""
    if isinstance(contents, dict | list):
        for name, value in contents.items() if isinstance(contents, dict) else enumerate(contents):
            yield from leaves(value, (*path, name))
    else:
        yield path, contents


def with_leaf(contents: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The contents with another value in one place."""
    if not path:
        return value
    first, *rest = path
    copy = contents.copy()
    copy[first] = with_leaf(contents[first], tuple(rest), value)
    return copy


def restore(folder: Path, kept: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)


NOT_FIGURES = {"environment", "protocol", "about", "seconds", "version", "checkpoint"}


@pytest.mark.parametrize("metric", ["accuracy", "certified", "cifar-c"])
def test_no_changed_number_of_the_results_is_shown(metric: str, call: Callable[..., str], tmp_path: Path) -> None:
    flags = COUNTS[1:] if metric == "cifar-c" else ()
    call(metric, *flags)
    folder, kept = tmp_path / "eval-linear", tmp_path / "kept"
    shutil.copytree(folder, kept)
    again = call(metric, *flags)
    wanted = percentages(again)
    assert "(kept)" in again
    contents = json.loads((folder / "results.json").read_text())
    found = [path for path, value in leaves(contents) if isinstance(value, int | float) and not NOT_FIGURES & {*path}]
    assert found
    for path in found[:: max(1, len(found) // 5)]:
        restore(folder, kept)
        (folder / "results.json").write_text(json.dumps(with_leaf(contents, path, 0.123)))
        assert percentages(call(metric, *flags)) == wanted, path
    # All at once, so that every image is certified by a small constant.
    forged = contents
    for path in found:
        forged = with_leaf(forged, path, 1e-3 if "lipschitz" in path else 1.0)
    restore(folder, kept)
    (folder / "results.json").write_text(json.dumps(forged))
    assert percentages(call(metric, *flags)) == wanted


@pytest.mark.parametrize("value", [999, -5])
def test_no_impossible_count_of_an_unfinished_list_is_used(
    value: int, call: Callable[..., str], tmp_path: Path
) -> None:
    wanted = percentages(call(*COUNTS))
    call(*COUNTS, share=0.8)
    folder, kept = tmp_path / "eval-linear", tmp_path / "kept"
    shutil.copytree(folder, kept)
    (file,) = (folder / "unfinished").iterdir()
    contents = json.loads(file.read_text())
    found = [path for path, count in leaves(contents) if type(count) is int and 0 <= count <= 40]
    found = [path for path in found if not NOT_FIGURES & {*path} and "severity" not in path]
    assert found
    for path in found[::4]:
        restore(folder, kept)
        file.write_text(json.dumps(with_leaf(contents, path, value)))
        assert percentages(call(*COUNTS)) == wanted, path


def with_flipped_bits(file: Path) -> list[bytes]:
    """The file with another bit in the first number of each tensor; of a few tensors that are nowhere else in it."""
    sound = file.read_bytes()
    tensors = [value for _, value in leaves(torch.load(file, weights_only=True)) if isinstance(value, Tensor)]
    parts = [tensor.numpy().tobytes() for tensor in tensors if tensor.numel()]
    places = [sound.index(part) for part in parts if len(part) > 2 and sound.count(part) == 1]
    return [sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :] for place in places]


def test_no_flipped_bit_of_an_unfinished_attack_is_read(call: Callable[..., str], tmp_path: Path) -> None:
    wanted = percentages(call(*ATTACK))
    call(*ATTACK, share=0.8)
    folder, kept = tmp_path / "eval-linear", tmp_path / "kept"
    shutil.copytree(folder, kept)
    (file,) = (folder / "unfinished").iterdir()
    damaged = with_flipped_bits(file)
    assert damaged
    for contents in damaged:
        restore(folder, kept)
        file.write_bytes(contents)
        assert percentages(call(*ATTACK)) == wanted


def test_the_attack_of_other_weights_is_not_gone_on_with(call: Callable[..., str], tmp_path: Path) -> None:
    """Whatever names the weights in its state is taken away."""
    call(*ATTACK, share=0.8)
    (file,) = (tmp_path / "eval-linear/unfinished").iterdir()
    state = torch.load(file, weights_only=True)
    for path, value in leaves(state):
        if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
            state = with_leaf(state, path, None)
    weights = torch.load(tmp_path / "linear.pth", weights_only=True)
    # Two of four classes changed: half of the images are misclassified from the start.
    torch.save({name: value[[1, 0, 2, 3]] for name, value in weights.items()}, tmp_path / "linear.pth")
    shutil.rmtree(tmp_path / "eval-linear")
    wanted = percentages(call(*ATTACK))
    call(*ATTACK, share=0.8)
    (file,) = (tmp_path / "eval-linear/unfinished").iterdir()
    torch.save(state, file)
    assert percentages(call(*ATTACK)) == wanted


def test_no_flipped_bit_of_a_shard_is_read(call: Callable[..., str], tmp_path: Path) -> None:
    for index in (1, 2):
        call(*ATTACK, "--shard", f"{index}/2")
    folder = tmp_path / "eval-linear"
    (file,) = (path for path in folder.rglob("*2-of-2.pt"))
    sound = file.read_bytes()
    damaged = with_flipped_bits(file)
    assert damaged
    for contents in damaged:
        file.write_bytes(contents)
        told = call(*ATTACK, "--merge-shards", code=1)
        assert f"{file.name} is damaged" in told
        assert "run it again with --shard 2/2" in told
    file.write_bytes(sound)
    assert "of 6 images robust" in call(*ATTACK, "--merge-shards")


def test_a_confidence_of_one_is_in_the_last_bin(call: Callable[..., str], tmp_path: Path) -> None:
    """20 images of confidence 1, half of them right, and 20 of 0.95, all right: in one bin 0.225, in two 0.275."""
    images = np.zeros((40, 12, 12, 3), np.uint8)
    images[:20, 0, 0, 0] = 255
    labels = np.array([0, 1] * 10 + [0] * 20)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=np.arange(40) % 4, x_test=images, y_test=labels)
    weight = torch.zeros(4, 432)
    weight[0, 0] = 1e4
    bias = torch.tensor([0.95, 0.05, 1e-30, 1e-30]).log()
    torch.save({"linear.weight": weight, "linear.bias": bias}, tmp_path / "linear.pth")
    assert "22.50%" in percentages(call("ece"))
