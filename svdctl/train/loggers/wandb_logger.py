"""Weights & Biases, a service that draws curves; the package is needed only by runs that use it."""

from collections.abc import Mapping
from typing import Any, Literal

from svdctl.config.base import Config
from svdctl.errors import TrainingError, UsageError
from svdctl.train.logger import Logger, LogWriter, RunInfo, register_logger


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
        """Start a run of Weights & Biases that has the name of the run folder.

        Raises:
            UsageError: it refused to start.
            TrainingError: it cannot be reached.
        """
        import wandb  # 0.8 s, and needed by few

        try:
            return _WandbWriter(
                wandb.init(
                    project=config.project,
                    group=config.group,
                    name=run.folder.name,
                    dir=str(run.folder),
                    mode=config.mode,
                    config=dict(run.configuration),
                    settings=wandb.Settings(silent=True),
                )
            )
        except wandb.errors.UsageError as error:
            raise UsageError(
                f"Weights & Biases refused to start ({str(error).splitlines()[0]}); run `wandb login`, or use "
                "`log.wandb = offline`"
            ) from error
        except wandb.errors.CommError as error:
            raise TrainingError(f"Weights & Biases cannot be reached ({error}); use `log.wandb = offline`") from error


class _WandbWriter:
    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, line: Mapping[str, Any]) -> None:
        """Log the figures of a line at its step."""
        self._run.log({key: value for key, value in line.items() if key not in ("kind", "step")}, step=line["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
