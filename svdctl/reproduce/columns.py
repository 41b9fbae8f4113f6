"""Columns of tables: those of metrics, and those that follow from a configuration or a training alone."""

from svdctl.evaluate.metric import TableColumn, all_metrics

STATIC = ("parameters", "compression", "control-cost")
"""Columns that follow from the configuration alone."""
OWN = (
    TableColumn("parameters", "parameters", decimals=0),
    TableColumn("compression", "compression", suffix="x", better="high"),
    TableColumn("control-cost", "control, modelled", decimals=1, suffix="x cheaper", better="high"),
    TableColumn("control-time", "control, % of training", 100.0, 1, better="low"),
    TableColumn("train-hours", "training, hours", better="low"),
)


def known_columns() -> dict[str, TableColumn]:
    """Return all columns by name, those of metrics included; a metric cannot replace one of `OWN`."""
    return {column.name: column for column in (*(c for metric in all_metrics() for c in metric.columns), *OWN)}


def metric_of(name: str) -> str | None:
    """Return the metric that a column belongs to; None for one of `OWN`."""
    columns = {column.name: metric.kind for metric in all_metrics() for column in metric.columns}
    return columns.get(name)
