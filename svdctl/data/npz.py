"""A user's own arrays in one `.npz` file."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from svdctl.config.data_config import DataConfig
from svdctl.data.data_source import DataSource, register_data

if TYPE_CHECKING:
    from svdctl.data.train_test import TrainTest


class Npz(DataConfig):
    """Arrays `x_train, y_train, x_test, y_test`, and `x_val, y_val` for a validation part, in one `.npz` file."""

    kind: Literal["npz"] = "npz"
    path: Path
    """File of the arrays."""
    channels: Literal[1] | None = None
    """1: grey images keep their one channel, and images in colour are an error; absent: all have three."""


def missing_file(path: Path) -> str:
    """Return the sentence on a file that is not there."""
    return f"there is no file {path}; give `data.path` an existing .npz"


@register_data
class NpzSource(DataSource):
    """Images `(N, H, W)`, `(N, H, W, 3)` or `(N, 3, H, W)` in uint8, labels from 0."""

    kind = "npz"
    config = Npz

    def missing(self, config: Npz) -> str | None:
        return None if config.path.expanduser().exists() else missing_file(config.path)

    def load(self, config: Npz) -> "TrainTest":
        from svdctl.data.read_npz import read_npz

        data = read_npz(config.path)
        return data.grey(str(config.path)) if config.channels == 1 else data
