"""What the library leaves unimported: packages that only commands, plots and trainings of svdctl need."""

import subprocess
import sys

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
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
HEAVY = {
    *("matplotlib", "pandas", "wandb", "sklearn", "scipy", "pyautoattack", "lightning", "lightning_fabric"),
    *("pytorch_lightning", "torchmetrics", "torchvision", "transformers", "ray", "rich", "typer", "PIL"),
}


def test_control_and_measurements_import_nothing_heavy() -> None:
    found = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=True).stdout.split()
    assert "svdctl" in found
    assert not HEAVY & set(found)
