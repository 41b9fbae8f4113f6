"""`svdctl reproduce`: the paper's tables and the figure of speed with one command."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdctl.cli import options as o
from svdctl.cli.options import option
from svdctl.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from svdctl.config.table_config import Request

WHAT = "What"
WHERE = "Where"
ENGINE = "Engine"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("reproduce")(reproduce)


def reproduce(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            help="table1, table2, table3, table-vgg, figure-speed, all, or a table file.", show_default=False
        ),
    ] = None,
    list_: Annotated[bool, option("--list", text="List the tables and stop.", panel=WHAT)] = False,
    dry_run: Annotated[
        bool,
        option("--dry-run", text="Show every run, with hours from a few measured steps; needs no data.", panel=WHAT),
    ] = False,
    scale: Annotated[
        str | None, option("--scale", text="full, or smoke: small stand-ins on embedded data, in minutes.", panel=WHAT)
    ] = None,
    columns: Annotated[
        str | None, option("--columns", text="all, or static: those that need no training.", panel=WHAT)
    ] = None,
    rows: Annotated[
        list[str] | None, option("--rows", text="Patterns of row names, 'divide*'. Several are allowed.", panel=WHAT)
    ] = None,
    seeds: Annotated[
        list[str] | None, option("--seeds", text="Seeds instead of the table's own: 3407 3408 3409.", panel=WHAT)
    ] = None,
    set_: o.Set = None,
    paper_numbers: Annotated[
        str | None, option("--paper-numbers", text="TOML file with the paper's numbers, to show beside.", panel=WHAT)
    ] = None,
    out_dir: Annotated[
        str | None, option("--out-dir", text="Folder of the runs; outputs go to tables/ in it (runs).", panel=WHERE)
    ] = None,
    reuse: Annotated[
        list[str] | None, option("--reuse", text="Further folders whose finished runs are used.", panel=WHERE)
    ] = None,
    dataset_root: Annotated[str | None, option("--dataset-root", text="Where CIFAR lies (data).", panel=WHERE)] = None,
    cifar_c_root: Annotated[
        str | None, option("--cifar-c-root", text="Where CIFAR-C lies; otherwise beside CIFAR.", panel=WHERE)
    ] = None,
    wandb: o.Wandb = None,
    jobs: Annotated[
        int | None, option("--jobs", text="Runs at a time on this machine, each in its own process.", panel=ENGINE)
    ] = None,
    engine: Annotated[str | None, option("--engine", text="local, or ray: a cluster.", panel=ENGINE)] = None,
    address: Annotated[str | None, option("--address", text="Of the Ray cluster, such as auto.", panel=ENGINE)] = None,
    debug: o.Debug = False,
) -> None:
    """Train, evaluate and lay out tables of the paper; what is finished is used, what was stopped goes on."""
    if list_:
        _list()
        return
    flags = {key.rstrip("_"): value for key, value in locals().items() if key not in ("list_", "dry_run", "debug")}
    request = request_of(flags)
    if dry_run:
        _dry_run(request)
    else:
        _reproduce(request)


def takers() -> Mapping[str, Callable[[str], bool]]:
    """Which words may follow as further values of an option."""
    from svdctl.reproduce.table_schema import list_tables

    def a_row(word: str) -> bool:
        return not word.endswith(".toml") and word not in list_tables()

    return {"--seeds": str.isdigit, "--rows": a_row, "--reuse": a_row}


def request_of(flags: Mapping[str, Any]) -> "Request":
    """The request that the flags make.

    Raises:
        UsageError: with every fault.
    """
    from pydantic import ValidationError

    from svdctl.config.table_config import Request

    given = {name: value for name, value in flags.items() if value is not None and value != []}
    if "tables" not in given:
        raise UsageError("say which table: svdctl reproduce table2, or --list for all of them")
    try:
        return Request.model_validate(given)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            flag = f"--{str(fault['loc'][0]).replace('_', '-')}"
            if fault["type"] == "value_error":
                faults.append(f"{flag}: {fault['ctx']['error']}")
                continue
            message = fault["msg"][0].lower() + fault["msg"][1:]
            faults.append(f"{flag} {fault['input']!s:.80} does not do: {message}")
        raise UsageError(dict.fromkeys(faults)) from error


def _list() -> None:
    from svdctl.reproduce.table_schema import list_tables

    found = list_tables()
    width = max(map(len, found))
    for name, description in found.items():
        typer.echo(f"{name:<{width}}  {description}")


def _dry_run(request: "Request") -> None:
    # Names, files and configurations are judged before torch is imported, which takes seconds.
    from svdctl.reproduce.plan import make_plan

    make_plan(request)
    from svdctl.cli.reproduce_text import dry_run_lines
    from svdctl.reproduce.dry_run import dry_run as estimated

    for line in dry_run_lines(estimated(request, lambda text: typer.echo(text, err=True))):
        typer.echo(line)


def _reproduce(request: "Request") -> None:
    from svdctl.reproduce.plan import make_plan

    make_plan(request)
    from svdctl.cli.reproduce_progress import choose_reporter
    from svdctl.cli.reproduce_text import result_lines
    from svdctl.reproduce import reproduction as recipe

    reporter = choose_reporter()
    try:
        result = recipe.reproduce(request, reporter)
    except KeyboardInterrupt as error:
        # Typer would end the process without a word.
        raise Interrupted(f"stopped; {recipe.GO_ON}") from error
    finally:
        reporter.close()
    for line in result_lines(result):
        typer.echo(line)
    if result.failed:
        raise typer.Exit(1)
