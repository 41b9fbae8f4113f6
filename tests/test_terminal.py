"""Tests on a real terminal see what a person would, and can fail."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.terminal import run_in_terminal, terminal

ALIVE = "import time; print('ready', flush=True); time.sleep(100)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40), (160, 50)])
def test_the_command_has_a_terminal_of_the_size_asked_for(
    columns: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "33")  # of the terminal that the tests run in
    shown = run_in_terminal(
        python("import os, shutil; print(*os.get_terminal_size(1), *shutil.get_terminal_size(), os.isatty(2))"),
        columns,
        rows,
    )
    assert shown == f"{columns} {rows} {columns} {rows} True"


def test_wrapped_lines_are_kept_as_they_are_on_screen() -> None:
    assert run_in_terminal(python("print('é' * 100)"), 80) == "é" * 80 + "\n" + "é" * 20


def test_lines_that_left_the_screen_come_on_request() -> None:
    count = python("print(*range(30), sep='\\n')")
    assert run_in_terminal(count, 80, 10).split() == [str(n) for n in range(21, 30)]
    assert run_in_terminal(count, 80, 10, scrollback=True).split() == [str(n) for n in range(30)]


def test_what_was_drawn_over_is_gone() -> None:
    assert run_in_terminal(python("print('first\\x1b[1K\\rsecond')"), 80) == "second"


def test_styles_come_on_request() -> None:
    bold = python("print('\\x1b[1mloud\\x1b[0m')")
    assert run_in_terminal(bold, 80) == "loud"
    assert run_in_terminal(bold, 80, styles=True).startswith("\x1b[1mloud")


def test_words_folder_and_variables_reach_the_command(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1], os.getcwd() == sys.argv[2], os.environ['MINE'])"
    shown = run_in_terminal([*python(code), "a b$HOME'", tmp_path], 80, cwd=tmp_path, env={"MINE": "x y"})
    assert shown == "a b$HOME' True x y"


def test_a_key_is_pressed_when_the_screen_shows_its_text() -> None:
    code = (
        "import time\ntry: print('ready', flush=True); time.sleep(100)\n"
        "except KeyboardInterrupt: print('kept'); raise SystemExit(130)"
    )
    assert run_in_terminal(python(code), 80, keys=[("ready", "C-c")], code=130).splitlines() == ["ready", "^Ckept"]


def test_a_screen_of_a_command_that_goes_on() -> None:
    began = time.monotonic()
    assert run_in_terminal(python(ALIVE), 80, until="ready") == "ready"
    assert time.monotonic() - began < 60


def test_another_exit_code_fails() -> None:
    with pytest.raises(AssertionError, match=r"(?s)ended with 3, not 0:.*why"):
        run_in_terminal(python("print('why'); raise SystemExit(3)"), 80)


def test_a_text_that_does_not_come_fails() -> None:
    with pytest.raises(AssertionError, match=r"(?s)ended with 0 and never showed 'ready':.*other"):
        run_in_terminal(python("print('other')"), 80, keys=[("ready", "C-c")])
    with pytest.raises(AssertionError, match=r"(?s)no 'never' within 1 s:.*ready"):
        run_in_terminal(python(ALIVE), 80, until="never", seconds=1)


def test_a_command_that_does_not_end_fails() -> None:
    with pytest.raises(AssertionError, match=r"(?s)not ended within 1 s:.*ready"):
        run_in_terminal(python(ALIVE), 80, seconds=1)


def test_nothing_is_left_behind() -> None:
    with terminal(python(f"import os; print(os.getpid(), flush=True); {ALIVE}"), 80) as shown:
        shown.wait_for("ready", 60)
        command, server = int(shown.screen().split()[0]), int(shown.tmux("display-message", "-p", "#{pid}"))
    assert not shown.folder.exists()
    until = time.monotonic() + 30
    for process in (command, server):
        with suppress(ProcessLookupError):
            while time.monotonic() < until:
                os.kill(process, 0)  # raises once it is gone
                time.sleep(0.05)
            pytest.fail(f"{process} is still there")


def test_without_tmux_a_test_is_skipped_but_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="tmux is not installed"):
        run_in_terminal(python("print()"), 80)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install tmux"):
        run_in_terminal(python("print()"), 80)
