"""Trained once for all tests of the evaluation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluate.small import write_data, write_linear, write_run


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data.npz`, `other.npz` (2 classes), `run/last.pt`, `linear.pth`; not to be written to."""
    folder = tmp_path_factory.mktemp("evaluation")
    data = write_data(folder / "data.npz")
    other = write_data(folder / "other.npz", classes=2)
    write_run(folder / "run", data)
    write_run(folder / "other-run", other)
    write_linear(folder / "linear.pth", data)
    return folder


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Path:
    """A copy of the run folder."""
    target = tmp_path / "runs" / "a"
    target.mkdir(parents=True)
    for name in ("last.pt", "config.toml"):
        (target / name).write_bytes((shared / "run" / name).read_bytes())
    return target


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path) -> Iterator[None]:
    """Run each test in its own folder: the report of a checkpoint that is given as a file goes to the current one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        yield
