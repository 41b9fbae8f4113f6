"""Proved bounds of every layer of torchvision's networks for classification, with random weights, on a CPU.

    python benchmarks/torchvision_bounds.py [--results FILE] [--only 'resnet*' ...] [--tolerance 0.02] [--threads 2]
    python benchmarks/torchvision_bounds.py --table [--results FILE]

Each network is built from a seed in a process of its own, smallest first, and `svdctl.spectrum(..., bounds_only=True)`
runs on it at its own input size. Its figures are one JSON line, appended to the file of results: seconds of the
spectrum alone, on the wall and of the processor; the largest resident memory of the process, and that before the
spectrum (torch and the network). A network that is done is left out of the next call; one that failed is recorded as
failed and tried again. The last line of a network counts.

A layer is a row of the spectrum: a convolution, a matrix or a normalisation. It is covered when it has a proved bound
with upper / lower - 1 at most the tolerance. Parameters of modules that are made of layers (positions, tokens, scales)
are no layers; they are listed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import svdctl
from svdctl.errors import first_line
from svdctl.utils.machine import machine

MOST_PARAMETERS = 100e6
ROUNDING = 1e-9  # of the ends of a bracket that is as wide as was asked for
SECONDS = 3600.0


def networks(most_parameters: float) -> dict[str, int]:
    """Return names and parameters of torchvision's networks for classification, smallest first."""
    counts = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        counts[name] = first_weights(name).meta["num_params"]
    return {name: count for name, count in sorted(counts.items(), key=lambda one: one[1]) if count <= most_parameters}


def first_weights(name: str) -> Any:
    """Return the first set of weights of a network, which says how many it has and at which size it was trained."""
    return next(iter(torchvision.models.get_model_weights(name)))


def built(name: str, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network of torchvision with random weights, and the shape of its input."""
    torch.manual_seed(seed)
    settings = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    (size,) = first_weights(name).transforms().crop_size
    return torchvision.models.get_model(name, weights=None, **settings).eval(), (3, size, size)


def largest_resident() -> int:
    """Return the largest memory of this process so far, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def bounds_of(model: nn.Module, input_shape: tuple[int, ...], tolerance: float) -> dict[str, Any]:
    """Return what the bounds of a network's layers come to, and what they cost."""
    start, began, processor = largest_resident(), time.perf_counter(), time.process_time()
    found = svdctl.spectrum(model, input_shape, tolerance=tolerance, bounds_only=True)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - processor
    kinds: dict[str, int] = {}
    ratios, uncovered, assumed, beside = {}, {}, {}, {}
    modules = dict(model.named_modules())
    for layer in found:
        module = modules.get(layer.name)
        if layer.bound is None and module is not None and any(module.children()):
            beside[layer.title] = [name for name, _ in module.named_parameters(recurse=False)]
            continue
        kinds[layer.kind] = kinds.get(layer.kind, 0) + 1
        if layer.bound is None:
            uncovered[layer.title] = layer.note
            continue
        lower, upper = layer.bound.lower, layer.bound.upper
        ratios[layer.title] = 1.0 if lower == upper else upper / lower if lower else float("inf")
        if upper > lower * (1 + tolerance) * (1 + ROUNDING):
            uncovered[layer.title] = f"its bound is within {ratios[layer.title] - 1:.3g} of its norm"
        if layer.assumption:
            assumed[layer.title] = layer.assumption
    widest = max(ratios, key=lambda title: ratios[title], default="")
    return {
        "input": list(input_shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": len(found) - len(beside),
        "kinds": kinds,
        "uncovered": uncovered,
        "assumed": assumed,
        "beside": beside,
        "widest": {"layer": widest, "bracket": ratios.get(widest)},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory": largest_resident(),
        "memory_before": start,
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one network, of a process of its own; `failed` says why there are none."""
    command = [sys.executable, __file__, "--one", name]
    for setting in ("tolerance", "threads", "seed"):
        command += [f"--{setting}", str(getattr(options, setting))]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it took more than {options.seconds:g} seconds"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"failed": last or f"its process ended with code {done.returncode}"}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last line of each network in a file of results; of a line that a kill cut short nothing."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            figures = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[figures["network"]] = figures
    return found


def append(path: Path, figures: dict[str, Any]) -> None:
    """Append a line to a file, on a line of its own whatever the file ends with."""
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps(figures) + "\n")


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table of results, smallest network first, and what is not covered below it."""
    done = sorted((one for one in found.values() if "failed" not in one), key=lambda one: one["parameters"])
    lines = [
        "| network | input | parameters | layers | not covered | widest bracket | seconds | CPU seconds | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in done:
        width = f"{100 * (one['widest']['bracket'] - 1):.2f} %"
        cells = (
            one["network"], "x".join(map(str, one["input"][1:])), f"{one['parameters'] / 1e6:.1f} M", one["layers"],
            len(one["uncovered"]), width, f"{one['seconds']:.1f}", f"{one['cpu_seconds']:.1f}",
            f"{one['memory'] / 2**30:.2f} GiB",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    layers, uncovered = sum(one["layers"] for one in done), sum(len(one["uncovered"]) for one in done)
    lines += ["", f"{len(done)} networks, {layers} layers, {uncovered} not covered."]
    for kind, told in (("uncovered", "not covered"), ("assumed", "assumed"), ("beside", "beside layers")):
        for reason, names in reasons(done, kind).items():
            lines.append(f"- {told}: {reason}: {names}")
    lines += [f"- failed: {name}: {one['failed']}" for name, one in found.items() if "failed" in one]
    return "\n".join(lines)


def reasons(done: Sequence[dict[str, Any]], kind: str) -> dict[str, str]:
    """Return for each reason the networks that give it, with the number of layers of each."""
    counts: dict[str, dict[str, int]] = {}
    for one in done:
        for given in one[kind].values():
            for reason in [given] if isinstance(given, str) else given:
                of_networks = counts.setdefault(reason, {})
                of_networks[one["network"]] = of_networks.get(one["network"], 0) + 1
    return {reason: ", ".join(f"{name} ({count})" for name, count in own.items()) for reason, own in counts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("torchvision_bounds.jsonl"))
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of names")
    parser.add_argument("--again", action="store_true", help="measure those that are done too")
    parser.add_argument("--table", action="store_true", help="print the table of the results and measure nothing")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-parameters", type=float, default=MOST_PARAMETERS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which a network counts as failed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        torch.set_num_threads(options.threads)
        model, shape = built(options.one, options.seed)
        print(json.dumps({**bounds_of(model, shape, options.tolerance), "machine": machine()}))
        return
    if options.table:
        print(table(read(options.results)))
        return
    known = read(options.results)
    for name in networks(options.most_parameters):
        is_done = name in known and "failed" not in known[name] and known[name]["tolerance"] == options.tolerance
        if (is_done and not options.again) or not any(fnmatchcase(name, pattern) for pattern in options.only):
            continue
        figures = measure(name, options)
        append(options.results, {"network": name, "tolerance": options.tolerance, "seed": options.seed, **figures})
        told = figures.get("failed") or f"{figures['layers']} layers, {figures['seconds']:.1f} s"
        print(f"{name}: {first_line(ValueError(told))}", flush=True)


if __name__ == "__main__":
    main()
