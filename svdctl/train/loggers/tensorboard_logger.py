"""TensorBoard: event files in the folder `tensorboard` of the run; the package is needed only by runs that use it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from svdctl.config.base import Config
from svdctl.errors import UsageError
from svdctl.train.logger import Logger, LogWriter, RunEnd, RunInfo, register_logger
from svdctl.train.loggers.tracking import (
    configuration_text,
    flat_configuration,
    named_figures,
    named_results,
    require_folder,
    summary_text,
)
from svdctl.utils.files import open_regular

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""Of the run folder."""


class TensorboardConfig(Config):
    """Event files are in `tensorboard/` of the run folder: `tensorboard --logdir RUNS` shows all runs below RUNS."""

    kind: Literal["tensorboard"] = "tensorboard"


@register_logger
class TensorboardLogger(Logger):
    """Writes curves, pictures, configuration and summary for TensorBoard."""

    kind = "tensorboard"
    config = TensorboardConfig

    def open(self, run: RunInfo, config: TensorboardConfig) -> LogWriter:
        """Begin event files; those of a run that is resumed are followed by one that takes back what is made again.

        Raises:
            UsageError: the package tensorboard is not installed.
            UnusableFileError: a link, or no folder, has the place of the folder.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "the logger tensorboard needs a package that is not there; run pip install 'svdctl[tensorboard]'"
            ) from error
        folder = run.folder / FOLDER
        require_folder(folder, "the event files belong")
        # Events of the step itself may come again, as of an epoch that was not finished: all of them are written anew.
        first = run.step if folder.is_dir() else 0
        writer = _TensorboardWriter(SummaryWriter(str(folder), purge_step=first), run)
        for line in run.lines or ():
            if line["step"] >= first:
                writer.write(line)
        return writer


class _TensorboardWriter:
    def __init__(self, events: "SummaryWriter", run: RunInfo) -> None:
        self._events, self._configuration = events, run.configuration
        if run.step == 0:
            events.add_text("configuration", configuration_text(run.configuration), 0)

    def write(self, line: Mapping[str, Any]) -> None:
        """Add the figures of a line at its step, and flush those of epochs."""
        for name, value in named_figures(line).items():
            self._events.add_scalar(name, value, line["step"])
        if line["kind"] == "epoch":
            self._events.flush()

    def finish(self, end: RunEnd) -> None:
        """Add pictures, summary and final figures; these and the configuration as a line of the tab HPARAMS too."""
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard.summary import hparams

        for name, path in end.pictures.items():
            with open_regular(path) as file:
                pixels = np.asarray(Image.open(file, formats=["PNG"]).convert("RGB"))
            self._events.add_image(f"pictures/{name}", pixels, end.step, dataformats="HWC")
        self._events.add_text("summary", summary_text(end), end.step)
        results = named_results(end)
        for name, value in results.items():
            self._events.add_scalar(name, value, end.step)
        for part in hparams(flat_configuration(self._configuration), results):
            self._events.file_writer.add_summary(part, end.step)

    def close(self) -> None:
        """Flush and close."""
        self._events.close()
