"""A user's file of the paper's numbers: its faults, each in a sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from svdctl.errors import UsageError
from svdctl.reproduce.plan import Plan, read_paper_numbers


def test_numbers_are_read_and_other_tables_passed_over(planned: Callable[..., Plan], tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text("[tiny.none-full]\naccuracy = 90\nece = 1.5\n[table2.whatever]\nx = 'y'\n")
    expected = {"tiny": {"none-full": {"accuracy": 90.0, "ece": 1.5}}}
    assert read_paper_numbers(path, planned().tables) == expected
    assert read_paper_numbers(path, planned(scale="smoke", rows=("div*",)).tables) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tiny.none-ful]\naccuracy = 1", ["tiny has no row none-ful", "did you mean none-full?"]),
        ("[tiny.none-full]\nacuracy = 1", ["no column acuracy", "did you mean accuracy?"]),
        (
            "[tiny.none-full]\naccuracy = '95'",
            ["tiny.none-full.accuracy = '95' is no number; write it in the"],
        ),
        ("[tiny.none-full]\naccuracy = nan", ["is no number"]),
        ("[tiny.none-full]\naccuracy = true", ["is no number"]),
        ("[tiny]\nnone-full = 3", ["tiny.none-full = 3 is no section"]),
        ("tiny = 3", ["tiny = 3 is no section"]),
        ("[tinny.x]\na = 1", ["no section for tiny", "did you mean tinny?"]),
        ("", ["no section for tiny"]),
        ("[tiny.none-full]\ncertified-36 = 1", ["no column certified-36"]),
        ("[tiny", ["no TOML"]),
    ],
)
def test_faults(planned: Callable[..., Plan], tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_paper_numbers(path, planned().tables)
    assert all(fault.startswith(f"`paper_numbers = {path}`: ") for fault in caught.value.faults)
    for word in words:
        assert word in str(caught.value)


def test_without_a_table_there_is_nothing_to_stand_beside(tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text("")
    with pytest.raises(UsageError, match="leave it out"):
        read_paper_numbers(path, ())


def test_every_fault_is_told_at_once_and_a_missing_file_too(planned: Callable[..., Plan], tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text("[tiny.a]\nx = 1\n[tiny.none-full]\nb = 1\nece = 'c'\n")
    with pytest.raises(UsageError) as caught:
        read_paper_numbers(path, planned().tables)
    assert len(caught.value.faults) == 3
    for place, words in (
        (tmp_path / "none.toml", "cannot be read"),
        (tmp_path, "is a folder, and a file belongs here"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            read_paper_numbers(place, planned().tables)
        assert str(place) in str(caught.value)
