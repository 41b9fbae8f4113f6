"""What the loop and its control cost, and what the TT form saves: ratios within one run.

    python benchmarks/training.py [--repeats 7] [--threads 2]

Every round times all variants once, in turn, so that a machine that slows down slows all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from svdctl.cli.training_flags import resolve
from svdctl.control.controller import Controller
from svdctl.data.images import ImageData
from svdctl.models.build import build_model, build_optimizer
from svdctl.train.setup import launch
from svdctl.train.trainer import SINCE_RECORD, Trainer
from svdctl.utils.machine import machine


def images(count: int) -> ImageData:
    """Random images in CIFAR's shape: the time of a step does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ImageData(pixels, torch.randint(0, 10, (count,), generator=generator), tuple("0123456789"))


def bare_step(config, batch: int, layout: torch.memory_format = torch.channels_last) -> Callable[[], None]:
    """Forward, backward (penalty included, it belongs to the model's loss) and optimiser on resident tensors."""
    model = build_model(config, 10).train().to(memory_format=layout)
    optimizer = build_optimizer(config.optimizer, model)
    data = images(batch)
    pixels, labels = (data.images.float() / 255).contiguous(memory_format=layout), data.labels
    controller = Controller.from_config(model, None, None, None)

    def step() -> None:
        loss = F.cross_entropy(model(pixels), labels)
        penalty = controller.penalty()
        loss = loss if penalty is None else loss + penalty
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class _Quiet:
    def start(self, total_steps: int, done: int) -> None: ...

    def step(self, done: int, metrics) -> None: ...

    def evaluated(self, metrics) -> None: ...


def loop_step(config, batch: int, repeats: int) -> Callable[[], None]:
    """One step of svdctl's loop: batch drawn and augmented, control, accounting, logging."""
    config = config.model_copy(update={"batch_size": batch, "epochs": 1})
    model = build_model(config, 10)
    data = images(batch * (repeats + 4))
    controller = Controller.from_config(model, None, config.control, config.batchnorm)
    trainer = Trainer(config, model, launch(config), data, images(batch), controller)
    model.train()
    batches = trainer.batches.epoch(0)

    def step() -> None:
        trainer.train_step(next(batches))
        trainer.read(trainer.totals[SINCE_RECORD], 0)
        trainer.totals.zero_()

    return step


def measure(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    divide = resolve({"preset": "wrn-cifar10-divide"}).config
    dense = resolve({"preset": "wrn-cifar10"}).config
    retract = resolve({"preset": "wrn-cifar10-divide", "frames": "retract"}).config
    tt = resolve({"preset": "wrn-cifar10-tt"}).config
    n = options.repeats
    times = measure(
        {
            "bare, TT 192, batch 32": bare_step(divide, 32),
            "loop with divide, TT 192, batch 32": loop_step(divide, 32, n),
            "bare, TT 192 without penalty, batch 32": bare_step(retract, 32),
            "loop with divide, frames retracted, batch 32": loop_step(retract, 32, n),
            "bare, dense, batch 16, torch's default layout": bare_step(dense, 16, torch.contiguous_format),
            "bare, dense, batch 16": bare_step(dense, 16),
            "bare, TT 192, batch 16": bare_step(tt, 16),
        },
        n,
    )
    print(f"{machine()}, n = {n}, medians\n")  # fmt: skip
    print("| step of WRN-16-10 | median s | min to max |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} to {max(values):.3f} |")
    names = list(times)

    def ratio(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))

    print("\n| ratio, round by round | median |\n|---|---|")
    print(f"| loop over bare, penalty | {ratio(names[1], names[0]):.3f} |")
    print(f"| loop over bare, retraction | {ratio(names[3], names[2]):.3f} |")
    print(f"| dense in torch's default layout over TT 192 | {ratio(names[4], names[6]):.2f} |")
    print(f"| dense over TT 192 | {ratio(names[5], names[6]):.2f} |")


if __name__ == "__main__":
    main()
