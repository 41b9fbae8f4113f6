"""Stopped while outcomes come in: tables of before stay, and the answer counts what is there."""

from collections.abc import Callable, Iterator

import pytest

from svdctl.errors import Interrupted
from svdctl.reproduce import reproduction
from svdctl.reproduce.plan import Plan
from svdctl.reproduce.run_store import Outcome
from svdctl.utils import signals
from svdctl.utils.progress import Reporter


def test_a_table_of_before_is_not_replaced_by_its_first_runs(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while what is there is read once more, the table of the earlier call stays as it was."""
    written: list[int] = []
    ready = [Outcome("a", values={"accuracy": 0.5}, kept={"accuracy": "kept"})]

    def drive(*given: object) -> Iterator[Outcome]:
        yield from ready
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduction, "drive", drive)
    monkeypatch.setattr(reproduction, "_write", lambda plan, outcomes, *more, **named: written.append(len(outcomes)))
    for count in (0, 1):
        with pytest.raises(Interrupted):
            reproduction.reproduce(planned(), Reporter(), str)
        assert len(written) == count
        ready.append(Outcome("b", values={"accuracy": 0.5}))
    assert written == [2]


def test_the_answer_of_reproduce_holds_while_outcomes_come(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def drive(*given: object) -> Iterator[Outcome]:
        said.append(signals._answers[-1]())
        yield Outcome("a", values={"accuracy": 0.5}, kept={"accuracy": "kept"})
        said.append(signals._answers[-1]())
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduction, "drive", drive)
    with pytest.raises(Interrupted):
        reproduction.reproduce(planned(), Reporter(), str)
    assert [text.rpartition(", ")[2].split()[0] for text in said] == ["0", "1"]
