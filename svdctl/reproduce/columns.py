"""How each metric is headed, scaled and printed."""

from dataclasses import dataclass
from typing import Literal

from svdctl.config.corruption_names import CLEAN, list_name
from svdctl.config.table_config import Column, Evaluate


@dataclass(frozen=True)
class ColumnFormat:
    """Presentation of one column."""

    header: str
    factor: float = 1.0
    """From the stored value to the shown one."""
    decimals: int = 2
    suffix: str = ""
    better: Literal["high", "low"] | None = None

    def shown(self, value: float) -> str:
        """A value as the table shows it."""
        return f"{value * self.factor:,.{self.decimals}f}{self.suffix}"


def _percent(header: str, better: Literal["high", "low"]) -> ColumnFormat:
    return ColumnFormat(f"{header}, %", 100.0, 2, better=better)


def header_of(column: Column, evaluate: Evaluate) -> str:
    """What stands above a column; above accuracy on corruptions, over which corruptions it is the mean."""
    if column != "cifar-c":
        return LOOKS[column].header
    name = list_name([name for name in evaluate.corruption_names if name != CLEAN], evaluate.severities)
    return f"CIFAR-C {name}, %"


LOOKS: dict[Column, ColumnFormat] = {
    "parameters": ColumnFormat("parameters", decimals=0),
    "compression": ColumnFormat("compression", suffix="x", better="high"),
    "control-cost": ColumnFormat("control, modelled", decimals=1, suffix="x cheaper", better="high"),
    "accuracy": _percent("accuracy", "high"),
    "cifar-c": _percent("CIFAR-C", "high"),
    "ece": _percent("ECE", "low"),
    "autoattack": _percent("AutoAttack", "high"),
    "certified-36": _percent("certified 36/255", "high"),
    "certified-72": _percent("certified 72/255", "high"),
    "certified-108": _percent("certified 108/255", "high"),
    "certified-255": _percent("certified 255/255", "high"),
    "control-time": ColumnFormat("control, % of training", 100.0, 1, better="low"),
    "train-hours": ColumnFormat("training, hours", better="low"),
}
