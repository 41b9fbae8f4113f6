"""A checkpoint has one proved Lipschitz constant: its training, `inspect-spectrum` and `eval-robust` say the same."""

import json
from pathlib import Path

import pytest

from svdctl.analysis import inspect_files
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.network_spectrum import NetworkSpectrum
from svdctl.analysis.spectrum_table import text_table, to_json
from svdctl.certificates import Certifier
from svdctl.checkpoint.checkpoint_file import load
from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.cli.training_flags import resolve
from svdctl.evaluate import runner
from svdctl.train import start
from svdctl.utils.progress import Reporter

CASES = {
    "clipped": ["layer.kind=standard"],
    "TT": ["layer.rank=6"],
    "divided": ["layer.kind=standard", "control.kind=divide-exact"],
    "without control": ["layer.kind=standard", "control.kind=none"],
}


def trained(folder: Path, *sets: str) -> Path:
    """The checkpoint of three steps on the embedded digits."""
    narrow = ["model.width=1", "model.depth=10", "max_steps=3", "evaluation.select=last", *sets]
    flags = {"preset": "quickstart", "dataset": "digits", "epochs": 1, "out_dir": str(folder / "runs"), "set": narrow}
    return start.run(resolve(flags).config, base="test", reporter=Reporter()).folder / "last.pt"


def inspected(checkpoint: Path, **asked: object) -> NetworkSpectrum:
    return inspect_files.run(InspectConfig.model_validate({"files": (checkpoint,), **asked}))[0]


def evaluated(checkpoint: Path) -> float:
    flags = {"checkpoints": [checkpoint.parent], "metrics": ["certified"], "accelerator": "cpu"}
    config = resolve_evaluation(flags).config
    runner.run(config, reporter=Reporter())
    (record,) = json.loads((checkpoint.parent / "eval-last" / "results.json").read_text())["records"]
    return float(record["results"]["lipschitz"])


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("clipped", marks=pytest.mark.slow),
        "TT",
        "divided",
        pytest.param("without control", marks=pytest.mark.slow),
    ],
)
def test_inspect_spectrum_and_eval_robust_prove_one_constant(case: str, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, *CASES[case])
    found = inspected(checkpoint)
    assert found.lipschitz == evaluated(checkpoint)
    assert found.lipschitz_note == ""
    # What certificates prove without the run's maxima is no smaller.
    assert found.lipschitz <= Certifier(load(checkpoint), (3, 32, 32)).bound.value * (1 + 1e-12)


def test_a_constant_of_another_tolerance_says_why_it_is_another(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path, *CASES["clipped"])
    found = inspected(checkpoint, tolerance=0.2)
    assert found.lipschitz > evaluated(checkpoint)
    why = "each layer's bound is within 20 % of its norm here, or of the factor of its padding; eval-robust"
    assert why in found.lipschitz_note
    assert why in " ".join(text_table(found).split())
    assert json.loads(to_json([found]))["files"][0]["lipschitz_note"] == found.lipschitz_note
