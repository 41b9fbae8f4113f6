"""A network with a proved Lipschitz constant: its convolutions become orthogonal, its answers certified."""

from collections import OrderedDict

import torch
from sklearn.datasets import load_digits
from torch import nn

import svdctl

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)

layers = OrderedDict(
    conv1=nn.Conv2d(1, 32, 3, padding=1),
    act1=svdctl.MinMax(),
    conv2=nn.Conv2d(32, 64, 3, stride=2, padding=1),
    act2=svdctl.MinMax(),
    flatten=nn.Flatten(),
    head=nn.Linear(64 * 4 * 4, 10),
)
model = nn.Sequential(layers)
print("replaced:", svdctl.orthogonalize_(model, layers="conv*").replaced)  # an error if one of them could not be
print("replaced:", svdctl.orthogonalize_(model).replaced)  # what is left, where it can be

optimizer = torch.optim.Adam(model.parameters(), lr=0.01)  # made after the layers were replaced
for _ in range(3):
    for chosen in torch.randperm(1400).split(100):
        loss = nn.functional.multi_margin_loss(model(images[chosen]), labels[chosen], margin=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model = model.double().eval()  # the rounding of a float32 pass would count in the proof
constant = svdctl.lipschitz_bound(model, (1, 8, 8)).value
logits = model(images[1400:].double())
best = logits.topk(2).values
right = logits.argmax(1) == labels[1400:]
radii = (best[:, 0] - best[:, 1]) / (2**0.5 * constant)
print(f"Lipschitz constant at most {constant:.4f}")
print(f"accuracy {right.double().mean():.1%}, at most 0.1 away in l2 {(right & (radii > 0.1)).double().mean():.1%}")
