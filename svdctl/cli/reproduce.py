"""`svdctl reproduce`: the paper's tables and the figure of speed with one command."""

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from svdctl.cli.help_page import Panel
from svdctl.cli.opening import device_line, say_opening
from svdctl.cli.options import Flag, Flags, Merge, with_options
from svdctl.cli.training_commands import print_names
from svdctl.cli.training_flags import command_of
from svdctl.cli.training_table import DEBUG, PLUGIN, SET
from svdctl.errors import Interrupted, UsageError
from svdctl.reproduce.table_files import Request, list_rows, list_tables
from svdctl.utils.escapes import one_line
from svdctl.utils.signals import stops_answered
from svdctl.utils.table import terminal, width_of

if TYPE_CHECKING:
    from svdctl.reproduce.plan import Plan
    from svdctl.reproduce.run_store import Job


def _set(merge: Merge, name: str, value: list[str]) -> None:
    merge.put(name, merge.given.pop("set"))


REQUEST: Flags = {
    "list": Flag(panel=Panel.WHAT, text="List the tables and stop.", type=bool),
    "dry_run": Flag(
        panel=Panel.WHAT,
        text="Print all runs, with hours from a few steps that are measured, and stop; the images need not be there.",
        type=bool,
    ),
    "scale": Flag("scale", Panel.WHAT, "The tables as in the paper, or small networks on embedded images, in minutes."),
    "columns": Flag("columns", Panel.WHAT, "All columns, or only those that need no training."),
    "rows": Flag(
        "rows",
        Panel.WHAT,
        "Only rows whose names match one of these patterns, as 'divide*'.",
        value="PATTERN...",
        candidates=list_rows,
        default="all",
    ),
    "seeds": Flag(
        "seeds",
        Panel.WHAT,
        "Seeds of the runs of each row, as 3407 3408 3409.",
        list[str],
        value="INT...",
        default="those of the table",
    ),
    "set": replace(
        SET, key="set", rule=_set, text="Set a key of the configuration of all runs, as epochs=3. Repeatable."
    ),
    "plugin": PLUGIN,
    "paper_numbers": Flag(
        "paper_numbers",
        Panel.OUTPUT,
        "TOML file with the numbers of the paper, to stand beside those that are measured.",
        value="FILE",
        default="",
    ),
    "out_dir": Flag(
        "out_dir",
        Panel.OUTPUT,
        "Folder of the runs; tables and pictures go to tables/ in it.",
        value="FOLDER",
    ),
    "reuse": Flag(
        "reuse",
        Panel.RUN,
        "Further folders with finished runs, which are used where a row needs them.",
        value="FOLDER...",
        default="",
    ),
    "dataset_root": Flag(
        "dataset_root",
        Panel.DATA,
        "Folder of CIFAR, downloaded to it when missing.",
        value="FOLDER",
        default="data",
    ),
    "cifar_c_root": Flag(
        "cifar_c_root",
        Panel.DATA,
        "Folder of CIFAR-C, downloaded to it when missing.",
        value="FOLDER",
        default="below the folder of CIFAR",
    ),
    "wandb": Flag("wandb", Panel.OUTPUT, "Log every run to Weights & Biases, on this machine alone or on its server."),
    "jobs": Flag("jobs", Panel.DEVICES, "Runs at the same time on this machine, each in its own process."),
    "engine": Flag("engine", Panel.DEVICES, "Where the runs are: on this machine, or on a Ray cluster."),
    "address": Flag(
        "address",
        Panel.DEVICES,
        "With --engine ray: address of the cluster, as auto or 10.0.0.1:6379.",
        value="ADDRESS",
        default="Ray starts on this machine",
    ),
    "debug": DEBUG,
}
EXAMPLES = (
    ("A table in minutes, small networks on embedded images, to see that all works:",
     "svdctl reproduce table2 --scale smoke"),
    ("Two rows of it as in the paper, three seeds each, and what they would take:",
     "svdctl reproduce table2 --rows 'clip*' 'divide*' --seeds 3407 3408 3409 --dry-run"),
)  # fmt: skip
"""For the end of the help."""


@with_options(REQUEST, Request, ("tables", "Tables by name (--list shows all), or table files."))
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
    plan = _planned(request, "dry run of ")
    from svdctl.reproduce.estimate import dry_run

    for line in dry_run(plan, command_line, lambda text: typer.echo(one_line(text), err=True), width_of(sys.stdout)):
        typer.echo(line)


def _planned(request: Request, before: str = "") -> "Plan":
    """Return the plan, and say what it is: names, files and configurations are judged before torch is imported."""
    from svdctl.reproduce.plan import make_plan

    plan = make_plan(request)
    jobs = plan.jobs()
    runs = f"{len(jobs)} run{'s' * (len(jobs) != 1)}, {request.jobs} at a time" if jobs else "nothing to train"
    names = ", ".join([*(table.name for table in plan.tables), *plan.figures])
    lines = [f"kept in  {request.out_dir}, tables in {request.out_dir / 'tables'}"]
    if jobs:
        hardware = jobs[0].config.hardware
        lines.insert(0, device_line(hardware.accelerator, hardware.precision))
    say_opening("reproduce", f"{before}{names}: {runs}", lines)
    return plan


def _reproduce(request: Request) -> None:
    from svdctl.cli.reproduce_progress import SweepDisplay

    again = one_line(shlex.join(["svdctl", *sys.argv[1:]]))
    reporter = SweepDisplay()
    try:
        with stops_answered(lambda text: reporter.answer(f"{text}; to go on", again), "nothing was begun"):
            plan = _planned(request)
            with reporter.part("loading torch"):
                from svdctl.reproduce import reproduction as recipe

            result = recipe.reproduce(plan, reporter, command_line)
    except KeyboardInterrupt as error:
        # Typer would end the process without a word.
        raise Interrupted(f"stopped; the same command goes on: {again}") from error
    finally:
        reporter.close()
    width = width_of(sys.stdout)
    for found in result.tables:
        typer.echo(f"\n{terminal(found.table, width=width, fold=True)}")
    typer.echo("\n".join(["", "files", *(f"  {one_line(path)}" for path in result.files)]))
    if result.failed:
        typer.echo(f"\n{len(result.failed)} failed; the same command tries them again")
        raise typer.Exit(1)
