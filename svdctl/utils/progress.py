"""What a piece of work reports while it runs: one protocol for trainings, evaluations, spectra and tables."""

from collections.abc import Mapping


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

    def finish(self, result: object) -> None:
        """Report what came of a piece of work: figures of an epoch, a result, a failure."""

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
