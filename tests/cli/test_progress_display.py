"""Bars on a terminal, lines every ten seconds elsewhere: parts inside a work, and the time left."""

import io
import threading
from collections.abc import Iterator
from unittest.mock import Mock, patch

import pytest
from rich.console import Console

from svdctl.cli.progress_display import ProgressDisplay
from svdctl.utils.progress import Pace


@pytest.fixture
def clock() -> Iterator[Mock]:
    with patch("svdctl.cli.progress_display.time.monotonic") as clock:
        clock.return_value = 0.0
        yield clock


def test_a_part_has_a_line_every_ten_seconds_and_tells_the_time_left(
    clock: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    display = ProgressDisplay("stderr", "{work}  {amount} {text}")
    with display.part("proving bounds") as advance:
        for second in range(26):
            clock.return_value = float(second)
            advance(second, 100, "layer1")
    assert capsys.readouterr().err.splitlines() == [
        "proving bounds  10/100  layer1  1:30 left",
        "proving bounds  20/100  layer1  1:20 left",
    ]


def test_what_was_kept_does_not_count_for_the_pace(clock: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay("stderr", "{work}  {amount} {text}")
    display.begin("accuracy")
    display.advance(50, 100, "batches")
    clock.return_value = 10.0
    display.advance(60, 100, "batches")
    assert capsys.readouterr().err == "accuracy  60/100 batches, 0:40 left\n"


def drawn(display: ProgressDisplay) -> io.StringIO:
    screen = io.StringIO()
    display.console = Console(file=screen, force_terminal=True, width=80, highlight=False)
    return screen


@pytest.mark.parametrize("show", ["say", "notice", "answer"])
def test_a_line_of_another_thread_waits_until_the_bar_is_wiped_off(show: str) -> None:
    """A request to stop is answered while the main thread ends its bar; what is written between would be wiped off."""
    display = ProgressDisplay("stderr", "{work} {amount} {text}", live=True)
    screen = drawn(display)
    display.begin("training")
    given = ("stopping", "the command") if show == "answer" else ("stopping",)
    thread = threading.Thread(target=getattr(display, show), args=given)
    stop = display._bar.stop

    def stop_late() -> None:
        thread.start()
        thread.join(0.3)
        stop()

    display._bar.stop = stop_late
    display.close()
    thread.join(5)
    wiped, line = screen.getvalue().rindex("\x1b[2K"), screen.getvalue().index("stopping")
    assert wiped < line


def test_a_part_is_drawn_in_place_of_the_work_until_it_ends() -> None:
    display = ProgressDisplay("stdout", "{work} {amount} {text}", live=True)
    screen = drawn(display)
    display.begin("training")
    display.advance(3, 10, "steps")
    display._bar.refresh()
    before = screen.getvalue()
    with display.part("evaluating") as advance:
        advance(1, 4, "")
        display._bar.refresh()
        part = screen.getvalue()[len(before) :]
        with display.part("proving the Lipschitz constant"):
            display._bar.refresh()
            inner = screen.getvalue()[len(before + part) :]
    assert [task.description for task in display._bar.tasks] == ["training"]
    display._bar.refresh()
    after = screen.getvalue()[len(before + part + inner) :]
    display.close()
    assert "3/10 steps" in before
    assert "evaluating" in part
    assert "1/4" in part
    assert "3/10 steps" not in part
    assert "proving the Lipschitz constant" in inner
    assert "evaluating" not in inner
    assert "3/10 steps" in after
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1


def test_a_part_alone_gives_the_terminal_back_also_after_an_error() -> None:
    display = ProgressDisplay("stdout", live=True)
    screen = drawn(display)
    with pytest.raises(ValueError, match="odd"), display.part("reading images"):
        raise ValueError("odd")
    assert "reading images" in screen.getvalue()
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1
    with display.part("outer"), display.part("inner") as advance:
        advance(1, 2, "")
    assert display._bar is None


def test_a_work_that_begins_in_a_part_takes_its_place() -> None:
    display = ProgressDisplay("stdout", "{work}", live=True)
    drawn(display)
    with display.part("reading images") as advance:
        display.begin("training")
        advance(1, 2, "")
        assert [task.description for task in display._bar.tasks] == ["training"]
    assert display._bar is not None
    display.close()


def test_parts_of_several_threads_end_in_any_order() -> None:
    display = ProgressDisplay("stdout", live=True)
    drawn(display)
    first, second = display.part("reading"), display.part("proving")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert [task.description for task in display._bar.tasks] == ["proving"]
    second.__exit__(None, None, None)
    assert display._bar is None


def test_the_pace_begins_anew_where_other_pieces_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 100.0, 110.0])
    monkeypatch.setattr("svdctl.utils.progress.time.monotonic", lambda: next(clock))
    pace = Pace()
    assert [pace.left(0, 4), pace.left(1, 4), pace.left(0, 4), pace.left(2, 4)] == [None, 30.0, None, 10.0]


def test_a_bar_that_counts_nothing_shows_how_long_it_goes_on() -> None:
    display = ProgressDisplay("stdout", "{text}", live=True)
    screen = drawn(display)
    display.begin("spectra")
    display.advance(15, 15, "Lipschitz constant")
    for seconds in (47, 1):
        display._bar.tasks[0].start_time -= seconds
        display._bar.refresh()
    assert "0:47 15/15 Lipschitz constant" in screen.getvalue()
    assert "0:48 15/15 Lipschitz constant" in screen.getvalue()
    display.close()


def test_the_spinner_turns_also_after_the_last_piece() -> None:
    from svdctl.cli.progress_display import _new_bar

    bar = _new_bar(Console(file=io.StringIO(), force_terminal=True))
    try:
        bar.add_task("attack", total=1, completed=1, shown="")
        (task,) = bar.tasks
        spinner = bar.columns[0]
        with patch.object(type(task), "get_time", side_effect=[0.0, 0.15, 0.3]):
            assert len({spinner.render(task).plain for _ in range(3)}) == 3
    finally:
        bar.stop()
