"""The paper's numbers, from a user's file; svdctl ships none, because none could be verified.

Format, TOML: a section for each table, in it a row by its name, in it a value for each column, in the unit of the
table (accuracies and times in per cent, compression as a factor).

    [table2.divide-tt192]
    accuracy = 12.34
    ece = 1.23
"""

import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from svdctl.errors import UsageError
from svdctl.reproduce.plan import TablePlan
from svdctl.reproduce.table_schema import nearest

PaperNumbers = dict[str, dict[str, dict[str, float]]]
"""By table, row and column."""


def read_paper_numbers(path: Path, tables: Sequence[TablePlan]) -> PaperNumbers:
    """Read and check a file against the tables that are made; sections of other tables are passed over.

    Raises:
        UsageError: with every fault.
    """
    try:
        contents = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"`paper_numbers = {path}`: the file cannot be read ({reason}); check its path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"`paper_numbers = {path}`: the file is no TOML ({error}); mend it there") from error
    by_name = {plan.source.stem: plan for plan in tables}
    if not by_name:
        raise UsageError(f"`paper_numbers = {path}`: no table of trained networks is asked for; leave it out")
    faults = [f"`paper_numbers = {path}`: {fault}" for fault in _faults(contents, by_name)]
    if faults:
        raise UsageError(faults)
    return {
        table: {row: {column: float(value) for column, value in values.items()} for row, values in rows.items()}
        for table, rows in contents.items()
        if table in by_name
    }


def _faults(contents: dict[str, Any], tables: dict[str, TablePlan]) -> Iterator[str]:
    if not contents.keys() & tables.keys():
        yield f"it has no section for {' or '.join(tables)}{nearest(next(iter(tables)), contents)}; add [TABLE.ROW]"
    for name, rows in contents.items():
        if name not in tables:
            continue
        known = [row.name for row in tables[name].table.rows]
        if not isinstance(rows, dict):
            yield f"{name} is no section; write [{name}.ROW]"
            continue
        for row, values in rows.items():
            if row not in known:
                yield f"{name} has no row {row}{nearest(row, known)}"
            elif not isinstance(values, dict):
                yield f"{name}.{row} is no section; write [{name}.{row}] and values by column below it"
            else:
                yield from _value_faults(f"{name}.{row}", values, (*tables[name].table.columns, *tables[name].columns))


def _value_faults(where: str, values: dict[str, Any], columns: Sequence[str]) -> Iterator[str]:
    for column, value in values.items():
        if column not in columns:
            yield f"{where} has no column {column}{nearest(column, columns)}"
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"{where}.{column} = {value!r:.40} is no number; write it in the table's unit, without a sign for it"
