"""Layers that never exceed a maximum: the spectral norm of the operator itself as a parametrization of the weight."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import svdctl

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)


def network() -> nn.Sequential:
    """Return an ordinary network of 8 x 8 digits."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 1), nn.Flatten(), nn.Linear(512, 10)),
    )


model = network()
svdctl.parametrize.spectral_norm(model[0], max_sigma=2.0)
svdctl.parametrize.spectral_norm(model[2], max_sigma=2.0)
svdctl.parametrize.orthogonal(model[4])
svdctl.parametrize.spectral_norm(model[6], max_sigma="learnable")

# The learnable maximum is one number, which weight decay should leave alone.
decayed = [parameter for name, parameter in model.named_parameters() if "log_max_sigma" not in name]
kept = [parameter for name, parameter in model.named_parameters() if "log_max_sigma" in name]
optimizer = torch.optim.AdamW([{"params": decayed}, {"params": kept, "weight_decay": 0.0}], lr=5e-3)
for _ in range(3):
    for chosen in torch.randperm(1400).split(100):
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model.eval()
with torch.no_grad():
    print(f"accuracy {(model(images[1400:]).argmax(1) == labels[1400:]).float().mean():.1%}")
for place in (0, 2, 4, 6):
    print(f"layer {place}: singular values at most {svdctl.spectral_norm_bound(model[place]).upper:.4f}, proved")
assert all(svdctl.spectral_norm_bound(model[place]).upper <= 2.0 for place in (0, 2))

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "digits.pt"
    svdctl.save(model, file)
    again = svdctl.load(file, network())  # the parametrizations too
    assert torch.equal(again(images[:8]), model(images[:8]))

for place in (0, 2):
    svdctl.parametrize.remove_parametrizations(model[place])  # ordinary layers, the bounds still there
    assert type(model[place]) is nn.Conv2d
    assert svdctl.spectral_norm_bound(model[place], tolerance=1e-3).upper <= 2.002
