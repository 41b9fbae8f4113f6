"""The plain text of `svdctl reproduce`: finished tables, and what a dry run found."""

import shlex
from typing import TYPE_CHECKING

from svdctl.cli.training_flags import command_of
from svdctl.utils.table import terminal

if TYPE_CHECKING:
    from svdctl.reproduce.estimate import DryRun
    from svdctl.reproduce.reproduction import ReproduceResult
    from svdctl.reproduce.run_store import Job, RunState


def command_line(job: "Job") -> str:
    """Return the command line that trains a run."""
    changes = [f"--set {shlex.quote(assignment)}" for assignment in job.assignments]
    changes += [f"--plugin {shlex.quote(plugin)}" for plugin in job.config.plugins]
    return " ".join([f"svdctl {command_of(job.config.model.kind).name} --preset {job.preset}", *changes])


def result_lines(result: "ReproduceResult") -> list[str]:
    """Return the tables as they are written, the files, and what failed."""
    lines = []
    for found in result.tables:
        lines += ["", terminal(found.table)]
    lines += ["", "files", *(f"  {path}" for path in result.files)]
    if result.failed:
        lines += ["", f"{len(result.failed)} failed; the same command tries them again"]
    return lines


def dry_run_lines(dry_run: "DryRun") -> list[str]:
    """Return every run with what it would cost, and sums."""
    lines = []
    for item in dry_run.jobs:
        config = item.job.config
        train, evaluate = map(_hours, item.hours or (None, None))
        flops = f"{item.static['step-flops']:.3g}" if "step-flops" in item.static else "-"
        lines += [
            f"{config.name} ({item.job.key})",
            f"  serves    {'; '.join(item.rows)}",
            f"  config    {command_line(item.job)}",
            f"  network   {item.static['parameters']:,.0f} parameters, {item.static['compression']:.2f}x smaller than "
            f"uncompressed; {flops} FLOPs a step of {config.batch_size}",
            f"  hours     training {train}, evaluation at most {evaluate}",
            f"  disk      {_size(item.disk)}",
            f"  there     {_there(item.found)}",
        ]
    for name, figure in dry_run.plan.figures.items():
        lines += [f"{name}", f"  measured on this machine when it is asked for: {figure.title}"]
    known = [
        item.hours.evaluate + (0.0 if item.found is not None and item.found.finished else item.hours.train)
        for item in dry_run.jobs
        if item.hours is not None
    ]
    lines += [
        "",
        f"{len(dry_run.jobs)} runs, {_hours(sum(known))} hours left one after another on this machine"
        + (f" ({len(dry_run.jobs) - len(known)} of unknown length)" if len(known) < len(dry_run.jobs) else ""),
        f"disk: {_size(dry_run.disk_needed)} for new runs, {_size(dry_run.disk_free)} free",
        "hours are estimates from a few measured steps on random images (on a CPU of 16 images, scaled to the batch); "
        "those of attacks hold for images that no attack breaks, and are a bound",
    ]
    return lines


def _hours(hours: float | None) -> str:
    if hours is None:
        return "unknown, the data are not here"
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.3f}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _there(found: "RunState | None") -> str:
    if found is None:
        return "nothing"
    if found.finished:
        return f"trained, in {found.folder}"
    return f"stopped at step {found.step}, in {found.folder}" if found.step else f"begun, in {found.folder}"
