"""What the library leaves unimported: packages that only commands, plots and trainings of svdctl need."""

import subprocess
import sys
from pathlib import Path

USE = """
import sys
import torch
import svdctl
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 3))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for method in ("clip", "assign", "divide", "divide-exact", "divide-each"):
    control = svdctl.Controller(net, optimizer, method=method, max_sigma=0.5, every_steps=1, batchnorm_max=1.0)
    control.penalty()
    control.step()
    control.seal()
    str(control.report())
svdctl.singular_values(net[0], 8)
svdctl.clip_(net, max_sigma=0.4)
svdctl.parametrize.spectral_norm(net[2], max_sigma=0.3)
net.eval()(torch.randn(1, 3, 8, 8))
svdctl.spectral_norm_bound(net[2])
svdctl.spectrum(net, (3, 8, 8))
svdctl.lipschitz_bound(net, (3, 8, 8))
svdctl.to_plain(net, torch.randn(1, 3, 8, 8))
svdctl.orthogonalize_(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Linear(4, 4)))
small = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3))
svdctl.tensorize_(small, rank=2)
svdctl.save(small, sys.argv[1])
svdctl.load(sys.argv[1], model=torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3)))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
HEAVY = {
    *("matplotlib", "pandas", "wandb", "sklearn", "scipy", "pyautoattack", "lightning", "lightning_fabric"),
    *("pytorch_lightning", "torchmetrics", "torchvision", "transformers", "ray", "rich", "typer", "PIL"),
}


def test_control_and_measurements_import_nothing_heavy(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "small.pt")], capture_output=True, text=True, check=True
    )
    assert "svdctl" in found.stdout.split()
    assert not HEAVY & set(found.stdout.split())
