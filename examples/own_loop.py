"""Control of singular values in a training loop of your own: clip every 20 steps, proved at the end."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import svdctl

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, stride=2, padding=1),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(64 * 4 * 4, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
control = svdctl.Controller(
    model, optimizer, method="clip", max_sigma=2.0, every_steps=20, linear_max=4.0, batchnorm_max=10.0
)

for epoch in range(3):
    model.train()
    for chosen in torch.randperm(1400).split(100):
        loss = nn.functional.cross_entropy(model(images[train][chosen]), labels[train][chosen]) + control.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        control.step()
    control.seal()
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"epoch {epoch + 1}: accuracy {accuracy:.1%}")

print(control.report())
assert all(svdctl.spectral_norm_bound(model[place], tolerance=1e-3).upper <= 2.001 for place in (0, 3))
