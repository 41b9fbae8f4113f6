"""What training, control, proofs and evaluation cost on a GPU: one run, a line of JSON for each figure as it is found.

    python benchmarks/gpu.py [--only steps control] [--seconds 240] [--tree BEFORE] [--paper-code DIR]

Parts, most important first. `steps`: training steps of WRN-16-10 at batch 128, as svdctl's whole loop, in plain torch
on one resident batch without control, and the latter captured as one CUDA graph; an epoch with proofs and evaluation,
and how long 200 of these take. `control`: control alone, and `clip_` of a network. `proofs`: spectrum, "every layer at
most t" and a seal, beside Gram matrices and `eigvalsh` at the layers' input sizes. `lipconv`: steps of LipConvNet-5.
`evaluation`: corrupted images, certificates and attacks beside the forward passes alone. `corruptions`: svdctl's own
corruptions, drawn. `kernels`: kernels that one step of the loop launches. `compiled`: the dense step again, with
`--compile`. `paper`: the clip of the paper's code, which takes a minute and more of a CPU.

A figure that fails costs itself alone, and a part that fails outside of its figures the rest of itself; a figure that
no time is left for says so. `--tree` measures the sources in another folder too, in a process of its own, after these.
`--paper-code` adds the training step and the clip of the paper's public code, from a checkout of it, which needs
`einops`. `--device cpu --quick` runs everything on tiny networks, to see that it works.
"""

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svdctl
from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.corruption_names import CORRUPTIONS
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.images import ImageData
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import ops_of
from svdctl.layers.shapes import input_sizes
from svdctl.models.build import build_model, build_optimizer
from svdctl.train import setup
from svdctl.train.loop import Loop
from svdctl.train.setup import launch
from svdctl.train.trainer import Trainer
from svdctl.utils.progress import Reporter

LAYOUT = torch.channels_last
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("wrn-cifar10", {}),
    "TT 192, penalty, division, BatchNorm limit": ("wrn-cifar10-divide", {}),
    "TT 192, retracted, division, BatchNorm limit": ("wrn-cifar10-divide", {"frames": "retract"}),
}
NETWORKS = {"TT 192": "wrn-cifar10-tt", "dense": "wrn-cifar10"}
LIPCONVS = {"LipConvNet-5, SOC": "lipconv5-soc", "LipConvNet-5, SOTT 128": "lipconv5-sott128"}


class Bench:
    """One run: its options, its clock and its lines."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick, self.seconds, self.paper_code = options.quick, options.seconds, options.paper_code
        self.rows, self.tree = options.rows, options.label
        self.device = torch.device(options.device)
        self.began = time.perf_counter()
        self.card = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.folder: Path = options.folder

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.began)

    def say(self, **line: object) -> None:
        at = round(time.perf_counter() - self.began, 1)
        print(
            json.dumps({**line, "tree": self.tree, "card": self.card, "torch": torch.__version__, "t": at}), flush=True
        )

    def measure(self, part: str, row: str, way: str, work: Callable[[], dict[str, Any]]) -> None:
        """Say the figures that `work` returns under `values`, with what else it returns; a failure is one line."""
        names = {"part": part, "row": row, "way": way}
        if self.rows and not any(wanted in f"{row} | {way}" for wanted in self.rows):
            return
        if self.left() <= 0:
            self.say(**names, skipped="no time left")
            return
        try:
            found = work()
            values = found.pop("values", None)
            if values:
                found |= {"n": len(values), "median": round(statistics.median(values), 4)}
                found |= {"min": round(min(values), 4), "max": round(max(values), 4)}
            self.say(**names, **found)
        except Exception as error:
            self.say(**names, error=f"{type(error).__name__}: {error}"[:400])
            traceback.print_exc(limit=6)
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(
        self, work: Callable[[], object], n: int, *, inner: int = 1, before: Callable[[], object] | None = None
    ) -> dict[str, Any]:
        """Return milliseconds of `work`: `n` means of `inner` runs in a row, after one round that does not count."""
        values = []
        for round_ in range(n + 1):
            if before is not None:
                before()
            self.wait()
            began = time.perf_counter()
            for _ in range(inner):
                work()
            self.wait()
            if round_:
                values.append((time.perf_counter() - began) / inner * 1e3)
            if self.left() <= 0 and values:
                break
        return {"unit": "ms", "values": values}

    def config(
        self, preset: str, *, precision: str = "bf16-mixed", evaluates: bool = False, **flags: Any
    ) -> TrainConfig:
        """Return a preset that saves nothing and evaluates after each epoch or never; tiny where it is to be quick."""
        lipconv = preset.startswith("lipconv")
        # Of random labels nothing is learned: a small rate keeps the numbers finite.
        sets = ["epochs=1000", "checkpoint.every_epochs=1000", "optimizer.lr=0.001"]
        sets.append(f"evaluation.every_epochs={1 if evaluates else 1000}")
        if self.quick:
            sets += ["batch_size=8", "log.every_steps=2"]
            sets += ["model.in_channels=2"] if lipconv else ["model.width=1", "model.depth=10"]
            if preset.endswith(("tt", "divide", "sott128")):
                sets += ["layer.rank=6"] + ([] if "frames" in flags else ["layer.frames.weight=1"])
        wanted = {"preset": preset, "accelerator": self.device.type, "precision": precision, **flags, "set": sets}
        return resolve(wanted, LIPCONV if lipconv else TRAIN).config

    def network(self, config: TrainConfig) -> nn.Module:
        return build_model(config, 10).to(self.device).to(memory_format=LAYOUT)

    def images(self, count: int) -> ImageData:
        """Return random images in CIFAR's shape: the time of a step does not depend on what they show."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ImageData(pixels, torch.randint(0, 10, (count,), generator=generator), tuple("0123456789"))


class Intervals(Reporter):
    """Stops a loop when enough is timed: milliseconds a step between reports, each of which has read the sums."""

    def __init__(self, warm: int, wanted: int, seconds: float) -> None:
        self.stop = threading.Event()
        self.warm, self.wanted, self.seconds = warm, wanted, seconds
        self.began = time.perf_counter()
        self.values: list[float] = []
        self.last: tuple[int, float] | None = None

    def advance(self, done: int, total: int, now: object) -> None:
        here = time.perf_counter()
        if self.last is not None and done > self.last[0]:
            self.values.append((here - self.last[1]) / (done - self.last[0]) * 1e3)
        if done >= self.warm:
            self.last = done, here
        enough = len(self.values) >= self.wanted
        if enough or (len(self.values) >= 3 and here - self.began > self.seconds):
            self.stop.set()


class Epochs(Intervals):
    """Stops a loop after some evaluations: milliseconds from each to the next."""

    def advance(self, done: int, total: int, now: object) -> None:
        pass

    def finish(self, metrics: Mapping[str, float]) -> None:
        here = time.perf_counter()
        if self.last is not None:
            self.values.append((here - self.last[1]) * 1e3)
        self.last = 0, here
        if len(self.values) >= self.wanted:
            self.stop.set()


def run_loop(bench: Bench, config: TrainConfig, reporter: Any, held_out: int = 16) -> list[str]:
    """Run svdctl's whole loop on CIFAR's number of random images, without checkpoints.

    Returns what the trainer said.
    """
    fabric, said = launch(config), list[str]()
    kernels = getattr(setup, "chosen_kernels", lambda *given: nullcontext())  # older sources have none
    with kernels(config.hardware, fabric.device):
        model = bench.network(config)
        controller = Controller.from_config(model, None, config.control, config.batchnorm)
        data, test = bench.images(60 if bench.quick else 50_000), bench.images(held_out)
        more = {"notice": said.append} if "notice" in Trainer.__dataclass_fields__ else {}  # older sources have none
        trainer = Trainer(config, model, fabric, data, test, controller, **more)
        Loop(trainer, reporter, None, lambda kind: None, reporter.stop).run()
    return said


def whole_loop(bench: Bench, config: TrainConfig) -> dict[str, Any]:
    reporter = Intervals(*((4, 3, 2.0) if bench.quick else (60, 12, 8.0)))
    said = run_loop(bench, config, reporter)
    return {"unit": "ms", "values": reporter.values, "batch": config.batch_size, **({"said": said} if said else {})}


def whole_epochs(bench: Bench, config: TrainConfig) -> dict[str, Any]:
    """Time epochs with the proofs between steps that a run on this device has, the seal, evaluation and report."""
    resolved = getattr(setup, "with_proofs", lambda config, device: config)  # older sources have none
    reporter = Epochs(0, 1 if bench.quick else 2, 0.0)
    run_loop(bench, resolved(config, bench.device), reporter, 16 if bench.quick else 10_000)
    minutes = 200 * statistics.median(reporter.values) / 60e3
    return {"unit": "ms", "values": reporter.values, "200 epochs, minutes": round(minutes, 2)}


def bare_step(bench: Bench, config: TrainConfig) -> Callable[[], None]:
    """Return forward, backward and optimiser on one resident batch, without augmentation, penalty and control."""
    cuda = bench.device.type == "cuda"
    model = bench.network(config).train()
    settings = config.optimizer.model_dump(exclude={"kind", "lr", "clip_norm"})
    rate = torch.tensor(1e-3, device=bench.device) if cuda else 1e-3
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, fused=cuda, **settings)
    data = bench.images(config.batch_size)
    pixels = (data.images.to(bench.device).float() / 255).contiguous(memory_format=LAYOUT)
    labels = data.labels.to(bench.device)
    half = config.hardware.precision == "bf16-mixed"

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
            logits = model(pixels)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return the replay of a step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def training_steps(bench: Bench, part: str, row: str, config: TrainConfig) -> None:
    n, inner = (3, 1) if bench.quick else (7, 20)
    bench.measure(part, row, "svdctl's loop", lambda: whole_loop(bench, config))
    with fastest_convolutions():
        bench.measure(part, row, "bare torch", lambda: bench.timed(bare_step(bench, config), n, inner=inner))
        if bench.device.type == "cuda":
            bench.measure(
                part, row, "bare captured", lambda: bench.timed(captured(bare_step(bench, config)), n, inner=inner)
            )


def steps(bench: Bench) -> None:
    for row, (preset, flags) in STEPS.items():
        training_steps(bench, "steps", row, bench.config(preset, **flags))
    row = list(STEPS)[1]
    preset, flags = STEPS[row]
    whole = bench.config(preset, evaluates=True, **flags)
    bench.measure("steps", row, "an epoch with proofs and evaluation", lambda: whole_epochs(bench, whole))
    if bench.paper_code:
        for row, rank in (("dense", None), ("TT 192, penalty, division, BatchNorm limit", 192)):
            bench.measure("steps", row, "the paper's code", lambda rank=rank: paper_step(bench, rank))


def lipconv(bench: Bench) -> None:
    for row, preset in LIPCONVS.items():
        training_steps(bench, "lipconv", row, bench.config(preset, precision="32"))


def control(bench: Bench) -> None:
    n = 2 if bench.quick else 3
    for row, preset in NETWORKS.items():
        bench.measure("control", row, "clip_ of the network to 1", lambda preset=preset: clip(bench, preset, n))
    for row in list(STEPS)[1:3]:
        preset, flags = STEPS[row]
        config = bench.config(preset, **flags)
        bench.measure("control", row, "control after a step, eager", lambda config=config: control_step(bench, config))


def clip(bench: Bench, preset: str, n: int) -> dict[str, Any]:
    model = bench.network(bench.config(preset))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = bench.timed(lambda: svdctl.clip_(model, max_sigma=1.0), n, before=lambda: model.load_state_dict(start))
    uppers = [svdctl.spectral_norm_bound(layer).upper for layer in convolutions(model).values()]
    return {**found, "largest after": round(max(uppers), 6)}


def control_step(bench: Bench, config: TrainConfig) -> dict[str, Any]:
    model = bench.network(config).train()
    optimizer = build_optimizer(config.optimizer, model)
    controller = Controller.from_config(model, optimizer, config.control, config.batchnorm)
    model(torch.rand(4, 3, 32, 32, device=bench.device)).square().mean().backward()
    optimizer.step()
    return bench.timed(controller.step, 3 if bench.quick else 7, inner=1 if bench.quick else 10)


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a network that `Controller` can control, linear ones left out."""
    layers = Controller.from_config(model, None, None, None).layers
    return {name: layer for name, layer in layers.items() if not ops_of(layer).is_linear}


def proofs(bench: Bench) -> None:
    n = 1 if bench.quick else 3
    for row, preset in NETWORKS.items():
        config = bench.config(preset)
        bench.measure(
            "proofs",
            row,
            "spectrum",
            lambda config=config: bench.timed(partial(svdctl.spectrum, bench.network(config), (3, 32, 32)), n),
        )
        for way, above, sharp in (
            ("every layer at most t, 5 % below it", 0.95, False),
            ("seal, 5 % below the maximum", 0.95, True),
            ("seal, 2 % above the maximum", 1.02, False),
        ):
            work = partial(seal, bench, config, above, sharp)
            bench.measure("proofs", row, way, work)
    for row, preset in NETWORKS.items():
        config = bench.config(preset)
        work = partial(gram_values, bench, config)
        bench.measure("proofs", row, "straightforward: Gram and eigvalsh at the input sizes", work)


def seal(bench: Bench, config: TrainConfig, share: float, sharp: bool) -> dict[str, Any]:
    """Time a seal of a network all of whose convolutions have a norm of `share` times the maximum."""
    model, maximum = bench.network(config), 2.0
    with torch.no_grad():
        for layer in convolutions(model).values():
            bound = svdctl.spectral_norm_bound(layer)
            ops_of(layer).scale_([layer], [share * maximum / ((bound.lower + bound.upper) / 2)])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    controller = Controller(model, method="divide", max_sigma=maximum)
    return bench.timed(
        lambda: controller.seal(sharp=sharp), 2 if bench.quick else 7, before=lambda: model.load_state_dict(start)
    )


@torch.no_grad()
def gram_values(bench: Bench, config: TrainConfig) -> dict[str, Any]:
    """Time all singular values at the input sizes as one writes it down: Fourier transform, Gram matrix, `eigvalsh`."""
    model = bench.network(config)
    sizes = input_sizes(model, (3, 32, 32))
    kernels = [(operator_of(layer), sizes[name]) for name, layer in convolutions(model).items()]

    def values() -> float:
        largest = []
        for conv, size in kernels:
            grid = [length // step for length, step in zip(size, conv.stride, strict=True)]
            kernel = conv.kernel.float().reshape(*conv.kernel.shape[-4:])
            symbol = torch.fft.rfft2(kernel, s=[max(g, k) for g, k in zip(grid, kernel.shape[2:], strict=True)])
            symbol = symbol.permute(2, 3, 0, 1)
            wide = symbol.shape[-1] > symbol.shape[-2]
            gram = symbol @ symbol.mH if wide else symbol.mH @ symbol
            largest.append(torch.linalg.eigvalsh(gram.contiguous())[..., -1].max())
        return float(torch.stack(largest).max().sqrt())

    return bench.timed(values, 1)


def evaluation(bench: Bench) -> None:
    count = 32 if bench.quick else 4_000
    for precision in ("bf16-mixed", "32"):
        bench.measure("evaluation", f"corrupted images, {precision}", "share of the forward passes' speed",
                      lambda precision=precision: published(bench, count, precision))  # fmt: skip
    bench.measure("evaluation", "certificates, LipConvNet-5, SOTT 128, float64", "share of the forward passes' speed",
                  lambda: certificates(bench, 16 if bench.quick else 10_000))  # fmt: skip
    for attack in ("apgd-ce", "apgd-t", "fab-t", "square"):
        for way, more in (("share of the passes' speed", {}), ("the same with --capture off", {"capture": "off"})):
            if more and "capture" not in EvaluateConfig.model_fields:  # older sources
                continue
            work = partial(attacked, bench, attack, 4 if bench.quick else 128, more)
            bench.measure("evaluation", f"attack {attack}, shortened", way, work)


def corruptions(bench: Bench) -> None:
    images = bench.images(16 if bench.quick else 1000).images.to(bench.device)
    for name in CORRUPTIONS[:2] if bench.quick else CORRUPTIONS:
        bench.measure("corruptions", name, "drawn, images a second", lambda name=name: drawn(bench, images, name))


def drawn(bench: Bench, images: Tensor, name: str) -> dict[str, Any]:
    from svdctl.evaluate.corruptions.corruption_functions import corrupt

    found = bench.timed(lambda: corrupt(images, name, 3), 1 if bench.quick else 3)
    return {**found, "images a second": round(len(images) / statistics.median(found["values"]) * 1e3)}


def context_of(bench: Bench, model: nn.Module, count: int, flags: dict[str, Any], labels: Tensor | None = None) -> Any:
    """Return what metrics measure with: a network, random images, and nobody who listens."""
    evaluation = importlib.import_module("evaluation")  # the benchmark beside this one
    inference = importlib.import_module("svdctl.evaluate.inference")
    config = resolve_evaluation({"accelerator": bench.device.type, **flags}).config
    data = evaluation.material(count, 32, labels)
    classifier = inference.Classifier(model, config, lambda text: None)
    return evaluation.measurement_context(classifier, data, config, bench.folder)


def metric(kind: str, context: Any) -> Callable[[], object]:
    from svdctl.evaluate.metric import METRICS, Unfinished

    found = METRICS.get(kind)

    def measure() -> object:
        unfinished = Unfinished(context.folder / "unfinished.json", {})
        unfinished.path.unlink(missing_ok=True)
        return found.measure(context, found.settings(context.config, context.data.data), unfinished)

    return measure


def share(images: int, whole: dict[str, Any], passes: dict[str, Any]) -> dict[str, Any]:
    """Return rates of a measurement and of its passes alone, and how near the one comes to the other."""
    seconds, alone = (statistics.median(found["values"]) / 1e3 for found in (whole, passes))
    rates = {"images a second": round(images / seconds), "passes alone": round(images / alone)}
    return {**whole, **rates, "share": round(alone / seconds, 3)}


def published(bench: Bench, count: int, precision: str) -> dict[str, Any]:
    """Measure on two files in CIFAR-C's format, all severities."""
    model = bench.network(bench.config("wrn-cifar10-tt")).eval()
    names = ["fog", "frost"]
    flags = {"corruptions": names, "cifar_c_root": bench.folder, "precision": precision}
    context = context_of(bench, model, count, flags)
    test = context.data.test
    np.save(bench.folder / "labels.npy", np.tile(test.labels.numpy(), 5))
    for name in names:
        np.save(bench.folder / f"{name}.npy", test.images.permute(0, 2, 3, 1).repeat(5, 1, 1, 1).numpy())
    whole = bench.timed(metric("cifar-c", context), 1 if bench.quick else 2)
    pixels = (test.images[:1000].to(bench.device).float() / 255).contiguous(memory_format=LAYOUT)

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(max(count // len(pixels), 1)):
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                model(pixels)

    passes = bench.timed(forward, 3)
    # Clean images once, and each of two corruptions at five severities.
    passes["values"] = [11 * value for value in passes["values"]]
    return share(11 * count, whole, passes)


def certificates(bench: Bench, count: int) -> dict[str, Any]:
    """Measure without the proof, which is made once for any number of images; its time varies, so each is timed."""
    from svdctl.certificates import Certifier
    from svdctl.evaluate import certificate_metric

    model = bench.network(bench.config("lipconv5-sott128", precision="32")).eval()
    context = context_of(bench, model, count, {})
    proofs: list[float] = []

    def timed_proof(*given: Any, **named: Any) -> Certifier:
        bench.wait()
        began = time.perf_counter()
        certifier = Certifier(*given, **named)
        bench.wait()
        proofs.append((time.perf_counter() - began) * 1e3)
        return certifier

    certificate_metric.Certifier = timed_proof
    try:
        whole = bench.timed(metric("certified", context), 1)
    finally:
        certificate_metric.Certifier = Certifier
    # The first round does not count.
    whole["values"] = [value - proof for value, proof in zip(whole["values"], proofs[1:], strict=True)]
    network = Certifier(model, (3, 32, 32)).network
    pixels = context.data.test.images[:500].to(bench.device).double() / 255

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(max(count // len(pixels), 1)):
            network(pixels)

    return {**share(count, whole, bench.timed(forward, 3)), "proof ms": round(statistics.median(proofs), 1)}


def attacked(bench: Bench, attack: str, count: int, more: dict[str, str]) -> dict[str, Any]:
    """Attack images that mostly withstand, with a tenth of AutoAttack's steps or less, and count passes."""
    from svdctl.evaluate.attack import adversary, attack_metric
    from svdctl.evaluate.attack.attack_progress import Assignment, kept_progress
    from svdctl.evaluate.metric import METRICS

    suite = adversary.AutoAttack

    class Short(suite):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.apgd.n_iter = self.fab.n_iter = 2 if bench.quick else 10
            self.apgd_targeted.n_iter = 2 if bench.quick else 10
            self.square.n_queries = 2 if bench.quick else 300

    model = bench.network(bench.config("wrn-cifar10-tt")).eval().requires_grad_(False)
    pixels = bench.images(count).images.to(bench.device).float() / 255
    labels = model(pixels).argmax(1).cpu()
    flags = {"attacks": [attack], "eps": 1e-4, "batch_size": min(count, 250), "examples": "all", **more}
    context = context_of(bench, model, count, flags, labels)
    calls = {False: 0, True: 0}

    def count_pass(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        calls[torch.is_grad_enabled() and given[0].requires_grad] += len(given[0])

    settings = METRICS.get("autoattacks").settings(context.config, context.data.data)

    def run() -> None:
        calls.update({False: 0, True: 0})
        work = Assignment.make(settings, "weights", context.data, context.probe)
        path = bench.folder / "state.pt"
        path.unlink(missing_ok=True)
        attack_metric.run(context, work, kept_progress(path, work, lambda text: None))

    handle = model.register_forward_pre_hook(count_pass)
    adversary.AutoAttack = Short
    try:
        whole = bench.timed(run, 1)
    finally:
        adversary.AutoAttack = suite
        handle.remove()

    def both() -> None:
        x = pixels.clone().requires_grad_()
        model(x).square().sum().backward()

    with torch.no_grad():
        forward = statistics.median(bench.timed(lambda: model(pixels), 3)["values"]) / count
    twice = statistics.median(bench.timed(both, 3)["values"]) / count
    alone = {"values": [calls[False] * forward + calls[True] * twice]}
    return {**share(count, whole, alone), "forward": calls[False], "forward and backward": calls[True]}


class Kernels(Intervals):
    """Profiles a loop from one report to the next."""

    def __init__(self, warm: int, cuda: bool) -> None:
        super().__init__(warm, 10**9, 60.0)
        self.profile = torch.profiler.profile(
            activities=[getattr(torch.profiler.ProfilerActivity, "CUDA" if cuda else "CPU")]
        )
        self.first: int | None = None
        self.steps = 0

    def advance(self, done: int, total: int, now: object) -> None:
        if self.first is not None:
            self.profile.stop()
            self.steps = done - self.first
            self.stop.set()
        elif done >= self.warm:
            self.first = done
            self.profile.start()


def kernels(bench: Bench) -> None:
    cuda = bench.device.type == "cuda"

    def counted(config: TrainConfig) -> dict[str, Any]:
        reporter = Kernels(2 if bench.quick else 60, cuda)
        run_loop(bench, config, reporter)
        names = [event.name for event in reporter.profile.events()]
        own = [name for name in names if name.startswith("aten::")] if not cuda else names
        copies = sum(name.startswith(("Memcpy", "Memset")) for name in own)
        return {
            "unit": "kernels a step",
            "values": [(len(own) - copies) / reporter.steps],
            "copies": copies / reporter.steps,
        }

    for row, (preset, flags) in STEPS.items():
        config = bench.config(preset, **flags)
        bench.measure("kernels", row, "svdctl's loop", lambda config=config: counted(config))


def compiled(bench: Bench) -> None:
    """Measure the loop of the compiled dense network; compiling takes half a minute."""
    preset, flags = STEPS["dense"]
    config = bench.config(preset, **flags, compile=not bench.quick)
    bench.measure("compiled", "dense", "svdctl's loop", lambda: whole_loop(bench, config))


def paper_modules(folder: Path) -> Any:
    """Import the paper's public code; packages for logs that it imports and this does not need may be missing.

    Raises:
        ModuleNotFoundError: the checkout, or a package that the paper's code needs, is not there.
    """
    for name in ("wandb", "torchsummary"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    names = ("WideResNet", "tt_dec_layer", "SOTT", "utils")
    try:
        return types.SimpleNamespace(**{name: importlib.import_module(f"src.{name}") for name in names})
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        told = (
            f"{folder} holds no checkout of the paper's code: {error.name} is missing there"
            if missing == "src"
            else f"the paper's code needs {missing}: pip install {missing}"
        )
        raise ModuleNotFoundError(told, name=error.name) from error


def paper_network(bench: Bench, rank: int | None) -> tuple[Any, nn.Module, list[tuple[int, ...]]]:
    """Return the paper's modules, its network and the output sizes of its convolutions in order."""
    code = paper_modules(bench.paper_code)
    model = code.WideResNet.wide_resnet16_10(num_classes=10).to(bench.device)
    kinds: tuple[type, ...] = (nn.Conv2d,)
    if rank is not None:
        kinds += (code.tt_dec_layer.ConvDecomposed2D_t,)
        code.tt_dec_layer.conv2tt(model, kinds[1], no_compress_first=False, decomposition_rank=rank)
    sizes: list[tuple[int, ...]] = []
    tops = [layer for layer in model.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(lambda *given: sizes.append(tuple(given[2].shape[2:]))) for layer in tops]
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 32, device=bench.device))
    for hook in hooks:
        hook.remove()
    return code, model, sizes


def paper_step(bench: Bench, rank: int | None) -> dict[str, Any]:
    """Time a step as its training loop makes it, on a resident batch: no data loader."""
    code, model, sizes = paper_network(bench, rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=1e-4, momentum=0.9, nesterov=True)
    data = bench.images(2 if bench.quick else 128)
    pixels, labels = data.images.to(bench.device).float() / 255, data.labels.to(bench.device)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels), labels)
        if rank is not None:
            defect, shapes = code.SOTT.orthogonal_loss(model)
            loss += (1e5 / shapes) * defect
        loss.backward()
        optimizer.step()
        loss.item()
        if rank is not None:
            with torch.no_grad():
                code.utils.clip_batch_norm(model, 10)
                code.utils.constrain_conv(
                    model, mode="divide-by-largest", conv_clip_assign_value=7, linear_clip_assign_value=7,
                    orthogonal=True, outputs=sizes,
                )  # fmt: skip

    return bench.timed(step, 1 if bench.quick else 5, inner=1 if bench.quick else 10)


@torch.no_grad()
def paper_clip(bench: Bench, rank: int | None) -> dict[str, Any]:
    code, model, sizes = paper_network(bench, rank)
    began = time.perf_counter()
    code.utils.constrain_conv(model, mode="clip", conv_clip_assign_value=1, orthogonal=False, outputs=sizes)
    return {"unit": "ms", "values": [(time.perf_counter() - began) * 1e3]}


def paper(bench: Bench) -> None:
    if bench.paper_code:
        for row, rank in (("TT 192", 192), ("dense", None)):
            bench.measure("paper", row, "the paper's clip", lambda rank=rank: paper_clip(bench, rank))


PARTS: dict[str, Callable[[Bench], None]] = {
    "steps": steps,
    "control": control,
    "proofs": proofs,
    "lipconv": lipconv,
    "evaluation": evaluation,
    "corruptions": corruptions,
    "kernels": kernels,
    "compiled": compiled,
    "paper": paper,  # last: nothing stops it in time
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts, in their order")
    parser.add_argument("--rows", nargs="+", help="texts, one of which a figure's row or way must hold")
    parser.add_argument("--seconds", type=float, default=240.0, help="after which no figure is begun, for each tree")
    parser.add_argument("--tree", type=Path, help="folder of other sources, measured afterwards")
    parser.add_argument("--label", default="this", help="what the lines call these sources")
    parser.add_argument("--paper-code", type=Path, help="checkout of the paper's public code")
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        bench = Bench(options)
        bench.say(part="machine", cpus=os.cpu_count(), threads=torch.get_num_threads(), cuda=torch.version.cuda)
        for part, work in PARTS.items():
            if part not in options.only:
                continue
            try:
                work(bench)
            except Exception as error:
                bench.say(part=part, error=f"{type(error).__name__}: {error}"[:400])
                traceback.print_exc(limit=6)
        bench.say(part="end")
    if options.tree is not None:
        flags = ["--device", options.device, "--only", *options.only, "--seconds", str(options.seconds)]
        flags += [*(["--rows", *options.rows] if options.rows else []), *(["--quick"] if options.quick else [])]
        command = [sys.executable, __file__, *flags, "--label", options.tree.name]
        path = os.pathsep.join(filter(None, [str(options.tree.resolve()), os.environ.get("PYTHONPATH", "")]))
        subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True)


if __name__ == "__main__":
    main()
