"""Pictures of a run: its curves, and its spectra before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure
from torch import Tensor


def plot_curves(records: Sequence[Mapping[str, Any]], path: Path, *, held_out: str) -> None:
    """Loss, penalty (when there is one) and accuracy by epoch, each in its own panel."""
    epochs = [record for record in records if record["kind"] == "epoch"]
    evaluated = [record for record in epochs if record.get("val_acc") is not None]
    steps = [record for record in records if record["kind"] == "step"]
    has_penalty = any((record["orthogonal_loss"] or 0) > 0 for record in epochs)
    figure = Figure(figsize=(4.2 * (3 if has_penalty else 2), 3.4), layout="constrained")
    panels = list(figure.subplots(1, 3 if has_penalty else 2))
    loss = panels.pop(0)
    loss.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="0.75", lw=1, label="training, by step")
    loss.plot([r["step"] for r in epochs], [r["loss"] for r in epochs], marker=".", label="training")
    loss.plot([r["step"] for r in evaluated], [r["val_loss"] for r in evaluated], marker=".", label=held_out)
    loss.set(title="cross-entropy", xlabel="step", ylim=(0, None))
    loss.legend(frameon=False)
    if has_penalty:
        penalty = panels.pop(0)
        penalty.semilogy([r["step"] for r in epochs], [r["orthogonal_loss"] for r in epochs], marker=".")
        penalty.set(title="penalty on frames", xlabel="step")
    accuracy = panels.pop(0)
    accuracy.plot([r["step"] for r in epochs], [100 * r["acc"] for r in epochs], marker=".", label="training")
    accuracy.plot([r["step"] for r in evaluated], [100 * r["val_acc"] for r in evaluated], marker=".", label=held_out)
    accuracy.set(title="accuracy, %", xlabel="step", ylim=(None, 100.5))
    accuracy.legend(frameon=False)
    figure.savefig(path, dpi=130)


def plot_spectra(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], allowed: Mapping[str, float | None], path: Path
) -> None:
    """Singular values against their index, one panel a layer, before and after training, the allowed maximum drawn."""
    names = list(after)
    columns = min(6, max(1, round(len(names) ** 0.5 * 1.3)))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.0 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        for values, label, color in ((before[name], "before", "0.65"), (after[name], "after", "tab:blue")):
            panel.plot(
                [i / max(1, len(values) - 1) for i in range(len(values))], values.tolist(), color=color, label=label
            )
        limit = allowed[name]
        if limit is not None:
            panel.axhline(limit, color="tab:red", ls="--", lw=1, label="allowed")
        panel.set_title(name, fontsize=8)
        panel.set_ylim(0, None)
        panel.tick_params(labelsize=7)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle("singular values by index (0 the largest, 1 the smallest)", fontsize=9)
    figure.savefig(path, dpi=130)
