"""`report.md`: all checkpoints of a call side by side, what each figure means, and pictures."""

import os
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from svdctl.evaluate.evaluation_outcome import Evaluation, Failure
from svdctl.evaluate.results import OTHER_DATA, OTHER_DATA_MARK, Record
from svdctl.evaluate.summary_text import ball, comparison, short
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.table import Cell, Column, Table, markdown

TITLES = {
    "accuracy": "Accuracy",
    "ece": "Calibration",
    "cifar-c": "Corruptions",
    "autoattacks": "Attacks",
    "certified": "Certificates",
}
PICTURES = ("reliability.png", "corruptions.png", "certified.png")


def write_report(folder: Path, evaluations: Sequence[Evaluation], failures: Sequence[Failure]) -> Path:
    """Write the comparison of what this call measured or found measured."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.md"
    lines = [
        "# Evaluation",
        "",
        f"svdctl {version('svdctl')}, {time.strftime('%Y-%m-%d %H:%M')}. Data: {evaluations[0].data}, test part, "
        f"{_count(evaluations):,} images.",
        "",
        markdown(comparison(evaluations)),
        *_kept(evaluations),
        *_failures(failures),
        "## Protocols",
        "",
        _protocols(evaluations),
        *_notes(evaluations),
        *(line for evaluation in evaluations for line in _details(evaluation, folder)),
    ]
    write_atomically(path, "\n".join(lines).rstrip() + "\n")
    return path


def _count(evaluations: Sequence[Evaluation]) -> int:
    return next(int(record.protocol["data"]["count"]) for e in evaluations for record in e.records.values())


def _kept(evaluations: Sequence[Evaluation]) -> list[str]:
    """What the marks behind figures mean."""
    marks = {record.kept for evaluation in evaluations for record in evaluation.records.values()}
    lines = []
    if marks - {""}:
        lines.append("kept: measured by an earlier call under the same protocol, read from `results.json`.")
    if "kept, no checksum" in marks:
        lines.append("No checksum: written by a version that made none; a changed figure would go unseen.")
    if "kept" in marks or "kept, no checksum" in marks:
        lines.append("The Lipschitz constant of kept certificates was proved again.")
    if any(record.other_data for evaluation in evaluations for record in evaluation.records.values()):
        lines.append(f"{OTHER_DATA_MARK}: {OTHER_DATA}.")
    return [" ".join(lines), ""] if lines else []


def _failures(failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    lines = [
        f"- {failure.where}{f', {failure.metric}' if failure.metric else ''}: {failure.error}" for failure in failures
    ]
    return ["## What failed", "", *lines, ""]


def _protocols(evaluations: Sequence[Evaluation]) -> str:
    """What is said once for all checkpoints, from the first record of each metric; others are told when they differ."""
    seen: dict[str, dict[str, Any]] = {}
    for record in (record for evaluation in evaluations for record in evaluation.records.values()):
        text = protocol_text(record)
        seen.setdefault(record.metric, {}).setdefault(text, None)
    rows = [[Cell(TITLES[metric]), Cell(text)] for metric, texts in seen.items() for text in texts]
    return markdown(Table([Column("metric", "metric", "left"), Column("protocol", "protocol", "left")], rows))


def _notes(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """In what svdctl's own corruptions differ from the published files."""
    notes = [note for e in evaluations if "cifar-c" in e.records for note in e.records["cifar-c"].results["notes"]]
    if notes:
        yield from ("On the corruptions drawn:", "", *(f"- {note}" for note in dict.fromkeys(notes)), "")


def protocol_text(record: Record) -> str:
    """How a metric was measured, in a sentence or two."""
    protocol, results = record.protocol, record.results
    if record.metric == "accuracy":
        return (
            f"top-1 on {results['count']:,} test images; Wilson's interval at 95 %; precision {protocol['precision']}"
        )
    if record.metric == "ece":
        text = (
            "15 equal bins of confidence, the last one with confidences of 1, weighted mean of the gap; NLL in nats; "
            "Brier score in [0, 2]; precision "
            f"{protocol['precision']}"
        )
        after = results["temperature"]
        return f"{text}; temperature fitted on {after['fitted_on']}" if after else text
    if record.metric == "cifar-c":
        how = (
            "published files"
            if results["source"] == "published"
            else f"svdctl's own corruptions with CIFAR-C's constants, seed {protocol['seed']}"
        )
        return (
            f"{how}; {results['count']:,} test images, {len(results['accuracy'])} corruptions, severities "
            f"{', '.join(map(str, protocol['severities']))}; means over corruptions and severities: "
            f"{', '.join(results['figures']) or 'none'}"
        )
    if record.metric == "autoattacks":
        attacks = protocol["attacks"]
        version_ = f"version {attacks}" if isinstance(attacks, str) else "custom"
        shards = f", joined from {protocol['shards']} shards" if "shards" in protocol else ""
        return (
            f"pyautoattack {results['pyautoattack']}, {version_} ({', '.join(results['after_attack'])}), "
            f"{ball(protocol)}, {results['count']:,} test images drawn from seed {protocol['seed']}, batches of "
            f"{protocol['batch_size']}{shards}; in pixels of [0, 1], every adversarial image verified"
            if protocol["protocol"] == "pixels"
            else f"protocol paper: pyautoattack {results['pyautoattack']} on normalised images, {ball(protocol)}, "
            f"{results['count']:,} test images{shards}; eps is not in pixels, for comparison with the paper's code only"
        )
    return (
        f"l2 in pixels of [0, 1], on {results['count']:,} test images: the margin to each other class over a proved "
        "constant of that difference of logits, at most sqrt(2) L; evaluated in float64, rounding included"
    )


def _details(evaluation: Evaluation, folder: Path) -> Iterator[str]:
    results = evaluation.found.results
    yield from (f"## {evaluation.found.name}", "")
    path = evaluation.found.path
    figures = _link(results / "results.json", folder)
    yield f"`{path}`, weights `{evaluation.subject.weights[:12]}`. All figures: [results.json]({figures})."
    yield ""
    for metric, record in evaluation.records.items():
        yield f"- **{TITLES[metric]}**: {short(record)}{record.mark}. {_how(record)}"
        yield from (f"  - {line}" for line in remarks(record))
    if (order := evaluation.order) is not None:
        yield (
            f"- On the same {order['count']:.0f} images at the attack's eps: certified {order['certified']:.2%} <= "
            f"attacked {order['attacked']:.2%} <= clean {order['clean']:.2%}; no image was changed within its "
            "certified radius."
        )
    yield ""
    shown = [results / name for name in PICTURES if results / name in evaluation.files]
    for picture in shown:
        yield from (f"![{picture.stem}]({_link(picture, folder)})", "")


def _how(record: Record) -> str:
    """How long a figure took and where; of a kept one, which call measured it too."""
    took = f"{record.seconds:.1f} s on {record.environment.get('device', 'a device not known')}"
    return f"Measured {record.environment.get('time', 'at a time not known')}, {took}." if record.kept else f"{took}."


def remarks(record: Record) -> Iterator[str]:
    """What a reader of the figures must know besides."""
    results = record.results
    if record.metric == "ece" and results["temperature"] and not results["temperature"]["determined"]:
        yield "temperature scaling: the held-out likelihood has no best temperature; it stays 1"
    if record.metric == "ece":
        yield from (f"warning: {text}" for text in results.get("warnings", ()))
    if record.metric == "autoattacks":
        yield from (f"left out: {text}" for text in results["left_out"])
        yield from (f"warning: {text}" for text in results["warnings"])
    if record.metric == "certified" and results["vacuous"]:
        yield (
            f"vacuous: with L = {results['lipschitz']:.4g} the largest certified radius is "
            f"{results['largest_radius'] * 255:.3g}/255, below the smallest one asked for"
        )


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix().replace(" ", "%20")
