"""The picture of the README: `python benchmarks/control_picture.py [--runs FOLDER] [--out docs/control.svg]`.

Trains the quick start twice, a minute each on two cores: as it is, and with maxima that no layer reaches, which changes
no step but is measured in the same way. Draws the largest singular value of each convolution and linear layer by epoch,
from the logs of both. Runs that are in FOLDER already are used again. Prints what the README says of them.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from svdctl.config.configuration import configuration
from svdctl.train import start
from svdctl.utils.figure_style import MAXIMUM, START, VALUE, gridded, styled, titled
from svdctl.utils.matplotlib_defaults import Figure, with_defaults
from svdctl.utils.progress import Reporter

FREE = ("control.max_sigma=1e6", "control.linear_max=1e6", "batchnorm.max_gain=1e6")
RUNS: dict[str, tuple[str, ...]] = {"controlled": (), "free": FREE}
"""Changes to the quick start, by the name of the run."""


def log_of(folder: Path, name: str, changes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the lines about epochs of a run, which is made when it is not there."""
    found = sorted(folder.glob(f"{name}-*"))
    if not found:
        config = configuration("quickstart", (*changes, f"name={name}", f"out_dir={folder}"))
        start.run(config, base="benchmark", reporter=Reporter())
        found = sorted(folder.glob(f"{name}-*"))
    lines = [json.loads(line) for line in (found[-1] / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]


def layers_of(epochs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the largest singular value of each convolution and linear layer, by epoch."""
    names = [
        key for key in epochs[-1] if key.startswith("sigma/") and ".bn" not in key and not key.startswith("sigma/bn")
    ]
    return {name.removeprefix("sigma/"): [line[name] for line in epochs] for name in names}


@styled
def draw(logs: dict[str, list[dict[str, Any]]], maximum: float) -> Figure:
    """Return the picture."""
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    panel = figure.subplots()
    looks = {"free": (START, "without control"), "controlled": (VALUE, "under control")}
    for run, (color, label) in looks.items():
        curves = layers_of(logs[run])
        epochs = [line["epoch"] for line in logs[run]]
        for values in curves.values():
            panel.plot(epochs, values, color=color, lw=0.8, alpha=0.5)
        largest = [max(column) for column in zip(*curves.values(), strict=True)]
        panel.plot(epochs, largest, color=color, lw=2.2, label=f"{label}: the largest of {len(curves)} layers")
    panel.axhline(
        maximum, color=MAXIMUM, ls="--", lw=1.2, zorder=3, label=f"maximum {maximum:g}, proved in each checkpoint"
    )
    panel.set(xlabel="epoch", ylabel="largest singular value", xlim=(1, len(logs["free"])), ylim=(0, None))
    panel.set_xticks([1, *range(5, len(logs["free"]) + 1, 5)])
    panel.axhspan(maximum, panel.get_ylim()[1], color=MAXIMUM, alpha=0.05, lw=0)
    gridded(panel)
    panel.legend(loc="center right", bbox_to_anchor=(1.0, 0.62))
    titled(figure, "Largest singular value of each layer", "svdctl train (quick start): WRN-10-2, TT layers, digits")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder of the two runs; absent: a temporary one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/control.svg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        logs = {name: log_of(arguments.runs or Path(folder), name, changes) for name, changes in RUNS.items()}
    for name, epochs in logs.items():
        curves = layers_of(epochs).values()
        print(f"{name}: largest singular value {max(curve[-1] for curve in curves):.4f}, at any evaluation "
              f"{max(map(max, curves)):.4f}; accuracy on held-out images {epochs[-1]['val_acc']:.2%}")  # fmt: skip
    figure = draw(logs, maximum=configuration("quickstart").control.max_sigma)
    with with_defaults({"svg.hashsalt": "svdctl"}):
        figure.savefig(arguments.out, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
