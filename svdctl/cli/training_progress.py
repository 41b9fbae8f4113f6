"""What a person sees of a training: a live bar on a terminal, plain lines elsewhere."""

import math
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from svdctl.cli.messages import with_flags
from svdctl.cli.progress_display import ProgressDisplay, fitting
from svdctl.cli.training_flags import command_of
from svdctl.config.control_config import NOT_CONTROLLED
from svdctl.plugins import granted_factory, is_factory
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import hanging
from svdctl.utils.rounded_figures import at_least, at_most, exact, with_decimals
from svdctl.utils.table import Cell, Column, Table, terminal

if TYPE_CHECKING:
    from svdctl.control.control_report import LayerReport
    from svdctl.train.result import CertifiedEpoch, TrainResult


_STANDS_OUT = f"control  {NOT_CONTROLLED}"


class TrainingDisplay(ProgressDisplay):
    """What is shown of a training, on stdout.

    Args:
        flags: flags by key, for what the library says.
        live: whether to draw a bar; None: on a terminal.
    """

    def __init__(self, flags: Mapping[str, str] = MappingProxyType({}), *, live: bool | None = None) -> None:
        super().__init__("stdout", flags=flags, live=live)
        # Wide enough for most epochs of any run.
        figures = ("loss", "val_loss", "acc", "val_acc", "val_certified_acc")
        self._widths = {**dict.fromkeys(figures, 6), "train_time": 5, "clipping_time": 4}

    @property
    def width(self) -> int | None:
        """Return the columns of the terminal; None: it is none."""
        return self.console.width if self.live else None

    def say(self, text: str, style: str = "") -> None:
        style = style or "bold yellow" * text.startswith(_STANDS_OUT)
        for line in hanging(one_line(with_flags(text, self._flags)), self.width):
            super().say(line, style)

    def begin(self, work: object) -> None:
        self._form = "step {done}/{total}  {text}" if work == "training" else "{work}  {amount} {text}"
        super().begin(work)

    def finish(self, result: object) -> None:
        if isinstance(result, Mapping):
            super().say(evaluation_line(result, self.width, self._widths))
        else:
            self.close()
            for line in result_lines(cast("TrainResult", result), self.width, self._flags):
                super().say(line)


def evaluation_line(
    metrics: Mapping[str, float], width: int | None = None, widths: dict[str, int] | None = None
) -> str:
    """Return one line for an evaluation.

    Args:
        metrics: of the epoch.
        width: columns of the terminal, for which the parts that are needed least are left out; None: all stay.
        widths: of each figure in the lines before, so that figures stand below one another; this line's are added.
    """
    widths = {} if widths is None else widths

    def figure(name: str, value: str) -> str:
        widths[name] = max(widths.get(name, 0), len(value))
        return value.rjust(widths[name])

    def known(name: str, form: str) -> str:
        value = metrics[name]
        return figure(name, "-" if math.isnan(value) else format(value, form))

    bound = "-" if math.isnan(metrics.get("lipschitz", math.nan)) else at_most(metrics["lipschitz"])
    parts = [
        (f"epoch {metrics['epoch']:3.0f}/{metrics['epochs']:.0f}", 0),
        (f"loss {known('loss', '.4f')}", 2),
        (f"acc {known('acc', '.2%')}", 1),
        (f"held-out loss {known('val_loss', '.4f')}", 5),
        (f"held-out acc {known('val_acc', '.2%')}", 0),
    ]
    if "val_certified_acc" in metrics:
        parts.append((f"at {exact(metrics['epsilon'])}/255 {known('val_certified_acc', '.2%')}", 0))
        parts.append((f"L {figure('lipschitz', bound)}", 3))
    if "frame_deviation" in metrics:
        parts.append((f"frames orthonormal to {metrics['frame_deviation']:.1e}", 4))
    parts.append((f"{known('train_time', '.1f')} s", 0))
    if "proof_time" in metrics:
        share = metrics["proof_time"] / metrics["train_time"]
        parts.append((f"(proofs {known('proof_time', '.1f')} s, {share:.1%})", 2))
    parts.append((f"(control {known('clipping_time', '.1f')} s)", 6))
    return fitting(parts, width, "  ")


_LAYERS = (
    Column("layer", "layer", "left", elastic=True),
    Column("largest", "reached"),
    Column("bound", "bound"),
    Column("maximum", "maximum"),
    Column("type", "type", "left", spare=2),
    Column("shape", "shape", "left", spare=1),
)


def layer_table(rows: Sequence["LayerReport"]) -> Table:
    """Return the table of values that are reached, bounds and maxima."""
    return Table(
        _LAYERS,
        [
            [
                Cell(one_line(row.name)),
                Cell(with_decimals(row.largest, 4, up=False)),
                Cell(with_decimals(row.bound, 4, up=True)),
                Cell(at_most(row.maximum)),
                Cell(row.kind),
                Cell(str(row.shape)),
            ]
            for row in rows
        ],
    )


def certified_lines(rows: Sequence["CertifiedEpoch"], width: int | None = None) -> list[str]:
    """Return the table of certificates, and what L is made of."""
    columns = [Column("network", "network", "left"), Column("epoch", "epoch"), Column("accuracy", "accuracy")]
    columns += [Column(name, name) for name in (f"{exact(radius)}/255" for radius in rows[0].certified)]
    columns += [Column("mean radius", "mean radius", spare=1), Column("L", "L")]
    cells = [
        [
            row.name,
            str(row.epoch),
            f"{row.accuracy:.2%}",
            *(f"{share:.2%}" for share in row.certified.values()),
            at_least(row.mean_radius),
            at_most(row.lipschitz),
        ]
        for row in rows
    ]
    table = Table(columns, [[Cell(text) for text in line] for line in cells])
    lines = ["", *terminal(table, width=width, rule=False).splitlines()]
    lines += hanging(
        "certified: right, and proved to stay at every l2 distance up to the radius, pixels in [0, 1]", width
    )
    for row in rows:
        largest_first = sorted(row.slack.items(), key=lambda pair: -pair[1])
        factors = " x ".join(f"{kind} {at_most(factor, 7)}" for kind, factor in largest_first)
        # Where branches are added the factors of all of them are no product.
        is_product = math.isclose(math.prod(row.slack.values()), row.lipschitz, rel_tol=1e-6)
        made = f"L of {row.name} = {factors}" if is_product else f"L of {row.name} has factors {factors}, by branches"
        lines += hanging(made, width)
    return lines


def result_lines(
    result: "TrainResult", width: int | None = None, flags: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Return accuracy, the spectrum of every controlled layer, files, and what to type next.

    Args:
        result: of the run.
        width: columns of the terminal, for tables and sentences; None: lines are as long as they are.
        flags: flags by key, for what the library says.
    """
    lines = ["", *(line for text in result.summary for line in hanging(one_line(with_flags(text, flags)), width))]
    if result.certified:
        lines += certified_lines(result.certified, width)
    controlled = [row for row in result.layers if row.maximum is not None]
    if rows := controlled or result.layers:
        lines += ["", *terminal(layer_table(rows), width=width, rule=False).splitlines()]
        lines.append("reached: in the limit of large inputs; bound: proved, at every input size")
    lines += ["", "files", *(f"  {path}" for path in result.files)]
    lines += ["", "next", *(f"  svdctl {command}" for command in _next_commands(result))]
    if any(path.name == "best.pt" for path in result.files):
        told = "these take last.pt, of the last epoch; eval-robust --which best takes best.pt, of the epoch picked"
        lines += hanging(told, width)
    return lines


def _next_commands(result: "TrainResult") -> list[str]:
    """Return what may be typed next, without the name of the program; a shell takes it as it is."""
    train = command_of(result.config.model.kind).name
    folder, last, preset = (shlex.quote(str(result.folder / file)) for file in ("", "last.pt", "config.toml"))
    network = getattr(result.config.model, "network", "")
    # A factory that has moved is where the user has named it, and not where config.toml says.
    factory = granted_factory(network) or network if network and is_factory(network) else ""
    model = f" --model {shlex.quote(factory)}" if factory else ""
    if not result.completed:
        return [f"{train} --resume {folder}{model}"]
    moved = model if factory != network else ""
    again = f"{train} --preset {preset}{moved} --seed {result.config.seed + 1}"
    return [f"inspect-spectrum {last}{model}", f"eval-robust {folder}{model}", again]
