"""`svdctl reproduce`: the paper's tables and the figure of speed with one command."""

import shlex
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from svdctl.cli.options import RUN, Flag, Flags, Merge, with_options
from svdctl.cli.training_commands import print_names
from svdctl.cli.training_flags import DEBUG, PLUGIN, SET, command_of
from svdctl.errors import Interrupted, UsageError
from svdctl.reproduce.table_files import Request, list_tables
from svdctl.utils.escapes import one_line
from svdctl.utils.table import terminal, width_of

if TYPE_CHECKING:
    from svdctl.reproduce.run_store import Job

WHAT = "What"
WHERE = "Where"
ENGINE = "Engine"


def _set(merge: Merge, name: str, value: list[str]) -> None:
    merge.put(name, merge.given.pop("set"))


REQUEST: Flags = {
    "list": Flag(panel=WHAT, text="List the tables and stop.", type=bool),
    "dry_run": Flag(panel=WHAT, text="Show every run, with hours from a few measured steps; needs no data.", type=bool),
    "scale": Flag("scale", WHAT, "full, or smoke: small stand-ins on embedded data, in minutes."),
    "columns": Flag("columns", WHAT, "all, or static: those that need no training."),
    "rows": Flag("rows", WHAT, "Patterns of row names, 'divide*'. Several are allowed."),
    "seeds": Flag("seeds", WHAT, "Seeds instead of the table's own: 3407 3408 3409.", list[str]),
    "set": Flag("set", RUN, SET.text, list[str], _set),
    "plugin": PLUGIN,
    "paper_numbers": Flag("paper_numbers", WHAT, "TOML file with the paper's numbers, to show beside."),
    "out_dir": Flag("out_dir", WHERE, "Folder of the runs; outputs go to tables/ in it (runs)."),
    "reuse": Flag("reuse", WHERE, "Further folders whose finished runs are used."),
    "dataset_root": Flag("dataset_root", WHERE, "Where CIFAR lies (data)."),
    "cifar_c_root": Flag("cifar_c_root", WHERE, "Where CIFAR-C lies; otherwise beside CIFAR."),
    "wandb": Flag("wandb", RUN, "Weights & Biases: off, offline or online."),
    "jobs": Flag("jobs", ENGINE, "Runs at a time on this machine, each in its own process."),
    "engine": Flag("engine", ENGINE, "local, or ray: a cluster."),
    "address": Flag("address", ENGINE, "Address of the Ray cluster, such as auto."),
    "debug": DEBUG,
}


@with_options(REQUEST, Request, ("tables", "table1, table2, table3, table-vgg, figure-speed, all, or a table file."))
def reproduce(flags: dict[str, Any]) -> None:
    """Train, evaluate and lay out tables of the paper; what is finished is used, what was stopped goes on."""
    if flags.pop("list", False):
        print_names(list_tables())
        return
    dry_run = flags.pop("dry_run", False)
    request = request_of(flags)
    if dry_run:
        _dry_run(request)
    else:
        _reproduce(request)


def takers() -> Mapping[str, Callable[[str], bool]]:
    """Return which words may follow as further values of an option."""

    def a_row(word: str) -> bool:
        return not word.endswith(".toml") and word not in list_tables()

    return {"--seeds": str.isdigit, "--rows": a_row, "--reuse": a_row}


def request_of(given: Mapping[str, Any]) -> Request:
    """Return the request that the flags make.

    Raises:
        UsageError: with every fault.
    """
    if "tables" not in given:
        raise UsageError("say which table: svdctl reproduce table2, or --list for all of them")
    merge = Merge(REQUEST, given, {"tables": list(map(str, given["tables"]))})
    merge.load_plugins()
    merge.apply()
    return merge.result(Request)


def command_line(job: "Job") -> str:
    """Return the command line that trains a run."""
    changes = [f"--set {shlex.quote(assignment)}" for assignment in job.assignments]
    changes += [f"--plugin {shlex.quote(plugin)}" for plugin in job.config.plugins]
    return " ".join([f"svdctl {command_of(job.config.model.kind).name} --preset {job.preset}", *changes])


def _dry_run(request: Request) -> None:
    # Names, files and configurations are judged before torch is imported, which takes seconds.
    from svdctl.reproduce.plan import make_plan

    plan = make_plan(request)
    from svdctl.reproduce.estimate import dry_run

    for line in dry_run(plan, command_line, lambda text: typer.echo(one_line(text), err=True), width_of(sys.stdout)):
        typer.echo(one_line(line))


def _reproduce(request: Request) -> None:
    from svdctl.reproduce.plan import make_plan

    plan = make_plan(request)
    from svdctl.cli.reproduce_progress import SweepDisplay
    from svdctl.reproduce import reproduction as recipe

    reporter = SweepDisplay()
    try:
        result = recipe.reproduce(plan, reporter, command_line)
    except KeyboardInterrupt as error:
        # Typer would end the process without a word.
        raise Interrupted(f"stopped; {recipe.GO_ON}") from error
    finally:
        reporter.close()
    for found in result.tables:
        typer.echo(f"\n{terminal(found.table)}")
    typer.echo("\n".join(["", "files", *(f"  {one_line(path)}" for path in result.files)]))
    if result.failed:
        typer.echo(f"\n{len(result.failed)} failed; the same command tries them again")
        raise typer.Exit(1)
