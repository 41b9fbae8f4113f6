"""Weights & Biases, a service that draws curves; the package is needed only by runs that use it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from svdctl.config.base import Config
from svdctl.errors import TrainingError, UsageError, first_line
from svdctl.train.logger import Logger, LogWriter, RunEnd, RunInfo, register_logger
from svdctl.train.loggers.tracking import named_figures, named_results


class WandbConfig(Config):
    """A run of Weights & Biases; the keys `log.wandb`, `log.wandb_project` and `log.wandb_group` are short for it."""

    kind: Literal["wandb"] = "wandb"
    mode: Literal["offline", "online"] = "online"
    project: str = "svdctl"
    group: str | None = None


@register_logger
class WandbLogger(Logger):
    """Sends the figures to Weights & Biases, or keeps them in the run folder for `wandb sync`."""

    kind = "wandb"
    config = WandbConfig

    def open(self, run: RunInfo, config: WandbConfig) -> LogWriter:
        """Start a run of Weights & Biases that has the name of the run folder, or go on with that of a resumed run.

        Online, Weights & Biases passes over figures of steps that it has. Offline, each part is a folder with
        the same id, where steps made again stand twice; `wandb sync` sends them in the order of their starts.

        Raises:
            UsageError: the package wandb is not installed, or it refused to start.
            TrainingError: it cannot be reached.
        """
        try:
            import wandb  # 0.8 s, and needed by few
        except ImportError as error:
            raise UsageError(
                "the logger wandb needs a package that is not there; run pip install 'svdctl[wandb]'"
            ) from error
        known = None if run.lines is None else _id_of_run(run.folder)
        try:
            return _WandbWriter(
                wandb.init(
                    project=config.project,
                    group=config.group,
                    name=run.folder.name,
                    dir=str(run.folder),
                    mode=config.mode,
                    id=known,
                    resume=None if known is None or config.mode == "offline" else "allow",
                    config=dict(run.configuration),
                    settings=wandb.Settings(silent=True),
                )
            )
        except wandb.errors.UsageError as error:
            raise UsageError(
                f"Weights & Biases refused to start ({first_line(error)}); run `wandb login`, or use "
                "`log.wandb = offline`"
            ) from error
        except wandb.errors.CommError as error:
            raise TrainingError(f"Weights & Biases cannot be reached ({error}); use `log.wandb = offline`") from error


def _id_of_run(folder: Path) -> str | None:
    """Return the id of the last run of Weights & Biases that was logged in a run folder."""
    found = [re.fullmatch(r"(?:offline-)?run-(\d{8}_\d{6})-(\w{1,64})", path.name) for path in folder.glob("wandb/*")]
    return max((match[1], match[2]) for match in found if match)[1] if any(found) else None


class _WandbWriter:
    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, line: Mapping[str, Any]) -> None:
        """Log the figures of a line at its step."""
        self._run.log(named_figures(line), step=line["step"])

    def finish(self, end: RunEnd) -> None:
        """Log pictures and a table of the layers, and put final figures and sentences into the run's summary."""
        import wandb

        columns = ["layer", "kind", "largest singular value", "proved bound", "maximum"]
        rows = [[row.name, row.kind, row.largest, row.bound, row.maximum] for row in end.layers]
        shown: dict[str, Any] = {f"pictures/{name}": wandb.Image(str(path)) for name, path in end.pictures.items()}
        self._run.log({**shown, "layers": wandb.Table(columns=columns, data=rows)}, step=end.step)
        self._run.summary.update({**named_results(end), "text": "\n".join(end.sentences)})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
