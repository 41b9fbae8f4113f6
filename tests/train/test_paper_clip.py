"""`--procedure paper` on layers whose inputs are smaller than their kernels, in a whole run."""

from pathlib import Path

import numpy as np
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.train import start as recipe
from svdctl.utils.progress import Reporter


class Lines(Reporter):
    """A reporter that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def notice(self, text: str) -> None:
        self.notes.append(text)


def test_a_clip_that_nothing_exceeds_changes_no_weight_and_the_larger_grids_are_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(24) % 2
    np.savez(tmp_path / "data.npz", x_train=images[:16], y_train=labels[:16], x_test=images[16:], y_test=labels[16:])
    weights, notes = [], []
    for flags in ({"clipping": "clip", "clip_to": 1000.0, "clip_freq": 1, "procedure": "paper"}, {"clipping": "none"}):
        config = resolve(
            {"dataset": f"npz:{tmp_path / 'data.npz'}", "architecture": "wrn16-1", "new_layer": "standard", "epochs": 1,
             "batch_size": 8, "out_dir": str(tmp_path / "runs"), "name": "clip" if len(flags) > 1 else "none", **flags}
        ).config  # fmt: skip
        told = Lines()
        result = recipe.run(config, base="test", reporter=told)
        weights.append(read_checkpoint(result.folder / "last.pt").model)
        notes.append(told.notes)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # Stages see 8 x 8, 4 x 4 and 2 x 2.
    [note] = notes[0]
    assert note.count("(input 2 x 2, grid 3 x 3)") == 3
    assert "grid that holds the kernel" in note
    assert notes[1] == []
