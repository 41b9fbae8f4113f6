"""What a person sees: plain lines without escape codes, or the same lines under a live bar."""

import io
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from rich.console import Console

from svdctl.cli.evaluation_progress import EvaluationDisplay
from svdctl.cli.progress_display import describe
from svdctl.cli.training_flags import TRAIN, resolve
from svdctl.cli.training_progress import (
    TrainingDisplay,
    evaluation_line,
    result_lines,
)
from svdctl.config.control_config import NOT_CONTROLLED
from svdctl.utils.duration import duration
from svdctl.utils.printable import command_lines, hanging
from tests.utils.test_escapes import NAMES, OBEYED

STEP = {"epoch": 2, "epochs": 12, "loss": 0.25, "acc": 0.9375, "images_per_second": 1234.4, "seconds_left": 65.0}
EPOCH = {**STEP, "val_loss": 0.3, "val_acc": 0.91, "train_time": 3.0, "clipping_time": 0.5}


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    shape: tuple[int, ...]
    largest: float
    bound: float
    maximum: float | None


def result(*layers: Row, certified: tuple[Mock, ...] = ()) -> Mock:
    return Mock(
        certified=certified,
        summary=["test accuracy 97.50%"],
        layers=list(layers),
        files=[Path("runs/x/last.pt")],
        folder=Path("runs/x"),
        config=resolve({}).config,
    )


LAYERS = (Row("conv1", "TT", (16, 3, 3, 3), 2.90001, 2.98999, 3.0), Row("fc", "Linear", (10, 32), 1.5, 1.5, None))


def a_whole_run(reporter: TrainingDisplay) -> None:
    reporter.say("base     preset quickstart")
    reporter.say("data     [digits]")
    reporter.begin("training")
    for done in range(10, 101, 10):
        reporter.advance(done, 100, STEP)
    reporter.finish(EPOCH)
    reporter.notice("a remark")
    reporter.finish(result(*LAYERS))
    reporter.close()
    reporter.close()


def test_plain_lines_hold_everything_and_no_escape_codes(capsys: pytest.CaptureFixture[str]) -> None:
    a_whole_run(TrainingDisplay())
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\r" not in shown.out
    assert shown.out.startswith("base     preset quickstart\ndata     [digits]\n")
    for part in (
        "acc 91.00%",
        "test accuracy 97.50%",
        "2.9000",
        "2.9900",
        "runs/x/last.pt",
        "svdctl eval-robust runs/x",
    ):
        assert part in shown.out
    assert shown.err == "note: a remark\n"


def test_plain_progress_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TrainingDisplay()
    with patch("svdctl.cli.progress_display.time.monotonic") as clock:
        clock.return_value = 0.0
        reporter.begin("training")
        for second in range(1, 26):
            clock.return_value = float(second)
            reporter.advance(second, 100, STEP)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["10/100", "20/100"]
    assert "epoch 2/12 loss 0.2500 acc 93.8% 1234 images/s 1:05 left" in lines[0]


def test_the_live_bar_is_drawn_and_taken_away() -> None:
    reporter = TrainingDisplay(live=True)
    screen = io.StringIO()
    reporter.console = Console(file=screen, force_terminal=True, width=110, highlight=False)
    a_whole_run(reporter)
    shown = screen.getvalue()
    for part in (
        "\x1b[",
        "100/100",
        "epoch 2/12 loss 0.2500",
        "1234 images/s 1:05 left",
        "data     [digits]",
        "svdctl eval-robust runs/x",
    ):
        assert part in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is hidden, then given back


def test_where_a_terminal_is_narrow_the_text_is_cut_and_label_bar_and_time_stay() -> None:
    display = EvaluationDisplay(live=True)
    screen = io.StringIO()
    display.console = Console(file=screen, force_terminal=True, width=80, highlight=False)
    display.begin("autoattacks")
    with patch.object(display._pace, "left", return_value=70.0):
        display.advance(13, 100, f"apgd-t (2 of 4), {'of many images ' * 9}")
    display._bar.refresh()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines()[-1].strip("\r")
    display.close()
    assert re.search(r"autoattacks .* 0:00 13/100 1:10 left, apgd-t \(2 of 4\), of m", last), last
    assert len(last.rstrip()) <= 80


@pytest.mark.parametrize("terminal", [True, False])
def test_stdout_chooses(terminal: bool) -> None:
    with patch("svdctl.cli.progress_display.sys.stdout") as stdout:
        stdout.isatty.return_value = terminal
        assert TrainingDisplay({}).live is terminal


def test_controlled_layers_are_shown_alone_and_all_without_control() -> None:
    text = "\n".join(result_lines(result(*LAYERS)))
    assert "conv1" in text
    assert "fc " not in text
    free = "\n".join(result_lines(result(LAYERS[1])))
    assert "fc " in free
    assert "layer" not in "\n".join(result_lines(result()))


def test_which_checkpoint_the_next_commands_take_is_said_where_there_are_two() -> None:
    picked = result(*LAYERS)
    assert not any("--which" in line for line in result_lines(picked))
    picked.files.append(Path("runs/x/best.pt"))
    lines = result_lines(picked, 40)
    (first,) = (place for place, line in enumerate(lines) if line.startswith("these take last.pt"))
    assert " ".join(line.strip() for line in lines[first:]).endswith("takes best.pt, of the epoch picked")
    assert max(map(len, lines[first:])) <= 40


def test_a_shell_takes_the_next_commands_whatever_the_folder_is_called() -> None:
    found, folder = result(*LAYERS), Path("my runs/<b>&x")
    found.folder = folder
    lines = result_lines(found)
    first = lines.index("next") + 1
    words = [shlex.split(line, posix=True) for line in lines[first : first + 3]]
    assert [line[:3] for line in words] == [
        ["svdctl", "inspect-spectrum", str(folder / "last.pt")],
        ["svdctl", "eval-robust", str(folder)],
        ["svdctl", "train", "--preset"],
    ]
    assert words[2][3] == str(folder / "config.toml")


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_layer_has_one_line_and_gives_the_terminal_no_code(
    live: bool, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(layer: str) -> list[str]:
        reporter, screen = TrainingDisplay(live=live), io.StringIO()
        if live:
            reporter.console = Console(file=screen, width=300, highlight=False)
        reporter.finish(result(replace(LAYERS[0], name=layer), replace(LAYERS[0], name="b" * 40)))
        shown = capsys.readouterr()
        return (shown.out + screen.getvalue()).split("\n")

    found, expected = lines(name), lines("plain")
    assert not any(OBEYED.search(line) for line in found)
    assert len(found) == len(expected)
    (row,) = (number for number, line in enumerate(expected) if line.startswith("plain"))
    # Columns stay below one another: what is printed is as wide as what was measured.
    assert len(found[row]) == len(expected[row])
    assert found[row][40:] == expected[row][40:]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3725, "1:02:05"), (86399, "23:59:59"), (62 * 3600, "62 h (2.6 days)")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def certified(name: str, lipschitz: float) -> Mock:
    made = Mock(
        epoch=7,
        accuracy=0.98,
        certified={36.0: 0.9612, 255.0: 0.1},
        mean_radius=0.53,
        lipschitz=lipschitz,
        slack={"frames": 1.00002, "normalisation": 2.0},
    )
    made.name = name
    return made


def test_certificates_are_a_table_and_what_its_constant_is_made_of() -> None:
    lines = result_lines(result(certified=(certified("last", 2.00004), certified("best", 3.0))))
    (head,) = (line for line in lines if line.startswith("network"))
    assert head.split() == ["network", "epoch", "accuracy", "36/255", "255/255", "mean", "radius", "L"]
    (row,) = (line for line in lines if line.startswith("last"))
    assert row.split() == ["last", "7", "98.00%", "96.12%", "10.00%", "0.53", "2.00004"]
    assert len(head) == len(row)
    assert "L of last = normalisation 2 x frames 1.00002" in lines
    assert "L of best has factors normalisation 2 x frames 1.00002, by branches" in lines
    assert not any("certified" in line for line in result_lines(result()))


def test_an_evaluation_with_certificates_tells_them() -> None:
    proved = {"val_certified_acc": 0.93, "epsilon": 36.0, "lipschitz": 2.00012}
    assert "acc 91.00%  at 36/255 93.00%  L 2.00012  3.0 s" in evaluation_line({**EPOCH, **proved})
    assert "L 2.00012  frames orthonormal to 3.1e-07" in evaluation_line(
        {**EPOCH, **proved, "frame_deviation": 3.14e-7}
    )
    assert "/255" not in evaluation_line(EPOCH)


CERTIFIED = {
    **EPOCH,
    "val_certified_acc": 0.93,
    "epsilon": 36.0,
    "lipschitz": 2.00012,
    "frame_deviation": 3.1e-7,
    "proof_time": 12.5,
}
WIDE = {**CERTIFIED, "loss": 123.4567, "val_loss": 1234.5678, "train_time": 12345.6, "clipping_time": 1234.5}


@pytest.mark.parametrize("metrics", [EPOCH, CERTIFIED, WIDE], ids=["plain", "certified", "wide"])
@pytest.mark.parametrize("width", [80, 120, 160])
def test_an_epoch_is_one_line_that_fits(metrics: dict[str, float], width: int) -> None:
    whole, line = evaluation_line(metrics), evaluation_line(metrics, width)
    assert len(line) <= width
    assert line == whole or len(whole) > width
    assert "held-out acc 91.00%" in line
    assert " s" in line
    if "epsilon" in metrics:
        assert "at 36/255 93.00%" in line


def test_what_is_needed_least_goes_first() -> None:
    whole = evaluation_line(CERTIFIED)
    parts = whole.split("  ")
    for gone in (
        "(control 0.5 s)",
        "held-out loss 0.3000",
        "frames orthonormal to 3.1e-07",
        "L 2.00012",
    ):
        parts.remove(gone)
        assert evaluation_line(CERTIFIED, len("  ".join(parts))) == "  ".join(parts)


def test_figures_of_later_epochs_stand_below_those_of_earlier_ones() -> None:
    widths: dict[str, int] = {}
    first = evaluation_line({**CERTIFIED, "epoch": 9, "train_time": 10.25}, 120, widths)
    later = evaluation_line({**CERTIFIED, "epoch": 10, "acc": 0.09, "train_time": 9.5, "lipschitz": 2.0}, 120, widths)
    assert len(first) == len(later)
    for label in ("loss", "acc", "held-out acc", "at 36/255", "L", " s"):
        assert first.index(label) == later.index(label)


@pytest.mark.parametrize("width", [80, 120])
def test_the_last_table_fits_and_lacks_no_figure(width: int) -> None:
    rows = [
        replace(LAYERS[0], name=f"model.features.layer{number}.0.downsample.conv1", kind="TTConv2d")
        for number in range(3)
    ]
    text = result_lines(result(*rows), width)
    assert max(map(len, text)) <= width
    assert sum("2.9000 2.9900 3" in " ".join(line.split()) for line in text) == 3


@pytest.mark.parametrize("room", [40, 60, 80, 100])
def test_what_stands_behind_a_bar_keeps_the_time_left(room: int) -> None:
    step = {**STEP, "loss": 123.45, "orthogonal_loss": 0.25, "seconds_left": 36000.0}
    text = describe(step, room)
    assert len(text) <= room
    assert text.endswith("10:00:00 left")
    assert describe(step).startswith("epoch 2/12 loss 123.4500 penalty 0.25 acc 93.8% 1234 images/s")


def test_a_run_without_control_stands_out() -> None:
    reporter, screen = TrainingDisplay(TRAIN.words, live=True), io.StringIO()
    reporter.console = Console(file=screen, force_terminal=True, width=60, highlight=False)
    reporter.say(f"control  {NOT_CONTROLLED}")
    reporter.say("control  divide convolutions to 4")
    first, *others, last = screen.getvalue().splitlines()
    assert "\x1b[1;33mcontrol  NONE: singular values are not controlled" in first
    assert others
    assert all("\x1b[1;33m         " in line for line in others)
    assert "--clipping divide-by-largest" in "".join([first, *others])
    assert last == "control  divide convolutions to 4"


def test_long_facts_hang_below_their_label() -> None:
    assert hanging("data     " + "word " * 20, 40)[1].startswith("         word")
    assert all(len(line) <= 40 for line in hanging("data     " + "word " * 20, 40))
    assert hanging("data     " + "word " * 20, None) == ["data     " + "word " * 20]


def test_a_command_line_on_several_lines_means_the_same_to_a_shell() -> None:
    line = """    svdctl reproduce t.toml --rows 'clip a*' "b c" --set layer.rank=64 --dry-run --seeds 1 2 3"""
    for width in range(30, 100):
        lines = command_lines(line, width)
        assert shlex.split("\n".join(lines).replace("\\\n", "")) == shlex.split(line)
        assert all(len(part) <= width for part in lines)
        assert not any(part.endswith("--set \\") for part in lines)
    assert command_lines(line, None) == [line]
