"""The notebook is stored without outputs, runs, and is shown with what it prints and draws."""

import json
import re
from pathlib import Path

import pytest

from tests.site.test_references import hook

NOTEBOOK = Path(__file__).parents[2] / "docs/notebook.ipynb"


def test_it_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) > 8
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow  # .ci/run executes it twice: by itself, and for the site
@pytest.mark.timeout(600)
def test_it_runs_and_its_page_has_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever other tests did to the paths of this process: the kernel imports this package.
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    page, pictures = hook("notebook_page").notebook_page(execute=True)
    assert "accuracy on the test images: 9" in page
    assert float(re.findall(r"without control: ([0-9.]+)", page)[0]) > 4 * float(
        re.findall(r"with control: ([0-9.]+)", page)[0]
    )
    assert "<table>" in page
    assert len(pictures) == 1
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
