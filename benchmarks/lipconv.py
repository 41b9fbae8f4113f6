"""What SOC and SOTT layers cost in training: ratios within one run.

    python benchmarks/lipconv.py [--repeats 7] [--threads 2] [--only steps memory]

`steps`: one training step of LipConvNet-5 at batch 128 with SOTT layers of rank 128, with SOC layers, and with SOC in
the plain form, which is written out below. `memory`: LipConvNet-30 at batch 128 with and without
`--checkpoint-activations`: bytes that autograd keeps, peak memory of a fresh process (Linux), time of a step. Every
round times all variants once, in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.cli.training_flags import LIPCONV, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.layers.normalize import Normalize
from svdctl.models.build import build_model, build_optimizer
from svdctl.models.lipconvnet import LipConvNet
from svdctl.utils.machine import machine

BATCH = 128
LAYOUT = torch.channels_last


class PlainSOC(nn.Module):
    """SOC in the plain form: a power step for each of four unfoldings, then one convolution for each of five terms."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, padding: int, bias: bool) -> None:
        super().__init__()
        self.outputs, self.stride, self.padding = outputs, stride, padding
        self.width = width = max(outputs, stride**2 * inputs)
        self.scale = 1.0 if size == 1 else 0.7
        self.kernel = nn.Parameter(torch.randn(width, width, size, size) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        for index, matrix in enumerate(self.unfoldings(self.kernel.detach())):
            self.register_buffer(f"right{index}", F.normalize(torch.randn(matrix.shape[1]), dim=0))

    @staticmethod
    def unfoldings(kernel: Tensor) -> list[Tensor]:
        width, _, size, _ = kernel.shape
        return [
            kernel.reshape(width, width * size * size),
            kernel.permute(2, 0, 3, 1).reshape(width * size, width * size),
            kernel.permute(3, 0, 2, 1).reshape(width * size, width * size),
            kernel.permute(0, 2, 3, 1).reshape(width * size * size, width),
        ]

    def forward(self, x: Tensor) -> Tensor:
        skew = (self.kernel - self.kernel.transpose(0, 1).flip(2, 3)) / 2
        norms = []
        for index, matrix in enumerate(self.unfoldings(skew)):
            right = getattr(self, f"right{index}")
            with torch.no_grad():
                left = F.normalize(matrix @ right, dim=0)
                new = F.normalize(matrix.T @ left, dim=0)
                right.copy_(new)
            norms.append(left @ (matrix @ new))
        kernel = self.scale * skew / torch.stack(norms).min()
        if self.stride > 1:
            x = F.pixel_unshuffle(x, self.stride)
        x = F.pad(x, (0, 0, 0, 0, 0, self.width - x.shape[1]))
        total = power = x
        for term in range(1, 6):
            power = F.conv2d(power, kernel, padding=self.padding) / term
            total = total + power
        return total[:, : self.outputs] + self.bias[:, None, None]


def configuration(preset: str, **flags: object) -> TrainConfig:
    return resolve({"preset": preset, **flags}, LIPCONV).config


def training_step(config: TrainConfig, model: nn.Module) -> Callable[[], None]:
    """Forward, backward (with the penalty, if there is one) and the optimiser's step on random images."""
    model.train().to(memory_format=LAYOUT)
    optimizer = build_optimizer(config.optimizer, model)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(BATCH, 3, 32, 32, generator=generator).contiguous(memory_format=LAYOUT)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)
    controller = Controller.from_config(model, None, None, None)

    def step() -> None:
        loss = F.cross_entropy(model(pixels), labels)
        penalty = controller.penalty()
        loss = loss if penalty is None else loss + penalty
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds by name, in rounds of one run each; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if round_:
                times[name].append(time.perf_counter() - began)
    return times


def print_times(times: dict[str, list[float]], what: str, pairs: list[tuple[str, str, str, str]]) -> None:
    """A table of medians, and one of ratios (title, over, under, wanted) taken round by round."""
    print(f"| {what} | median s | min to max |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} to {max(values):.3f} |")
    print("\n| ratio, round by round | median | min to max | wanted |\n|---|---|---|---|")
    for title, over, under, wanted in pairs:
        ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
        print(
            f"| {title} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | {wanted} |",
            flush=True,
        )
    print()


def steps(repeats: int) -> None:
    soc, sott = configuration("lipconv5-soc"), configuration("lipconv5-sott128")
    torch.manual_seed(0)
    plain = LipConvNet(1, 10, conv=PlainSOC, normalize=Normalize(soc.normalize.mean, soc.normalize.std))
    times = measure(
        {
            "SOC in the plain form": training_step(soc, plain),
            "SOC": training_step(soc, build_model(soc, 10)),
            "SOTT 128": training_step(sott, build_model(sott, 10)),
        },
        repeats,
    )
    print_times(
        times,
        f"training step of LipConvNet-5, batch {BATCH}",
        [
            ("SOC over SOTT 128", "SOC", "SOTT 128", "at least 2.3"),
            ("plain form over SOC", "SOC in the plain form", "SOC", "at least 1"),
            ("plain form over SOTT 128", "SOC in the plain form", "SOTT 128", ""),
        ],
    )


def deep(preset: str, again: bool) -> tuple[TrainConfig, nn.Module]:
    config = configuration(preset, checkpoint_activations=again)
    return config, build_model(config, 10).train().to(memory_format=LAYOUT)


def kept_bytes(preset: str, again: bool) -> int:
    """Bytes that autograd keeps between forward and backward pass, storages counted once, parameters not at all."""
    _, model = deep(preset, again)
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        # The output holds the graph, and the graph what was packed: no storage is freed and counted twice.
        output = model(torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=LAYOUT))
    assert output.requires_grad
    return sum(kept.values())


def resident(field: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at its peak since the last reset."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(field))


def added_peak(preset: str, again: bool) -> int:
    """Bytes that the first forward and backward pass add, at their peak, to this process with its network."""
    _, model = deep(preset, again)
    pixels = torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=LAYOUT)
    F.conv2d(pixels, torch.ones(3, 3, 3, 3), padding=1)  # torch's own libraries, loaded at the first convolution
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    before = resident("VmRSS")
    model(pixels).square().mean().backward()
    return resident("VmHWM") - before


def in_child(preset: str, again: bool, threads: int, **environment: str) -> int:
    """`added_peak` of a fresh process."""
    call = f"added_peak({preset!r}, {again})"
    code = f"import torch, lipconv; torch.set_num_threads({threads}); print(lipconv.{call})"
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=here,
        env={**os.environ, **environment},
    )
    return int(done.stdout)


def memory(preset: str, title: str, repeats: int, threads: int) -> None:
    names = {False: f"{title}, plain", True: f"{title}, --checkpoint-activations"}
    kept = {again: kept_bytes(preset, again) for again in names}
    # Of the C library's heap a part is left in pieces; told so, it gives freed blocks back and shows what is in use.
    used = {again: in_child(preset, again, threads, MALLOC_MMAP_THRESHOLD_=str(2**20)) for again in names}
    peak = {again: in_child(preset, again, threads) for again in names}
    print(f"| memory of LipConvNet-30, batch {BATCH} | plain MiB | --checkpoint-activations MiB | share | wanted |")
    print("|---|---|---|---|---|")
    for what, found, wanted in (
        ("kept for the backward pass", kept, "at most 0.5"),
        ("added to the process at the peak, in use", used, "at most 0.5"),
        ("added to the process at the peak, with the heap's holes", peak, ""),
    ):
        share = found[True] / found[False]
        print(f"| {title}, {what} | {found[False] / 2**20:.0f} | {found[True] / 2**20:.0f} | {share:.2f} | {wanted} |")
    print(flush=True)
    times = measure({name: training_step(*deep(preset, again)) for again, name in names.items()}, repeats)
    print_times(
        times,
        f"training step of LipConvNet-30, batch {BATCH}",
        [(f"{title}, --checkpoint-activations over plain", names[True], names[False], "at most 1.4")],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=("steps", "memory"), default=("steps", "memory"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}, n = {options.repeats}, medians\n")  # fmt: skip
    if "steps" in options.only:
        steps(options.repeats)
    if "memory" in options.only:
        for preset, title in (("lipconv30-sott128", "SOTT 128"), ("lipconv30-soc", "SOC")):
            memory(preset, title, options.repeats, options.threads)


if __name__ == "__main__":
    main()
