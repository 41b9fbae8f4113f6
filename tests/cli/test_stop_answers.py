"""What a request to stop is told is true, and the command that goes on is whole, whatever runs at that moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from svdctl.analysis import spectrum_page
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.inspect_files import run as inspect
from svdctl.cli import eval_robust, progress_display
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import Interrupted
from svdctl.utils import signals
from svdctl.utils.progress import Reporter


@pytest.mark.parametrize("force", [False, True])
def test_the_command_that_goes_on_is_one_line_in_a_narrow_terminal(
    force: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def at_once(say: Callable[[str], None], text: str) -> Iterator[None]:
        say(f"stopping: {text}")
        raise KeyboardInterrupt
        yield

    words = ["eval-robust", "runs/a folder with blanks in its name", "--metrics", "accuracy", "--seed", "3"]
    monkeypatch.setattr(eval_robust, "stops_answered", at_once)
    monkeypatch.setattr(eval_robust.sys, "argv", ["svdctl", *words])
    monkeypatch.setattr(progress_display, "width_of", lambda stream: 40)
    config = EvaluateConfig(checkpoints=(Path(),), force=force)
    with pytest.raises(Interrupted) as ended:
        eval_robust._evaluate(config, "table", debug=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "  svdctl eval-robust 'runs/a folder with blanks in its name' --metrics accuracy --seed 3"
    assert ("begins anew, for --force" in " ".join("\n".join(lines[:-1]).split())) is force
    assert ("the same command begins anew" in str(ended.value)) is force
    assert ("the same command goes on" in str(ended.value)) is not force


def test_a_picture_that_is_written_is_named_while_the_page_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, picture, page = (tmp_path / name for name in ("w.pt", "w.png", "w.html"))
    torch.save({"layer.weight": torch.ones(4, 3, 3, 3)}, weights)
    page.write_text("an older page")
    said = []

    def asked(*given: object) -> None:
        said.append(signals._answers[-1]())
        raise KeyboardInterrupt

    monkeypatch.setattr(spectrum_page, "write_page", asked)
    config = InspectConfig(files=(weights,), plot=picture, html=page, input_size=(8,))
    with pytest.raises(Interrupted, match="is written, the page is not"):
        inspect(config, Reporter())
    assert said == [f"{picture} is written, the page is not"]
    assert picture.stat().st_size
    assert page.read_text() == "an older page"
