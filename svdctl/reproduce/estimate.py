"""What runs cost: parameters and operations from their configurations, hours and disk; no data are needed.

Networks of figures that follow from a configuration alone are built on the meta device: shapes without numbers, so
that a full-scale table takes seconds. Hours come from a few steps measured on this machine.

Model of the cost of control. A layer with output `n x n`, stride s and kernel `O x I` has n^2 matrices of `O x s^2 I`,
the aliased symbols side by side; one singular value decomposition of `a x b` takes of the order of `a b min(a, b)`
operations. For a TT layer O and I are the ranks of its core (Theorem 1 of the paper). The network's cost is the sum
over its convolutions: WRN-16-10 full against rank 192, 256, 320 is 5.1, 3.2, 2.0.
"""

import math
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.data_source import load as load_data
from svdctl.data.data_source import source_of
from svdctl.errors import DataError, FileError
from svdctl.evaluate.results import read_results
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.layers.layer_ops import find_ops, ops_of
from svdctl.layers.shapes import input_sizes
from svdctl.models.build import build_model, count_parameters
from svdctl.registry import LAYERS, METRICS
from svdctl.reproduce.execute import results_folder
from svdctl.reproduce.plan import Plan
from svdctl.reproduce.run_store import Job, RunState, RunStore
from svdctl.reproduce.timing import classes_of, image_side, in_rounds, timed, trainer_on_noise
from svdctl.train.trainer import Trainer
from svdctl.utils.duration import estimated
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import command_lines, hanging
from svdctl.utils.table import Cell, Column, Table, terminal

STEPS = 2
CPU_BATCH = 16
"""Images of a measured step on a CPU, where a whole batch would take too long; a GPU gets the whole batch."""
CONTROL_BUDGET = 5.0
"""Seconds after which layers are no longer timed but reckoned by the model of their cost."""

_LABEL = 12
"""Columns of what stands before the text of a line about a run."""


def shape_model(config: TrainConfig) -> nn.Module:
    """Return the network on the meta device; a user's that cannot be built there, on the CPU."""
    try:
        with torch.device("meta"):
            return build_model(config, classes_of(config))
    except Exception:
        return build_model(config, classes_of(config))


def static_figures(config: TrainConfig) -> dict[str, float]:
    """Return the figures that follow from a configuration alone, by the columns of tables.

    `compression` and `control-cost` are those of the same network with uncompressed layers, over its own; `step-flops`,
    no column, counts the operations of a step's forward and backward pass, a multiplication and an addition as two.
    What is not known is left out: the last two of a user's network that does not run without data.
    """
    # Rows that share all that these figures depend on are counted once.
    same = {"data": config.data, "model": config.model, "layer": config.layer, "batch_size": config.batch_size}
    return _static_figures(TrainConfig().model_copy(update=same).model_dump_json())


@cache
def _static_figures(text: str) -> dict[str, float]:
    config = TrainConfig.model_validate_json(text)
    side, kind = image_side(config), LAYERS.get(config.layer.kind).uncompressed(config.layer)
    model = dense = shape_model(config)
    if kind != config.layer.kind:  # ordinary layers for TT ones, SOC for SOTT ones
        dense = shape_model(TrainConfig.model_validate({**config.model_dump(), "layer": {"kind": kind}}))
    parameters = count_parameters(model)
    found = {"parameters": float(parameters), "compression": count_parameters(dense) / parameters}
    with suppress(Exception):  # whatever a user's code raises; and a network may have no convolution
        found["control-cost"] = control_cost(dense, side) / control_cost(model, side)
    with suppress(Exception), FlopCounterMode(display=False) as counter:
        model(torch.zeros(config.batch_size, 3, side, side, device="meta")).sum().backward()
        found["step-flops"] = float(counter.get_total_flops())
    return found


def control_cost(model: nn.Module, side: int) -> float:
    """Return the modelled operations of an exact control pass over the convolutions of a network."""
    sizes = input_sizes(model, (3, side, side), lambda layer: find_ops(layer) is not None)
    layers = [(ops_of(layer := model.get_submodule(name)), layer, size) for name, size in sizes.items()]
    return sum(ops.cost(layer, size) for ops, layer, size in layers if not ops.is_linear)


def run_bytes(config: TrainConfig) -> int:
    """Return the bytes that a run folder takes at its largest.

    A checkpoint while its successor is written beside it, best.pt when there is one, those of the epochs when they are
    kept, pictures, logs and results.
    """
    optimizer = (1 if config.optimizer.kind == "sgd" else 2) + bool(getattr(config.optimizer, "amsgrad", False))
    # Of an average: the network's weights, the average before its seal, and what is saved.
    state = optimizer + (1 if config.ema is None else 3)
    copies = 2 * state + (config.evaluation.select != "last")
    if config.checkpoint.keep:
        copies += state * (config.epochs // config.checkpoint.every_epochs)
    return 4 * copies * int(static_figures(config)["parameters"]) + (4 << 20)


class Speed(NamedTuple):
    """Seconds of a network for each image, measured on this machine."""

    forward: float
    gradient: float
    """A training step, without control: forward and backward."""


class Hours(NamedTuple):
    """What a run would take on this machine."""

    train: float
    evaluate: float
    """At most: attacks stop early on images that fall."""
    steps: int
    """Of the training."""


def hours(job: Job, measured: dict[str, Any]) -> Hours | None:
    """Estimate one run; None when the size of the data is not known on this machine.

    Args:
        job: the run and what is measured of it.
        measured: keeps the speed of each network, whatever its seed, data and control, and the time of each control of
            it, for the next call.
    """
    config = job.config
    counts = _image_counts(config)
    if counts is None:
        return None
    network = f"{config.model} {config.layer} {config.batch_size} {config.hardware} {image_side(config)}"
    method = f"{network} {config.control.model_dump(exclude={'max_sigma', 'linear_max'})} {config.batchnorm}"
    for key, measure in ((network, measure_network), (method, measure_control)):
        if key not in measured:
            measured[key] = measure(config)
    speed: Speed = measured[network]
    steps = config.epochs * math.ceil(counts[0] / config.batch_size)
    steps = min(steps, config.max_steps or steps)
    seconds = steps * (config.batch_size * speed.gradient + measured[method])
    seconds += config.epochs / config.evaluation.every_epochs * counts[1] * speed.forward
    evaluation = evaluation_seconds(job.evaluate, job.metrics, counts[1], classes_of(config), speed)
    return Hours(seconds / 3600, evaluation / 3600, steps)


def hours_left(job: Job, whole: Hours, found: RunState | None) -> Hours:
    """Return the hours of a run that are left: steps that were trained and metrics that have results take none.

    Args:
        job: the run and what is measured of it.
        whole: what all of it takes.
        found: how far it is.
    """
    if found is None:
        return whole
    steps = 0 if found.finished else max(whole.steps - found.step, 0)
    evaluate = 0.0 if found.finished and not unmeasured(job, found.folder) else whole.evaluate
    return Hours(whole.train * steps / max(whole.steps, 1), evaluate, steps)


def unmeasured(job: Job, folder: Path) -> list[str]:
    """Return the metrics of a job of which no sound results lie in its run folder, under whatever protocol."""
    try:
        there = {record.metric for record in read_results(results_folder(job, folder)).records}
    except FileError:
        there = set()
    return [kind for kind in job.metrics if kind not in there]


def _trainer(config: TrainConfig) -> tuple[Trainer, Callable[[], None]]:
    fabric = Fabric(accelerator=config.hardware.accelerator, devices=1)
    batch = config.batch_size if fabric.device.type != "cpu" else min(config.batch_size, CPU_BATCH)
    return trainer_on_noise(config.model_copy(update={"batch_size": batch}), fabric)


def measure_network(config: TrainConfig) -> Speed:
    """Return seconds of the training loop and of forward passes on random images."""
    trainer, step = _trainer(config)
    model, device, batch = trainer.model, trainer.fabric.device, trainer.config.batch_size
    gradient = statistics.median(in_rounds([step], device, STEPS)[0])
    model.eval()
    pixels = torch.rand(batch, 3, image_side(config), image_side(config), device=device)
    forward = statistics.median(in_rounds([torch.no_grad()(partial(model, pixels))], device, STEPS)[0])
    return Speed(forward / batch, gradient / batch)


def measure_control(config: TrainConfig) -> float:
    """Return mean seconds of control for each step.

    Layers are timed one by one, the cheapest first, until the time for it is spent; the others follow by the model.
    """
    if config.control.kind == "none" and config.batchnorm is None:
        return 0.0
    trainer, _ = _trainer(config)
    model, device, every = trainer.model, trainer.fabric.device, config.control.every_steps
    sizes = input_sizes(model, (3, image_side(config), image_side(config)))
    seconds = 0.0
    if config.batchnorm is not None:
        limit, steps = Controller.from_config(model, None, None, config.batchnorm), config.batchnorm.every_steps
        seconds += timed(partial(limit.control_, steps), device) / steps
    controlled = Controller.from_config(model, None, config.control, None, sizes=sizes).controlled()
    cost = {name: max(1.0, ops_of(layer).cost(layer, sizes[name])) for name, layer in controlled.items()}
    total = pace = 0.0
    for name in sorted(cost, key=cost.__getitem__):
        if total < CONTROL_BUDGET:
            one = Controller.from_config(model, trainer.optimizer, config.control, None, sizes=sizes, layers=name)
            pace = timed(partial(one.control_, every), device) / cost[name]
        total += pace * cost[name]
    return seconds + total / every


def evaluation_seconds(
    evaluate: Evaluate, metrics: tuple[str, ...], test_images: int, classes: int, speed: Speed
) -> float:
    """Return the seconds of an evaluation by its passes through the network; of attacks at most."""
    found = [METRICS.get(metric) for metric in metrics]
    passes = [metric.passes(evaluate, test_images, classes) for metric in found]
    logits = test_images * any(metric.uses_logits for metric in found)
    forwards, gradients = logits + sum(one for one, _ in passes), sum(one for _, one in passes)
    return forwards * speed.forward + gradients * speed.gradient


def _image_counts(config: TrainConfig) -> tuple[int, int] | None:
    """Return the numbers of training and test images; None for files that are not on this machine."""
    counts = source_of(config.data).counts(config.data)
    if counts is None:
        try:
            data = load_data(config.data)
        except DataError:
            return None
        counts = (len(data.train), len(data.test))
        if data.validation is not None:
            return counts
    if config.evaluation.select == "validation":
        return round(counts[0] * (1 - config.evaluation.validation_share)), counts[1]
    return counts


def disk_needed(jobs: Sequence[Job], states: Mapping[str, RunState | None]) -> int:
    """Return the bytes of the runs that have no checkpoint to go on from.

    Args:
        jobs: of the runs.
        states: how far they are, by `key`, as `RunStore.states` returns it.
    """
    new = {}
    for job in jobs:
        found = states[job.key]
        if found is None or not (found.folder / "last.pt").is_file():
            new[job.key] = job
    return sum(run_bytes(job.config) for job in new.values())


def dry_run(
    plan: Plan, command_line: Callable[[Job], str], say: Callable[[str], None], width: int | None = None
) -> Iterator[str]:
    """Yield lines about every run with what it would cost, and sums; works without data.

    Args:
        plan: what is asked for.
        command_line: returns the command that trains a run.
        say: called before each measurement.
        width: columns of the terminal that the table of all runs is for; None: there is none.
    """
    request, jobs, measured = plan.request, plan.jobs(), dict[str, Any]()
    store = RunStore(request.out_dir, request.reuse)
    states = store.states(jobs)
    rows: dict[str, list[str]] = {}
    for table in plan.tables:
        for row in table.rows:
            for job in row.jobs:
                rows.setdefault(job.id, []).append(f"{table.name}: {row.row.name}")
    left: list[Hours] = []
    lines = []
    for number, job in enumerate(jobs, 1):
        say(f"measuring {number}/{len(jobs)}: {job.config.name}")
        static, taken, found = static_figures(job.config), hours(job, measured), states[job.key]
        rest = None if taken is None else hours_left(job, taken, found)
        left += [] if rest is None else [rest]
        flops = f"{static['step-flops']:.3g}" if "step-flops" in static else "-"
        train, evaluate = map(_shown_hours, taken[:2] if taken is not None else (None, None))
        disk = run_bytes(job.config)
        lines.append((job.config.name, _state(job, found), rest, disk))
        yield from _hanging(
            f"{job.config.name} ({job.key})",
            f"  serves    {'; '.join(rows[job.id])}",
            width=width,
        )
        yield from command_lines(one_line(f"  config    {command_line(job)}"), width, _LABEL)
        yield from _hanging(
            f"  network   {static['parameters']:,.0f} parameters, {static['compression']:.2f}x smaller than "
            f"uncompressed; {flops} FLOPs a step of {job.config.batch_size}",
            f"  time      training {train}, evaluation at most {evaluate}",
            f"  disk      {_shown_size(disk)}",
            f"  there     {_there(found)}",
            width=width,
        )
    for name, figure in plan.figures.items():
        yield from _hanging(name, f"  measured on this machine when it is asked for: {figure.title}", width=width)
    if lines:
        yield from ("", *terminal(_overview(lines), width=width).split("\n"))
    folder = request.out_dir.expanduser().absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    unknown = f" ({len(jobs) - len(left)} of unknown length)" if len(left) < len(jobs) else ""
    yield ""
    yield from _hanging(
        f"{len(jobs)} run{'s' * (len(jobs) != 1)}, "
        f"{estimated(sum(rest.train + rest.evaluate for rest in left))} left one after another on this "
        f"machine{unknown}",
        f"disk: {_shown_size(disk_needed(jobs, states))} for new runs, {_shown_size(free)} free",
        "times are estimates from a few measured steps on random images (on a CPU of 16 images, scaled to the "
        "batch); those of attacks are at most so many: with every restart, for images that no attack breaks; nothing "
        "is left of what is trained, and of metrics that have results",
        width=width,
        indent=0,
    )


def _hanging(*texts: str, width: int | None, indent: int = _LABEL) -> Iterator[str]:
    """Yield texts as lines of a terminal, which end at words."""
    for text in texts:
        yield from hanging(one_line(text), width, indent)


def _overview(lines: Sequence[tuple[str, str, Hours | None, int]]) -> Table:
    """Return a table of runs with their state, hours left and bytes."""
    columns = [
        Column("run", "run", "left", elastic=True),
        Column("state", "state", "left"),
        Column("training", "training left"),
        Column("evaluation", "evaluation left", spare=1),
        Column("disk", "disk", spare=2),
    ]
    texts = [
        (name, state, *(("?", "?") if left is None else map(_shown_left, left[:2])), _shown_size(disk))
        for name, state, left, disk in lines
    ]
    return Table(columns, [list(map(Cell, line)) for line in texts])


def _shown_left(hours: float) -> str:
    return estimated(hours) if hours else "-"


def _state(job: Job, found: RunState | None) -> str:
    if found is None:
        return "new"
    if found.finished:
        return "to be measured" if unmeasured(job, found.folder) else "done"
    return f"at step {found.step:,}"


def _shown_hours(hours: float | None) -> str:
    return "unknown, the data are not here" if hours is None else estimated(hours)


def _shown_size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _there(found: RunState | None) -> str:
    if found is None:
        return "nothing"
    if found.finished:
        return f"trained, in {found.folder}"
    return f"stopped at step {found.step}, in {found.folder}" if found.step else f"begun, in {found.folder}"
