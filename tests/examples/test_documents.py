"""The guide to the library runs from its first block to its last, and continuous integration runs every example."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import svdctl

ROOT = Path(__file__).parents[2]


def test_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/library.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)  # our own text
    assert "Conv2d" in capsys.readouterr().out


def test_the_guide_to_certificates_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/certify.md").read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(block, "docs/certify.md", "exec"), {})  # our own text
    assert float(capsys.readouterr().out) > 0


def test_the_lines_of_the_readme_control_a_network() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 6 * 6, 2))
    with torch.no_grad():
        model[0].weight.mul_(100)
    names = {"svdctl": svdctl, "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    exec(compile(block, "README.md", "exec"), names)  # our own text
    assert svdctl.spectral_norm_bound(model[0]).upper <= 4.0


def test_the_readme_leads_to_the_guide() -> None:
    assert "](docs/library.md)" in (ROOT / "README.md").read_text()


def test_every_example_is_run() -> None:
    assert re.search(r"^(timeout \d+ )?bash -e \.ci/examples ", (ROOT / ".ci/run").read_text(), re.M)
    commands = (ROOT / ".ci/examples").read_text()
    examples = sorted(file.name for file in (ROOT / "examples").glob("*.py"))
    assert len(examples) >= 7
    for name in examples:
        assert re.search(rf"^python examples/{name}( |$)", commands, re.M), name
