"""`svdctl inspect-spectrum` on files that the tests make."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from svdctl.analysis import network_spectrum
from svdctl.cli.app import main
from svdctl.cli.help_page import Panel
from tests.cli.flags import after_opening


def call(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["svdctl", "inspect-spectrum", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return int(ended.value.code or 0), out, after_opening(err)


@pytest.fixture
def invoke(capsys, monkeypatch):
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 2))
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    return path


def test_bare_weights_tell_what_holds_without_a_network(invoke, weights: Path) -> None:
    code, out, _ = invoke(weights)
    assert code == 0
    assert "its strides, groups and input sizes are not known" in out
    assert "BatchNorm" in out
    rows = json.loads(invoke(weights, "--format", "json")[1])["files"][0]["layers"]
    assert [row["name"] for row in rows] == ["0", "1", "3"]
    assert rows[0]["count"] is None
    assert rows[0]["bound_upper"] > 0


def test_values_pictures_and_several_files(invoke, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"0.weight": torch.randn(6, 3, 3, 3)}, str(other))
    picture = tmp_path / "spectra.png"
    code, out, _ = invoke(weights, other, "--input-size", 8, "--plot", picture, "--format", "json", "--all")
    assert code == 0
    first, second = json.loads(out)["files"]
    values = first["layers"][0]["values"]
    assert len(values) == first["layers"][0]["count"] == 8 * 8 * 3
    assert values == sorted(values, reverse=True)
    assert len(second["layers"]) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert invoke(weights, "--format", "csv", "--top", 2, "--input-size", 8)[1].count("\n") == 5


def test_gate(invoke, weights: Path) -> None:
    assert invoke(weights, "--max", 1000)[0] == 0
    code, _, err = invoke(weights, "--max", 0.001)
    assert code == 1
    assert "0 reaches" in err
    assert "3 reaches" in err


def test_a_users_network(invoke, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mynets_for_spectra.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "w.pth"
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), path)
    flags = ("--model", "mynets_for_spectra:build", "--input-size", "3x16x16", "--format", "json")
    code, out, _ = invoke(path, *flags)
    row = json.loads(out)["files"][0]["layers"][0]
    assert code == 0
    assert row["stride"] == [2, 2]
    assert row["input_size"] == [16, 16]
    assert row["zero_padded_lower"] <= row["bound_upper"]
    assert invoke(path, *flags[:2])[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no file is given"),
        (("missing.pt",), "svdctl: missing.pt does not exist; give a run folder or a file that holds weights"),
        (("{weights}", "missing.pt"), "svdctl: missing.pt does not exist; give a run folder or a file"),
        (("{weights}", "--layer", "nothing*"), "nothing*"),
        (("{weights}", "--input-size", "a"), "--input-size"),
        (("{weights}", "--all", "--top", "3"), "exclude each other"),
        (("{weights}", "--plot", "{folder}/x.png"), "--input-size"),
        (("{matrix}", "--plot", "{folder}/x.png"), "no convolution is among these layers"),
        (("{weights}", "--format", "xml"), "--format"),
        (("{weights}", "--model", "torchvision:resnet81", "--input-size", "3x32x32"), "resnet"),
        (("{empty}",), "empty"),
        (("{folder}",), "last.pt"),
        (("{vector}",), "no convolution"),
    ],
)
def test_bad_input_is_one_sentence(invoke, weights: Path, tmp_path: Path, arguments, words: str) -> None:
    places = {"weights": weights, "empty": tmp_path / "empty.pt", "folder": tmp_path, "vector": tmp_path / "v.pt"}
    places["empty"].touch()
    torch.save({"a": torch.zeros(3)}, places["vector"])
    places["matrix"] = tmp_path / "m.pt"
    torch.save({"fc.weight": torch.ones(2, 6)}, places["matrix"])
    code, out, err = invoke(*(part.format(**places) for part in arguments))
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_two_thousand_layers_show_how_far_they_are(invoke, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "deep.pt"
    torch.save({f"layer{number}.weight": torch.randn(2, 2, 1, 1) for number in range(2000)}, path)
    clock = iter(range(0, 10**6, 5))
    monkeypatch.setattr("svdctl.cli.progress_display.time.monotonic", lambda: next(clock))
    code, out, err = invoke(path, "--format", "csv", "--tolerance", "0.3")
    assert code == 0
    assert out.count("\n") > 2000
    told = [line for line in err.splitlines() if line.startswith("layer ")]
    assert len(told) > 100
    assert all(line.split(": ")[0].endswith(" of 2000") for line in told)


def test_what_takes_long_is_told_with_the_flags_that_take_less(invoke, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network_spectrum, "OPERATIONS_PER_SECOND", 1.0)
    path = tmp_path / "weights.pt"
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    torch.save(network.state_dict(), path)
    plugin = tmp_path / "large_network_factory.py"
    plugin.write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, err = invoke(path, "--model", "large_network_factory:build", "--input-size", "3x16x16")
    assert code == 0, err
    assert "--accuracy" in err
    assert "--layer" in err


def test_its_help_names_none_of_the_papers_flags(invoke, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, shown, _ = invoke("--help")
    assert code == 0
    assert "paper's code (a dash" not in shown  # that code has no such command
    assert all(f"─ {panel} ─" in shown for panel in (Panel.MODEL, Panel.OUTPUT, Panel.GATE))
