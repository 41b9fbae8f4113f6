"""What a checkpoint asks for beyond its folder when it is resumed: done only where this command asks for it too.

A checkpoint may come from somebody else. Its data are read where it says; nothing is downloaded, no folder made outside
of its own, and nobody is told of the run, unless a flag of this command says so.
"""

from collections.abc import Mapping
from typing import Any

from svdctl.config.train_config import TrainConfig


def without_online_logs(config: TrainConfig, changes: Mapping[str, Any]) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return the configuration with logs that stay in the run folder, and a sentence for each that was to go online.

    Args:
        config: of the checkpoint, changed by this command.
        changes: fields that this command sets, a nested table.
    """
    log = config.log
    if "wandb" in changes.get("log", {}):
        return config, ()
    online = log.wandb == "online" or any(getattr(logger, "mode", None) == "online" for logger in log.loggers)
    if not online:
        return config, ()
    loggers = tuple(
        logger.model_copy(update={"mode": "offline"}) if getattr(logger, "mode", None) == "online" else logger
        for logger in log.loggers
    )
    wandb = "offline" if log.wandb == "online" else log.wandb
    quiet = config.model_copy(update={"log": log.model_copy(update={"wandb": wandb, "loggers": loggers})})
    return quiet, (
        "the run asks for a log online, and is logged offline, in its own folder: a file alone sends nothing; add "
        "`log.wandb = online` to send it",
    )
