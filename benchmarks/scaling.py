"""Control shared among processes: the time of one application on 1 and on P processes, in turn within each round.

    python benchmarks/scaling.py [--processes 2 4] [--repeats 5] [--layer tt|dense] [--threads 1]
        [--only clip seal report divide] [--growth]

Beside the time on the clock stands the longest time that any process computed: where processors are fewer than
processes, or busy with something else, the clock tells of them and not of the sharing.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from svdctl.cli.training_flags import resolve
from svdctl.control import actions
from svdctl.control.clip import Clip
from svdctl.control.controller import Controller
from svdctl.control.divide import Divide
from svdctl.distributed.group import Group
from svdctl.distributed.scheduling import LayerScheduler
from svdctl.layers.layer_ops import ops_of
from svdctl.models.build import build_model
from svdctl.utils.machine import processor


def network(layer: str) -> torch.nn.Module:
    """WRN-16-10; kernels are random: norms far above 1, so that every layer is clipped."""
    preset = "wrn-cifar10-tt" if layer == "tt" else "wrn-cifar10"
    flags = {"preset": preset, "frames": "retract"} if layer == "tt" else {"preset": preset}
    return build_model(resolve(flags).config, 10)


class Works:
    """The kinds of work on one network, for a group of processes."""

    def __init__(self, layer: str, group: Group) -> None:
        self.model = network(layer)
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.clip = Controller.from_config(self.model, None, Clip(max_sigma=1.0, every_steps=1), None, group=group)
        self.divide = Controller.from_config(self.model, None, Divide(max_sigma=1.0), None, group=group)

    def of(self, name: str) -> Callable[[], object]:
        return {
            "clip": lambda: self.clip.step(),
            "seal": lambda: self.clip.seal(sharp=False),
            "report": self.clip.report,
            "divide": lambda: self.divide.step(),
        }[name]

    def reset(self) -> None:
        self.model.load_state_dict(self.start)


ORDER = ("clip", "seal", "report", "divide")


def member(options: argparse.Namespace) -> None:
    """One process: takes part, and at rank 0 prints `work | alone | together | computing alone | together`."""
    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    alone, shared = Works(options.layer, Group()), Works(options.layer, Group(rank, world))
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in options.only}
    for round_ in range(options.repeats + 1):
        alone.reset()
        shared.reset()
        for name in options.only:
            mine = timed(alone.of(name)) if rank == 0 else (0.0, 0.0)
            dist.barrier()
            ours = timed(shared.of(name))
            busiest = torch.tensor(ours)
            dist.all_reduce(busiest, dist.ReduceOp.MAX)
            if round_:  # the first warms up, and tells how long each layer takes
                times[name].append((mine[0], float(busiest[0]), mine[1], float(busiest[1])))
    if rank == 0:
        for name, rows in times.items():
            medians = [statistics.median(column) for column in zip(*rows, strict=True)]
            clock, computing = (statistics.median(row[at + 1] / row[at] for row in rows) for at in (0, 2))
            alone_s, shared_s, alone_c, shared_c = (f"{median:.3f}" for median in medians)
            cells = (name, world, alone_s, shared_s, f"{clock:.2f}", alone_c, shared_c, f"{computing:.2f}")
            print("|", " | ".join(map(str, cells)), "|", flush=True)
    messages(world)
    dist.barrier()
    dist.destroy_process_group()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of computing."""
    began, computed = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - computed


def messages(world: int) -> None:
    """What a message costs between these processes: `latency + bytes / bandwidth`."""
    for what, send in (("all-reduce", dist.all_reduce), ("broadcast", lambda values: dist.broadcast(values, 0))):
        found = []
        for size, repeats in ((8, 200), (1 << 22, 10)):
            values = torch.zeros(size)
            send(values)
            dist.barrier()
            began = time.perf_counter()
            for _ in range(repeats):
                send(values)
            found.append((time.perf_counter() - began) / repeats)
        if dist.get_rank() == 0:
            speed = 4 * (1 << 22) / (found[1] - found[0]) / 1e9
            print(f"  {what} on {world}: {found[0] * 1e6:.0f} us, {speed:.2f} GB/s", flush=True)


def growth(options: argparse.Namespace) -> None:
    """What each layer's clip takes in one process, and what the busiest of P processes would have to do of it."""
    torch.set_num_threads(options.threads)
    works = Works(options.layer, Group())
    times: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        works.reset()
        for name, layer in works.clip.controlled().items():
            times.setdefault(name, []).append(timed(lambda layer=layer: actions.clip_layers_([layer], [1.0]))[1])
    costs = {name: statistics.median(found) for name, found in times.items()}
    total = sum(costs.values())
    sent = sum(t.numel() * t.element_size() for layer in works.clip.controlled().values()
               for t in ops_of(layer).tensors(layer))  # fmt: skip
    print(f"{len(costs)} layers, {total:.2f} s, the largest {max(costs.values()) / total:.3f} of it; "
          f"{sent / 2**20:.1f} MiB are sent, and as much momentum where frames have it\n")  # fmt: skip
    print("| layer | s | share |\n|---|---|---|")
    for name, seconds in costs.items():
        print(f"| {name} | {seconds:.3f} | {seconds / total:.3f} |")
    print("\n| processes | busiest, share of all | speed-up |\n|---|---|---|")
    for world in (1, 2, 4, 8, 13, 16, 64):
        busiest = max(
            sum(costs[name] for name in LayerScheduler(costs, Group(rank, world)).mine()) for rank in range(world)
        )
        print(f"| {world} | {busiest / total:.3f} | {total / busiest:.1f} |")


def start(options: argparse.Namespace, world: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
            "OMP_NUM_THREADS": str(options.threads)}  # fmt: skip
    command = [sys.executable, __file__, "--layer", options.layer, "--repeats", str(options.repeats),
               "--threads", str(options.threads), "--only", *options.only]  # fmt: skip
    members = [subprocess.Popen(command, env={**base, "RANK": str(rank)}) for rank in range(world)]
    if any(process.wait() for process in members):
        raise SystemExit("a process failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layer", choices=("tt", "dense"), default="tt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER, help="in this order: a seal after a clip")
    parser.add_argument("--growth", action="store_true", help="layer by layer in one process, and what follows")
    options = parser.parse_args()
    if "RANK" in os.environ:
        member(options)
        return
    print(f"{processor()}, {os.cpu_count()} CPUs, {options.threads} threads a process, "
          f"torch {torch.__version__}, WRN-16-10 {options.layer}, n = {options.repeats}, medians\n")  # fmt: skip
    if options.growth:
        growth(options)
        return
    print("| work | processes | alone s | together s | ratio | computing alone s | busiest s | ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for world in options.processes:
        start(options, world)


if __name__ == "__main__":
    main()
