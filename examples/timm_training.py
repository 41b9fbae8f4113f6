"""Control singular values in timm's training script, here its main steps on random images. CPU, seconds.

In timm's own `train.py` add the lines (1) after `optimizer = create_optimizer_v2(...)`, and the lines (2) after the
loop over epochs. The control acts after each step of the optimiser, so that accumulation, its NativeScaler and the
average of the weights (`--model-ema`) need no other change.
"""

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

import svdctl


def train(name: str = "test_resnet", steps: int = 20) -> tuple[torch.nn.Module, svdctl.Controller]:
    """Train a network of timm on random images; return its average and the controller."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, momentum=0.9)
    settings = {"max_sigma": 2.0, "every_steps": 10, "linear_max": 4.0, "batchnorm_max": 10.0}
    control = svdctl.Controller(model, optimizer, **settings)  # (1)
    optimizer.register_step_post_hook(lambda *_: control.step())  # (1)
    average = ModelEmaV3(model, decay=0.9)
    for step in range(steps):
        images, labels = torch.rand(8, 3, 32, 32), torch.randint(10, (8,))
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model, step)
    control.seal()  # (2)
    control.seal(average)  # (2)
    return average.module, control


if __name__ == "__main__":
    _, controller = train()
    print(controller.report())
