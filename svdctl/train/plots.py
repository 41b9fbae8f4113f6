"""Pictures of a run: its curves, its spectra before and after, and its certificates."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
from torch import Tensor, nn

from svdctl.config.train_config import CROSS_ENTROPY
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import find_ops
from svdctl.spectral.values import singular_values
from svdctl.train.metrics_log import read_log
from svdctl.train.trainer import Trainer
from svdctl.train.validation import Accuracy
from svdctl.utils.atomic_write import write_picture
from svdctl.utils.escapes import figure_text

if TYPE_CHECKING:
    from svdctl.utils.matplotlib_defaults import Figure

P = ParamSpec("P")
GRID = 8


def spectra(model: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return singular values of each layer, descending: exact, on inputs of at most 8 output points an axis.

    Of SOC and SOTT layers, whose own values are 1, those of the skew convolution that they exponentiate.

    Args:
        model: the network.
        sizes: input size by name of the layers that are convolutions or linear.
    """
    found = {}
    for name, module in model.named_modules():
        ops = find_ops(module)
        if ops is None or ops.parts(module):
            continue
        generator = ops.generator(module)
        if generator is not None:
            conv, _ = generator
            found[name] = singular_values(conv, (GRID,) * conv.axes if max(conv.taps) > 1 else (1, 1), accuracy="fast")
        elif name in sizes:
            conv = operator_of(module)
            small = tuple(
                max(1, min(GRID, length // stride)) * stride
                for length, stride in zip(sizes[name], conv.stride, strict=True)
            )
            found[name] = singular_values(conv, small, accuracy="fast")
    return {name: _thinned(values) for name, values in found.items()}


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
) -> list[Path]:
    """Write the pictures; returns their files.

    Args:
        trainer: at its last step.
        folder: of the run.
        before: `spectra` before the training.
        sizes: as of `spectra`.
        judged: the last and the best network on the test set; with certificates, these are drawn too.
    """
    curves, spectrum, certified = (folder / f"{name}.png" for name in ("curves", "spectrum", "certified"))
    config, controller = trainer.config, trainer.controller
    held_out = "validation part" if config.evaluation.select == "validation" else "test set"
    steps = [line for line in read_log(folder / "metrics.jsonl") if line["kind"] != "epoch"]
    plot_curves([*steps, *trainer.epochs], curves, held_out=held_out, loss_name=config.loss.kind)
    after = spectra(trainer.judged, sizes)
    allowed = {name: controller.allowed(name) if name in controller.layers else None for name in after}
    skew = [name for name in after if name not in controller.layers]
    plot_spectra(before, after, allowed, spectrum, skew=skew)
    proved = {f"{name} epoch": made.certificates.curve() for name, made in judged.items() if made.certificates}
    if config.certificate is None or not proved:
        return [curves, spectrum]
    plot_certified(proved, config.certificate.radii, certified)
    return [curves, spectrum, certified]


def _figure(width: float, height: float) -> "Figure":
    from svdctl.utils.matplotlib_defaults import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _drawn(plot: Callable[P, None]) -> Callable[P, None]:
    """Return a function that draws with matplotlib's defaults, and imports it only then: that takes a second."""

    @wraps(plot)
    def drawn(*arguments: P.args, **named: P.kwargs) -> None:
        from svdctl.utils.matplotlib_defaults import with_defaults

        with with_defaults():
            plot(*arguments, **named)

    return drawn


@_drawn
def plot_curves(
    records: Sequence[Mapping[str, Any]], path: Path, *, held_out: str, loss_name: str = CROSS_ENTROPY
) -> None:
    """Draw loss (cross-entropy on held-out data), penalty, accuracy by epoch, and proofs by step, a panel each.

    Penalty and proofs are drawn where there are any; a dotted line where the run was extended.
    """
    # What is not known, None, is a gap in a curve.
    records = [{name: math.nan if value is None else value for name, value in record.items()} for record in records]
    epochs = [record for record in records if record["kind"] == "epoch"]
    evaluated = [record for record in epochs if {"val_acc", "val_loss"} <= record.keys()]
    steps = [record for record in records if record["kind"] == "step"]
    has_penalty = any(record["orthogonal_loss"] > 0 for record in epochs)
    proofs = [record for record in records if record["kind"] == "proof"]
    count = 2 + has_penalty + bool(proofs)
    figure = _figure(4.2 * count, 3.4)
    panels = list(figure.subplots(1, count))
    loss = panels.pop(0)
    of = f", {CROSS_ENTROPY}" if loss_name != CROSS_ENTROPY else ""
    loss.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="0.75", lw=1, label="training, by step")
    loss.plot([r["step"] for r in epochs], [r["loss"] for r in epochs], marker=".", label="training")
    loss.plot([r["step"] for r in evaluated], [r["val_loss"] for r in evaluated], marker=".", label=f"{held_out}{of}")
    loss.set(title=figure_text(loss_name), xlabel="step", ylim=(0, None))
    loss.legend(frameon=False)
    if has_penalty:
        penalty = panels.pop(0)
        penalty.semilogy([r["step"] for r in epochs], [r["orthogonal_loss"] for r in epochs], marker=".")
        penalty.set(title="penalty on frames", xlabel="step")
    accuracy = panels.pop(0)
    accuracy.plot([r["step"] for r in epochs], [100 * r["acc"] for r in epochs], marker=".", label="training")
    accuracy.plot([r["step"] for r in evaluated], [100 * r["val_acc"] for r in evaluated], marker=".", label=held_out)
    certified = [r for r in evaluated if {"val_certified_acc", "epsilon"} <= r.keys()]
    if certified:
        label = f"{held_out}, certified at {certified[-1]['epsilon']:g}/255"
        values = [100 * r["val_certified_acc"] for r in certified]
        accuracy.plot([r["step"] for r in certified], values, marker=".", label=label)
    accuracy.set(title="accuracy, %", xlabel="step", ylim=(None, 100.5))
    accuracy.legend(frameon=False)
    if proofs:
        proof = panels.pop(0)
        proof.plot([r["step"] for r in proofs], [r["found"] for r in proofs], marker=".", label="found")
        proof.axhline(1, color="tab:red", ls="--", lw=1, label="allowed, and proved after scaling")
        proof.set(title="largest proved bound / maximum", xlabel="step")
        proof.legend(frameon=False)
    for record in records:
        if record["kind"] == "extended":
            for panel in figure.axes:
                panel.axvline(record["step"], color="0.6", ls=":", lw=1)
            loss.text(record["step"], 0.02, f" {record['epochs']:g} epochs", transform=loss.get_xaxis_transform())
    write_picture(figure, path)


@_drawn
def plot_spectra(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    allowed: Mapping[str, float | None],
    path: Path,
    *,
    skew: Collection[str] = (),
) -> None:
    """Draw singular values against their index, one panel a layer, before and after training, and the allowed maximum.

    Args:
        before, after: values by the layer's name; none before, where they are not known.
        allowed: the maximum, where there is one.
        path: the picture's file.
        skew: layers whose values are those of the skew convolution that they exponentiate.
    """
    names = list(after)
    columns = min(6, max(1, round(len(names) ** 0.5 * 1.3)))
    rows = -(-len(names) // columns)
    figure = _figure(2.6 * columns, 2.0 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        shown = [(before[name], "before", "0.65")] * (name in before)
        for values, label, color in (*shown, (after[name], "after", "tab:blue")):
            panel.plot(
                [i / max(1, len(values) - 1) for i in range(len(values))], values.tolist(), color=color, label=label
            )
        limit = allowed[name]
        if limit is not None:
            panel.axhline(limit, color="tab:red", ls="--", lw=1, label="allowed")
        panel.set_title(figure_text(f"{name}, skew" if name in skew else name), fontsize=8)
        panel.set_ylim(0, None)
        panel.tick_params(labelsize=7)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    title = "singular values by index (0 the largest, 1 the smallest)"
    if skew:
        title += "\nskew: of J, where the layer is exp(J) and its own values are 1"
    figure.suptitle(title, fontsize=9)
    write_picture(figure, path)


@_drawn
def plot_certified(curves: Mapping[str, tuple[Tensor, Tensor]], marks: Sequence[float], path: Path) -> None:
    """Draw certified accuracy against the l2 radius, a curve for each network.

    Args:
        curves: radii in pixels of [0, 1] and the shares that hold from each to the next, by the network's name.
        marks: radii in 255ths to mark.
        path: the picture's file.
    """
    figure = _figure(5.6, 3.8)
    panel = figure.subplots()
    for (name, (radii, shares)), style in zip(curves.items(), ("-", "--", ":", "-.") * len(curves), strict=False):
        panel.step(radii.tolist(), (100 * shares).tolist(), where="post", label=name, ls=style)
    for mark in marks:
        panel.axvline(mark / 255, color="0.85", lw=1, zorder=0)
        panel.text(mark / 255, 2, f" {mark:g}/255", fontsize=7, color="0.4", rotation=90, ha="right", va="bottom")
    largest = max([float(radii.max()) for radii, _ in curves.values()] + [max(marks) / 255])
    panel.set(xlabel="l2 radius, pixels in [0, 1]", ylabel="right and certified, %", ylim=(0, 100))
    panel.set_xlim(0, 1.02 * largest)
    panel.legend(frameon=False)
    write_picture(figure, path)
