"""From the words of a table file to configurations: of a row, and of the network in a figure of speed."""

import shlex
from pathlib import Path

from svdctl.config.command_flags import LIPCONV, TRAIN
from svdctl.config.data_config import Cifar10, Cifar100, Data, Folder, Npz
from svdctl.config.presets import list_presets, read_preset, run_name
from svdctl.config.table_config import Assignments, Network, Request, ResultTable, Row
from svdctl.config.train_config import TrainConfig
from svdctl.config.train_flags import resolve
from svdctl.errors import UsageError
from svdctl.reproduce.table_schema import nearest


def network_configs(network: Network) -> dict[int, TrainConfig]:
    """The configurations of the whole network that a figure of speed measures, by rank; the full one as 0.

    Raises:
        UsageError: a preset or an assignment that does not do.
    """
    words = {0: ["layer.kind=standard"]} | {
        rank: ["layer.kind=tt", f"layer.rank={rank}", "layer.frames.kind=retract"] for rank in network.ranks
    }
    return {
        rank: resolve({"preset": network.preset, "set": [*network.set, *sets]}).config for rank, sets in words.items()
    }


def located(data: Data, request: Request) -> Data:
    """The data where they are for this request; by absolute paths for a cluster, whose workers start elsewhere."""
    paths: dict[str, Path] = {}
    if isinstance(data, Cifar10 | Cifar100):
        paths = {"root": request.dataset_root or data.root}
    elif isinstance(data, Folder | Npz):
        paths = {"path": data.path}
    if request.engine == "ray":
        paths = {name: path.expanduser().absolute() for name, path in paths.items()}
    return data.model_copy(update=paths)


def row_config(
    path: Path, table: ResultTable, row: Row, seed: int, title: str, request: Request
) -> tuple[TrainConfig, str]:
    """The configuration of one run, and the words that give it on the command line."""
    smoke: Assignments = ()
    if request.scale == "smoke" and table.smoke is not None:
        smoke = (*table.smoke.set, *row.smoke)
    beside = path.parent / row.preset
    preset = str(beside) if row.preset.endswith(".toml") and beside.is_file() else row.preset
    if preset == row.preset and not row.preset.endswith(".toml") and row.preset.replace("_", "-") not in list_presets():
        raise UsageError(f"there is no preset {row.preset}{nearest(row.preset, list_presets())}")
    command = LIPCONV if LIPCONV.owns(read_preset(preset)) else TRAIN
    words = [*table.set, *row.set, *smoke, *request.set, f"seed={seed}"]
    config = resolve({"preset": preset, "set": words}, command).config
    update: dict[str, object] = {
        "name": run_name(f"{title}-{row.name}-s{seed}"),
        "out_dir": request.out_dir,
        "log": config.log.model_copy(update={"wandb": request.wandb, "wandb_group": title})
        if request.wandb != "off"
        else config.log,
    }
    update["data"] = located(config.data, request)
    base = f"svdctl {command.name} --preset {preset} " + " ".join(f"--set {shlex.quote(word)}" for word in words)
    return config.model_copy(update=update), base
