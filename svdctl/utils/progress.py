"""What a piece of work reports while it runs: one protocol for trainings, evaluations, spectra and tables."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Advance = Callable[[int, int, str], None]
"""Reports how far a part of the work is: pieces done, pieces in all, what is at work or was found so far."""


def no_advance(done: int, total: int, now: str) -> None:
    """Report nothing."""


class Reporter:
    """Receives the reports of a piece of work and shows nothing; displays override what they show."""

    def say(self, text: str) -> None:
        """Report a line about the course of the work."""

    def notice(self, text: str) -> None:
        """Report a sentence that the user should read, whatever else is shown."""

    def begin(self, work: object) -> None:
        """Report that a piece of work begins: its name, or a plan."""

    def advance(self, done: int, total: int, now: str | Mapping[str, float]) -> None:
        """Report how far it is; called often.

        Args:
            done, total: pieces.
            now: what is at work, or the figures so far.
        """

    @contextmanager
    def part(self, work: str) -> Iterator[Advance]:
        """Report that a part of the work lasts as long as the body, inside what `begin` began or on its own.

        It ends with the body. Whatever may take more than three seconds stands in one, also what cannot tell how far
        it is and never calls what is yielded: `with reporter.part("proving bounds") as advance: advance(3, 21, "")`.

        Args:
            work: what is done, in lower case: `reading images`.
        """
        yield no_advance

    def finish(self, result: object) -> None:
        """Report what came of a piece of work: figures of an epoch, a result, a failure."""

    def close(self) -> None:
        """Give the terminal back; may be called twice."""


class Pace:
    """How long the rest of a work takes, at the pace since its first report: pieces that were kept took no time."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last = 0

    def left(self, done: int, total: int) -> float | None:
        """Return the seconds left; None where they are not known yet, and where all is done.

        Where fewer pieces are done than before, others are counted, and the pace begins anew.
        """
        now = time.monotonic()
        if self._first is None or done < self._last:
            self._first = now, done
        self._last = done
        since, gained = now - self._first[0], done - self._first[1]
        return since / gained * (total - done) if since >= 2 and gained > 0 and done < total else None
