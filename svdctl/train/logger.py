"""Loggers: where the figures of a training go while it runs; a user's own are registered as those of svdctl are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from svdctl.config.base import Config
from svdctl.config.run_config import Log
from svdctl.errors import SvdctlError, TrainingError
from svdctl.registry import LOGGERS

if TYPE_CHECKING:
    from svdctl.control.control_report import LayerReport


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told of a run."""

    folder: Path
    configuration: Mapping[str, Any]
    """The whole configuration as a nested table of JSON's types."""
    lines: Sequence[Mapping[str, Any]] | None = None
    """Of a run that is resumed: its lines so far, without those of steps that are made again."""
    notice: Callable[[str], None] = lambda text: None
    """Is given sentences that the user should read."""
    request_save: Callable[[], None] = lambda: None
    """Has `last.pt` written after the step at hand, or one soon after where several processes train."""
    step: int = 0
    """The step that it goes on after; lines about this step that are not among `lines` may come again."""


@dataclass(frozen=True)
class RunEnd:
    """What a run that reached its last step leaves beside its lines."""

    step: int
    """Its last step."""
    figures: Mapping[str, float]
    """Those of the test set, as `test_acc`, and seconds in all."""
    sentences: Sequence[str]
    """The summary that the user reads."""
    layers: Sequence["LayerReport"]
    """Largest singular value, proved bound and maximum of each layer."""
    pictures: Mapping[str, Path]
    """PNG files by their names, as `curves`."""


class LogWriter(Protocol):
    """An open log of one run; it may have the method of `EndWriter` too."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line: `kind` (`step`, `proof` or `epoch`), `step`, `epoch` and figures, None where one is not known.

        One of kind `extended`, among `RunInfo.lines` alone, says that the run has `epochs` from then on, and had
        `epochs_before`.
        """

    def close(self) -> None:
        """Flush and close; also called when the run failed."""


@runtime_checkable
class EndWriter(Protocol):
    """An open log that takes pictures and the summary."""

    def finish(self, end: RunEnd) -> None:
        """Add what a run leaves; called before `close` of a run that reached its last step, and of no other."""


class Logger(ABC):
    """A kind of log. An object has no state; what it opens for a run has. Only the first process logs."""

    kind: ClassVar[str]
    """Its name in `log.loggers` of a configuration."""
    config: ClassVar[type[Config]]
    """Its section there; `kind` is a field of it, a literal."""

    @abstractmethod
    def open(self, run: RunInfo, config: Any) -> LogWriter:
        """Begin or go on with the log of a run.

        Args:
            run: what is logged.
            config: an object of the class `config`.
        """


L = TypeVar("L", bound="Logger | type[Logger]")


def register_logger(logger: L) -> L:
    """Add a logger, so that `log.loggers` of a configuration can name its kind; usable as a decorator of a class.

    Args:
        logger: an object of a class derived from `svdctl.train.logger.Logger`, or such a class.

    Returns:
        What was given.

    Raises:
        UsageError: another logger has its kind already.

    >>> from typing import Literal
    >>> from svdctl.config.base import Config
    >>> from svdctl.train.logger import Logger
    >>> class Printing(Config):
    ...     kind: Literal["printing"] = "printing"
    >>> class Printed:
    ...     def write(self, line):
    ...         print(line["step"], line.get("loss"))
    ...     def close(self):
    ...         pass
    >>> @svdctl.register_logger
    ... class PrintingLogger(Logger):
    ...     kind, config = "printing", Printing
    ...     def open(self, run, config):
    ...         return Printed()
    """
    LOGGERS.register(logger)
    return logger


class RunLog:
    """All logs of a run: `metrics.jsonl` first, then those that the configuration names.

    Args:
        run: what is logged.
        log: which loggers, and what is recorded.
    """

    def __init__(self, run: RunInfo, log: Log) -> None:
        named = [config for config in log.loggers if config.kind != "jsonl"]
        if log.wandb != "off":
            given = LOGGERS.get("wandb").config(project=log.wandb_project, group=log.wandb_group)
            # One run: settings of a table of `loggers` count, and its mode is that of `wandb`.
            table = next((config for config in named if config.kind == "wandb"), given)
            named = [config for config in named if config is not table]
            named.insert(0, table.model_copy(update={"mode": log.wandb}))
        self._writers: list[tuple[str, LogWriter]] = []
        with ExitStack() as opened:
            for config in (LOGGERS.get("jsonl").config(), *named):
                logger = LOGGERS.get(config.kind)
                with _sentence(config.kind):
                    writer = logger.open(run, config)
                opened.callback(_close, config.kind, writer)
                self._writers.append((config.kind, writer))
            self._opened = opened.pop_all()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line of `svdctl.train.metrics_log.make_line` to each log.

        Raises:
            TrainingError: a logger failed, or the run folder was removed.
            OSError: a file cannot be written, as on a full disk.
        """
        for kind, writer in self._writers:
            with _sentence(kind):
                writer.write(line)

    def finish(self, end: RunEnd) -> None:
        """Add pictures and summary to each log that takes them.

        Raises:
            TrainingError, OSError: as `write`.
        """
        for kind, writer in self._writers:
            if isinstance(writer, EndWriter):
                with _sentence(kind):
                    writer.finish(end)

    def close(self) -> None:
        """Close all of them, also when one fails."""
        self._opened.close()


def _close(kind: str, writer: LogWriter) -> None:
    with _sentence(kind):
        writer.close()


@contextmanager
def _sentence(kind: str) -> Iterator[None]:
    """Turn an error of a logger's own code into a TrainingError."""
    try:
        yield
    except (SvdctlError, OSError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TrainingError(f"the logger {kind} failed ({text}); what was saved is kept") from error
