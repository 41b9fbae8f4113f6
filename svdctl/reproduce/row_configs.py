"""Configurations of table rows and of the networks in a speed figure, from presets and assignments."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from svdctl.config.command_flags import command_of
from svdctl.config.data_config import Cifar10, Cifar100, Data, Folder, Npz
from svdctl.config.overrides import Overrides
from svdctl.config.presets import list_presets, read_preset, run_name
from svdctl.config.table_config import Network, Request, ResultTable, Row
from svdctl.config.train_config import TrainConfig
from svdctl.config.validation_errors import sentences, sentences_of_mixes
from svdctl.errors import UsageError
from svdctl.reproduce.table_schema import nearest


def configuration(preset: str, assignments: Sequence[str]) -> TrainConfig:
    """Return the configuration of a preset with changes.

    Args:
        preset: name of a shipped preset, or path of a TOML file.
        assignments: `key.path=value` each.

    Raises:
        UsageError: with every fault.
    """
    to, faults = Overrides(read_preset(preset)), list[str]()
    for name, default in TrainConfig().model_dump(mode="json").items():
        if isinstance(default, dict) and "kind" in default:
            to.table.setdefault(name, {"kind": default["kind"]})
    for assignment in assignments:
        try:
            to.assign(assignment)
        except UsageError as error:
            faults += error.faults
    try:
        config = TrainConfig.model_validate(to.table)
    except ValidationError as error:
        command = command_of(str(to.kind("model")))
        faults += [*sentences(error, command), *sentences_of_mixes(to.table, error, command)]
    if faults:
        raise UsageError(dict.fromkeys(faults))
    return config


def network_configs(network: Network) -> dict[int, TrainConfig]:
    """Return the configurations of the whole network of a speed figure, by rank; the uncompressed one as 0.

    Raises:
        UsageError: the preset or an assignment is wrong.
    """
    layers = {0: ["layer.kind=standard"]} | {
        rank: ["layer.kind=tt", f"layer.rank={rank}", "layer.frames.kind=retract"] for rank in network.ranks
    }
    return {rank: configuration(network.preset, [*network.set, *layer]) for rank, layer in layers.items()}


def located(data: Data, request: Request) -> Data:
    """Return the data at the place of this request; absolute paths for a cluster, whose workers start elsewhere."""
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
) -> tuple[TrainConfig, str, tuple[str, ...]]:
    """Return the configuration of one run, and the preset and assignments that give it."""
    smoke = (*table.smoke.set, *row.smoke) if request.scale == "smoke" and table.smoke is not None else ()
    beside = path.parent / row.preset
    preset = str(beside) if row.preset.endswith(".toml") and beside.is_file() else row.preset
    if preset == row.preset and not row.preset.endswith(".toml") and row.preset.replace("_", "-") not in list_presets():
        raise UsageError(f"there is no preset {row.preset}{nearest(row.preset, list_presets())}")
    assignments = (*table.set, *row.set, *smoke, *request.set, f"seed={seed}")
    config = configuration(preset, assignments)
    update: dict[str, object] = {
        "name": run_name(f"{title}-{row.name}-s{seed}"),
        "out_dir": request.out_dir,
        "data": located(config.data, request),
    }
    if request.wandb != "off":
        update["log"] = config.log.model_copy(update={"wandb": request.wandb, "wandb_group": title})
    return config.model_copy(update=update), preset, assignments
