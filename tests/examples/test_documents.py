"""The guide to the library runs from its first block to its last, and continuous integration runs every example."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/library.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)  # our own text
    assert "Conv2d" in capsys.readouterr().out


def test_the_readme_leads_to_the_guide() -> None:
    assert "](docs/library.md)" in (ROOT / "README.md").read_text()


def test_every_example_is_run() -> None:
    assert re.search(r"^(timeout \d+ )?bash -e \.ci/examples ", (ROOT / ".ci/run").read_text(), re.M)
    commands = (ROOT / ".ci/examples").read_text()
    examples = sorted(file.name for file in (ROOT / "examples").glob("*.py"))
    assert len(examples) >= 7
    for name in examples:
        assert re.search(rf"^python examples/{name}( |$)", commands, re.M), name
