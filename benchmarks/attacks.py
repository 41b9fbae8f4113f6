"""What svdctl's engine costs over calling pyautoattack directly: ratios within one run, and equal images asserted.

    python benchmarks/attacks.py [--repeats 5] [--threads 2]

Every round takes the CPU time of both ways once, in turns that begin with the one and then with the other. A direct
call leaves parameters wanting gradients, which the engine does not; so both are compared with frozen parameters too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from svdctl.evaluate.attack.attack_batches import attack_batches, begin
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.layers.normalize import Normalize
from svdctl.models.wrn import WideResNet, default_conv
from svdctl.utils.machine import machine

CASES = {
    "APGD and FAB, L2": AttackSettings(eps=0.05, attacks=("apgd-ce", "fab-t"), batch_size=8),
    "APGD-T, Linf": AttackSettings(norm="Linf", eps=0.002, attacks=("apgd-t",), batch_size=8),
    "standard, L2": AttackSettings(eps=0.05, batch_size=8),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    conv, normalize = default_conv, Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    model = WideResNet(10, 1, 10, conv=conv, stem=conv, normalize=normalize)
    model(torch.rand(64, 3, 8, 8))  # BatchNorm's statistics
    return model.eval()


def wrapped(model: nn.Module, images: Tensor, labels: Tensor, settings: AttackSettings) -> Tensor:
    adversarial = images.float() / 255
    state = begin(model, images, labels, settings)
    for batch in attack_batches(model, images, labels, settings, state):
        adversarial[batch.index[batch.broken]] = batch.adversarial
    return adversarial


def direct(model: nn.Module, images: Tensor, labels: Tensor, settings: AttackSettings) -> Tensor:
    named = isinstance(settings.attacks, str)
    suite = AutoAttack(
        model,
        attacks=None if named else list(settings.attacks),
        eps=settings.eps,
        norm=settings.norm,
        seed=settings.seed,
        version=settings.attacks if named else "custom",
    )
    return suite.run_standard_evaluation(images.float() / 255, labels, batch_size=settings.batch_size)[0]


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}, n = {options.repeats}, WRN-10-1 on {options.count} images of 8 x 8\n")
    print("| case | direct, median CPU s | engine over direct, median | min to max | passes, engine over direct |")
    print("|---|---|---|---|---|")
    model = network()
    images = torch.randint(0, 256, (options.count, 3, 8, 8), dtype=torch.uint8)
    labels = model(images.float() / 255).argmax(1)
    for name, settings in CASES.items():
        for frozen in (False, True):
            model.requires_grad_(not frozen)
            measured = rounds(model, images, labels, settings, options.repeats)
            ratios = [engine / plain for plain, engine in measured]
            print(
                f"| {name}{', parameters of both frozen' if frozen else ''} "
                f"| {statistics.median(plain for plain, _ in measured):.2f} "
                f"| {statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} "
                f"| {passes(model, partial(wrapped, model, images, labels, settings))} / "
                f"{passes(model, partial(direct, model, images, labels, settings))} |",
                flush=True,
            )


def passes(model: nn.Module, work: Callable[[], Tensor]) -> int:
    """Forward passes through the network: a cost that no other process can blur."""
    count = 0

    def hook(*_: object) -> None:
        nonlocal count
        count += 1

    handle = model.register_forward_hook(hook)
    work()
    handle.remove()
    return count


def rounds(
    model: nn.Module, images: Tensor, labels: Tensor, settings: AttackSettings, repeats: int
) -> list[tuple[float, float]]:
    """CPU seconds of the direct call and of the engine, for each round."""
    measured = []
    for turn in range(repeats):
        ways = [partial(way, model, images, labels, settings) for way in (direct, wrapped)]
        (first, found), (second, again) = (seconds(way) for way in (ways if turn % 2 == 0 else ways[::-1]))
        assert torch.equal(found, again)
        measured.append((first, second) if turn % 2 == 0 else (second, first))
    return measured


if __name__ == "__main__":
    main()
