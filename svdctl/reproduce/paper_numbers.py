"""The paper's numbers, from a user's file; svdctl ships none, because none could be verified.

Format, TOML: a section for each table, in it a row by its name, in it a value for each column, in the unit of the
table (accuracies and times in per cent, compression as a factor).

    [table2.divide-tt192]
    accuracy = 12.34
    ece = 1.23
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from svdctl.errors import UsageError
from svdctl.reproduce.plan import TablePlan
from svdctl.reproduce.table_schema import nearest, read_toml

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PaperNumbers = dict[str, dict[str, dict[str, Number]]]
"""By table, row and column."""


def read_paper_numbers(path: Path, tables: Sequence[TablePlan]) -> PaperNumbers:
    """Read and check a file against the tables that are made; sections of other tables are passed over.

    Raises:
        UsageError: with every fault.
    """
    where = f"`paper_numbers = {path}`"
    contents = read_toml(path, where)
    plans = {plan.source.stem: plan for plan in tables}
    if not plans:
        raise UsageError(f"{where}: no table of trained networks is asked for; leave it out")
    given = {name: rows for name, rows in contents.items() if name in plans}
    faults = [
        fault
        for name, rows in given.items()
        if isinstance(rows, dict)
        for fault in _unknown_names(name, rows, plans[name])
    ]
    if not given:
        near = nearest(next(iter(plans)), contents)
        faults.append(f"it has no section for {' or '.join(plans)}{near}; add [TABLE.ROW]")
    numbers: PaperNumbers = {}
    try:
        numbers = TypeAdapter(PaperNumbers).validate_python(given)
    except ValidationError as error:
        for fault in error.errors():
            place, needed = ".".join(map(str, fault["loc"])), "section" if fault["type"] == "dict_type" else "number"
            faults.append(f"{place} = {fault['input']!r:.40} is no {needed}; write [TABLE.ROW] and numbers below it")
    if faults:
        raise UsageError([f"{where}: {fault}" for fault in faults])
    return numbers


def _unknown_names(name: str, rows: dict[str, Any], plan: TablePlan) -> Iterator[str]:
    """Yield a sentence for each row and column that a table does not have."""
    known = [row.name for row in plan.table.rows]
    columns = {*plan.table.columns, *plan.columns}
    for row, values in rows.items():
        if row not in known:
            yield f"{name} has no row {row}{nearest(row, known)}"
        elif isinstance(values, dict):
            for column in values.keys() - columns:
                yield f"{name}.{row} has no column {column}{nearest(column, columns)}"
