"""Pictures of a run: its curves, its spectra before and after, and its certificates."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from svdctl.config.train_config import CROSS_ENTROPY
from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import find_ops
from svdctl.spectral.values import singular_values
from svdctl.train.metrics_log import read_log
from svdctl.train.trainer import Trainer
from svdctl.train.validation import Accuracy
from svdctl.utils.atomic_write import write_picture
from svdctl.utils.escapes import figure_text
from svdctl.utils.progress import Advance, Reporter, no_advance
from svdctl.utils.rounded_figures import exact

P = ParamSpec("P")
GRID = 8


def spectra(model: nn.Module, sizes: Mapping[str, tuple[int, ...]], advance: Advance = no_advance) -> dict[str, Tensor]:
    """Return singular values of each layer, descending: exact, on inputs of at most 8 output points an axis.

    Of SOC and SOTT layers, whose own values are 1, those of the skew convolution that they exponentiate. Layers whose
    weight does not tell what they compute are left out.

    Args:
        model: the network.
        sizes: input size by name of the layers that are convolutions or linear.
        advance: is told how many layers are done.
    """
    named = {name: module for name, module in model.named_modules() if find_ops(module) is not None}
    # The costliest first, so that the time left is no less than it seems.
    order = sorted(named, key=lambda name: -sum(weight.numel() for weight in named[name].parameters(recurse=False)))
    found: dict[str, Tensor | None] = {}
    for name in order:
        advance(len(found), len(order), "layers")
        found[name] = _spectrum_of(named[name], sizes.get(name))
    return {name: _thinned(values) for name in named if (values := found[name]) is not None}


def _spectrum_of(module: nn.Module, size: tuple[int, ...] | None) -> Tensor | None:
    """Return the singular values of one layer, as `spectra` has them; None of what is left out."""
    ops = find_ops(module)
    if ops is None or ops.parts(module):
        return None
    generator = ops.generator(module)
    if generator is not None:
        conv, _ = generator
        return singular_values(conv, (GRID,) * conv.axes if max(conv.taps) > 1 else (1, 1), accuracy="fast")
    if size is None:
        return None
    try:
        conv = operator_of(module)
    except ShapeError:
        return None
    small = tuple(
        max(1, min(GRID, length // stride)) * stride for length, stride in zip(size, conv.stride, strict=True)
    )
    return singular_values(conv, small, accuracy="fast")


def _thinned(values: Tensor) -> Tensor:
    """Return at most 400 of the values, evenly spread: a picture has no more pixels across."""
    index = torch.linspace(0, len(values) - 1, min(len(values), 400)).round().long()
    return values[index.to(values.device)].cpu()


def draw(
    trainer: Trainer,
    folder: Path,
    before: Mapping[str, Tensor],
    sizes: Mapping[str, tuple[int, ...]],
    judged: Mapping[str, Accuracy],
    reporter: Reporter,
) -> list[Path]:
    """Write the pictures; returns their files.

    Args:
        trainer: at its last step.
        folder: of the run.
        before: `spectra` before the training.
        sizes: as of `spectra`.
        judged: the last and the best network on the test set; with certificates, these are drawn too.
        reporter: shows what is at work.
    """
    curves, spectrum, certified = (folder / f"{name}.png" for name in ("curves", "spectrum", "certified"))
    config, controller = trainer.config, trainer.controller
    held_out = "validation part" if config.evaluation.select == "validation" else "test set"
    about = folder.resolve().name, f"data: {config.data.kind}", f"control: {config.control.kind}"
    steps = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] in ("step", "proof", "extended")]
    per_epoch = trainer.batches.steps_per_epoch
    # Gains of BatchNorm that nothing limits are no singular values to look at.
    unlimited = [name for name in controller.norms if controller.maximum(name) is None]
    hidden = {f"{figure}/{name}" for name in unlimited for figure in ("sigma", "bound")}
    epochs = [{key: value for key, value in line.items() if key not in hidden} for line in trainer.epochs]
    plot_curves(
        [*steps, *epochs], curves, held_out=held_out, loss_name=config.loss.kind, per_epoch=per_epoch,
        about=about,
    )  # fmt: skip
    with reporter.part("singular values at the end") as advance:
        after = spectra(trainer.judged, sizes, advance)
    maxima = {name: controller.maximum(name) if name in controller.layers else None for name in after}
    skew = [name for name in after if name not in controller.layers]
    plot_spectra(before, after, maxima, spectrum, skew=skew, about=about)
    proved = {f"{name} epoch": made.certificates.curve() for name, made in judged.items() if made.certificates}
    if config.certificate is None or not proved:
        return [curves, spectrum]
    plot_certified(proved, config.certificate.radii, certified, about=about[:2])
    return [curves, spectrum, certified]


def _drawn(plot: Callable[P, None]) -> Callable[P, None]:
    """Return a function that draws in the style of all pictures and imports matplotlib only then: it takes a second."""

    @wraps(plot)
    def drawn(*arguments: P.args, **named: P.kwargs) -> None:
        from svdctl.utils.figure_style import styled

        styled(plot)(*arguments, **named)

    return drawn


@_drawn
def plot_curves(
    records: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    held_out: str,
    loss_name: str = CROSS_ENTROPY,
    per_epoch: int | None = None,
    about: Sequence[str] = (),
) -> None:
    """Draw loss (cross-entropy on held-out data), accuracy and penalty by epoch, and below them the layers.

    What is not there is not drawn: a penalty, layers of a run without any, proofs between steps. A dotted line stands
    where the run was extended.

    Args:
        records: lines of the log.
        path: the picture's file.
        held_out: on which images the network was evaluated.
        loss_name: of the training.
        per_epoch: steps of an epoch; None: as many as the lines about epochs tell.
        about: of which run and data it is, for the title.
    """
    from svdctl.train.layer_curves import LayerCurves, draw_layers, marker_of
    from svdctl.utils.figure_style import CERTIFIED, START, VALUE, gridded, legend_above, logarithmic, shortened, titled
    from svdctl.utils.matplotlib_defaults import Figure, MaxNLocator, SubFigure

    # What is not known, None, is a gap in a curve.
    records = [{name: math.nan if value is None else value for name, value in record.items()} for record in records]
    epochs = [record for record in records if record["kind"] == "epoch"]
    evaluated = [record for record in epochs if {"val_acc", "val_loss"} <= record.keys()]
    steps = [record for record in records if record["kind"] == "step"]
    proofs = [record for record in records if record["kind"] == "proof"]
    per = per_epoch or max((record["step"] / record["epoch"] for record in epochs), default=1)

    def at(lines: Sequence[Mapping[str, Any]]) -> list[float]:
        return [line["step"] / per for line in lines]

    layers = LayerCurves.of(evaluated, proofs, per)
    has_layers = bool(layers.names or proofs)
    has_penalty = any(record["orthogonal_loss"] > 0 for record in epochs)
    height = layers.height if has_layers else 0.0
    figure = Figure(figsize=(11.0, 4.1 + height), layout="constrained")
    above: Figure | SubFigure = figure
    if has_layers:
        grid = figure.add_gridspec(2, 1, height_ratios=(3.7, height))
        above = figure.add_subfigure(grid[0])
        draw_layers(figure.add_subfigure(grid[1]), layers)
    panels = list(above.subplots(1, 2 + has_penalty))
    loss, accuracy = panels[:2]
    of = f", {CROSS_ENTROPY}" if loss_name != CROSS_ENTROPY else ""
    dot = marker_of(epochs)
    if steps:
        loss.plot(at(steps), [r["loss"] for r in steps], color=START, lw=0.8, alpha=0.6, label="training, some steps")
    loss.plot(at(epochs), [r["loss"] for r in epochs], color=START, marker=dot, label="training, epochs")
    loss.plot(at(evaluated), [r["val_loss"] for r in evaluated], color=VALUE, marker=dot, label=f"{held_out}{of}")
    loss.set(title="Loss", ylabel=f"{figure_text(loss_name)}, log scale")
    if any(line["loss"] > 0 for line in [*steps, *epochs]):
        logarithmic(loss)
    accuracy.plot(at(epochs), [100 * r["acc"] for r in epochs], color=START, marker=dot, label="training, epochs")
    values = [100 * r["val_acc"] for r in evaluated]
    accuracy.plot(at(evaluated), values, color=VALUE, marker=dot, label=held_out)
    certified = [r for r in evaluated if {"val_certified_acc", "epsilon"} <= r.keys()]
    if certified:
        label = f"{held_out}, certified at {exact(certified[-1]['epsilon'])}/255"
        values = [100 * r["val_certified_acc"] for r in certified]
        accuracy.plot(at(certified), values, color=CERTIFIED, marker=dot, label=label)
    shown = [share for line in accuracy.lines for share in map(float, line.get_ydata()) if math.isfinite(share)]
    lowest = max(0.0, 1.06 * min(shown, default=0.0) - 6)
    accuracy.set(title="Accuracy", ylabel="accuracy, % of images", ylim=(lowest - 0.5, 100.5))
    if has_penalty:
        penalty = panels[2]
        penalty.plot(at(epochs), [r["orthogonal_loss"] for r in epochs], color=START, marker=dot, label="training")
        penalty.set(title="Penalty on frames", ylabel="penalty, log scale")
        logarithmic(penalty)
    extended = [record for record in records if record["kind"] == "extended"]
    for panel, line in itertools.product(panels, extended):
        panel.axvline(line["step"] / per, color="0.6", ls=":", lw=1)
    if extended:
        totals = ", ".join(f"{line['epochs']:g}" for line in extended)
        loss.lines[-1].set_label(shortened(f"here the number of epochs was set to {totals}", 60))
    for panel in panels:
        panel.set(xlabel="epoch", xlim=(0, None))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        gridded(panel)
    legend_above(*panels)
    titled(figure, "Training", *about)
    write_picture(figure, path)


@_drawn
def plot_spectra(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    maxima: Mapping[str, float | None],
    path: Path,
    *,
    skew: Collection[str] = (),
    about: Sequence[str] = (),
) -> None:
    """Draw singular values against their index, a panel a layer, at start and end of training, and the maximum.

    Args:
        before, after: values by the layer's name; `before` is empty where they are not known.
        maxima: the maximum, where there is one.
        path: the picture's file.
        skew: layers whose values are those of the skew convolution that they exponentiate.
        about: of which run and data it is, for the title.
    """
    from svdctl.utils.figure_style import MAXIMUM, START, VALUE, titled
    from svdctl.utils.layer_panels import layer_panels

    with layer_panels(list(after), top=[*_tops(before), *_tops(after)]) as (figure, panels):
        for name, panel in panels.items():
            for values, label, color in (
                (before.get(name), "start of training", START),
                (after[name], "end of training", VALUE),
            ):
                if values is None:
                    continue
                places = [100 * i / max(1, len(values) - 1) for i in range(len(values))]
                panel.plot(places, values.tolist(), color=color, label=label)
            limit = maxima[name]
            if limit is not None:
                panel.axhline(limit, color=MAXIMUM, ls="--", lw=1, label="maximum")
    of_skew = "of skew orthogonal layers exp(J), whose own values are 1, those of J" if skew else ""
    when = "the start and the end" if before else "the end"
    titled(figure, f"Singular values at {when} of training", *about, of_skew)
    write_picture(figure, path)


def _tops(spectra: Mapping[str, Tensor]) -> list[float]:
    return [float(values.max()) for values in spectra.values() if len(values)]


@_drawn
def plot_certified(
    curves: Mapping[str, tuple[Tensor, Tensor]], marks: Sequence[float], path: Path, *, about: Sequence[str] = ()
) -> None:
    """Draw certified accuracy against the l2 radius, a curve for each network.

    Args:
        curves: radii in pixels of [0, 1] and the shares that hold from each to the next, by the network's name.
        marks: radii in 255ths to mark.
        path: the picture's file.
        about: of which run and data it is, for the title.
    """
    from svdctl.utils.certified_plot import AccuracyCurve, draw_certified

    made = {name: AccuracyCurve(radii.tolist(), shares.tolist()) for name, (radii, shares) in curves.items()}
    draw_certified(made, marks, about, path, attacked={})
