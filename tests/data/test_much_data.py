"""More images than memory holds: 200,000 of 224 pixels, 30 GB, that are drawn when they are needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import svdctl

COUNT = 200_000
PROGRAM = f'''
import json, resource
from typing import Literal
import torch
from torch import Tensor
import svdctl
from svdctl.config.configuration import configuration
from svdctl.config.data_config import DataConfig
from svdctl.data.data_source import DataSource
from svdctl.data.images import ImageData
from svdctl.data.streamed_images import streamed_images
from svdctl.data.train_test import TrainTest
from svdctl.train import start
from svdctl.utils.progress import Reporter

SHAPE = (3, 224, 224)
reads = []

def drawn(rows: Tensor) -> Tensor:
    """Return images of one colour each, by the number of the row, with a stripe."""
    reads.append(len(rows))
    images = (rows[:, None, None, None] * torch.tensor([7, 11, 13])[None, :, None, None] % 251).to(torch.uint8)
    images = images.expand(-1, *SHAPE).contiguous()
    images[:, :, ::8] = (rows % 2 * 255).to(torch.uint8)[:, None, None, None]
    return images

class Drawn(DataConfig):
    kind: Literal["drawn"] = "drawn"

@svdctl.register_data
class DrawnSource(DataSource):
    kind, config = "drawn", Drawn

    def load(self, config: Drawn) -> TrainTest:
        def part(count: int) -> ImageData:
            images = streamed_images(drawn, count, SHAPE, identity="drawn")
            return ImageData(images, torch.arange(count) % 2, ("even", "odd"))
        return TrainTest(part({COUNT}), part(300))

def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

if __name__ == "__main__":
    values = ["model.kind=wrn", "model.depth=10", "model.width=1", "layer.kind=standard", "data.kind=drawn"]
    values += ["batch_size=16", "epochs=1", "max_steps=6", "evaluation.select=last", "hardware.accelerator=cpu"]
    values += ["control.kind=none", "augment.crop=0", "augment.resized_crop=[0.08, 1]"]
    result = start.run(configuration("quickstart", values), base="test", reporter=Reporter())
    print(json.dumps({{"peak": peak(), "largest": max(reads), "images": sum(reads), "completed": result.completed}}))
'''


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_memory_of_a_whole_run_stays_below_2_gb(tmp_path: Path) -> None:
    (tmp_path / "much.py").write_text(PROGRAM)
    root = Path(svdctl.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "much.py")],
        cwd=tmp_path,
        capture_output=True, text=True, timeout=3000, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["completed"]
    assert found["peak"] < 2, found
    # Six steps, and the 300 images of the evaluations.
    assert found["images"] >= 6 * 16 + 300
    assert found["largest"] <= 1000
