"""MLflow: a store of files in the folder `mlflow` of the run; the package is needed only by runs that use it."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from svdctl.config.base import Config
from svdctl.errors import UsageError
from svdctl.train.logger import Logger, LogWriter, RunEnd, RunInfo, register_logger
from svdctl.train.loggers.tracking import flat_configuration, named_figures, named_results, require_folder, summary_text

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FOLDER = "mlflow"
"""Of the run folder."""
_BATCH = 100
"""Parameters that MLflow takes at once; of metrics it takes more."""


class MlflowConfig(Config):
    """The store is `mlflow/` of the run folder, of which MLflow's own interface shows one at a time."""

    kind: Literal["mlflow"] = "mlflow"
    experiment: str = "svdctl"


@contextmanager
def _own_store() -> Iterator[None]:
    """Allow MLflow a store of files, which it refuses since version 3.17 unless asked, and have it tell nobody."""
    wanted = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _batches(pairs: Mapping[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    left = iter(pairs.items())
    while batch := list(islice(left, _BATCH)):
        yield batch


@register_logger
class MlflowLogger(Logger):
    """Writes parameters, metrics, pictures and summary as MLflow does, into the run folder alone."""

    kind = "mlflow"
    config = MlflowConfig

    def open(self, run: RunInfo, config: MlflowConfig) -> LogWriter:
        """Begin the store; that of a run that is resumed is written anew from the lines that stay.

        Raises:
            UsageError: the package mlflow is not installed.
            UnusableFileError: a link, or no folder, has the place of the folder.
        """
        try:
            with _own_store():
                from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise UsageError(
                "the logger mlflow needs a package that is not there; run pip install mlflow-skinny"
            ) from error
        folder = run.folder / FOLDER
        require_folder(folder, "the store of MLflow belongs")
        if folder.is_dir():
            # A store says itself where pictures are written: what somebody else may have made is not gone on with.
            shutil.rmtree(folder)
        # The folders of an empty store: MLflow makes them for the first store of a process at this place alone.
        (folder / ".trash").mkdir(parents=True)
        with _own_store():
            client = MlflowClient(tracking_uri=folder.absolute().as_uri())
            experiment = client.create_experiment(config.experiment)
            writer = _MlflowWriter(client, client.create_run(experiment, run_name=run.folder.name).info.run_id, run)
        for line in run.lines or ():
            writer.write(line)
        return writer


class _MlflowWriter:
    def __init__(self, client: "MlflowClient", run_id: str, run: RunInfo) -> None:
        from mlflow.entities import Param

        self._client, self._run_id, self._status = client, run_id, "KILLED"
        for pairs in _batches(flat_configuration(run.configuration)):
            client.log_batch(run_id, params=[Param(name, str(value)) for name, value in pairs])

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        for pairs in _batches(figures):
            self._client.log_batch(self._run_id, [Metric(name, value, now, step) for name, value in pairs])

    def write(self, line: Mapping[str, Any]) -> None:
        """Add the figures of a line at its step."""
        with _own_store():
            self._log(named_figures(line), line["step"])

    def finish(self, end: RunEnd) -> None:
        """Add final figures, and pictures and summary as artifacts."""
        with _own_store():
            self._log(named_results(end), end.step)
            for path in end.pictures.values():
                self._client.log_artifact(self._run_id, str(path), "pictures")
            self._client.log_text(self._run_id, summary_text(end), "summary.md")
        self._status = "FINISHED"

    def close(self) -> None:
        """Say whether the run has reached its last step."""
        with _own_store():
            self._client.set_terminated(self._run_id, self._status)
