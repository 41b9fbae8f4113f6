"""What the starts of the paper's public code are worth: `python benchmarks/starts.py [--epochs 4] [--seeds 5]`.

Short trainings on the embedded digits, the same seeds for each row of a table: accuracy on the test part after each
half of the epochs, and certified accuracy of LipConvNet. Medians, and the smallest and largest value.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from svdctl.config.configuration import configuration
from svdctl.train import start
from svdctl.utils.progress import Reporter

WRN = ("model.depth=10", "model.width=2", "control.kind=none", "batchnorm=")
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "WRN-10-2, TT 24, init svdctl": ("quickstart", WRN),
    "WRN-10-2, TT 24, init paper": ("quickstart", (*WRN, "init=paper")),
    "WRN-10-2, TT 24, divided, init svdctl": ("quickstart", ()),
    "WRN-10-2, TT 24, divided, init paper": ("quickstart", ("init=paper",)),
    "WRN-10-2, dense, init svdctl": ("quickstart", (*WRN, "layer.kind=standard")),
    "WRN-10-2, dense, init paper": ("quickstart", (*WRN, "layer.kind=standard", "init=paper")),
    "LipConvNet-5, SOTT 32, init svdctl, 1x1 by 1": ("lipconv-quickstart", ()),
    "LipConvNet-5, SOTT 32, init svdctl, 1x1 by 0.7": ("lipconv-quickstart", ("layer.pointwise_scale=0.7",)),
    "LipConvNet-5, SOTT 32, init paper, 1x1 by 1": ("lipconv-quickstart", ("init=paper",)),
    "LipConvNet-5, SOTT 32, init paper, 1x1 by 0.7": (
        "lipconv-quickstart",
        ("init=paper", "layer.pointwise_scale=0.7"),
    ),
    "LipConvNet-5, SOC, init svdctl": ("lipconv-quickstart", ("layer.kind=soc",)),
    "LipConvNet-5, SOC, init paper": ("lipconv-quickstart", ("layer.kind=soc", "init=paper")),
}


class Accuracies(Reporter):
    """Keeps the accuracies of each epoch."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def finish(self, result: object) -> None:
        if isinstance(result, dict) and "val_acc" in result:
            self.found.append((result["val_acc"], result.get("val_certified_acc", float("nan"))))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2%} ({min(values):.2%} to {max(values):.2%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows with this text")
    arguments = parser.parse_args()
    for name, (preset, sets) in ROWS.items():
        if arguments.only not in name:
            continue
        runs = []
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                settings = (*sets, f"seed={seed}", f"epochs={arguments.epochs}", "evaluation.select=test")
                config = configuration(preset, settings).model_copy(update={"out_dir": Path(folder)})
                kept = Accuracies()
                start.run(config, base="benchmark", reporter=kept)
                runs.append(kept.found)
        for epoch in sorted({arguments.epochs // 2, arguments.epochs}):
            plain, certified = zip(*(run[epoch - 1] for run in runs), strict=True)
            told = f", certified {spread(list(certified))}" if certified[0] == certified[0] else ""
            print(f"{name}; epoch {epoch}: {spread(list(plain))}{told}; n = {len(runs)}", flush=True)


if __name__ == "__main__":
    main()
