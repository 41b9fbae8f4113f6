"""When two configurations are one run: equal once everything that cannot change its results is left out."""

import hashlib
import json
from typing import Any

from svdctl.config.train import TrainConfig

# Precision stays. Numbers of devices and nodes change the order of sums alone.
WITHOUT_EFFECT = (
    "name",
    "out_dir",
    "log",
    "data.root",
    "hardware.accelerator",
    "hardware.compile",
    "hardware.channels_last",
    "checkpoint.keep",
)


def run_hash(config: TrainConfig) -> str:
    """Twelve hexadecimal digits, equal for configurations of equal results.

    Names, places, logs and kinds of devices are left out. `checkpoint.every` is left out too when every epoch is
    evaluated: an evaluation seals the bounds already, so that writing a checkpoint after it changes nothing.
    """
    table: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    dropped = [*WITHOUT_EFFECT, *(["checkpoint.every"] if config.evaluation.every == 1 else [])]
    for path in dropped:
        section, _, key = path.rpartition(".")
        (table[section] if section else table).pop(key, None)
    table["hardware"].update(devices=1, num_nodes=1)
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
